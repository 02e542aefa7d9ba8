"""The table of endings of final texts, `answer_endings.toml`."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SENTENCES = ("Therefore, the answer is $\\boxed{%s}$.", "\\[\n\\boxed{%s}\n\\]", "**Final answer:** \\(\\boxed{%s}\\)")


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of a final text.

    Attributes:
        answer: the answer that it states, None if it states none that counts.
        out_of_range: it states a number that is no answer.
        read: whether `read_answer` reads it rightly.
    """

    text: str
    answer: int | None
    out_of_range: bool
    read: bool


def _load() -> Iterator[Ending]:
    table = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    for name, rows in table.items():
        for (text, value), sentence in zip(rows, itertools.cycle(_SENTENCES), strict=False):
            whole = sentence.replace("%s", text) if "box" in name else text
            answer = value if isinstance(value, int) else None
            yield Ending(whole, answer, out_of_range=value == "out", read=name in ("box", "text"))


ENDINGS = tuple(_load())
