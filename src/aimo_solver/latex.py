r"""The exact value of a short LaTeX text of numbers, such as ``\frac{84}{2}`` or ``N = 42 \text{ square units}``.

A text becomes tokens; the clause that states the result is chosen; what stands behind its last relation is evaluated. A text that
can be read in two ways has no value. Numbers are `Fraction`s. Their size and the length and depth of the text are bounded.
"""

from __future__ import annotations

import itertools
import math
import operator
import re
import unicodedata
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from fractions import Fraction

_LONGEST = 1_000  # characters
_DEEPEST = 40  # nested brackets
_BITS = 20_000  # of any intermediate number


def evaluate_latex(text: str, *, prose: bool = False) -> Fraction | None:
    """Returns the value of a LaTeX text, None if it states no number, or several, or is too large.

    Args:
        text: at most 1,000 characters.
        prose: whether the text is a sentence with formulas, not a formula with words. A number in a sentence counts only if it is
            all of it, or behind a relation such as "=" or "is".
    """
    if len(text) > _LONGEST:
        return None
    try:
        return _stated(_tokens(_plain(text), prose=prose), prose=prose)
    except (_NotANumber, ZeroDivisionError):
        return None


class _NotANumber(Exception):
    """The text is not one expression of numbers, or an intermediate number is too large."""


# Tokens


@dataclass(frozen=True, slots=True)
class _Token:
    """A number "n", a word "w", a name "x" (a variable), or a sign, which is its own kind."""

    kind: str
    text: str


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_RELATIONS = _words(r"= : \equiv \approx \cong \in is are equals equal gives yields get obtain outputs est es ist 是 为 為 等于")
_CUES = _words("answer 答案 ответ")
_JOINTS = _words(r", ; \\ and or und или и 和 或 \land \lor \wedge \vee \iff \quad \qquad")
_THEN = _words(r"so thus hence therefore then giving yielding \implies \Rightarrow \Longrightarrow \therefore")
_ASIDE = _words(r"where with when since because for as given which attained achieved \because \forall")
_MODULO = _words(r"mod modulo \bmod \mod \pmod")
_CONDITIONS = _words("if unless whether suppose assume")
_UNSURE = _words(
    "maybe perhaps might could may let check try test consider take set using example next recall note wrong incorrect but "
    "candidate case cases ran contradicts 不 非"
)
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 1_000, "million": 10**6, "billion": 10**9, "万": 10**4, "亿": 10**8}
_CHANGING = _words(
    "not no never none neither either except without least most than less more fewer over under above below up plus minus "
    "times half choose halves third thirds quarter quarters twice double triple squared cubed factorial base root e i k "
    "lakh crore st nd rd th step steps attempt attempts approach approaches method methods"
)
"""Words that make another number of the one beside them, or none."""

_OF = _words("of by")  # the same before a number

_FILLERS = _CUES | _words(
    "the a b c d an my our final correct exactly precisely simply just indeed finally must should will would appears seems "
    "be to integer number value result remainder total sum required desired now also minimum maximum smallest largest such"
)
"""Words that can stand between a relation and its number in a sentence."""

_UNITS = _words("unit cm mm km dm kg mg ft yd mi ml hr hrs min sec sq deg rad")
_KNOWN = _RELATIONS | _CUES | _JOINTS | _THEN | _ASIDE | _MODULO | _SCALES.keys() | _CONDITIONS | _UNSURE | _UNITS

_SPELLINGS = {
    r"\times": "*", r"\cdot": "*", r"\ast": "*", r"\div": "/", r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac",
    r"\dbinom": r"\binom", r"\tbinom": r"\binom", r"\{": "[", r"\}": "]", r"\lbrace": "[", r"\rbrace": "]", "**": "^", "==": "=",
}  # fmt: skip
_TOKEN = re.compile(
    r"""
    (?P<words> \\(?:text(?:bf|rm|it|tt|sf|normal)?|mathrm|operatorname|[mh]box)\s*\{ (?P<inside>[^{}]*) \} )
  | (?P<skip> \s+ | \\[,:;!>\s] | [~&`"#] | (?<![\d)])\*\* | \*\*(?![\d(]) | </?answer>
      | \\(?:begin|end)\s*\{(?:align|gather|equation|split)(?:ed)?\*?\}
      | \\(?:(?:text)?color|colorbox|tag|[hv]space\*?)\s*\{[^{}]*\}
      | \\(?:thinspace|enspace|(?:display|text)style|left|right|[bB]igg?[lr]?|(?:no)?limits|bf|rm|it|sf|tt|[lL]arge|LARGE|[hH]uge
        |(?:text|math)(?:bf|rm|it|sf|tt)|text|boldsymbol|bm|underline|blacksquare|square|qed|boxed|fbox)(?![A-Za-z]) )
  | (?P<math> \${1,2} | \\[][()] )
  | (?P<number> [1-9]\d{0,2}(?:(?P<comma>,\\!|\{\s*,\s*\}(?:\\!)?|\\[,:;!\ ]|[,\ ~])\d{3})(?:(?P=comma)\d{3})*+(?!\d)(?:\.\d+)?
      | \d+\.?\d* | \.\d+ )
  | (?P<unit> \^\s*\{?\s*\\(?:circ|degree)(?![A-Za-z])\s*\}? | \\degree(?![A-Za-z]) | \\?% | \\\$ | [€£¥] )
  | (?P<letters> 答案 | 等于 | [\u2e80-\uffdc] | [^\W\d_\u2e80-\uffdc]+ )
  | (?P<sign> \\not\s*. | \\[A-Za-z]+ | \\. | [<>!=]= | !+ | \*\* | . )
    """,
    re.VERBOSE | re.DOTALL,
)


