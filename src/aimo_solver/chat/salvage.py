"""Mending what models write almost right: code with stray fences, cut or broken JSON, code in the wrong place.

Everything here is linear in the length of the text and never raises: a model that repeats itself writes a hundred thousand
brackets, and this runs on the one event loop. Texts are searched with scanners, or with expressions that cannot backtrack
(possessive quantifiers). What only CPython's parser can tell is asked for short texts only.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

CODE_KEYS = ("code", "source", "script", "python", "python_code", "input")
"""Names under which models put the code, the declared one first."""

LONGEST_PARSED = 4_096
"""Characters of the longest text that is given to CPython's parser, which takes up to 2 us for each. Of 2,301 real calls 99.3 %
are shorter."""

_OUTER_KEYS = ("arguments", "parameters", "args", "function")
_KEY = "|".join(CODE_KEYS)
_FENCE = re.compile(r"(`{3,}+|~{3,}+)[ \t]*+(?:python3?|py|ipython|json)?[ \t]*+\n", re.IGNORECASE)
_PYTHON_FENCE = re.compile(r"[ \t]*+```[ \t]*+(?:python3?|py)[ \t]*+", re.IGNORECASE)
_STRING_VALUE = re.compile(rf"""(?:{_KEY})["']?+\s*+[:=]\s*+(\"{{3}}|'{{3}}|["'`])""")
_ESCAPE = re.compile(r'((?:\\(?:[\\"/bfnrt]|u[0-9a-fA-F]{4}))++)|\\')
_TRAILING_COMMA = re.compile(r",\s*+([}\]])")
_SPACE = "".join(character for character in map(chr, range(0x3001)) if character.isspace())
_UNESCAPED = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", '"': '"', "\\": "\\", "/": "/"}
_PARSER_FAULTS = (SyntaxError, ValueError, TypeError, RecursionError, MemoryError)


@dataclass(frozen=True, slots=True)
class Code:
    """Code found in a call. `mended` says what was wrong, None if nothing."""

    text: str
    mended: str | None = None


def compiles(code: str) -> bool:
    """Whether the code is Python by itself, without a notebook's magics. Code beyond `LONGEST_PARSED` is not looked at: False."""
    if len(code) > LONGEST_PARSED:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(code)
    except _PARSER_FAULTS:
        return False
    return True


def bare_code(code: str, mended: str | None = None) -> Code | None:
    """Code without a Markdown fence around it, None if nothing is left. Code that is Python as it stands is not touched."""
    stripped = code.strip()
    if not stripped:
        return None
    inside = _unfenced(stripped)
    if inside is None or not inside.strip() or (stripped[0] == "~" and compiles(code)):  # `~~~x` is Python, backquotes never are
        return Code(code, mended)
    return Code(inside, mended or "code inside fences")


def python_blocks(text: str) -> list[str]:
    """The code of the closed ```python blocks of a text."""
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
    """The code in a call's JSON arguments, whole or broken, None if there is none.

    Understood: the object itself, ``{"name": ..., "arguments": {...}}``, ``parameters`` for ``arguments``, arguments that
    are JSON in a string; Python's notation of a dict; raw newlines and LaTeX backslashes inside strings; an end that is
    cut off; quotes inside the code that should have been escaped; a fence around it all.
    """
    whole = text.strip()
    inside = _unfenced(whole)
    mended = None if inside is None else "JSON inside fences"
    whole = whole if inside is None else inside.strip()
    reading = _read(whole)
    if reading is not None:
        value, note = reading
        code = _code_of_value(value)
        if code is not None:
            return bare_code(code.text, mended or note or code.mended)
    code_text = _cut_out(whole)
    return None if code_text is None else bare_code(code_text, mended or "broken JSON")


def _unfenced(text: str) -> str | None:
    """What stands behind the Markdown fence that a text begins with, up to its closing fence or the end; None without one."""
    opening = _FENCE.match(text)
    if opening is None:
        return None
    inside = text[opening.end() :]
    closed = inside.rstrip(" \t")
    if not closed.endswith(opening.group(1)):
        return inside
    return closed.removesuffix(opening.group(1)).rstrip(" \t").removesuffix("\n")


def _read(text: str) -> tuple[object, str | None] | None:
    """The first JSON value that the text can be read as, and what was wrong with it."""
    decoder = json.JSONDecoder(strict=False)
    for candidate, note in _candidates(text):
        try:
            value, end = decoder.raw_decode(candidate)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, (dict, list)):
            if note is None and candidate[end:].strip():
                note = "text after the JSON"
            if note is None and "\n" in text and not _strict(text):
                note = "newlines not escaped"
            return value, note
    if text[:1] == "{" and len(text) <= LONGEST_PARSED:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return ast.literal_eval(text), "Python's notation instead of JSON"
        except _PARSER_FAULTS:
            pass
    return None


def _candidates(text: str) -> Iterator[tuple[str, str | None]]:
    yield text, None
    if text[:1] not in ("{", "["):
        return
    yield _ESCAPE.sub(lambda place: place[1] or "\\\\", text), "backslashes not escaped"
    yield _TRAILING_COMMA.sub(r"\1", text), "a comma too much"
    for end, note in (("}", "a brace missing"), ("}}", "braces missing"), ('"}}', "the end missing"), ('"}', "the end missing")):
        yield text + end, note


def _strict(text: str) -> bool:
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
    """The code between the quotes behind its key, with JSON's escapes undone where there are any."""
    place = _STRING_VALUE.search(text)
    if place is None:
        return None
    quote = place.group(1)
    inner = _before_quote(text[place.end() :], quote)
    # With newlines as they are, a backslash is more likely the code's own.
    own = "\n" in inner.strip() and (len(inner) > LONGEST_PARSED or compiles(inner))
    if len(quote) == 1 and not own and re.search(r'\\[n"t\\]', inner):
        inner = re.sub(r'\\(["\\/nrtbf])', lambda escape: _UNESCAPED[escape[1]], inner)
    return inner


def _before_quote(body: str, quote: str) -> str:
    """A string's inside, up to the quote behind which only a comma and closing brackets follow; all of it if there is none."""
    end = body.rstrip(f"{_SPACE}}}])")
    end = end.removesuffix(",").rstrip()
    if not end.endswith(quote) or end.removesuffix(quote).endswith("\\"):
        return body.rstrip()
    return end.removesuffix(quote)
