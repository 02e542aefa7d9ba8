"""The commands `export sft | dpo`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from aimo_solver.cli.common import console, guarded, progress_bar
from aimo_solver.errors import ConfigError, UserError
from aimo_solver.lab.export.training import Filters, Pairs, Row, TrainingData, select_dpo, select_sft
from aimo_solver.lab.export.training_files import summarise, write_training_data
from aimo_solver.lab.runs import LoggedRun, check_truths, read_runs

Runs = Annotated[list[Path], typer.Argument(metavar="RUN...", help="run directories, or folders that hold several")]
Out = Annotated[Path, typer.Option(help="parquet file; .test.parquet, .txt and .json of the same name are written beside it")]
LeastTokens = Annotated[int, typer.Option(min=0, help="shortest conversation, with prompt and tool results")]
MostTokens = Annotated[int | None, typer.Option(min=1, help="longest conversation; default: any")]
KeepSolved = Annotated[bool, typer.Option("--keep-solved", help="also problems that every attempt solved")]
HeldOut = Annotated[float, typer.Option(min=0.0, max=1.0, help="share of the problems that goes to the test file")]
Seed = Annotated[int, typer.Option(help="for the draw of attempts and of held-out problems")]
Show = Annotated[int, typer.Option(min=0, help="rows in the text file")]


@guarded
def export_sft_command(
    runs: Runs,
    out: Out,
    least_tokens: LeastTokens = 0,
    most_tokens: MostTokens = None,
    per_problem: Annotated[int, typer.Option(min=1, help="most attempts per problem")] = 4,
    keep_solved: KeepSolved = False,
    held_out: HeldOut = 0.1,
    seed: Seed = 0,
    show: Show = 20,
) -> None:
    """Writes right attempts for supervised fine-tuning: token ids, and a loss mask that is 1 on sampled tokens."""
    filters = Filters(
        least_tokens=least_tokens,
        most_tokens=most_tokens,
        per_problem=per_problem,
        keep_solved=keep_solved,
        held_out=held_out,
        seed=seed,
    )
    _export("attempts", select_sft, runs, out, filters, show)


@guarded
def export_dpo_command(
    runs: Runs,
    out: Out,
    pairs: Annotated[
        list[Pairs] | None,
        typer.Option(help="answer: right before wrong; length: the shorter of two right ones; repeatable; default: answer"),
    ] = None,
    length_ratio: Annotated[
        float, typer.Option(min=1.0, help="with --pairs length, the longer has at least this many times the sampled tokens")
    ] = 1.5,
    least_similarity: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="of a pair's sampled tokens, by edit distance; 1 means equal")
    ] = 0.0,
    most_similarity: Annotated[float, typer.Option(min=0.0, max=1.0)] = 0.95,
    least_tokens: LeastTokens = 0,
    most_tokens: MostTokens = None,
    per_problem: Annotated[int, typer.Option(min=1, help="most pairs per problem")] = 4,
    keep_solved: KeepSolved = False,
    held_out: HeldOut = 0.1,
    seed: Seed = 0,
    show: Show = 20,
) -> None:
    """Writes pairs of attempts with the same prompt for preference training; needs rapidfuzz.

    With --keep-solved, pairs of kind length are also taken from problems that every attempt solved.
    """
    filters = Filters(
        least_tokens=least_tokens,
        most_tokens=most_tokens,
        per_problem=per_problem,
        keep_solved=keep_solved,
        pairs=tuple(dict.fromkeys(pairs or (Pairs.ANSWER,))),
        length_ratio=length_ratio,
        least_similarity=least_similarity,
        most_similarity=most_similarity,
        held_out=held_out,
        seed=seed,
    )
    _export("pairs", select_dpo, runs, out, filters, show)


def _export(
    what: str,
    select: Callable[[Sequence[LoggedRun], Filters, Callable[[float], object]], TrainingData[Row]],
    runs: list[Path],
    out: Path,
    filters: Filters,
    shown: int,
) -> None:
    _check(out, filters)
    logged = read_runs(runs)
    check_truths(logged)
    with progress_bar(what, hidden=not console.is_terminal) as progress:
        data = select(logged, filters, progress)
    _write(data, out, filters, shown)


def _check(out: Path, filters: Filters) -> None:
    if out.suffix != ".parquet":
        raise ConfigError("--out", f"{out} must end in .parquet")
    if filters.most_tokens is not None and filters.most_tokens < filters.least_tokens:
        raise ConfigError("--most-tokens", f"{filters.most_tokens} is below --least-tokens {filters.least_tokens}")
    if filters.most_similarity < filters.least_similarity:
        raise ConfigError("--most-similarity", f"{filters.most_similarity:g} is below --least-similarity")


def _write(data: TrainingData[Row], out: Path, filters: Filters, shown: int) -> None:
    console.print(_table(data))
    if not data.rows:
        raise UserError("nothing is left to train on; the table says why")
    try:
        written = write_training_data(data, out, filters, shown=shown)
    except OSError as error:
        raise ConfigError("--out", f"{out} cannot be written: {error.strerror}; choose another file") from None
    for path in written:
        console.print(str(path), highlight=False, soft_wrap=True)


def _table(data: TrainingData[Row]) -> Table:
    values = summarise(data)
    table = Table("", "rows", "problems", "tokens", "of them sampled")
    for part in ("train", "test"):
        table.add_row(part, *(f"{count:,}" for count in values[part].values()))
    table.add_section()
    table.add_row(f"{values['attempts']:,} attempts", f"{values['used']:,} used")
    for reason, count in values["left_out"].items():
        table.add_row(reason, f"{count:,}")
    return table
