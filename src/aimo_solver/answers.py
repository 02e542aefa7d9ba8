"""The integer answer in a final text.

What stands in the last ``\\boxed{...}`` is read as a small exact arithmetic expression: no general computer algebra, so
no input can take long. Numbers are `Fraction`s, their size and the text's length and depth are bounded.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction

ANSWER_RANGE = range(100_000)
"""The possible answers of an AIMO problem."""

FALLBACK_ANSWER = ANSWER_RANGE[0]
"""The answer given when there is no better one."""

_LONGEST = 1_000  # characters inside a box
_DEEPEST = 40  # nested brackets
_BITS = 20_000  # of any number on the way
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*+")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_DIGITS = re.compile(r"\d+")


def extract_answer(text: str) -> int | None:
    """The integer of the last closed ``\\boxed{...}``, None if there is none, it is not an integer, or out of range.

    Read as 42: ``042``, ``42.0``, ``\\frac{84}{2}``, ``6 \\cdot 7``, ``x = 42``, ``42 \\pmod{100}``, ``142 \\bmod 100``,
    ``42\\text{ cm}``, ``$42^\\circ$``, ``\\text{42}``; 12345: ``12,345``, ``12{,}345``, ``12\\,345``.
    No answer: ``-1``, ``1/3``, ``100000``, ``1, 2``, ``3 \\text{ or } 4``, ``x + 1``, ``\\sqrt{2}``.
    """
    box = last_box(text)
    if box is None:
        return None
    value = evaluate_latex(box)
    if value is None or value.denominator != 1 or int(value) not in ANSWER_RANGE:
        return None
    return int(value)


def last_box(text: str) -> str | None:
    """What stands in the last closed ``\\boxed{...}`` (or ``\\boxed 7``); boxes in boxes count by their opening."""
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
    """Where each brace behind `start` that is closed is closed."""
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
    """The exact value of a LaTeX expression of numbers, None if it is anything else or grows too large."""
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
    """The expression is not one of numbers, or a number on the way is too large."""


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
    """The normalised expression without what does not change its value: layout, fonts, units, a name before an equals sign."""
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
    """Fonts around numbers go, and words at either end (units) go; words in the middle leave a mark that is no number."""
    while (place := _FONT.search(text)) is not None:
        inside, before, after = place.group(1), text[: place.start()], text[place.end() :]
        if re.search(r"[\d=+*/]", inside) or inside.strip() == "mod":
            text = f"{before} {inside} {after}"
        elif before.strip() and _FONT.sub("", _UNIT_POWER.sub("", after)).strip(" ."):
            text = f"{before} ? {after}"
        else:
            text = f"{before} {_UNIT_POWER.sub('', after)}"
    return text


class _Parser:
    """Recursive descent over one expression; every value is exact and bounded."""

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
        while True:
            if self._take("+"):
                value = _bounded(value + self._product())
            elif self._take("-"):
                value = _bounded(value - self._product())
            else:
                return value

    def _product(self) -> Fraction:
        value = self._signed()
        while True:
            if self._take("*"):
                value = _bounded(value * self._signed())
            elif self._take("/"):
                value = _bounded(value / self._signed())
            elif self._take("\\bmod"):
                value = value % self._signed()
            elif self._sees("(", "\\left", "\\sqrt", "\\binom"):
                value = _bounded(value * self._power())
            else:
                return value

    def _signed(self) -> Fraction:
        if self._take("-"):
            return -self._nested(self._signed)
        if self._take("+"):
            return self._nested(self._signed)
        return self._power()

    def _power(self) -> Fraction:
        base = self._factorial()
        if not self._take("^"):
            return base
        exponent = self._nested(self._signed)
        size = max(base.numerator.bit_length(), base.denominator.bit_length())
        if exponent.denominator != 1 or abs(exponent) * size > _BITS:
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
        for opening, closing in (("(", ")"), ("{", "}"), ("[", "]")):
            if self._take(opening):
                return self._closed(closing)
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
        for name, rounded in (("floor", math.floor), ("ceil", math.ceil)):
            if self._take(f"\\l{name}"):
                return Fraction(rounded(self._closed(f"\\r{name}")))
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
        place = re.compile(r"\d{1,3}(?:,\d{3})+(?![\d,])(?:\.\d+)?|\d+\.?\d*|\.\d+").match(self._text, self._at)
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

    def _sees(self, *words: str) -> bool:
        self._skip()
        return any(self._text.startswith(word, self._at) for word in words)

    def _take(self, word: str) -> bool:
        if not self._sees(word):
            return False
        self._at += len(word)
        return True


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _BITS:
        raise _NotANumber
    return value


def _root(value: Fraction) -> Fraction:
    if value < 0:
        raise _NotANumber
    root = Fraction(math.isqrt(value.numerator), math.isqrt(value.denominator))
    if root * root != value:
        raise _NotANumber
    return root