def _tokens(text: str, *, prose: bool) -> list[_Token]:
    tokens: list[_Token] = []
    in_words, number_end = prose, -1
    for place in _TOKEN.finditer(text):
        kind, own = str(place.lastgroup), place.group()
        if kind == "math":
            in_words = prose and not in_words
        elif kind == "words":
            tokens += _tokens(place["inside"], prose=True)
        elif kind == "number":
            tokens.append(_Token("n", own))
            number_end = place.end()
        elif kind == "unit":
            tokens.append(_Token("w", kind))
        elif kind == "letters":
            beside = place.start() == number_end
            tokens.append(_Token("w" if _is_word(own.lower(), in_words=in_words, beside=beside) else "x", own.lower()))
        elif kind == "sign":
            sign = _SPELLINGS.get(own, own)
            tokens.append(_Token(sign, sign))
    return tokens


def _is_word(letters: str, *, in_words: bool, beside: bool) -> bool:
    """Whether letters are a word. Directly behind a number, and in a formula, short ones are variables."""
    if letters in _KNOWN or letters >= "\u2e80":  # Chinese, Japanese, Korean
        return True
    return not beside and (in_words or (len(letters) > 3 and not set("aeiou").isdisjoint(letters)))


_CHARACTERS = dict(zip(map(ord, "−‐‑×·⋅∙∗÷⁄∕≡≈、。—∎"), "---*****///==,.; ", strict=True)) | {
    0x2062: "*", ord("°"): r"\degree ", ord("⇒"): r"\Rightarrow ", ord("∴"): r"\therefore ",
}  # fmt: skip
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")


def _plain(text: str) -> str:
    """Writes digits, signs and white space in ASCII, superscripts as powers, and removes invisible characters."""
    text = re.sub("[⁰¹²³⁴-⁹⁻]+", lambda power: f"^{{{power.group().translate(_SUPERSCRIPTS)}}}", text)
    return re.sub(r"[^\x00-\x7f]", lambda place: _ascii(place.group()), text.translate(_CHARACTERS))


def _ascii(character: str) -> str:
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.decimal(character))
    if category in ("Cf", "Zs", "So") or "\ufe00" <= character <= "\ufe0f":
        return " " * (category == "Zs")
    return chr(ord(character) - 0xFEE0) if "\uff01" <= character <= "\uff5e" else character


# Clauses


def _stated(tokens: Sequence[_Token], *, prose: bool) -> Fraction:
    """Returns the value of the phrase behind the last relation, or before it if a name is behind it (42 = N)."""
    if any(token.text in _CONDITIONS for token in tokens):
        raise _NotANumber
    joint, clause = _clause(tokens)
    sides = _split(clause, _RELATIONS)
    for (_, before), (relation, _) in itertools.pairwise(sides):
        if relation == ":" and before and all(token.kind not in "wx" for token in before):
            raise _NotANumber  # a ratio
    if joint in _ASIDE and not (len(sides) > 2 and sides[-1][0].isalpha()):  # "for n = 3", but not "for n = 3 is 42"
        raise _NotANumber
    named = len(sides) > 1 and bool(last := sides[-1][1]) and all(token.kind in "x." or token.text in _FILLERS for token in last)
    return _phrase(sides[-2 if named else -1][1], prose=prose, alone=named or not sides[-1][0].isalpha())


def _clause(tokens: Sequence[_Token]) -> tuple[str, Sequence[_Token]]:
    """Returns the clause that states the result, with the joint before it.

    That is the only one, one that follows from those before it, one that those behind it explain, or a last one about the answer.
    """
    *_, tokens = [part for _, part in _split(tokens, _THEN) if _has_number(part)] or [[]]
    (_, first), *asides = _split(tokens, _ASIDE)
    if _has_number(first):
        if len(asides) > 1:
            raise _NotANumber
        tokens = first
    if any(token.text in _UNSURE for token in tokens):
        raise _NotANumber
    parts = _split(tokens, _JOINTS | _ASIDE)
    clauses = [(joint, part) for joint, part in parts if joint == "or" or any(token.kind not in "w.()-" for token in part)]
    about = [any(token.text in _CUES for token in part) for _, part in clauses]
    if not clauses or (len(clauses) > 1 and (not about[-1] or any(about[:-1]))):
        raise _NotANumber
    return clauses[-1]


def _has_number(tokens: Sequence[_Token]) -> bool:
    return any(token.kind == "n" for token in tokens)


