"""Measures the CPU time of all code that parses model output, on degenerate output of growing length.

That code runs on the event loop and stalls every other attempt, hence the limits in `LIMITS_MS`.
"""

from __future__ import annotations

import functools
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openai_harmony import HarmonyEncodingName, load_harmony_encoding
from tokenizers import AddedToken

from aimo_solver.answers import extract_answer
from aimo_solver.chat import salvage
from aimo_solver.chat.families import FAMILIES, load_chat_format
from aimo_solver.chat.markup import MARKUP
from aimo_solver.chat.model_folder import Tokenizer, replace_surrogates
from aimo_solver.chat.options import FamilyName
from aimo_solver.chat.turns import ChatFormat
from aimo_solver.lab.bench.degenerate import AFTER, REPEATED, Degenerate
from aimo_solver.lab.bench.table import BenchResult

SIZES = (10_000, 100_000, 1_000_000)
"""Characters of an input."""

LIMITS_MS: Mapping[int, float] = {100_000: 50.0, 1_000_000: 1_000.0}
"""CPU milliseconds allowed to a reader, by characters of its input."""

OUTPUT_CHARS = 4_000
"""A tool's output is cut to `kernels.output_chars` before it is formatted; this is the default."""

_SLOWEST = (16, 4)  # inputs of a reader measured at the second size, and at later ones
_TOO_SLOW_MS = 1_000.0  # slower inputs are not measured at the next size
_TEMPLATE = """\
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor -%}
{{- '<|im_start|>assistant\\n' }}"""
_TURN = ("<|im_start|>", "<|im_end|>")

Encode = Callable[[str], list[int]]


@dataclass(frozen=True, slots=True)
class Sample:
    """One degenerate input: its token ids for a family's reader, and its text."""

    tokens: list[int]
    text: str


@dataclass(frozen=True, slots=True)
class Reader:
    """One entry point that parses model output.

    Attributes:
        family: a chat family, or the module of a reader that all families share.
        encode: encodes text with control tokens; None if only the text is read.
    """

    family: str
    entry: str
    read: Callable[[Sample], object]
    encode: Encode | None = None

    def sample(self, one: Degenerate, characters: int) -> Sample:
        """Returns the input at a length."""
        return Sample([] if self.encode is None else one.tokens(characters, self.encode), one.text(characters))

    @property
    def inputs(self) -> tuple[Degenerate, ...]:
        """The inputs that are relevant to it."""
        shared = (*AFTER["salvage"], *AFTER["answers"])
        return (*REPEATED, *AFTER.get(self.family, ()), *(shared if self.entry in ("parse", *_SHARED) else ()))


@dataclass(slots=True)
class _Row:
    reader: Reader
    one: Degenerate
    times_ms: dict[int, float] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        return any(time_ms > LIMITS_MS.get(size, float("inf")) for size, time_ms in self.times_ms.items())

    @property
    def rank(self) -> tuple[bool, int, float]:
        """Sorts rows by relevance: over a limit, then measured at most sizes, then slowest per character."""
        size, time_ms = list(self.times_ms.items())[-1]
        return (self.over, 0 if self.over else len(self.times_ms), time_ms / size)


_SHARED: dict[str, tuple[str, Callable[[str], object]]] = {
    "extract_answer": ("answers", extract_answer),
    "bare_code": ("salvage", salvage.bare_code),
    "calls_in_json": ("salvage", salvage.calls_in_json),
    "code_in_json": ("salvage", salvage.code_in_json),
    "is_program": ("salvage", salvage.is_program),
    "python_blocks": ("salvage", salvage.python_blocks),
    "compiles": ("salvage", salvage.compiles),
}


def list_readers(families: Mapping[str, tuple[ChatFormat, Encode]]) -> list[Reader]:
    """Returns the entry points of each family, then those that all share."""
    own = [
        Reader(name, entry, read, encode) for name, (chat, encode) in families.items() for entry, read in _entries(chat).items()
    ]
    return [*own, *(Reader(family, entry, _of_text(read)) for entry, (family, read) in _SHARED.items())]


def _entries(chat: ChatFormat) -> dict[str, Callable[[Sample], object]]:
    return {
        "parse": lambda sample: chat.parse(sample.tokens),
        "tool_results": lambda sample: chat.tool_results(sample.tokens, [""]),
        "tool_results, output": lambda sample: chat.tool_results([], [sample.text[:OUTPUT_CHARS]]),
        "complaint": lambda sample: chat.complaint(sample.tokens, "Wrong."),
        "ask_answer": lambda sample: chat.ask_answer(sample.tokens),
        "answer_text": lambda sample: extract_answer(chat.answer_text(sample.tokens)),
        "decode": lambda sample: chat.decode(sample.tokens),
    }


