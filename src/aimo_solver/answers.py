r"""Reads the integer answer in a final text.

The content of the last ``\boxed{...}`` is read as an exact arithmetic expression. Numbers are `Fraction`s; their size and the
length and depth of the text are bounded, so no input takes long.
"""

from __future__ import annotations

import math
import operator
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from aimo_solver.problems import Answer

ANSWER_RANGE = range(100_000)
"""The possible answers of an AIMO problem."""

FALLBACK_ANSWER = ANSWER_RANGE[0]
"""The answer given when there is no better one."""

_LONGEST = 1_000  # characters inside a box
_DEEPEST = 40  # nested brackets
_BITS = 20_000  # of any intermediate number
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*+")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_DIGITS = re.compile(r"\d+")
_NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?![\d,])(?:\.\d+)?|\d+\.?\d*|\.\d+")


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
    r"""Reads the last closed ``\boxed{...}`` of a final text. Never raises; takes linear time.

    42: ``042``, ``42.0``, ``\frac{84}{2}``, ``6 \cdot 7``, ``x = 42``, ``42 \pmod{100}``, ``142 \bmod 100``, ``42\text{ cm}``,
    ``$42^\circ$``, ``\text{42}``. 12345: ``12,345``, ``12{,}345``, ``12\,345``. Out of range: ``-1``, ``1/3``, ``100000``.
    No answer: ``1, 2``, ``3 \text{ or } 4``, ``x + 1``, ``\sqrt{2}``.

    Args:
        possible: the integers in range.
        modulus: the answer is the remainder of the stated integer.
    """
    box = last_box(text)
    value = None if box is None else evaluate_latex(box)
    if value is None:
        return Reading()
    if modulus is not None and value.denominator == 1:
        value %= modulus
    in_range = value.denominator == 1 and int(value) in possible
    return Reading(int(value) if in_range else None, out_of_range=not in_range)


def last_box(text: str) -> str | None:
    r"""Returns the content of the last closed ``\boxed{...}`` (or ``\boxed 7``). Nested boxes are ordered by their opening."""
    boxes = list(_BOX.finditer(text))
    closings = _closings(text, boxes[0].start()) if boxes else {}
    for place in reversed(boxes):
        start = place.end()
        if start in closings:
            return text[start + 1 : closings[start]]
        bare = _DIGITS.match(text, start)
        if bare is not None:
            return bare.group()
    return None


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


def evaluate_latex(expression: str) -> Fraction | None:
    """Returns the exact value of a LaTeX expression of numbers, None if it is something else or too large."""
    if len(expression) > _LONGEST:
        return None
    normal = unicodedata.normalize("NFKC", expression)
    if len(normal) > _LONGEST:  # one character can become eighteen
        return None
    try:
        return _Parser(_plain(normal)).whole()
    except (_NotANumber, ZeroDivisionError):
        return None


class _NotANumber(Exception):
    """The text is not an expression of numbers, or an intermediate number is too large."""


_LAYOUT = re.compile(
    r"\\[,;:! ]|[~$]"
    r"|\\(?:quad|qquad|thinspace|enspace|displaystyle|textstyle|left|right|[bB]igg?[lr]?|limits)(?![A-Za-z])"
)
_FONT = re.compile(
    r"\\(?:text(?:bf|rm|it|tt|sf)?|math(?:rm|bf|it|sf|tt)|boldsymbol|bf|mbox|hbox|operatorname)(?![A-Za-z])\s*\{([^{}]*)\}"
)
_PMOD = re.compile(r"\\pmod(?![A-Za-z])\s*(?:\{[^{}]*\}|\d)|\(\s*(?:\\(?:bmod|mod|text\{\s*mod\s*\})|mod)[^()]*\)")
_DEGREES = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ|\{\s*°\s*\}|°)|°|\\degree(?![A-Za-z])")
_RELATION = re.compile(r"\\equiv(?![A-Za-z])|≡|\\approx(?![A-Za-z])|=")
_UNIT_POWER = re.compile(r"^\s*\^\s*(?:\d|\{\s*\d\s*\})")
_UNIT_WORDS = re.compile(r"(?<=[\d)}\s])\s*(?<![\\A-Za-z])[A-Za-z]{2,}(?:\s+[A-Za-z]{2,})*\s*$")
_SPELLINGS = (
    (r"\\(?:times|cdot|ast)(?![A-Za-z])", "*"),
    (r"\\div(?![A-Za-z])", "/"),
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
    (r"\\mod(?![A-Za-z])|(?<![A-Za-z\\])mod(?![A-Za-z])", r"\\bmod"),
    (r"\\[\[\]()]", ""),
)


def _plain(normal: str) -> str:
    """The expression without layout, fonts, units and the name before an equals sign."""
    text = normal.translate(str.maketrans("−–×·⋅÷", "--***/"))
    text = re.sub(r"(?<=\d)(?:\{,\}|\\[,;:! ]|[~ ])(?=\d{3}(?!\d))", ",", text)  # 12{,}345, 12\,345, 12 345
    text = _DEGREES.sub(" ", _PMOD.sub(" ", _LAYOUT.sub(" ", text)))
    text = _without_fonts(text)
    for spelling, plain in _SPELLINGS:
        text = re.sub(spelling, plain, text)
    text = _RELATION.split(text)[-1]
    text = text.strip().removesuffix(".").strip()
    return _UNIT_WORDS.sub("", text)


