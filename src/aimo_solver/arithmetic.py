"""Exact arithmetic on the tokens of a formula, with bounds on depth and on the size of numbers."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

_DEEPEST = 40  # nested brackets
_BITS = 20_000  # of any intermediate number

MODULO = frozenset(("mod", "modulo", "\\bmod", "\\mod", "\\pmod"))
SCALES = {"dozen": 12, "hundred": 100, "thousand": 1_000, "million": 10**6, "billion": 10**9, "万": 10**4, "亿": 10**8}
"""Words after a number that multiply it."""


class NotANumber(Exception):
    """The text is not one expression of numbers, or an intermediate number is too large."""


@dataclass(frozen=True, slots=True)
class Token:
    """A number "n", a word "w", a name "x" (a variable), or a sign, which is its own kind."""

    kind: str
    text: str


_OPERATORS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv
}  # fmt: skip
BRACKETS: dict[str, tuple[str, Callable[[Fraction], Fraction | int]]] = {
    "(": (")", Fraction), "{": ("}", Fraction), "[": ("]", Fraction),
    "\\lfloor": ("\\rfloor", math.floor), "\\lceil": ("\\rceil", math.ceil),
}  # fmt: skip
"""Opening bracket -> closing bracket, function of the value inside."""

CLOSING = {closing for closing, _ in BRACKETS.values()}


class Parser:
    """Recursive descent over tokens. `at` is the first one that is not part of the expression."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self._tokens = [*tokens, _END, _END]
        self.at = 0
        self._depth = 0

    def value(self) -> Fraction:
        """Returns a sum or its remainder: ``a + b \\bmod m`` is (a + b) mod m. A number before ``\\pmod{m}`` stays as it is."""
        value = self._sum()
        written = all(token.kind in "n+-" for token in self._tokens[: self.at])
        while self._before_modulo():
            written &= bool(enclosed := self._take("(")) or self._next.kind == "\\pmod"
            self.at += 1
            modulus = self._product()
            if modulus <= 0 or (enclosed and not self._take(")")):
                raise NotANumber
            value = value if written else value % modulus
        return value

    def _before_words(self) -> bool:
        return self._tokens[self.at + 1].kind in ("w", _END.kind) or self._before_modulo()

    def _before_modulo(self) -> bool:
        return self._tokens[self.at + (self._next.kind == "(")].text in MODULO

    @property
    def _next(self) -> Token:
        return self._tokens[self.at]

    def _sum(self) -> Fraction:
        value = self._product()
        while sign := self._take("+", "-"):
            value = _bounded(_OPERATORS[sign](value, self._product()))
        return value

    def _product(self) -> Fraction:
        value = self._signed()
        while True:
            if sign := self._take("*", "/"):
                value = _bounded(_OPERATORS[sign](value, self._signed()))
            elif self._next.kind in ("\\sqrt", "\\binom") or (self._next.kind == "(" and not self._before_words()):
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
            raise NotANumber
        return Fraction(base ** int(exponent))

    def _factorial(self) -> Fraction:
        value = self._atom()
        while sign := self._take("!", "!!"):
            number = _natural(value, 1_000)
            value = Fraction(math.factorial(number) if sign == "!" else math.prod(range(number, 0, -2)))
        return value

    def _atom(self) -> Fraction:
        if opening := self._take(*BRACKETS):
            closing, convert = BRACKETS[opening]
            if self._tokens[self.at + 1].kind == closing and re.search(r"\d,\d", self._next.text):
                raise NotANumber  # (1,234) is more often a pair
            return Fraction(convert(self._closed(closing)))
        if self._take("\\frac"):
            above = self._argument()
            return _bounded(above / self._argument())
        if self._take("\\binom"):
            of = _natural(self._argument(), 5_000)
            return Fraction(math.comb(of, _natural(self._argument(), of)))
        if self._take("\\sqrt"):
            degree = _natural(self._closed("]"), 100) if self._take("[") else 2
            return _root(self._argument(), degree)
        return self._number()

    def _argument(self) -> Fraction:
        """A LaTeX argument: a group, a command, or one digit (``\\frac12``)."""
        digits = self._next.text
        if self._next.kind == "n" and digits.isdecimal() and len(digits) > 1:
            self._tokens[self.at] = Token("n", digits[1:])
            return Fraction(digits[0])
        return self._nested(self._atom)

    def _number(self) -> Fraction:
        token = self._next
        if token.kind != "n":
            raise NotANumber
        self.at += 1
        value = Fraction(re.sub(r"[^\d.]", "", token.text).removesuffix("."))
        while self._next.text in SCALES:
            value = _bounded(value * SCALES[self._next.text])
            self.at += 1
        return value

    def _closed(self, closing: str) -> Fraction:
        value = self._nested(self.value)
        if not self._take(closing):
            raise NotANumber
        return value

    def _nested(self, rule: Callable[[], Fraction]) -> Fraction:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise NotANumber
        value = rule()
        self._depth -= 1
        return value

    def _take(self, *signs: str) -> str:
        """Takes the next token if it is one of the signs; returns it, or nothing."""
        kind = self._next.kind
        self.at += kind in signs
        return kind if kind in signs else ""


_END = Token("end", "")


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _bounded(value: Fraction) -> Fraction:
    if _bits(value) > _BITS:
        raise NotANumber
    return value


def _natural(value: Fraction, most: int) -> int:
    if value.denominator != 1 or not 0 <= value <= most:
        raise NotANumber
    return int(value)


def _root(value: Fraction, degree: int) -> Fraction:
    """Returns the exact root of a number, with `degree` other than 2 of one that a float can hold."""
    try:
        above, below = (math.isqrt(n) if degree == 2 else round(n ** (1 / degree)) for n in value.as_integer_ratio() if n >= 0)
    except (ValueError, OverflowError):
        raise NotANumber from None
    root = Fraction(above, below)
    if root**degree != value:
        raise NotANumber
    return root
