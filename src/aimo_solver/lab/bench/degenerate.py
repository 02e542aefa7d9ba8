"""Degenerate model output: endless repetition or nesting, as failing language models produce it.

Model output is parsed on the event loop, so each of these must be parsed in linear time. Used by the fuzz tests and by
``aimo-solver bench parse``. What depends on a chat family is derived from its entry in `chat.markup.MARKUP`.
"""

# ruff: noqa: E501 (lists of words)

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from aimo_solver.chat.markup import MARKUP


@dataclass(frozen=True, slots=True)
class Degenerate:
    """A text of any length: `opening`, n times `unit`, `middle`, n times `closing`, `ending`.

    Control tokens are spelled out. Lone surrogates never occur in decoded text, but must not break a reader.

    Attributes:
        name: unique in `DEGENERATE`.
    """

    name: str
    unit: str
    opening: str = ""
    middle: str = ""
    closing: str = ""
    ending: str = ""

    def text(self, characters: int) -> str:
        """Returns a text of at most `characters`, but with at least one unit."""
        count = self._count(characters)
        return f"{self.opening}{self.unit * count}{self.middle}{self.closing * count}{self.ending}"

    def tokens(self, characters: int, encode: Callable[[str], list[int]]) -> list[int]:
        """Returns at most `characters` token ids of `text`; each part is encoded once, which is fast for millions of tokens."""
        opening, unit, middle, closing, ending = map(encode, (self.opening, self.unit, self.middle, self.closing, self.ending))
        left = characters - len(opening) - len(middle) - len(ending)
        count = min(self._count(characters), max(1, left // max(1, len(unit) + len(closing))))
        return [*opening, *(unit * count), *middle, *(closing * count), *ending]

    def _count(self, characters: int) -> int:
        around = len(self.opening) + len(self.middle) + len(self.ending)
        return max(1, (characters - around) // len(self.unit + self.closing))


_PIECE = re.compile(r"<[^<>\n]*>\n*|\w[\w =.]*|[^\w<>]+")
_TAG = re.compile(r"<[^<>\n]*>")


@dataclass(frozen=True, slots=True)
class _Example:
    """A turn of a family, split at the texts in it: at least two parts."""

    parts: tuple[str, ...]

    @property
    def openings(self) -> Iterator[str]:
        """Beginnings after which a reader searches for the rest."""
        for part in self.parts[:-1]:
            yield from (start for start in itertools.accumulate(_PIECE.findall(part)) if not start[-1].isalnum())
        yield from self.cut_tags

    @property
    def words(self) -> Iterator[str]:
        """Its parts, their pieces, its tags, and tags without their end."""
        for part in self.parts:
            yield part
            yield from _PIECE.findall(part)
            yield from _TAG.findall(part)
        yield from self.cut_tags

    @property
    def cut_tags(self) -> Iterator[str]:
        """Its tags without their end."""
        for part in self.parts:
            for tag in _TAG.findall(part):
                yield from (tag[:-1], *re.findall("<.*=", tag))

    @property
    def nested(self) -> Iterator[tuple[str, str]]:
        """Beginnings and the ends that close them: of the turn, of each text in it, and of each pair of tags around a text."""
        for before, after in itertools.pairwise(self.parts):
            yield before, after
            yield from zip(reversed(_TAG.findall(before)), _TAG.findall(after), strict=False)
        yield "1".join(self.parts[:-1]), self.parts[-1]


_EXAMPLES = {family: [_Example(tuple(turn.split("1"))) for turn in markup.turns] for family, markup in MARKUP.items()}
FAMILY_WORDS = {
    family: tuple(dict.fromkeys(filter(None, [*markup.tokens, *(word for one in _EXAMPLES[family] for word in one.words)])))
    for family, markup in MARKUP.items()
}
"""The control tokens of each family, and other text that it reads as markup."""

_CHARACTERS = (
    *"\n\t\r\0 a_09.,:;-+=*/\\'\"`~#@!^%$&|<>{}[]()é中😀፫²½٣ﷺ…",
    *("\x1b", "\x85", "\u2028", "\u200b", "\u0301", "\ud800"),
)  # fmt: skip
_WORDS = (
    "ab ", " 1", "1 ", "\n ", " \n", "\r\n", "\\n", '\\"', "\\\\n", '""', "'''", '"""', "{}", "[]", "()", "{,", "},", '",', "0,",
    "000,", "x=", "1+", "-1", "--", "1^", "2!", "\\,", "\\ ", "{1}", "1.", "👨‍👩‍👧", "print(1)\n", "if 1:\n ", "lambda:", "not ", "x if ",
    "a[", "f(", "code:", '"code":', '"code": "', 'code="', "python", "call", "json", "\\u", "\\ud800", "def f():\n",
)  # fmt: skip
_MATHS = (
    "\\boxed", "\\boxed{", "\\boxed{1}", "\\boxed{}", "\\boxed 1", "\\boxed{1", "\\fbox{", "\\frac", "\\frac1", "\\frac{", "\\frac{1}{2}",
    "\\text{", "\\text{ a }", "\\text{1}", "\\mathrm{\\text{", "\\left(", "\\sqrt", "\\sqrt{", "\\binom", "\\pmod", "\\pmod{", "(\\bmod",
    "\\bmod", "\\equiv", "\\cdot", "2^{", "\\lfloor", "\\quad", "^\\circ", "{,}", " cm", " a b",
)  # fmt: skip
_NESTED = (
    ("[", "", "]"), ("(", "", ")"), ("{", "", "}"), ('{"a":', "1", "}"), ('[{"a":', "1", "}]"), ('{"arguments":', "1", "}"),
    ('{"arguments":{"code":', '"1"', "}}"), ("(1+", "1", ")"), ("f(", "1", ")"), ("\\boxed{", "1", "}"), ("\\text{", "1", "}"),
    ("\\frac{", "1", "}{1}"), ("\\sqrt{", "1", "}"), ("2^{", "1", "}"), ("\\left(", "1", "\\right)"), ("{\\text", "1", "}"),
)  # fmt: skip
# Beginnings after which a reader searches for something that is then missing or too frequent.
_OPENINGS: dict[str, tuple[str, ...]] = {
    **{family: tuple(dict.fromkeys(opening for one in examples for opening in one.openings)) for family, examples in _EXAMPLES.items()},
    "salvage": ('{"code": "', "{'code': '", '{"code": """', "{code=`", "```json\n", '```python\n{"code":', '{"code":', '["', "\\boxed{1,"),
    "answers": ("\\boxed{", "\\boxed{1", "\\boxed", "\\boxed{\\frac", "\\boxed{1}{", "\\boxed{1 \\text{", "\\boxed{(\\bmod", "\\boxed{\\pmod"),
}  # fmt: skip
_FILLS = ("\n", " ", *"\\\"'`{}[()1a,=-<", '<|"|>', "x,", '"}', "print(1)\n", "😀")
_ENDINGS = ('"}}', "}")


def _repeated() -> Iterator[Degenerate]:
    for unit in dict.fromkeys([*_CHARACTERS, *_WORDS, *_MATHS, *(word for words in FAMILY_WORDS.values() for word in words)]):
        yield Degenerate(ascii(unit), unit)
    for unit, middle, closing in _NESTED:
        yield Degenerate(f"nested {unit!a}", unit, middle=middle, closing=closing)
    examples = [one for every in _EXAMPLES.values() for one in every]
    for unit, closing in dict.fromkeys(pair for one in examples for pair in one.nested):
        yield Degenerate(f"nested {unit!a}", unit, middle="1", closing=closing)
    for one in examples:
        yield Degenerate(f"{'1'.join(one.parts)!a} again", "1".join(one.parts))
    for ending in dict.fromkeys([*_ENDINGS, *(one.parts[-1] for one in examples)]):
        for unit in ("\n", "}", '"', "a"):
            yield Degenerate(f"{unit!a} up to {ending!a}", unit, ending=ending)


def _after(openings: tuple[str, ...]) -> Iterator[Degenerate]:
    for opening in openings:
        for unit in _FILLS:
            yield Degenerate(f"{opening!a} and {unit!a}", unit, opening=opening)


REPEATED = tuple(_repeated())
"""Repetition and nesting, for every reader."""

AFTER = {reader: tuple(_after(openings)) for reader, openings in _OPENINGS.items()}
"""By family, and for "salvage" and "answers": a beginning that starts a search, then repetition."""

DEGENERATE = (*REPEATED, *(one for every in AFTER.values() for one in every))
