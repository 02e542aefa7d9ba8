"""The charts of `aimo-solver stats`, as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aimo_solver.lab.report.format import percent, short_number
from aimo_solver.lab.report.plots import histogram
from aimo_solver.lab.report.svg import HALF, Chart
from aimo_solver.lab.run_statistics import KEstimate, RunScore, RunStatistics
from aimo_solver.lab.runs import LoggedRun

_TENTHS = [0, 0.2, 0.4, 0.6, 0.8, 1]


def k_chart(estimates: Sequence[KEstimate]) -> Chart:
    """pass@k and maj@k against k, with the bands of their intervals."""
    most = max(estimate.k for estimate in estimates)
    chart = Chart("Problems right by attempts", (HALF, 260), (1, max(2, most)), left=40, log=True)
    chart.x_axis([estimate.k for estimate in estimates], short_number)
    y = chart.y_axis(_TENTHS, 1, percent)
    for style, values in (("c0", [one.pass_at for one in estimates]), ("c1", [one.majority_at for one in estimates])):
        ks = [estimate.k for estimate in estimates]
        upper = [(k, value.high) for k, value in zip(ks, values, strict=True)]
        lower = [(k, value.low) for k, value in zip(ks, values, strict=True)]
        chart.area(upper, lower, y, f"band {style}")
        chart.line([(k, value.mean) for k, value in zip(ks, values, strict=True)], y, f"line {style}")
    return chart


def scores_chart(runs: Sequence[RunScore]) -> Chart:
    """The accuracy of each run, with its interval."""
    chart = Chart("Accuracy of the runs", (HALF, 260), (0.5, len(runs) + 0.5), left=40)
    chart.x_axis(list(range(1, len(runs) + 1)), short_number)
    y = chart.y_axis(_TENTHS, 1, percent)
    for number, run in enumerate(runs, start=1):
        title = f"{run.name}: {run.right} of {run.problems}"
        chart.vertical(number, y(run.accuracy.high), y(run.accuracy.low), "whisker", title)
        chart.dot(number, y(run.accuracy.mean), 4.5, "plain")
    return chart


def tokens_chart_by_outcome(runs: Sequence[LoggedRun]) -> Chart:
    """Tokens of right and of wrong attempts; the last bin takes the highest hundredth."""
    right: list[float] = []
    wrong: list[float] = []
    for problem in (problem for run in runs for problem in run.problems.values()):
        for attempt in problem.attempts:
            if attempt.answer is not None and attempt.tokens:
                (right if attempt.answer == problem.truth else wrong).append(attempt.tokens)
    return histogram([("good", right), ("bad", wrong)], short_number, "Tokens of right and of wrong attempts")


def save_statistics_charts(folder: Path, statistics: RunStatistics, runs: Sequence[LoggedRun]) -> None:
    """Writes ``attempts.svg``, ``scores.svg`` and ``tokens.svg``; the first only if any attempt ended."""
    folder.mkdir(parents=True, exist_ok=True)
    if statistics.estimates:
        k_chart(statistics.estimates).save(folder / "attempts.svg", [("c0", "pass@k"), ("c1", "maj@k")])
    scores_chart(statistics.runs).save(folder / "scores.svg", [("plain", "run, with its 95 % interval")])
    tokens_chart_by_outcome(runs).save(folder / "tokens.svg", [("good", "right"), ("bad", "wrong")])
