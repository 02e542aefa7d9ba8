"""The result of a benchmark: a table of numbers with the machine, the versions and the command that produced them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aimo_solver.log.writer import describe_environment
from aimo_solver.server.machine import detect_gpus

Value = str | int | float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """One benchmark's outcome.

    Attributes:
        columns: names with units; every row has one value per column.
        notes: what a reader must know to trust the numbers.
        details: further values, in JSON only.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values, with the machine, the versions and the command."""
        gpus = [
            {"name": gpu.name, "memory_gib": round(gpu.memory_bytes / 2**30, 1), "driver": gpu.driver} for gpu in detect_gpus()
        ]
        return {
            "bench": self.name,
            "command": sys.argv,
            "environment": {**describe_environment(), "gpus": gpus},
            "results": [dict(zip(self.columns, row, strict=True)) for row in self.rows],
            "notes": list(self.notes),
            "details": dict(self.details),
        }

    def save(self, path: Path) -> None:
        """Writes `as_dict` as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.as_dict(), indent=1) + "\n", encoding="utf-8")

    def show(self, console: Console) -> None:
        """Prints the table and its notes as Markdown."""
        table = Table(box=MARKDOWN)
        for number, column in enumerate(self.columns):
            table.add_column(Text(column), justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*(Text(format_cell(value)) for value in row))
        console.print(table)
        for note in self.notes:
            console.print(f"- {note}", markup=False, highlight=False, soft_wrap=True)


def format_cell(value: Value) -> str:
    """Formats a number with three significant digits or as an integer; empty for None."""
    if not isinstance(value, float):
        return "" if value is None else f"{value:,}" if isinstance(value, int) else value
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
