"""Finds code in almost correct calls: stray fences, truncated or broken JSON, code in the wrong place.

Everything here takes linear time and never raises: a model that repeats itself writes a hundred thousand brackets, and this
runs on the event loop. Texts are searched with scanners or with possessive quantifiers, which do not backtrack. Only short
texts are passed to CPython's parser.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

CODE_KEYS = ("code", "source", "script", "python", "python_code", "input")
"""Keys under which models put the code, the declared one first."""

LONGEST_PARSED = 4_096
"""Characters of the longest text given to CPython's parser, which takes up to 2 us per character. 99.3 % of 2,301 real calls
are shorter."""

LONGEST_NAME = 40
"""Longer names of tools and keys are cut to this."""

_OUTER_KEYS = ("arguments", "parameters", "args", "function")
_KEY = "|".join(CODE_KEYS)
_FENCE = re.compile(r"(`{3,}+|~{3,}+)[ \t]*+(?:python3?|py|ipython|json)?[ \t]*+\n", re.IGNORECASE)
_PYTHON_FENCE = re.compile(r"[ \t]*+```[ \t]*+(?:python3?|py)[ \t]*+", re.IGNORECASE)
_STRING_VALUE = re.compile(rf"""(?:{_KEY})["']?+\s*+[:=]\s*+(\"{{3}}|'{{3}}|["'`])""")
_ESCAPE = re.compile(r'((?:\\(?:[\\"/bfnrt]|u[0-9a-fA-F]{4}))++)|\\')
_BETWEEN = frozenset(" \t\r\n,;")  # objects in a row
_TRAILING_COMMA = re.compile(r",\s*+([}\]])")
_SPACE = "".join(character for character in map(chr, range(0x3001)) if character.isspace())
_UNESCAPED = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", '"': '"', "\\": "\\", "/": "/"}
_OPERATIONS = (ast.Call, ast.Await, ast.Subscript, ast.Add, ast.Mult, ast.Mod, ast.Pow, ast.FloorDiv)
_PARSER_FAULTS = (SyntaxError, ValueError, TypeError, RecursionError, MemoryError)


@dataclass(frozen=True, slots=True)
class Code:
    """Code found in a call. `salvaged` says what was repaired, None if nothing."""

    text: str
    salvaged: str | None = None

    def noted(self, salvaged: str | None) -> Code:
        """Returns the same code, with this note if it has none."""
        return replace(self, salvaged=self.salvaged or salvaged)


def compiles(code: str) -> bool:
    """Whether the code is plain Python, without a notebook's magics. False for code longer than `LONGEST_PARSED`."""
    return _parsed(ast.parse, code) is not None


def is_program(code: str) -> bool:
    """Whether the code compiles and computes something; a word, a list of numbers or ``query: "x"`` does not."""
    tree = _parsed(ast.parse, code)
    return isinstance(tree, ast.Module) and any(map(_computes, tree.body))


def _computes(statement: ast.stmt) -> bool:
    if isinstance(statement, (ast.Pass, ast.Break, ast.Continue)):
        return False
    if isinstance(statement, ast.AnnAssign):
        return statement.value is not None
    if not isinstance(statement, ast.Expr):
        return True
    nodes = {type(node) for node in ast.walk(statement.value)}
    # Words with hyphens or slashes between them also compile, and so do "primes in intervals" and "sum is even".
    return not nodes.isdisjoint(_OPERATIONS) or (ast.Name not in nodes and not nodes.isdisjoint((ast.BinOp, ast.Compare)))


def _parsed(parse: Callable[[str], object], text: str) -> object:
    """What CPython's parser makes of a text; None if it is too long or cannot be parsed."""
    if len(text) > LONGEST_PARSED:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return parse(text)
    except _PARSER_FAULTS:
        return None


def bare_code(code: str, salvaged: str | None = None) -> Code | None:
    """Returns the code without a Markdown fence around it, None if nothing is left. Unfenced code is not changed."""
    stripped = code.strip()
    if not stripped:
        return None
    inside = _unfenced(stripped)
    if inside is None or not inside.strip() or (stripped[0] == "~" and compiles(code)):  # `~~~x` is Python, backquotes never are
        return Code(code, salvaged)
    return Code(inside, salvaged or "code inside fences")


def calls_in_json(text: str) -> list[str]:
    """Returns the calls of a JSON list or of JSON objects in a row; the text itself if it does not consist of several."""
    whole = text.strip()
    calls: list[object] = []
    decoder = json.JSONDecoder(strict=False)
    try:
        if whole.startswith("["):
            value, _ = decoder.raw_decode(whole)
            calls = value if isinstance(value, list) else []
        place = 0
        while whole.startswith("{", place):
            value, place = decoder.raw_decode(whole, place)
            calls.append(value)
            if not _is_call(value):
                break
            while whole[place : place + 1] in _BETWEEN:
                place += 1
    except (ValueError, RecursionError):
        return [text]
    if len(calls) < 2 or not all(map(_is_call, calls)) or not any(map(_code_of_value, calls)):
        return [text]
    return [json.dumps(call) for call in calls]


def name_in_json(text: str) -> str:
    """Returns the name of the tool in a call's JSON, "" if it names none."""
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        name = re.search(r"""["']?name["']?\s*+:\s*+["']([^"']*+)["']""", text.partition(CODE_KEYS[0])[0])
        return name.group(1) if name else ""
    for key in ("name", "function"):
        if isinstance(value, dict) and key in value:
            value = value[key]
    return value if isinstance(value, str) else ""


def _is_call(value: object) -> bool:
    return isinstance(value, dict) and ("name" in value or _code_of_value(value) is not None)


def python_blocks(text: str) -> list[str]:
    """Returns the code of the closed ```python blocks of a text."""
    blocks: list[str] = []
    lines: list[str] | None = None
    for line in text.split("\n"):
        if lines is None:
            lines = [] if _PYTHON_FENCE.fullmatch(line) else None
        elif line.strip(" \t") == "```":
            blocks.append("".join(lines))
            lines = None
        else:
            lines.append(f"{line}\n")
    return [block for block in blocks if block.strip()]


def code_in_json(text: str) -> Code | None:
    """Returns the code in a call's JSON arguments, None if there is none.

    Accepts the object itself, ``{"name": ..., "arguments": {...}}``, ``parameters`` for ``arguments``, arguments as JSON in a
    string, a Python dict, raw newlines and LaTeX backslashes in strings, a truncated end, unescaped quotes in the code, and a
    fence around it all.
    """
    whole = text.strip()
    inside = _unfenced(whole)
    fenced = None if inside is None else "JSON inside fences"
    whole = whole if inside is None else inside.strip()
    value, note = _read_json(whole)
    code = _code_of_value(value)
    if code is not None:
        return bare_code(code.text, fenced or note or code.salvaged)
    code_text = _cut_out(whole)
    return None if code_text is None else bare_code(code_text, fenced or "broken JSON")


def _unfenced(text: str) -> str | None:
    """The text between the Markdown fence at its beginning and the closing fence or the end; None without a fence."""
    opening = _FENCE.match(text)
    if opening is None:
        return None
    inside = text[opening.end() :]
    closed = inside.rstrip(" \t")
    if not closed.endswith(opening.group(1)):
        return inside
    return closed.removesuffix(opening.group(1)).rstrip(" \t").removesuffix("\n")


def _read_json(text: str) -> tuple[object, str | None]:
    """The first JSON object or list that can be read from the text, None if none, and what was repaired."""
    decoder = json.JSONDecoder(strict=False)
    for candidate, note in _repairs(text):
        try:
            value, end = decoder.raw_decode(candidate)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, (dict, list)):
            if note is None and candidate[end:].strip():
                note = "text after the JSON"
            if note is None and "\n" in text and not is_json(text):
                note = "newlines not escaped"
            return value, note
    return _parsed(ast.literal_eval, text) if text[:1] == "{" else None, "Python's notation instead of JSON"


