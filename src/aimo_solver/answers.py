r"""Reads the integer answer in a final text.

The last ``\boxed{...}`` is the answer. A text without a box states its answer if its last statement is a number or says that
something is one ("Hence m+n = 42."), or if a statement about "the answer" does. `latex` evaluates the box or the statement.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from aimo_solver.latex import evaluate_latex
from aimo_solver.problems import Answer

ANSWER_RANGE = range(100_000)
"""The possible answers of an AIMO problem."""

FALLBACK_ANSWER = ANSWER_RANGE[0]
"""The answer given when there is no better one."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The answer that a final text states.

    Attributes:
        answer: None if the text states none, or one out of range.
        out_of_range: the text states one number, but not a possible integer.
    """

    answer: Answer | None = None
    out_of_range: bool = False


def extract_answer(text: str) -> Answer | None:
    """Returns the answer that a final text states, None if it states none in range; see `read_answer`."""
    return read_answer(text).answer


def read_symbolic(text: str) -> Reading:
    """Reads the text in the last box as it is. Never raises; takes linear time."""
    box = (last_box(text) or "").strip().strip("$").strip()
    return Reading(box if 0 < len(box) <= _LONGEST else None)


def read_answer(text: str, possible: range = ANSWER_RANGE, modulus: int | None = None) -> Reading:
    r"""Reads the answer that a final text states. Never raises; takes linear time.

    In a box, 42: ``042``, ``42.0``, ``\frac{84}{2}``, ``6 \cdot 7``, ``x = 42``, ``142 \bmod 100``, ``42\text{ cm}``. 12345:
    ``12,345``, ``12{,}345``, ``12\,345``. Out of range: ``-1``, ``1/3``, ``100000``. No answer: ``x = 1, y = 2``,
    ``3 \text{ or } 4``, ``x + 1``, ``\sqrt{2}``. Without a box, 42: ``42``, ``**Answer:** 42``, ``Hence $m+n = 42$.``

    Args:
        possible: the integers in range.
        modulus: the answer is the remainder of the stated integer.
    """
    box = last_box(text)
    value = _statement(text) if box is None else evaluate_latex(box)
    if value is None:
        return Reading()
    if modulus is not None and value.denominator == 1:
        value %= modulus
    in_range = value.denominator == 1 and int(value) in possible
    return Reading(int(value) if in_range else None, out_of_range=not in_range)


_LONGEST = 1_000  # characters of a symbolic answer
# With a minus sign before it; \x08 is what JSON makes of \b.
_BOX = re.compile(r"((?<!-)-)?(?:\\(?:boxed|fbox)(?![A-Za-z])|(?:(?<![A-Za-z\\])b|\x08)oxed(?=\s*\{))\s*+")
_BARE = re.compile(r"(?:[-\d]|\\[A-Za-z])(?:[^\n$\\]|\\[^\[\]()])*+")
_ASKED = re.compile(r"[$*]*(?:\\[)\]])?\s?\?")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]+|[^\w\s]")
_JOINED = frozenset(("and", "or", ",", ";"))
_MOST_BOXES = 100
_BETWEEN = 60  # characters, between two boxes that are one list


def last_box(text: str) -> str | None:
    r"""Returns the content of the last closed ``\boxed{...}``, or what follows ``\boxed`` without a brace.

    A box in a box is part of the outer one. Two boxes joined by "and", "or" or a comma are returned as a list. A box before a
    question mark is left out.
    """
    content = last = None
    end = 0
    boxes = list(_BOX.finditer(text))[-_MOST_BOXES:]
    closings = _closings(text, boxes[0].end()) if boxes else {}
    for place in boxes:
        start = place.end()
        if place.start() < end:
            continue
        bare = _BARE.match(text, start)
        if start not in closings and bare is None:
            continue
        own, own_end = (text[start + 1 : closings[start]], closings[start] + 1) if bare is None else (bare.group(), bare.end())
        if not _ASKED.match(text, own_end):
            joined = last not in (None, own) and _are_joined(text[end : place.start()])
            content, last = f"{last}, {own}" if joined else (place[1] or "") + own, own
        end = own_end
    return content


def _are_joined(between: str) -> bool:
    words = _WORD.findall(between[: _BETWEEN + 1])
    return len(between) <= _BETWEEN and not _JOINED.isdisjoint(words) and all(len(word) == 1 or word in _JOINED for word in words)


def _closings(text: str, start: int) -> dict[int, int]:
    """The place of the closing brace by that of the opening one, for all pairs after `start`."""
    closings: dict[int, int] = {}
    opened: list[int] = []
    for place in _BRACE.finditer(text, start, text.rfind("}") + 1):
        at = place.start()
        if text[at] == "{":
            opened.append(at)
        elif text[at] == "}" and opened:
            closings[opened.pop()] = at
    return closings


_END = re.compile(r"(?<=。)|(?<=[.!?])\**\s+")
_BULLET = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+(?=\S)")
_ENVIRONMENT = re.compile(r"\s*\\(?:begin|end)\{[^{}]*\}\s*")
_ABOUT = re.compile(r"answer|答案|ответ", re.IGNORECASE)
_LAST = 10_000  # characters
_MOST = 5  # statements
_LONG = 300  # characters of a statement


def _statement(text: str) -> Fraction | None:
    """Returns the number that a text without a box states as its result; reads only the last statements."""
    lines = (_BULLET.sub("", line, count=1) for line in text[-_LAST:].splitlines() if not _ENVIRONMENT.fullmatch(line))
    statements = [part for line in lines for part in _END.split(line) if len(part) <= _LONG and re.search(r"\w", part)]
    about = [part for part in statements if _ABOUT.search(part)][-_MOST:]
    about = [part for part in about if "final" in part.lower()] or about
    values = {evaluate_latex(part, prose=True) for part in about} - {None}
    if not values and statements:
        alike = [statements[-1], *(part for part in statements[-_MOST:-1] if not re.search(r"[^\W\d]|=", part))]
        values = {evaluate_latex(part, prose=True) for part in alike}
    return values.pop() if len(values) == 1 else None
