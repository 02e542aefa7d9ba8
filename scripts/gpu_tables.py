"""Renders what `gpu_bench.py` saved as the Markdown tables of docs/benchmarks.md, so that no number is typed by hand.

python scripts/gpu_bench.py --tables OUT
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aimo_solver.lab.bench.table import format_cell

_UNIFORM = ("decode", "decode-wide", "decode-deep")
_BESIDE = {"decode-skewed": "skewed", "decode-concentrated": "concentrated", "decode-dummy": "concentrated (dummy)"}
_COLUMNS = ("depth", "streams", "experts per layer", "GB per step", "tokens/s", "ms per step", "of bandwidth")
_HIDDEN = ("sweep-", "parallel-", "decode-speculation-", "dense-")  # parts of other tables


def render(out: Path) -> str:
    """Returns the tables of a folder: decode in one, then every other result."""
    saved = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(out.glob("*.json"))}
    tables = {name: one for name, one in saved.items() if isinstance(one, dict) and "results" in one}
    parts = list(_decode(tables))
    for name, one in tables.items():
        if name not in (*_UNIFORM, *_BESIDE) and not name.startswith(_HIDDEN) and one["results"]:
            columns = list(one["results"][0])
            rows = [[row[column] for column in columns] for row in one["results"]]
            parts.append(_part(name, one, columns, rows))
    return "\n\n".join(parts) + "\n"


def _decode(tables: dict[str, Any]) -> Iterator[str]:
    """One table of streams and depth: uniform routing, and the speed with other routing alongside."""
    uniform = [tables[name] for name in _UNIFORM if name in tables]
    if not uniform:
        return
    beside = {name: title for name, title in _BESIDE.items() if name in tables}
    speeds = {name: {(row["depth"], row["streams"]): row["tokens/s"] for row in tables[name]["results"]} for name in beside}
    measured = {(row["depth"], row["streams"]): row for table in reversed(uniform) for row in table["results"]}
    rows = [
        [*(row[column] for column in _COLUMNS), *(speeds[name].get(key) for name in beside)]
        for key, row in sorted(measured.items())
    ]
    titles = [f"{title}, tokens/s" for title in beside.values()]
    skews = [note for name in beside for note in tables[name]["notes"] if "skew" in note]
    merged = {**uniform[0], "notes": [*uniform[0]["notes"], *skews]}
    yield _part(" ".join(name for name in (*_UNIFORM, *beside) if name in tables), merged, [*_COLUMNS, *titles], rows)


def _part(name: str, result: dict[str, Any], columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    environment = result.get("environment", {})
    gpus = [gpu["name"] for gpu in environment.get("gpus", ())]
    machine = f"{len(gpus)} x {gpus[0]}" if gpus else f"{environment.get('cpus')} CPU cores"
    start = result.get("details", {}).get("ready_s")
    lines = [f"`python scripts/gpu_bench.py OUT {name}`: {machine}, vLLM {environment.get('versions', {}).get('vllm')}"]
    lines[0] += f", ready after {start:.0f} s." if start else "."
    lines += ["", _row(columns), _row(["---"] * len(columns))]
    lines += [_row([format_cell(value) for value in row]) for row in rows]
    lines += ["", *(f"- {note}" for note in result.get("notes", ()))]
    return "\n".join(lines).rstrip()


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
