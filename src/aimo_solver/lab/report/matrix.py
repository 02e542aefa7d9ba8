"""The page of many runs: a matrix of problems and runs, coloured by outcome, with the scores of all runs together."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from aimo_solver.lab.losses import Loss, explain_run
from aimo_solver.lab.lost_problem import Cause
from aimo_solver.lab.report import plots
from aimo_solver.lab.report.data import Verdict, order_outcomes
from aimo_solver.lab.report.format import percent
from aimo_solver.lab.report.page import Tile, page_environment
from aimo_solver.lab.run_statistics import RunScore, RunStatistics, compute_statistics
from aimo_solver.lab.runs import LoggedRun
from aimo_solver.lab.statistics import Interval
from aimo_solver.log.reader import ProblemRecord
from aimo_solver.problems import Answer

_MARKS = {"good": "✓", "near": "≈", "bad": "✗", "boot": "!", "plain": "?", "mute": "…"}
_LEGEND = (
    ("good", "right"),
    ("near", "lost, an attempt had the truth"),
    ("bad", "lost"),
    ("boot", "lost by a technical fault"),
    ("mute", "not ended"),
)
_FILTERS = (("all", "all"), ("not always right", "sometimes|never"), ("sometimes right", "sometimes"), ("never right", "never"))


@dataclass(frozen=True, slots=True)
class MatrixCell:
    """A problem in one run; `outcome` is None if the run does not have it."""

    outcome: Verdict | Cause | None
    title: str

    @property
    def style(self) -> str:
        return "" if self.outcome is None else plots.outcome_style(self.outcome)

    @property
    def mark(self) -> str:
        return _MARKS[self.style]

    @property
    def order(self) -> int:
        """Sort key: right cells come before lost ones."""
        return -1 if self.outcome is None else len(_MARKS) - list(_MARKS).index(self.style)


@dataclass(frozen=True, slots=True)
class MatrixRow:
    """A problem in all runs; `right` of the `known` runs in which it ended are right."""

    id: str
    truth: Answer | None
    cells: tuple[MatrixCell, ...]

    @property
    def right(self) -> int:
        return sum(cell.outcome is Verdict.RIGHT for cell in self.cells)

    @property
    def known(self) -> int:
        return sum(cell.outcome is Verdict.RIGHT or isinstance(cell.outcome, Cause) for cell in self.cells)

    @property
    def kind(self) -> str:
        """ "always", "sometimes" or "never" right; "" if no run is known to be right or wrong."""
        return "" if not self.known else "always" if self.right == self.known else "sometimes" if self.right else "never"

    @property
    def causes(self) -> str:
        """The causes of its losses with their number of runs, most common first."""
        counts = Counter(cell.outcome for cell in self.cells if isinstance(cell.outcome, Cause)).most_common()
        return ", ".join(cause if count == 1 else f"{count} {cause}" for cause, count in counts)

    @property
    def search(self) -> str:
        """What a reader may look for, in lower case."""
        return " ".join([self.id, *(cell.title for cell in self.cells)]).lower()


@dataclass(frozen=True, slots=True)
class Matrix:
    """Runs on the same problems, or nearly. `scores` has None for a run without a known answer."""

    runs: tuple[LoggedRun, ...]
    rows: tuple[MatrixRow, ...]
    scores: tuple[RunScore | None, ...]
    statistics: RunStatistics

    def outcomes(self, run: int) -> list[tuple[Verdict | Cause, int]]:
        """Counts the outcomes of one run."""
        return order_outcomes(cell.outcome for row in self.rows if (cell := row.cells[run]).outcome is not None)


def build_matrix(runs: Sequence[LoggedRun], progress: Callable[[int], None] = lambda done: None) -> Matrix:
    """Reads the trajectories of lost problems and computes the matrix; `progress` is called with the number of runs read."""
    losses = []
    for number, run in enumerate(runs, start=1):
        assert run.record is not None, "a run without a run directory has no page"
        losses.append(explain_run(run.record))
        progress(number)
    problems = [{problem.problem_id: problem for problem in run.record.problems} for run in runs if run.record]
    rows = []
    for problem_id in dict.fromkeys(name for own in problems for name in own):
        found = [own.get(problem_id) for own in problems]
        cells = [_cell(run.name, problem, own.get(problem_id)) for run, problem, own in zip(runs, found, losses, strict=True)]
        truth = next((problem.truth for problem in found if problem is not None and problem.truth is not None), None)
        rows.append(MatrixRow(problem_id, truth, tuple(cells)))
    statistics = compute_statistics(runs, ks=(1,))
    scores = iter(statistics.runs)
    return Matrix(tuple(runs), tuple(rows), tuple(next(scores) if run.problems else None for run in runs), statistics)


def write_matrix(path: Path, matrix: Matrix, pages: Sequence[Path]) -> None:
    """Writes the page; `pages` are those of the single runs, to which its cells link."""
    links = [quote(os.path.relpath(page.resolve(), path.resolve().parent)) for page in pages]
    causes = Counter(cell.outcome for row in matrix.rows for cell in row.cells if isinstance(cell.outcome, Cause))
    environment = page_environment()
    text = environment.get_template("matrix.html.j2").render(
        title=_title(matrix.runs),
        matrix=matrix,
        tiles=matrix_tiles(matrix),
        links=links,
        causes=causes.most_common(),
        legend=[(_MARKS[style], style, text) for style, text in _LEGEND],
        filters=_FILTERS,
    )
    path.write_text(text, encoding="utf-8", newline="\n")


def matrix_tiles(matrix: Matrix) -> list[Tile]:
    """The score card of all runs together; scores in points."""
    found, agreement = matrix.statistics, matrix.statistics.agreement
    scores = [score.right for score in matrix.scores if score is not None]
    kinds = Counter(row.kind for row in matrix.rows)
    scored = str(scores[0]) if len(set(scores)) == 1 else f"{min(scores)} to {max(scores)}"
    spread = "" if agreement is None else f", standard deviation {agreement.spread.deviation:.1f}"
    tiles = [_score_tile("Score of a run", found.accuracy, found.problems, f"{scored} right{spread}")]
    if agreement is not None:
        both = f"both right {percent(agreement.both_right.mean)}, one right {percent(agreement.one_right.mean)}"
        tiles.append(_score_tile("Two-run score", agreement.two_run, agreement.problems, both))
    for estimate in found.estimates:
        low, high = 100 * estimate.pass_at.low, 100 * estimate.pass_at.high
        note = f"95 % interval {low:.1f} to {high:.1f}; one attempt"
        tiles.append(Tile("pass@1", f"{100 * estimate.pass_at.mean:.1f} %", note))
    note = f"{kinds['sometimes']} sometimes, {kinds['never']} never right"
    return [*tiles, Tile("Always right", str(kinds["always"]), note)]


def _score_tile(name: str, share: Interval, problems: int, note: str) -> Tile:
    low, high = share.low * problems, share.high * problems
    return Tile(name, f"{share.mean * problems:.1f}", f"of {problems}, 95 % interval {low:.1f} to {high:.1f}; {note}")


def _cell(run: str, problem: ProblemRecord | None, loss: Loss | None) -> MatrixCell:
    if problem is None:
        return MatrixCell(None, "")
    result = problem.result
    if loss is not None:
        return MatrixCell(loss.cause, f"{run}: {loss.reason}; would have saved it, or may have: {loss.remedy}")
    if result is None:
        return MatrixCell(Verdict.OPEN, f"{run}: not ended")
    votes = f"{result.answer} by {result.votes} of {result.attempts} attempts"
    if result.right is None:
        return MatrixCell(Verdict.UNKNOWN, f"{run}: {votes}, truth unknown")
    return MatrixCell(Verdict.RIGHT, f"{run}: right, {votes}")


def _title(runs: Sequence[LoggedRun]) -> str:
    names = [run.name for run in runs]
    return ", ".join(names) if len(names) <= 4 else f"{names[0]} to {names[-1]}"
