"""Runs the fault table and prints it: every call that can fail, failing once, ten times and for ever in a whole run.

python scripts/fault_table.py                                # all of it, about two minutes on two cores
python scripts/fault_table.py --times once kernel fork       # the rows whose names contain all these words
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.faults import table
from tests.faults.table import PROBLEMS, ROWS, TIMES, Cell


def main(
    words: Annotated[list[str] | None, typer.Argument(help="only rows whose names contain all of them")] = None,
    times: Annotated[list[str] | None, typer.Option(help=f"only these: {', '.join(TIMES)}")] = None,
    markdown: Annotated[bool, typer.Option(help="print the table as Markdown")] = False,
    out: Annotated[Path | None, typer.Option(help="file for one JSON record per cell, with the end of the run's log")] = None,
) -> None:
    """Runs the fault table; the exit code is 1 if a cell is not as expected."""
    names = [name for name in ROWS if all(word in name for word in words or ())]
    wanted = [count for count in TIMES if count in (times or TIMES)]
    if not (names and wanted):
        given = " ".join([*(words or ()), *(times or ())])
        raise typer.BadParameter(f"nothing is named {given}; without words the whole table runs")
    began = time.monotonic()
    done: dict[tuple[str, str], Cell] = {}
    if out is not None:
        out.write_text("")
    for cell in table.run_cells((name, count) for name in names for count in wanted):
        done[cell.row, cell.times] = cell
        if cell.fault:
            print(f"{cell.row}, {cell.times}: {cell.fault}", file=sys.stderr, flush=True)
        if out is not None:
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(cell)) + "\n")
    _show([["call", *wanted], *([name, *(_as_text(done[name, count]) for count in wanted)] for name in names)], markdown)
    faults = sum(bool(cell.fault) for cell in done.values())
    print(f"{len(done)} runs of {PROBLEMS} problems in {time.monotonic() - began:.0f} s; {faults} not as expected")
    raise typer.Exit(1 if faults else 0)


def _as_text(cell: Cell) -> str:
    text = f"{cell.answered} {cell.right} {cell.seconds:.1f}"
    return f"{text} FAILED" if cell.fault else text


def _show(rows: Sequence[Sequence[str]], markdown: bool) -> None:
    title = "problems answered, right, and seconds of the run"
    if markdown:
        print(f"{title}:\n")
        for number, row in enumerate(rows):
            print(f"| {' | '.join(row)} |")
            if number == 0:
                print(f"|{'---|' * len(row)}")
        return
    shown = Table(*rows[0], title=title)
    for row in rows[1:]:
        shown.add_row(*row)
    Console().print(shown)


if __name__ == "__main__":
    typer.run(main)
