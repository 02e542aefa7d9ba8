"""Reads the code of one call of Gemma 4, ``call:python{code:<|"|>...<|"|>}``, exact or with errors.

Takes linear time; see `aimo_solver.chat.salvage`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from aimo_solver.chat.prompts import TOOL, TOOL_PARAMETER
from aimo_solver.chat.reading import PYTHON_NAMES, unknown_tool
from aimo_solver.chat.salvage import CODE_KEYS, LONGEST_NAME, Code, bare_code, code_in_json, compiles, is_program, name_in_json
from aimo_solver.chat.turns import Malformed

QUOTE = "\udc00"
"""Replaces the token ``<|"|>`` in the text of a call; no decoded text contains a lone surrogate."""

_NO_CODE = Malformed('Your call holds no code. Write it as call:python{code:<|"|>...<|"|>}.')
_EXACT = re.compile(rf"call:{TOOL}\{{{TOOL_PARAMETER}:{QUOTE}([^{QUOTE}]*+){QUOTE}\}}")
_CALL = re.compile(r"\s*+(?:call)?+\s*+:?+\s*+([\w.:\-]*+)\s*+[{(\[]++(.*+)", re.DOTALL)
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*+\Z")
_NEXT_KEY = re.compile(rf"\s*+,\s*+[{QUOTE}\"']?+[A-Za-z_]\w*+[{QUOTE}\"']?+\s*+[:=]")
_LAST = re.compile(r"\s*+[})\]]*+\s*+")
_CODE_KEY = re.compile(rf"\s*+[{QUOTE}\"']?+(?:{'|'.join(CODE_KEYS)})[{QUOTE}\"']?+\s*+[:=]\s*+")


def code_of(call: str) -> Code | Malformed:
    """Returns the code of one call, or why there is none. `call` has `QUOTE` in place of the quote token."""
    exact = _EXACT.fullmatch(call)
    if exact is not None:
        return bare_code(exact.group(1)) or _NO_CODE
    place = _CALL.match(call)
    if place is None:
        return _NO_CODE
    name, arguments = place.groups()
    name = name or name_in_json("{" + arguments)
    known = not name or name in PYTHON_NAMES
    code = _code_in(arguments, known=known)
    if code is None or not (known or is_program(code.text)):
        return _NO_CODE if known else unknown_tool(name)
    return code.noted("a call in another form" if name == TOOL else f"unknown tool {name[:LONGEST_NAME]!r}")


def _code_in(arguments: str, *, known: bool) -> Code | None:
    """The code in the arguments, which must name it if the tool is unknown."""
    strings = _strings(arguments)
    for key in (*CODE_KEYS, *(strings if known else ())):
        if key in strings:
            inner = QUOTE in strings[key]  # the model used quote tokens for Python's quotes
            return bare_code(strings[key].replace(QUOTE, '"'), "quote tokens inside the code" if inner else None)
    if QUOTE not in arguments and re.search(r"[\"'`]", arguments):
        found = code_in_json("{" + arguments)
        if found is not None:
            return Code(found.text, "arguments in JSON")
    return _broken_arguments(arguments) if known or _CODE_KEY.match(arguments) else None


def _strings(arguments: str) -> dict[str, str]:
    """The strings in quote tokens by their keys, in lower case.

    A string begins at a quote after a key and ends at the next run of quotes that another key or the end follows.
    """
    found: dict[str, str] = {}
    parts = arguments.split(QUOTE)
    key: str | None = None
    begin = ended = 0
    for place in range(1, len(parts)):  # the quote before parts[place]
        if key is None:
            key, begin = _key_before(parts[max(ended, place - 2) : place]), place
        elif (parts[place] or place == len(parts) - 1) and _ends_string(parts[place : place + 3]):
            found[key] = QUOTE.join(parts[begin:place]).rstrip(QUOTE)
            key, ended = None, place
    return found


def _key_before(parts: Sequence[str]) -> str | None:
    """The key that these parts end with, with or without quote tokens."""
    text = QUOTE.join(parts).rstrip()
    if not text.endswith((":", "=")):
        return None
    name = text[:-1].rstrip()
    if name.endswith((QUOTE, '"', "'")):
        name = name[:-1]
    place = _IDENTIFIER.search(name[-LONGEST_NAME:])
    return place.group().lower() if place else None


def _ends_string(parts: Sequence[str]) -> bool:
    """Whether the quote before these parts ends a string; three parts of the text after it are enough."""
    if len(parts) == 1 and _LAST.fullmatch(parts[0]):
        return True
    return _NEXT_KEY.match(QUOTE.join(parts)) is not None


def _broken_arguments(arguments: str) -> Code | None:
    """The code of arguments without quotes, or of a string without an end."""
    key = _CODE_KEY.match(arguments)
    text = (arguments[key.end() :] if key else arguments).removeprefix(QUOTE)
    closed = text.rstrip()
    if closed.endswith(("}", ")", "]")):
        closed = closed[:-1].rstrip()
    closed = closed.removesuffix(QUOTE).replace(QUOTE, '"')
    whole = text.replace(QUOTE, '"')
    return bare_code(whole if not compiles(closed) and compiles(whole) else closed, "broken arguments")
