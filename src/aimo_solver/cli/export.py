"""The commands `export inspect | parquet | wandb`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from aimo_solver.cli.common import console, guarded, progress_bar
from aimo_solver.errors import ConfigError
from aimo_solver.lab.export.inspect_log import write_inspect_log
from aimo_solver.lab.export.tables import name_run, write_parquet
from aimo_solver.lab.export.wandb_run import write_wandb_run
from aimo_solver.log.reader import RunRecord, read_run

export = typer.Typer(no_args_is_help=True, help="Writes runs in the formats of other tools.")

Runs = Annotated[list[Path], typer.Argument(metavar="RUN...", help="run directories")]
Out = Annotated[Path, typer.Option(help="folder for the files; existing files of the same names are replaced")]


@export.command("inspect")
@guarded
def export_inspect_command(runs: Runs, out: Out = Path("exports")) -> None:
    """Writes one Inspect log per run, for `inspect view --log-dir OUT`."""
    _export_each(runs, out, write_inspect_log)


@export.command("parquet")
@guarded
def export_parquet_command(runs: Runs, out: Out = Path("exports")) -> None:
    """Writes problems.parquet, attempts.parquet and turns.parquet, each with the rows of all runs."""
    records = _read(runs)
    with _writing(out), progress_bar("tables", hidden=not console.is_terminal) as progress:
        written = write_parquet(records, out, progress)
    for path in written:
        _print(path)


@export.command("wandb")
@guarded
def export_wandb_command(runs: Runs, out: Out = Path("exports")) -> None:
    """Writes one offline run of Weights & Biases per run, for `wandb sync`; needs wandb."""
    _export_each(runs, out, write_wandb_run)


def _export_each(runs: list[Path], out: Path, write: Callable[[RunRecord, Path, Callable[[float], None]], Path]) -> None:
    for run in _read(runs):
        with _writing(out), progress_bar(name_run(run), hidden=not console.is_terminal) as progress:
            _print(write(run, out, progress))


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError("--out", f"{folder} cannot be written: {error.strerror}; choose another folder") from None


def _read(directories: list[Path]) -> list[RunRecord]:
    runs = [read_run(directory) for directory in directories]
    names = [name_run(run) for run in runs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(
            "RUN", f"several runs are named {', '.join(sorted(twice))}; rename their folders, as exports use the name"
        )
    return runs


def _print(path: Path) -> None:
    console.print(str(path), highlight=False, soft_wrap=True)