def _without_fonts(text: str) -> str:
    """Removes fonts around numbers and words at both ends (units); words in the middle become a mark that is not a number."""
    while (place := _FONT.search(text)) is not None:
        inside, before, after = place.group(1), text[: place.start()], text[place.end() :]
        if re.search(r"[\d=+*/]", inside) or inside.strip() == "mod":
            text = f"{before} {inside} {after}"
        elif before.strip() and _FONT.sub("", _UNIT_POWER.sub("", after)).strip(" ."):
            text = f"{before} ? {after}"
        else:
            text = f"{before} {_UNIT_POWER.sub('', after)}"
    return text


_OPERATORS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "\\bmod": operator.mod
}  # fmt: skip
_BRACKETS: dict[str, tuple[str, Callable[[Fraction], Fraction | int]]] = {
    "(": (")", Fraction), "{": ("}", Fraction), "[": ("]", Fraction),
    "\\lfloor": ("\\rfloor", math.floor), "\\lceil": ("\\rceil", math.ceil),
}  # fmt: skip
"""Opening bracket -> closing bracket, function of the value inside."""


class _Parser:
    """Recursive descent over one expression."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0

    def whole(self) -> Fraction:
        value = self._sum()
        self._skip()
        if self._at != len(self._text):
            raise _NotANumber
        return value

    def _sum(self) -> Fraction:
        value = self._product()
        while sign := self._take("+", "-"):
            value = _bounded(_OPERATORS[sign](value, self._product()))
        return value

    def _product(self) -> Fraction:
        value = self._signed()
        while True:
            if sign := self._take("*", "/", "\\bmod"):
                value = _bounded(_OPERATORS[sign](value, self._signed()))
            elif self._sees("(", "\\sqrt", "\\binom"):
                value = _bounded(value * self._power())
            else:
                return value

    def _signed(self) -> Fraction:
        if sign := self._take("-", "+"):
            return _OPERATORS[sign](Fraction(0), self._nested(self._signed))
        return self._power()

    def _power(self) -> Fraction:
        base = self._factorial()
        if not self._take("^"):
            return base
        exponent = self._nested(self._signed)
        if exponent.denominator != 1 or abs(exponent) * _bits(base) > _BITS:
            raise _NotANumber
        return Fraction(base ** int(exponent))

    def _factorial(self) -> Fraction:
        value = self._atom()
        while self._take("!"):
            if value.denominator != 1 or not 0 <= value <= 1_000:
                raise _NotANumber
            value = Fraction(math.factorial(int(value)))
        return value

    def _atom(self) -> Fraction:
        if opening := self._take(*_BRACKETS):
            closing, convert = _BRACKETS[opening]
            return Fraction(convert(self._closed(closing)))
        if self._take("\\frac"):
            above = self._argument()
            return _bounded(above / self._argument())
        if self._take("\\binom"):
            above, below = self._argument(), self._argument()
            if above.denominator != 1 or below.denominator != 1 or not 0 <= below <= above <= 5_000:
                raise _NotANumber
            return Fraction(math.comb(int(above), int(below)))
        if self._take("\\sqrt"):
            return _root(self._argument())
        return self._number()

    def _argument(self) -> Fraction:
        """A LaTeX argument: a group, a command, or one digit (``\\frac12``)."""
        self._skip()
        digit = self._text[self._at : self._at + 1]
        if digit.isdecimal():
            self._at += 1
            return Fraction(digit)
        return self._nested(self._atom)

    def _number(self) -> Fraction:
        self._skip()
        place = _NUMBER.match(self._text, self._at)
        if place is None:
            raise _NotANumber
        self._at = place.end()
        return Fraction(place.group().replace(",", "").removesuffix("."))

    def _closed(self, closing: str) -> Fraction:
        value = self._nested(self._sum)
        if not self._take(closing):
            raise _NotANumber
        return value

    def _nested(self, rule: Callable[[], Fraction]) -> Fraction:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise _NotANumber
        value = rule()
        self._depth -= 1
        return value

    def _skip(self) -> None:
        while self._text[self._at : self._at + 1].isspace():
            self._at += 1

    def _sees(self, *words: str) -> str | None:
        """The first of the words that comes next, after white space."""
        self._skip()
        return next((word for word in words if self._text.startswith(word, self._at)), None)

    def _take(self, *words: str) -> str | None:
        word = self._sees(*words)
        self._at += len(word or "")
        return word


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _bounded(value: Fraction) -> Fraction:
    if _bits(value) > _BITS:
        raise _NotANumber
    return value


def _root(value: Fraction) -> Fraction:
    if value < 0:
        raise _NotANumber
    root = Fraction(math.isqrt(value.numerator), math.isqrt(value.denominator))
    if root * root != value:
        raise _NotANumber
    return root