def _split(tokens: Sequence[_Token], joints: Set[str]) -> list[tuple[str, list[_Token]]]:
    """Splits at joints outside brackets, or that begin them; returns the parts, each with the joint before it."""
    parts: list[tuple[str, list[_Token]]] = [("", [])]
    depth = 0
    for token in tokens:
        depth += (token.kind in _BRACKETS) - (token.kind in _CLOSING)
        opens = depth == 1 and [last.kind for last in parts[-1][1][-1:]] == ["("]
        if token.kind not in "nx" and token.text in joints and (depth <= 0 or opens):
            parts.append((token.text, []))
        else:
            parts[-1][1].append(token)
    return parts


_LEAD = re.compile(r"(?:w|\(w++\)|\(x\)(?=n))*+")
_TAIL = re.compile(r"(?:[w({](?:[w(){}/*.-]|\^\{?-?n\}?)*+)?\.?")


def _phrase(tokens: Sequence[_Token], *, prose: bool, alone: bool) -> Fraction:
    """Returns the value of one expression with neutral words beside it, such as a unit."""
    codes = "".join(token.kind if len(token.kind) == 1 else "\\" for token in tokens)
    start = lead.end() if (lead := _LEAD.match(codes)) else 0
    parser = _Parser(tokens[start:])
    value = parser.value()
    end = start + parser.at
    before, after = ([token.text for token in side if token.kind in "wx"] for side in (tokens[:start], tokens[end:]))
    function = codes[start - 1 : start + 1] == "w("
    if function or not _TAIL.fullmatch(codes, end) or not _CHANGING.isdisjoint((*before, *after)) or not _OF.isdisjoint(before):
        raise _NotANumber
    if prose and not (_FILLERS.issuperset(before) and (_UNITS.issuperset(after) or not alone)):
        raise _NotANumber
    return value


# Arithmetic

_OPERATORS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv
}  # fmt: skip
_BRACKETS: dict[str, tuple[str, Callable[[Fraction], Fraction | int]]] = {
    "(": (")", Fraction), "{": ("}", Fraction), "[": ("]", Fraction),
    "\\lfloor": ("\\rfloor", math.floor), "\\lceil": ("\\rceil", math.ceil),
}  # fmt: skip
"""Opening bracket -> closing bracket, function of the value inside."""

_CLOSING = {closing for closing, _ in _BRACKETS.values()}


class _Parser:
    """Recursive descent over tokens. `at` is the first one that is not part of the expression."""

    def __init__(self, tokens: Sequence[_Token]) -> None:
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
                raise _NotANumber
            value = value if written else value % modulus
        return value

    def _before_words(self) -> bool:
        return self._tokens[self.at + 1].kind in ("w", _END.kind) or self._before_modulo()

    def _before_modulo(self) -> bool:
        return self._tokens[self.at + (self._next.kind == "(")].text in _MODULO

    @property
    def _next(self) -> _Token:
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
            raise _NotANumber
        return Fraction(base ** int(exponent))

    def _factorial(self) -> Fraction:
        value = self._atom()
        while sign := self._take("!", "!!"):
            number = _natural(value, 1_000)
            value = Fraction(math.factorial(number) if sign == "!" else math.prod(range(number, 0, -2)))
        return value

    def _atom(self) -> Fraction:
        if opening := self._take(*_BRACKETS):
            closing, convert = _BRACKETS[opening]
            if self._tokens[self.at + 1].kind == closing and re.search(r"\d,\d", self._next.text):
                raise _NotANumber  # (1,234) is more often a pair
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
            self._tokens[self.at] = _Token("n", digits[1:])
            return Fraction(digits[0])
        return self._nested(self._atom)

    def _number(self) -> Fraction:
        token = self._next
        if token.kind != "n":
            raise _NotANumber
        self.at += 1
        value = Fraction(re.sub(r"[^\d.]", "", token.text).removesuffix("."))
        while self._next.text in _SCALES:
            value = _bounded(value * _SCALES[self._next.text])
            self.at += 1
        return value

    def _closed(self, closing: str) -> Fraction:
        value = self._nested(self.value)
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

    def _take(self, *signs: str) -> str:
        """Takes the next token if it is one of the signs; returns it, or nothing."""
        kind = self._next.kind
        self.at += kind in signs
        return kind if kind in signs else ""


_END = _Token("end", "")


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def _bounded(value: Fraction) -> Fraction:
    if _bits(value) > _BITS:
        raise _NotANumber
    return value


def _natural(value: Fraction, most: int) -> int:
    if value.denominator != 1 or not 0 <= value <= most:
        raise _NotANumber
    return int(value)


def _root(value: Fraction, degree: int) -> Fraction:
    """Returns the exact root of a number, with `degree` other than 2 of one that a float can hold."""
    try:
        above, below = (math.isqrt(n) if degree == 2 else round(n ** (1 / degree)) for n in value.as_integer_ratio() if n >= 0)
    except (ValueError, OverflowError):
        raise _NotANumber from None
    root = Fraction(above, below)
    if root**degree != value:
        raise _NotANumber
    return root
