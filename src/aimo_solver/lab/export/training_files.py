"""Writes training data: parquet for TRL, a text to read, and what was left out and why."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from aimo_solver.lab.export.training import Example, Filters, Pair, Row, TrainingData

_TYPES = {"_ids": pl.List(pl.Int32()), "_mask": pl.List(pl.Int8()), "_masks": pl.List(pl.Int8())}  # by the end of the name


def write_training_data(data: TrainingData[Row], path: Path, filters: Filters, *, shown: int) -> list[Path]:
    """Writes ``NAME.parquet`` and, for held-out problems, ``NAME.test.parquet``; returns all paths.

    ``NAME.txt`` shows the first rows as text, with the mask of each piece; ``NAME.json`` holds the statistics and the filters.

    Args:
        shown: rows in the text.

    Raises:
        OSError: a file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    written: list[Path] = [path]
    _frame(data.rows).write_parquet(path)
    test = path.with_suffix(".test.parquet")
    if data.test:
        _frame(data.test).write_parquet(test)
        written.append(test)
    else:
        test.unlink(missing_ok=True)  # of an earlier export
    text, statistics = path.with_suffix(".txt"), path.with_suffix(".json")
    text.write_text("\n".join(line for row in data.rows[:shown] for line in _lines(row)) + "\n", encoding="utf-8")
    values = summarise(data) | {"filters": asdict(filters)}
    statistics.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return [*written, text, statistics]


def summarise(data: TrainingData[Row]) -> dict[str, Any]:
    """Returns the statistics as plain values: rows, problems, tokens and trained tokens of both parts, and what was left out."""
    parts = {"train": _count(data.rows), "test": _count(data.test)}
    left_out = {reason.value: count for reason, count in data.left_out.most_common()}
    return {"attempts": data.attempts, "used": data.used, **parts, "left_out": left_out}


def _count(rows: Sequence[Example] | Sequence[Pair]) -> dict[str, int]:
    examples = [example for row in rows for example in _examples(row)]
    return {
        "rows": len(rows),
        "problems": len({row.problem for row in rows}),
        "tokens": sum(len(example.tokens) for example in examples),
        "sampled_tokens": sum(sum(example.mask) for example in examples),
    }


def _frame(rows: Sequence[Example] | Sequence[Pair]) -> pl.DataFrame:
    values = [row.row for row in rows]
    types = {name: dtype for name in values[0] for end, dtype in _TYPES.items() if name.endswith(end)} if values else {}
    return pl.DataFrame(values, schema_overrides=types)


def _examples(row: Example | Pair) -> tuple[Example, ...]:
    return (row,) if isinstance(row, Example) else (row.chosen, row.rejected)


def _lines(row: Example | Pair) -> Iterator[str]:
    if isinstance(row, Pair):
        yield f"######## pair for {row.problem}: better {row.kind}, similarity {row.similarity:.2f}"
    for example in _examples(row):
        yield f"==== {example.source}: {'right' if example.right else 'wrong'}, {len(example.tokens)} tokens"
        for step in example.steps:
            if step.tokens:
                trained = "sampled, mask 1" if step.kind == "turn" else f"{step.why or step.kind}, mask 0"
                yield f"---- {trained}, {len(step.tokens)} tokens\n{step.text}"
        yield ""
