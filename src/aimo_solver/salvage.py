"""Mending what models write almost right: code with stray fences, cut or broken JSON, code in the wrong place."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import warnings
from dataclasses import dataclass

CODE_KEYS = ("code", "source", "script", "python", "python_code", "input")
"""Names under which models put the code, the declared one first."""

_FENCED = re.compile(
    r"\A(`{3,}|~{3,})[ \t]*(?:python3?|py|ipython|json)?[ \t]*\n(.*?)(?:\n?[ \t]*\1[ \t]*)?\Z", re.DOTALL | re.IGNORECASE
)
_PYTHON_BLOCK = re.compile(
    r"^[ \t]*```[ \t]*(?:python3?|py)[ \t]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE | re.IGNORECASE
)
_KEY = "|".join(CODE_KEYS)
_STRING_VALUE = re.compile(rf"""["']?(?:{_KEY})["']?\s*[:=]\s*(\"{{3}}|'{{3}}|["'`])""")
_BAD_ESCAPE = re.compile(r'\\(?:[\\"/bfnrt]|u[0-9a-fA-F]{4})|\\')


@dataclass(frozen=True, slots=True)
class Code:
    """Code found in a call. `mended` says what was wrong, None if nothing."""

    text: str
    mended: str | None = None


def compiles(code: str) -> bool:
    """Whether the code is Python by itself, without a notebook's magics."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def bare_code(code: str, mended: str | None = None) -> Code | None:
    """Code without a Markdown fence around it, None if nothing is left. Code that is Python as it stands is not touched."""
    if not code.strip():
        return None
    stripped = code.strip()
    if stripped.startswith(("```", "~~~")) and not compiles(code):
        place = _FENCED.match(stripped)
        if place is not None and place.group(2).strip():
            return Code(place.group(2), mended or "code inside fences")
    return Code(code, mended)


def python_blocks(text: str) -> list[str]:
    """The code of the closed ```python blocks of a text."""
    return [place.group(1) for place in _PYTHON_BLOCK.finditer(text) if place.group(1).strip()]


def code_in_json(text: str) -> Code | None:
    """The code in a call's JSON arguments, whole or broken, None if there is none.

    Understood: the object itself, ``{"name": ..., "arguments": {...}}``, ``parameters`` for ``arguments``, arguments that
    are JSON in a string; Python's notation of a dict; raw newlines and LaTeX backslashes inside strings; an end that is
    cut off; quotes inside the code that should have been escaped; a fence around it all.
    """
    whole = text.strip()
    place = _FENCED.match(whole)
    fenced = place is not None
    if place is not None:
        whole = place.group(2).strip()
    mended = "JSON inside fences" if fenced else None
    for reading, note in _readings(whole):
        code = _code_of_value(reading)
        if code is not None:
            return bare_code(code.text, mended or note or code.mended)
    code_text = _cut_out(whole)
    return None if code_text is None else bare_code(code_text, mended or "broken JSON")


def _readings(text: str) -> list[tuple[object, str | None]]:
    found: list[tuple[object, str | None]] = []
    decoder = json.JSONDecoder(strict=False)
    escaped = _BAD_ESCAPE.sub(lambda place: place.group() if len(place.group()) > 1 else "\\\\", text)
    for candidate, note in (
        (text, None),
        (escaped, "backslashes not escaped"),
        (re.sub(r",\s*([}\]])", r"\1", text), "a comma too much"),
        (text + "}", "a brace missing"),
        (text + "}}", "braces missing"),
        (text + '"}}', "the end missing"),
        (text + '"}', "the end missing"),
    ):
        try:
            value, end = decoder.raw_decode(candidate)
        except (ValueError, RecursionError):
            continue
        rest = candidate[end:].strip()
        if isinstance(value, (dict, list)):
            raw_newline = note is None and "\n" in text and not _strict(text)
            found.append(
                (value, note or ("text after the JSON" if rest else None) or ("newlines not escaped" if raw_newline else None))
            )
            break
    if not found and text[:1] == "{":
        with contextlib.suppress(SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            found.append((ast.literal_eval(text), "Python's notation instead of JSON"))
    return found


def _strict(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _code_of_value(value: object) -> Code | None:
    if isinstance(value, list):
        value = value[0] if value else None
    if not isinstance(value, dict):
        return None
    for outer in ("arguments", "parameters", "args", "function"):
        inner = value.get(outer)
        if isinstance(inner, dict):
            return _code_of_value(inner)
        if isinstance(inner, str) and inner.strip():
            nested = code_in_json(inner) if inner.lstrip().startswith("{") else None
            return Code(nested.text if nested else inner, "arguments in a string")
    for key in CODE_KEYS:
        if isinstance(value.get(key), str):
            return Code(value[key], None if key == CODE_KEYS[0] else f"the code was in {key!r}")
        if isinstance(value.get(key), list) and all(isinstance(line, str) for line in value[key]):
            return Code("\n".join(value[key]), "the code was a list of lines")
    return None


def _cut_out(text: str) -> str | None:
    """The code between the quotes behind its key, with JSON's escapes undone where there are any."""
    place = _STRING_VALUE.search(text)
    if place is None:
        return None
    quote = place.group(1)
    body = text[place.end() :]
    end = re.search(rf"(?<!\\){re.escape(quote)}\s*,?\s*[}}\])\s]*\Z", body)
    inner = body[: end.start()] if end else body.rstrip()
    if len(quote) == 1 and re.search(r'\\[n"t\\]', inner) and not ("\n" in inner.strip() and compiles(inner)):
        inner = re.sub(
            r'\\(["\\/nrtbf])',
            lambda p: {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f"}.get(p.group(1), p.group(1)),
            inner,
        )
    return inner
