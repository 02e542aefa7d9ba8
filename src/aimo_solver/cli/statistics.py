"""The commands that say how sure a result is: `stats`, `compare` and `power`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from aimo_solver.cli.common import guarded, progress_bar
from aimo_solver.errors import ConfigError, UserError
from aimo_solver.lab import statistics_tables
from aimo_solver.lab.comparison import compare_configurations
from aimo_solver.lab.power import Spread, measure_spread, power_of_runs, published_spread, resampled_power, runs_needed
from aimo_solver.lab.report.statistics_plots import save_statistics_charts
from aimo_solver.lab.run_statistics import compute_statistics
from aimo_solver.lab.runs import common_problems, read_runs, read_tool_errors, right_answers

_RUNS = "run directories, folders that hold several, attempts.jsonl files, or CSV files of attempts"
_SHOWN = (2, 3, 5, 10, 20, 50, 100)  # runs of each, in the table of `power`
_MOST_RESAMPLED = 200  # runs; beyond that the t-test is as good as exact

AsJson = Annotated[bool, typer.Option("--json", help="one JSON object instead of Markdown")]


@guarded
def stats_command(
    runs: Annotated[list[Path], typer.Argument(help=_RUNS)],
    k: Annotated[str | None, typer.Option("--k", help="attempts per problem, separated by commas; default: 1,2,4 ...")] = None,
    as_json: AsJson = False,
    plots: Annotated[Path | None, typer.Option(help="folder for charts as SVG files")] = None,
) -> None:
    """Prints pass@k, maj@k, scores and their spread for runs of one configuration, with 95 % intervals clustered by problem."""
    logged = read_runs(runs)
    with progress_bar("failed tool calls", hidden=as_json) as progress:
        errors = read_tool_errors(logged, progress)
    statistics = compute_statistics(logged, errors, _attempt_counts(k))
    if plots is not None:
        save_statistics_charts(plots, statistics, logged)
    _show(statistics_tables.plain_values(statistics), statistics_tables.statistics_markdown(statistics), as_json)


@guarded
def compare_command(
    configurations: Annotated[list[Path], typer.Argument(help="a run directory, or a folder of runs, for each configuration")],
    as_json: AsJson = False,
) -> None:
    """Compares configurations with the first one, on the problems that all their runs have."""
    names = [str(path) for path in configurations]
    if len(set(names)) < len(names):
        raise ConfigError("configurations", "each must be given once")
    table = compare_configurations({name: read_runs([path]) for name, path in zip(names, configurations, strict=True)})
    _show(statistics_tables.plain_values(table), statistics_tables.comparison_markdown(table), as_json)


@guarded
def power_command(
    runs: Annotated[list[Path] | None, typer.Argument(help="repeats of a configuration, to measure the spread on")] = None,
    difference: Annotated[float, typer.Option(min=0.01, help="difference to find, in right answers of a run")] = 1.0,
    problems: Annotated[int, typer.Option(min=1, help="problems of a run")] = 50,
    power: Annotated[float, typer.Option(min=0.06, max=0.999, help="probability of finding it")] = 0.8,
    as_json: AsJson = False,
) -> None:
    """Prints how many runs of two configurations it takes to see a difference between them, by a two-sided test at 5 %.

    Without runs the spread is the published one of a notebook that was submitted 21 times.
    """
    spread = _measured(runs, problems) if runs else published_spread(problems)
    needed = runs_needed(difference, spread, power)
    counts = sorted({*_SHOWN, *([needed] if needed else [])})
    rows = [
        (
            count,
            power_of_runs(difference, spread, count),
            resampled_power(difference, spread, count) if count <= _MOST_RESAMPLED else None,
        )
        for count in counts
    ]
    values = {
        "difference": difference,
        "problems": problems,
        "deviation": spread.deviation,
        "source": spread.source,
        "runs_needed": needed,
        "power": [dict(zip(("runs", "power", "resampled"), row, strict=True)) for row in rows],
    }
    _show(values, statistics_tables.power_markdown(difference, spread, needed, rows, power), as_json)


def _measured(paths: Sequence[Path], problems: int) -> Spread:
    logged = read_runs(paths)
    common = common_problems(logged)
    if len(logged) < 2 or not common:
        raise UserError("a spread is measured on two or more runs of the same problems; give the folders of the repeats")
    right = right_answers(logged, common)
    by_scores = float(right.sum(axis=1).std(ddof=1)) * (problems / len(common)) ** 0.5
    source = f"{len(logged)} runs of {len(common)} problems, by the problems' variances; by the runs' scores {by_scores:.2f}"
    return measure_spread(right, source, problems)


def _attempt_counts(text: str | None) -> list[int]:
    try:
        counts = sorted({int(part) for part in text.split(",")}) if text is not None else []
    except ValueError:
        counts = [0]
    if counts and counts[0] < 1:
        raise ConfigError("--k", f"write numbers like 1,4,16 (got {text!r})")
    return counts


def _show(values: dict[str, Any], markdown: str, as_json: bool) -> None:
    print(json.dumps(values) if as_json else markdown, end="\n" if as_json else "")
