"""`aimo-solver report`: the results of one run, two or many in the terminal and as one HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from aimo_solver.errors import RunDirectoryError, UserError
from aimo_solver.lab.report.compare import Comparison, compare
from aimo_solver.lab.report.data import RunReport, Verdict, load_report
from aimo_solver.lab.report.format import duration, percentage_points, short_number
from aimo_solver.lab.report.matrix import Matrix, build_matrix, matrix_tiles, write_matrix
from aimo_solver.lab.report.page import tiles, write_page
from aimo_solver.lab.report.plots import outcome_style
from aimo_solver.lab.runs import LoggedRun, read_runs
from aimo_solver.log.reader import RunRecord, read_run

_STYLES = {"good": "green", "near": "yellow", "bad": "red", "boot": "magenta", "plain": "blue", "mute": "dim"}


def report_runs(directories: Sequence[Path], console: Console, out: Path | None = None) -> Path:
    """Prints a summary of one run, of two and their comparison, or of many, and writes the page.

    Args:
        directories: runs, or folders of runs such as the repeats of one configuration.
        out: path of the page; by default ``report.html`` in the first directory, or ``runs.html`` for three or more runs.

    Returns:
        The path of the page.

    Raises:
        RunDirectoryError: a directory holds no readable run, or the page cannot be written.
        RecordsError: there are many runs, and the truth of no problem is known.
    """
    if len(directories) > 2 or any(map(_holds_runs, directories)):
        return _report_many(read_runs(directories), console, out or directories[0] / "runs.html")
    out = out or directories[0] / "report.html"
    runs = [read_run(directory) for directory in directories]
    with console.status("reading trajectories"):
        reports = [load_report(run) for run in runs]
        comparison = compare(*reports) if len(reports) == 2 else None
        with _writing(out):
            write_page(out, reports, comparison)
    for one in reports:
        console.print(_summary(one))
    if comparison:
        console.print(_difference(comparison))
    _print_page(console, out)
    return out


def _holds_runs(directory: Path) -> bool:
    return not (directory / "run.json").exists() and any(directory.glob("*/run.json"))


def _report_many(runs: Sequence[LoggedRun], console: Console, out: Path) -> Path:
    records = [run.record for run in runs if run.record is not None]
    if len(records) < len(runs):
        raise UserError("report takes run directories; for CSV files of attempts use replay")
    pages = [record.directory / "report.html" for record in records]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        reading = progress.add_task("reasons", total=len(runs))
        matrix = build_matrix(runs, lambda done: progress.update(reading, completed=done))
        for record, page in progress.track(list(zip(records, pages, strict=True)), description="pages"):
            if _is_older(page, record):
                with _writing(page):
                    write_page(page, [load_report(record)])
    with _writing(out):
        write_matrix(out, matrix, pages)
    console.print(_matrix_tables(matrix))
    _print_page(console, out)
    return out


def _is_older(page: Path, record: RunRecord) -> bool:
    return not page.exists() or page.stat().st_mtime < (record.directory / "events.jsonl").stat().st_mtime


@contextmanager
def _writing(page: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        problem = f"the page cannot be written: {error.strerror}; choose a place with --out"
        raise RunDirectoryError(page.parent, problem) from None


def _print_page(console: Console, page: Path) -> None:
    console.print(f"page: {page} ({page.stat().st_size / 1e6:.1f} MB)", highlight=False, soft_wrap=True)


def _matrix_tables(matrix: Matrix) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("run", "right", "outcomes"):
        table.add_column(name, justify="right" if name == "right" else "left", overflow="fold")
    for number, (run, score) in enumerate(zip(matrix.runs, matrix.scores, strict=True)):
        counts = [Text(f"{count} {outcome}", _STYLES[outcome_style(outcome)]) for outcome, count in matrix.outcomes(number)]
        table.add_row(Text(run.name), "–" if score is None else f"{score.right}/{score.problems}", Text(", ").join(counts))
    figures = Table.grid(padding=(0, 2))
    for tile in matrix_tiles(matrix):
        figures.add_row(Text(tile.name, "dim"), tile.value, Text(tile.note, "dim"))
    return Group(table, Padding(figures, (1, 0)), *(Text(warning, "yellow") for warning in matrix.statistics.warnings), "")


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
            "–" if result is None else Text(str(result.answer)),  # LaTeX has brackets
            "–" if truth is None else Text(str(truth)),
            f"{problem.answers[0].votes if problem.answers else 0}/{len(attempts)}",
            str(sum(attempt.tool_calls for attempt in attempts)),
            str(sum(attempt.tool_errors for attempt in attempts)),
            short_number(sum(attempt.tokens for attempt in attempts)),
            duration(problem.seconds),
            Text("" if problem.verdict is Verdict.RIGHT else problem.why, "dim"),
        )
    return table
