r"""The exact value of a short LaTeX text of numbers, such as ``\frac{84}{2}`` or ``N = 42 \text{ square units}``.

A text is split into tokens; the clause that states the result is chosen; what follows its last relation is evaluated. A text that
can be read in two ways has no value. Numbers are `Fraction`s. Their size and the length and depth of the text are bounded.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence, Set
from fractions import Fraction

from aimo_solver.arithmetic import BRACKETS, CLOSING, MODULO, SCALES, NotANumber, Parser, Token

_LONGEST = 1_000  # characters


def evaluate_latex(text: str, *, prose: bool = False) -> Fraction | None:
    """Returns the value of a LaTeX text, None if it states no number, or several, or is too large.

    Args:
        text: at most 1,000 characters.
        prose: whether the text is a sentence with formulas, not a formula with words. A number in a sentence counts only if it is
            all of it, or follows a relation such as "=" or "is".
    """
    if len(text) > _LONGEST:
        return None
    try:
        return _stated(_tokens(_plain(text), prose=prose), prose=prose)
    except (NotANumber, ZeroDivisionError):
        return None


# Tokens


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_RELATIONS = _words(r"= : \equiv \approx \cong \in is are equals equal gives yields get obtain outputs est es ist 是 为 為 等于")
_CUES = _words("answer 答案 ответ")
_JOINTS = _words(r", ; \\ and or und или и 和 或 \land \lor \wedge \vee \iff \quad \qquad")
_THEN = _words(r"so thus hence therefore then giving yielding \implies \Rightarrow \Longrightarrow \therefore")
_ASIDE = _words(r"where with when since because for as given which attained achieved \because \forall")
_CONDITIONS = _words("if unless whether suppose assume")
_UNSURE = _words(
    "maybe perhaps might could may let check try test consider take set using example next recall note wrong incorrect but "
    "candidate case cases ran contradicts 不 非"
)
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
"""Words that can occur between a relation and its number in a sentence."""

_UNITS = _words("unit cm mm km dm kg mg ft yd mi ml hr hrs min sec sq deg rad")
_KNOWN = _RELATIONS | _CUES | _JOINTS | _THEN | _ASIDE | MODULO | SCALES.keys() | _CONDITIONS | _UNSURE | _UNITS

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


def _tokens(text: str, *, prose: bool) -> list[Token]:
    tokens: list[Token] = []
    in_words, number_end = prose, -1
    for place in _TOKEN.finditer(text):
        kind, own = str(place.lastgroup), place.group()
        if kind == "math":
            in_words = prose and not in_words
        elif kind == "words":
            tokens += _tokens(place["inside"], prose=True)
        elif kind == "number":
            tokens.append(Token("n", own))
            number_end = place.end()
        elif kind == "unit":
            tokens.append(Token("w", kind))
        elif kind == "letters":
            beside = place.start() == number_end
            tokens.append(Token("w" if _is_word(own.lower(), in_words=in_words, beside=beside) else "x", own.lower()))
        elif kind == "sign":
            sign = _SPELLINGS.get(own, own)
            tokens.append(Token(sign, sign))
    return tokens


def _is_word(letters: str, *, in_words: bool, beside: bool) -> bool:
    """Whether letters are a word. Directly after a number, and in a formula, short ones are variables."""
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
        return " " * (category != "Cf" and category != "Mn")
    return chr(ord(character) - 0xFEE0) if "\uff01" <= character <= "\uff5e" else character


# Clauses


def _stated(tokens: Sequence[Token], *, prose: bool) -> Fraction:
    """Returns the value of the phrase after the last relation, or before it if a name follows it (42 = N)."""
    if any(token.text in _CONDITIONS for token in tokens):
        raise NotANumber
    joint, clause = _clause(tokens)
    sides = _split(clause, _RELATIONS)
    for (_, before), (relation, _) in itertools.pairwise(sides):
        if relation == ":" and before and all(token.kind not in "wx" for token in before):
            raise NotANumber  # a ratio
    if joint in _ASIDE and not (len(sides) > 2 and sides[-1][0].isalpha()):  # "for n = 3", but not "for n = 3 is 42"
        raise NotANumber
    named = len(sides) > 1 and bool(last := sides[-1][1]) and all(token.kind in "x." or token.text in _FILLERS for token in last)
    return _phrase(sides[-2 if named else -1][1], prose=prose, alone=named or not sides[-1][0].isalpha())


def _clause(tokens: Sequence[Token]) -> tuple[str, Sequence[Token]]:
    """Returns the clause that states the result, with the joint before it.

    That is the only clause, one that follows from those before it, one that later ones explain, or a last one about the answer.
    """
    *_, tokens = [part for _, part in _split(tokens, _THEN) if _has_number(part)] or [[]]
    (_, first), *asides = _split(tokens, _ASIDE)
    if _has_number(first):
        if len(asides) > 1:
            raise NotANumber
        tokens = first
    if any(token.text in _UNSURE for token in tokens):
        raise NotANumber
    parts = _split(tokens, _JOINTS | _ASIDE)
    clauses = [(joint, part) for joint, part in parts if joint == "or" or any(token.kind not in "w.()-" for token in part)]
    about = [any(token.text in _CUES for token in part) for _, part in clauses]
    if not clauses or (len(clauses) > 1 and (not about[-1] or any(about[:-1]))):
        raise NotANumber
    return clauses[-1]


def _has_number(tokens: Sequence[Token]) -> bool:
    return any(token.kind == "n" for token in tokens)


def _split(tokens: Sequence[Token], joints: Set[str]) -> list[tuple[str, list[Token]]]:
    """Splits at joints outside brackets, or that begin them; returns the parts, each with the joint before it."""
    parts: list[tuple[str, list[Token]]] = [("", [])]
    depth = 0
    for token in tokens:
        depth += (token.kind in BRACKETS) - (token.kind in CLOSING)
        opens = depth == 1 and [last.kind for last in parts[-1][1][-1:]] == ["("]
        if token.kind not in "nx" and token.text in joints and (depth <= 0 or opens):
            parts.append((token.text, []))
        else:
            parts[-1][1].append(token)
    return parts


_LEAD = re.compile(r"(?:w|\(w++\)|\(x\)(?=n))*+")
_TAIL = re.compile(r"(?:[w({](?:[w(){}/*.-]|\^\{?-?n\}?)*+)?\.?")


def _phrase(tokens: Sequence[Token], *, prose: bool, alone: bool) -> Fraction:
    """Returns the value of one expression with neutral words beside it, such as a unit."""
    codes = "".join(token.kind if len(token.kind) == 1 else "\\" for token in tokens)
    start = lead.end() if (lead := _LEAD.match(codes)) else 0
    parser = Parser(tokens[start:])
    value = parser.value()
    end = start + parser.at
    before, after = ([token.text for token in side if token.kind in "wx"] for side in (tokens[:start], tokens[end:]))
    function = codes[start - 1 : start + 1] == "w("
    if function or not _TAIL.fullmatch(codes, end) or not _CHANGING.isdisjoint((*before, *after)) or not _OF.isdisjoint(before):
        raise NotANumber
    if prose and not (_FILLERS.issuperset(before) and (_UNITS.issuperset(after) or not alone)):
        raise NotANumber
    return value
