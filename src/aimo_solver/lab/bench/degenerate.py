"""Degenerate model output: endless repetition or nesting, as failing language models produce it.

Model output is parsed on the event loop, so each of these must be parsed in linear time. Used by the fuzz tests and by
``aimo-solver bench parse``.
"""

# ruff: noqa: E501 (lists of words)

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass


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


CONTROLS: dict[str, tuple[str, ...]] = {
    "harmony": (
        "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>", "<|return|>", "<|endoftext|>",
        "assistant", "analysis", " to=python", " code", "to=", "<|start|>assistant<|channel|>final<|message|>",
    ),
    "gemma": (
        "<pad>", "<eos>", "<bos>", "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>", "<|tool_response>",
        "<tool_response|>", '<|"|>', "<|think|>", "<|channel>", "<channel|>", "<|turn>", "<turn|>", "thought\n",
        "call:", "call:python{", "call:python{code:", "<call>python{",
    ),
    "hermes": (
        "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>",
        "<tool_response>", "</tool_response>", '{"name": "python", "arguments": {"code": "', "<function=", "<function=python>",
        "</function>", "<parameter=", "<parameter=code>", "<parameter=code", "< parameter = code >", "</parameter>",
    ),
    "fenced": (
        "<|begin|>", "<|end|>", "<|User|>", "<|Assistant|>", "<code>", "</code>", "```", "```python\n", "```python", "```\n",
        "```output\n", "~~~\n", "~~~python\n", "- ```python\n", "1. ```\n", "\n```", " ```",
    ),
}  # fmt: skip
"""The control tokens of each family, and other text that it parses as markup."""

CALLS = {
    "harmony": "<|channel|>analysis to=python code<|message|>1<|end|><|start|>assistant",
    "gemma": '<|tool_call>call:python{code:<|"|>1<|"|>}<tool_call|>',
    "hermes": '<tool_call>\n{"name": "python", "arguments": {"code": "1"}}\n</tool_call>',
    "hermes-xml": "<tool_call>\n<function=python>\n<parameter=code>\n1\n</parameter>\n</function>\n</tool_call>",
    "fenced": "```python\n1\n```\n",
    "code tags": "<code>1</code>",
}
"""A complete tool call in each family's syntax."""

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
    ("<think>", "", "</think>"), ("<tool_call>", "", "</tool_call>"), ("<code>", "", "</code>"), ("<function=", "", "</function>"),
    ("<parameter=code>", "", "</parameter>"), ("<|tool_call>", "", "<tool_call|>"), ("call:python{", "", "}"),
    ("<|channel>", "", "<channel|>"), ("```python\n", "", "```\n"), ("````python\n", "", "```\n"),
)  # fmt: skip
# Beginnings after which a reader searches for something that is then missing or too frequent.
_OPENINGS = {
    "harmony": ("<|channel|>analysis to=python code<|message|>", "<|channel|>final<|message|>", "<|channel|>", " to="),
    "gemma": ("<|tool_call>", "<|tool_call>call:python{", '<|tool_call>call:python{code:<|"|>', "call:python{", "<call>python"),
    "hermes": (
        "<tool_call>", "<tool_call>\n{", '<tool_call>\n{"name":', '<tool_call>\n{"name": "python", "arguments": {"code": "',
        "<tool_call><function", "<tool_call><function=", "<tool_call><function=python>", "<tool_call><function=python><parameter=",
        "<tool_call><function=python><parameter=code>", "<tool_call><function=python><", '{"name": "python", "arguments":', "<function=python",
    ),
    "fenced": ("```", "```python\n", "```python\n\t", "```python", "~~~~", "- ", "1", "<code>", "</think> ", "<think>"),
    "salvage": ('{"code": "', "{'code': '", '{"code": """', "{code=`", "```json\n", '```python\n{"code":', '{"code":', '["', "\\boxed{1,"),
    "answers": ("\\boxed{", "\\boxed{1", "\\boxed", "\\boxed{\\frac", "\\boxed{1}{", "\\boxed{1 \\text{", "\\boxed{(\\bmod", "\\boxed{\\pmod"),
}  # fmt: skip
_FILLS = ("\n", " ", *"\\\"'`{}[()1a,=-<", '<|"|>', "x,", '"}', "print(1)\n", "😀")
_ENDINGS = ("<|return|>", "<turn|>", "<|im_end|>", "<|end|>", "<tool_call|>", "</tool_call>", '"}}', "}", "```\n", "</think>1")


def _runs() -> Iterator[Degenerate]:
    for unit in dict.fromkeys([*_CHARACTERS, *_WORDS, *_MATHS, *(word for words in CONTROLS.values() for word in words)]):
        yield Degenerate(ascii(unit), unit)
    for unit, middle, closing in _NESTED:
        yield Degenerate(f"nested {unit!a}", unit, middle=middle, closing=closing)
    for name, unit in CALLS.items():
        yield Degenerate(f"calls of {name}", unit)
    for ending in _ENDINGS:
        for unit in ("\n", "}", '"', "a"):
            yield Degenerate(f"{unit!a} up to {ending!a}", unit, ending=ending)


def _after(openings: tuple[str, ...]) -> Iterator[Degenerate]:
    for opening in openings:
        for unit in _FILLS:
            yield Degenerate(f"{opening!a} and {unit!a}", unit, opening=opening)


RUNS = tuple(_runs())
"""Repetition and nesting, for every reader."""

AFTER = {reader: tuple(_after(openings)) for reader, openings in _OPENINGS.items()}
"""By family, and for "salvage" and "answers": a beginning that starts a search, then repetition."""

DEGENERATE = (*RUNS, *(one for every in AFTER.values() for one in every))