def _repairs(text: str) -> Iterator[tuple[str, str | None]]:
    yield text, None
    if text[:1] not in ("{", "["):
        return
    yield _ESCAPE.sub(lambda place: place[1] or "\\\\", text), "backslashes not escaped"
    yield _TRAILING_COMMA.sub(r"\1", text), "a comma too many"
    for end, note in (("}", "a brace missing"), ("}}", "braces missing"), ('"}}', "the end missing"), ('"}', "the end missing")):
        yield text + end, note


def is_json(text: str) -> bool:
    """Whether all of the text is one JSON value."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _code_of_value(value: object) -> Code | None:
    if isinstance(value, list):
        value = value[0] if value else None
    inner = _inner(value)
    while isinstance(inner, dict):  # no recursion: objects can be nested deeper than Python's stack
        value, inner = inner, _inner(inner)
    if isinstance(inner, str):
        nested = code_in_json(inner) if inner.lstrip().startswith("{") else None
        return Code(nested.text if nested else inner, "arguments in a string")
    if not isinstance(value, dict):
        return None
    for key in CODE_KEYS:
        if isinstance(value.get(key), str):
            return Code(value[key], None if key == CODE_KEYS[0] else f"the code was in {key!r}")
        if isinstance(value.get(key), list) and all(isinstance(line, str) for line in value[key]):
            return Code("\n".join(value[key]), "the code was a list of lines")
    return None


def _inner(value: object) -> dict[str, object] | str | None:
    """The arguments in an object, None if it holds none."""
    found = (value.get(key) for key in _OUTER_KEYS) if isinstance(value, dict) else ()
    return next((inner for inner in found if isinstance(inner, dict) or (isinstance(inner, str) and inner.strip())), None)


def _cut_out(text: str) -> str | None:
    """The code between the quotes after its key, with JSON's escapes undone where there are any."""
    place = _STRING_VALUE.search(text)
    if place is None:
        return None
    quote = place.group(1)
    inner = _before_quote(text[place.end() :], quote)
    # Next to raw newlines, a backslash more likely belongs to the code.
    own = "\n" in inner.strip() and (len(inner) > LONGEST_PARSED or compiles(inner))
    if len(quote) == 1 and not own and re.search(r'\\[n"t\\]', inner):
        inner = re.sub(r'\\(["\\/nrtbf])', lambda escape: _UNESCAPED[escape[1]], inner)
    return inner


def _before_quote(body: str, quote: str) -> str:
    """The inside of a string, up to a quote that only a comma and closing brackets follow; all of it without one."""
    end = body.rstrip(f"{_SPACE}}}])")
    end = end.removesuffix(",").rstrip()
    if not end.endswith(quote) or end.removesuffix(quote).endswith("\\"):
        return body.rstrip()
    return end.removesuffix(quote)
