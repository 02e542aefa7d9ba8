"""What the turns of each family consist of, for fuzz tests and benchmarks, which make degenerate turns from it. Not part of the
notebook.
"""

from __future__ import annotations

from dataclasses import dataclass

from aimo_solver.chat import gemma, harmony, hermes
from aimo_solver.chat.options import FamilyName


@dataclass(frozen=True, slots=True)
class Markup:
    """What the turns of a family consist of.

    Attributes:
        tokens: control tokens that every vocabulary of the family has.
        turns: one turn of every form that is read. The 1 stands for the code and for each text. Degenerate turns are made by
            replacing it, and by cutting, repeating and nesting the turn's tags in angle brackets.
    """

    tokens: tuple[str, ...]
    turns: tuple[str, ...]


MARKUP: dict[FamilyName, Markup] = {
    "harmony": Markup(
        tokens=harmony.CONTROLS,
        turns=(
            "<|channel|>analysis to=python code<|message|>1<|call|>",
            '<|channel|>commentary to=functions.python <|constrain|>json<|message|>{"code": "1"}<|call|>',
            "<|channel|>analysis<|message|>1<|end|><|start|>assistant<|channel|>final<|message|>1<|return|>",
        ),
    ),
    "gemma": Markup(
        tokens=gemma.CONTROLS,
        turns=(
            '<|tool_call>call:python{code:<|"|>1<|"|>}<tool_call|><|tool_response>',
            "<|channel>thought\n1<channel|>1<turn|>",
            *("<|tool_call>call:python{1}<tool_call|>", "call:python{code:1}", "<call>python{1}"),
        ),
    ),
    "hermes": Markup(
        tokens=(*hermes.TAGS, "<|im_start|>", "<|im_end|>"),
        turns=(
            '<tool_call>\n{"name": "python", "arguments": {"code": "1"}}\n</tool_call><|im_end|>',
            "<think>\n1\n</think>\n\n1",
            "<tool_call>\n<function=python>\n<parameter=code>\n1\n</parameter>\n</function>\n</tool_call>",
            *('{"name": "python", "arguments": {"code": "1"}}', "<function=python>1</function>"),
        ),
    ),
    "fenced": Markup(
        tokens=(),
        turns=(
            *("```python\n1\n```\n", "```python\n1\n```output\n1\n```\n", "~~~python\n1\n~~~\n", "- ```python\n  1\n  ```\n"),
            *("2. ````\n1\n````\n", "<think>1</think> 1", "<code>1</code>", "<tool_call>1</tool_call>"),
        ),
    ),
}
"""One entry for each family."""