def _of_text(read: Callable[[str], object]) -> Callable[[Sample], object]:
    return lambda sample: read(sample.text)


def load_families(model: Path, scratch: Path) -> dict[str, tuple[ChatFormat, Encode]]:
    """Loads every family with one model's vocabulary plus its own control tokens; harmony uses its own vocabulary.

    Args:
        scratch: an empty folder, for the families' model folders.
    """
    made: dict[str, tuple[ChatFormat, Encode]] = {}
    for family in FAMILIES:
        folder = _folder(model, family, scratch / family)
        encode = _harmony_encode if family == "harmony" else Tokenizer.load(folder).encode_template
        made[family] = (load_chat_format(folder, family), encode)
    return made


def _folder(model: Path, family: FamilyName, folder: Path) -> Path:
    folder.mkdir()
    core = Tokenizer.load(model).core
    tokens = dict.fromkeys([*MARKUP[family].tokens, *_TURN])
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    core.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"eos_token_id": core.token_to_id("<|im_end|>")}), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(_TEMPLATE, encoding="utf-8")
    return folder


@functools.cache
def _harmony() -> Any:
    return load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)  # takes a third of a second each time


def _harmony_encode(text: str) -> list[int]:
    return list(_harmony().encode(replace_surrogates(text), allowed_special="all"))


def bench_parse(
    chosen: Sequence[Reader],
    sizes: Sequence[int] = SIZES,
    *,
    every: bool = False,
    progress: Callable[[float], None] = lambda share: None,
) -> BenchResult:
    """Measures readers on degenerate inputs; at each larger size, only on the slowest inputs of the size before.

    Args:
        sizes: characters, ascending.
        every: whether to show each input instead of the slowest of each reader.
        progress: called with the share done, 0..1.
    """
    rows: list[_Row] = []
    for number, reader in enumerate(chosen):
        rows += _measured(reader, sizes)
        progress((number + 1) / len(chosen))
    over = [row for row in rows if row.over]
    return BenchResult(
        name="parse",
        columns=("family", "entry point", "input", *(f"{size:,} characters: ms" for size in sizes), "over"),
        rows=tuple(
            (row.reader.family, row.reader.entry, row.one.name, *(row.times_ms.get(size) for size in sizes), "over" * row.over)
            for row in (rows if every else _slowest_of_each(rows))
        ),
        notes=(
            f"{len(rows):,} inputs, {len(over)} over a limit ({_limits()}); CPU time, minimum of three tries if over a limit",
            f"the slowest {_SLOWEST[0]} inputs of a reader are measured at the second size, {_SLOWEST[1]} of them at the next",
            f"tool_results, output: at most {OUTPUT_CHARS:,} characters, as the loop cuts it",
        ),
        details={"over": [f"{row.reader.family} {row.reader.entry} {row.one.name}" for row in over]},
    )


def _measured(reader: Reader, sizes: Sequence[int]) -> list[_Row]:
    measured = rows = [_Row(reader, one) for one in reader.inputs]
    for number, size in enumerate(sizes):
        for row in measured:
            row.times_ms[size] = _time_ms(reader, row.one, size)
        slowest = sorted(measured, key=lambda row: row.times_ms[size], reverse=True)
        measured = [row for row in slowest[: _SLOWEST[min(number, 1)]] if row.times_ms[size] < _TOO_SLOW_MS]
    return rows


def _time_ms(reader: Reader, one: Degenerate, size: int) -> float:
    sample = reader.sample(one, size)
    times: list[float] = []
    for _ in range(3):
        began = time.process_time()
        reader.read(sample)
        times.append((time.process_time() - began) * 1_000)
        if not LIMITS_MS.get(size, float("inf")) < times[-1] < 5_000:
            break
    return min(times)


def _slowest_of_each(rows: Sequence[_Row]) -> list[_Row]:
    by_reader = itertools.groupby(rows, key=lambda row: (row.reader.family, row.reader.entry))
    return [max(own, key=lambda row: row.rank) for _, own in by_reader]


def _limits() -> str:
    return ", ".join(f"{limit:,.0f} ms at {size:,}" for size, limit in LIMITS_MS.items())
