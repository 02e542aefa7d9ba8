"""`aimo-solver report`: the results of a run in the terminal and as one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from aimo_solver.errors import RunDirectoryError, UserError
from aimo_solver.lab.report.compare import Comparison, compare
from aimo_solver.lab.report.data import RunReport, Verdict, load_report
from aimo_solver.lab.report.format import duration, percentage_points, short_number
from aimo_solver.lab.report.page import tiles, write_page
from aimo_solver.lab.report.plots import outcome_style
from aimo_solver.log.reader import read_run

_STYLES = {"good": "green", "near": "yellow", "bad": "red", "boot": "magenta", "plain": "blue", "mute": "dim"}


def report_runs(directories: Sequence[Path], console: Console, out: Path | None = None) -> Path:
    """Prints a summary of one run, or of two and their comparison, and writes the page.

    Args:
        out: path of the page; ``report.html`` in the first directory by default.

    Returns:
        The path of the page.

    Raises:
        RunDirectoryError: a directory holds no readable run, or the page cannot be written.
        UserError: there are no directories, or more than two.
    """
    if not 1 <= len(directories) <= 2:
        raise UserError(f"report takes one run directory, or two to compare; got {len(directories)}")
    out = out or directories[0] / "report.html"
    runs = [read_run(directory) for directory in directories]
    with console.status("reading trajectories"):
        reports = [load_report(run) for run in runs]
        comparison = compare(*reports) if len(reports) == 2 else None
        try:
            write_page(out, reports, comparison)
        except OSError as error:
            raise RunDirectoryError(
                out.parent, f"the page cannot be written: {error.strerror}; choose a place with --out"
            ) from None
    for one in reports:
        console.print(_summary(one))
    if comparison:
        console.print(_difference(comparison))
    console.print(f"page: {out} ({out.stat().st_size / 1e6:.1f} MB)", highlight=False, soft_wrap=True)
    return out


def _summary(report: RunReport) -> RenderableType:
    began = report.run.started[:16].replace("T", " ")
    head = Text.assemble((report.name, "bold"), (f"  {report.state}, started {began} UTC", "dim"))
    if report.known:
        right = f"{report.right} of {report.known} right"
        score = Text.assemble((right, "bold"), f", truth among the answers in {report.oracle}: ")
    else:
        score = Text(f"{len(report.run.results)} answered, truth unknown: ")
    counts = [(f"{count} {outcome}", _STYLES[outcome_style(outcome)]) for outcome, count in report.outcomes]
    score.append_text(Text(", ").join(Text(text, style) for text, style in counts))
    figures = Table.grid(padding=(0, 2))
    for tile in tiles(report):
        figures.add_row(Text(tile.name, "dim"), tile.value, Text(tile.note, "dim"))
    parts: list[RenderableType] = [head, score, Padding(figures, (1, 0)), _problems(report)]
    if report.tool_errors:
        causes = ", ".join(f"{count} {name}" for name, count in report.tool_errors.most_common(6))
        parts.append(Text.assemble(("failed tool calls: ", "dim"), causes))
    if report.run.torn_lines:
        parts.append(Text(f"{report.run.torn_lines} incomplete lines were left out", "yellow"))
    return Group(*parts, "")


def _difference(comparison: Comparison) -> RenderableType:
    if not comparison.pairs:
        return Text("the runs share no problem whose truth is known", "yellow")
    difference = comparison.difference
    shown = [percentage_points(value) for value in (difference.mean, difference.low, difference.high)]
    return Group(
        Text.assemble(
            ("second against first: ", "dim"),
            (f"{shown[0]} points", "bold"),
            f" on {comparison.pairs} problems, 95 % interval {shown[1]} to {shown[2]}",
        ),
        Text(
            f"both right {comparison.both}, only the first {comparison.only_a}, only the second {comparison.only_b}, "
            f"neither {comparison.neither}; sign test p = {comparison.p_value:.3g}",
            "dim",
        ),
        Text(comparison.reading, "dim"),
        "",
    )


def _problems(report: RunReport) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("id", "result", "answer", "truth", "votes", "calls", "errors", "tokens", "time", "why"):
        table.add_column(name, justify="left" if name in ("id", "result", "why") else "right", overflow="fold")
    for problem in report.problems:
        attempts = [attempt.attempt for attempt in problem.attempts]
        result, truth = problem.record.result, problem.record.truth
        table.add_row(
            problem.id,
            Text(problem.outcome, _STYLES[outcome_style(problem.outcome)]),
            "–" if result is None else str(result.answer),
            "–" if truth is None else str(truth),
            f"{problem.answers[0].votes if problem.answers else 0}/{len(attempts)}",
            str(sum(attempt.tool_calls for attempt in attempts)),
            str(sum(attempt.tool_errors for attempt in attempts)),
            short_number(sum(attempt.tokens for attempt in attempts)),
            duration(problem.seconds),
            Text("" if problem.verdict is Verdict.RIGHT else problem.why, "dim"),
        )
    return table
