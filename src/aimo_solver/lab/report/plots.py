"""The charts of a run and of its problems."""

from __future__ import annotations

from collections.abc import Sequence

from aimo_solver.lab.lost_problem import Cause
from aimo_solver.lab.report.data import ProblemReport, RunReport, Verdict
from aimo_solver.lab.report.format import (
    Format,
    count_ticks,
    duration,
    plain_value,
    short_number,
    short_time,
    ticks,
    time_ticks,
)
from aimo_solver.lab.report.svg import HALF, WIDE, Chart
from aimo_solver.lab.report.timeline import Activity, BootStage, is_fault
from aimo_solver.problems import Answer


def run_chart(report: RunReport, key: str = "") -> Chart:
    """Boot, problems, faults, and the number of busy GPU streams and kernels over time. Links begin with `key`."""
    lanes = _lanes(report)
    top, lane = 8, 18
    areas = top + lane * (max(lanes.values(), default=0) + 2) + 14
    chart = Chart("The run over time", (WIDE, areas + 158), (0, report.seconds), left=64)
    chart.x_axis(time_ticks(report.seconds), short_time, 0)
    chart.row_name(top + 12, "boot")
    for stage in report.boot:
        chart.bar(stage.start, stage.end, top, 14, _stage_style(stage), f"{stage.name}: {duration(stage.end - stage.start)}")
    chart.row_name(top + lane + 12, "problems")
    for problem in report.problems:
        start, end = _span(problem)
        title = f"{problem.id}: {problem.outcome}, {duration(end - start)}"
        with chart.group(link=key + anchor(problem.id)):
            chart.bar(start, end, top + lane * (1 + lanes[problem.id]), 14, outcome_style(problem.outcome), title)
    for name, steps, y, style, least in (
        ("streams", report.streams, areas, "thinking", report.slots),
        ("kernels", report.kernels, areas + 74, "tool", 1),
    ):
        _busy_area(chart, name, steps, y, style, least)
    for event in report.notable:
        if is_fault(event):
            chart.vertical(event.t, top, chart.base, "fault", f"{event.kind} after {duration(event.t)}")
    return chart


def budget_chart(report: RunReport, key: str = "") -> Chart:
    """Seconds given to each problem, and used."""
    problems = [(problem, problem.record.allotted_s) for problem in report.problems if problem.record.allotted_s is not None]
    high = max((max(given, problem.seconds) for problem, given in problems), default=1.0)
    chart = Chart("Budget given and used", (WIDE, 190), (0, max(16, len(problems))), bottom=18)
    y = chart.y_axis(time_ticks(high)[::2] if high > 600 else time_ticks(high), high, short_time)
    for number, (problem, given) in enumerate(problems):
        title = f"{problem.id}: {duration(problem.seconds)} of {duration(given)}, {problem.outcome}"
        with chart.group(link=key + anchor(problem.id)):
            for seconds, style in ((given, "given"), (problem.seconds, outcome_style(problem.outcome))):
                chart.bar(number + 0.12, number + 0.88, y(seconds), chart.base - y(seconds), style, title)
    return chart


def histogram(groups: Sequence[tuple[str, Sequence[float]]], form: Format, label: str, bins: int = 24) -> Chart:
    """Stacked counts of values; `groups` are (style, values). The last bin takes the highest hundredth."""
    values = sorted(value for _, group in groups for value in group)
    high = (values[min(len(values) - 1, int(len(values) * 0.99))] if values else 0.0) or 1.0
    chart = Chart(label, (HALF, 200), (0, high))
    size = high / bins
    counts = [[0] * bins for _ in groups]
    for row, (_, group) in zip(counts, groups, strict=True):
        for value in group:
            row[min(bins - 1, int(value / size))] += 1
    most = max((sum(column) for column in zip(*counts, strict=True)), default=1)
    y = chart.y_axis(ticks(most, 4), most, short_number)
    chart.x_axis(time_ticks(high) if form is short_time else ticks(high), form)
    for index in range(bins):
        below = 0
        for row, (style, _) in zip(counts, groups, strict=True):
            if row[index]:
                bottom, top = y(below), y(below + row[index])
                chart.bar((index + 0.06) * size, (index + 0.94) * size, top, bottom - top, style, str(row[index]), 1)
                below += row[index]
    return chart


def boot_chart(stages: Sequence[BootStage]) -> Chart:
    """Stages of the boot, one row each."""
    end = max(stage.end for stage in stages) * 1.12
    chart = Chart("Stages of the boot", (WIDE, 26 * len(stages) + 30), (0, end), left=150)
    chart.x_axis(time_ticks(end), short_time, 0)
    for row, stage in enumerate(stages):
        chart.row_name(26 * row + 19, stage.name)
        title = f"{duration(stage.start)} to {duration(stage.end)}"
        chart.bar(stage.start, stage.end, 26 * row + 6, 17, _stage_style(stage), title, 3)
        note = duration(stage.end - stage.start) + ("" if stage.outcome == "done" else f", {stage.outcome}")
        chart.text(chart.x(stage.end) + 6, 26 * row + 19, note, "tick")
    return chart


def attempts_chart(problem: ProblemReport) -> Chart:
    """What each attempt at a problem did over time, and its answer."""
    high = max([problem.seconds, *(attempt.end for attempt in problem.attempts)])
    row, top = 19, 6
    chart = Chart("Attempts over time", (WIDE, top + row * len(problem.attempts) + 24), (0, high), left=36, right=110)
    chart.x_axis(time_ticks(high), short_time, 0)
    for number, report in enumerate(problem.attempts):
        attempt, y = report.attempt, top + row * number
        chart.row_name(y + 12, str(attempt.index))
        tokens = f"{short_number(attempt.tokens)} tokens"
        with chart.group(title=f"attempt {attempt.index}: {attempt.finish_reason}, {tokens}, {duration(attempt.seconds)}"):
            for activity in Activity:
                spans = [(part.start, part.end) for part in report.segments if part.activity is activity]
                chart.bars(spans, y, 14, activity)
        label = str(attempt.answer) if attempt.answer is not None else str(attempt.finish_reason).replace("_", " ")
        chart.text(chart.x(report.end) + 6, y + 12, label, f"answer {answer_style(attempt.answer, problem.record.truth)}")
    return chart


def votes_chart(problem: ProblemReport) -> Chart:
    """Votes of the five strongest answers over time; the truth is one of them if it has any."""
    shown = [candidate.answer for candidate in problem.answers[:5]]
    truth = problem.record.truth
    if truth is not None and problem.right_votes and truth not in shown:
        shown[-1:] = [truth]
    most = max((candidate.votes for vote in problem.votes for candidate in vote.candidates), default=1)
    chart = Chart("Votes over time", (HALF, 200), (0, problem.seconds), left=30, right=64)
    chart.x_axis(time_ticks(problem.seconds), short_time)
    y = chart.y_axis(count_ticks(most), most, short_number)
    label_heights: list[float] = []
    for rank, answer in reversed(list(enumerate(shown))):
        counts = [
            (vote.t, next((candidate.votes for candidate in vote.candidates if candidate.answer == answer), 0))
            for vote in problem.votes
        ]
        style = answer_style(answer, truth) if truth is not None else f"c{rank}"
        chart.steps(counts, y, f"line {style}{' first' if rank == 0 else ''}")
        height = y(counts[-1][1] if counts else 0) + 4
        while any(abs(height - other) < 12 for other in label_heights):
            height -= 12
        label_heights.append(height)
        chart.text(chart.x(problem.seconds) + 5, height, str(answer), f"answer {style}")
    return chart


def entropy_chart(problem: ProblemReport) -> Chart:
    """Mean entropy of stretches of tokens, one line per attempt; the highest half percent is cut off."""
    curves = [(attempt, attempt.entropy) for attempt in problem.attempts if attempt.entropy]
    far = max((curve[-1][0] for _, curve in curves), default=1)
    values = sorted(value for _, curve in curves for _, value in curve)
    high = (values[int(len(values) * 0.995)] * 1.05 if values else 0.0) or 1.0
    chart = Chart("Entropy over tokens", (HALF, 200), (0, far), left=36)
    chart.x_axis(ticks(far, 5), short_number)
    y = chart.y_axis(ticks(high, 4), high, plain_value)
    for report, curve in curves:
        style = answer_style(report.attempt.answer, problem.record.truth)
        points = [(tokens, min(value, high)) for tokens, value in curve]
        chart.line(points, y, f"thin {style}", f"attempt {report.attempt.index}")
    return chart


def anchor(problem_id: str) -> str:
    """The id of a problem's part of the page."""
    return "p-" + "".join(char if char.isalnum() or char in "-_" else f".{ord(char):x}" for char in problem_id)


def outcome_style(outcome: Verdict | Cause) -> str:
    """The colour class of an outcome."""
    if isinstance(outcome, Cause):
        return "near" if outcome.near else "boot" if outcome.technical else "bad"
    return {Verdict.RIGHT: "good", Verdict.UNKNOWN: "plain", Verdict.OPEN: "mute"}.get(outcome, "bad")


def attempt_anchor(problem_id: str, index: int) -> str:
    """The id of an attempt's part of the page."""
    return f"a-{index}-{anchor(problem_id)}"


def answer_style(answer: Answer | None, truth: Answer | None) -> str:
    """The colour class of an answer."""
    if answer is None:
        return "mute"
    return "plain" if truth is None else "good" if answer == truth else "bad"


def _stage_style(stage: BootStage) -> str:
    return "boot" if stage.outcome == "done" else "bad"


def _span(problem: ProblemReport) -> tuple[float, float]:
    record = problem.record
    return record.t, record.t + problem.seconds if record.ended is None else record.ended


def _lanes(report: RunReport) -> dict[str, int]:
    """A row for each problem; those solved in parallel do not overlap."""
    free: list[float] = []
    lanes = {}
    for problem in sorted(report.problems, key=lambda problem: problem.record.t):
        start, end = _span(problem)
        lane = next((number for number, ended in enumerate(free) if ended <= start + 0.001), len(free))
        free[lane : lane + 1] = [end]
        lanes[problem.id] = lane
    return lanes


def _busy_area(chart: Chart, name: str, steps: Sequence[tuple[float, int]], top: float, style: str, least: int) -> None:
    most = max([least, *(count for _, count in steps)])
    y = chart.y_axis([0, most], most, short_number, top, top + 52)
    chart.row_name(top + 20, name)
    chart.row_name(top + 34, "busy")
    means = _bin_means(steps, chart.high, 450)
    if means:
        chart.area(means, [(means[0][0], 0), (means[-1][0], 0)], y, style)


def _bin_means(steps: Sequence[tuple[float, int]], high: float, bins: int) -> list[tuple[float, float]]:
    """The mean of a step function over equal bins of 0..high, at the middle of each bin."""
    size = high / bins
    sums = [0.0] * bins
    for (start, count), (end, _) in zip(steps, [*steps[1:], (high, 0)], strict=False):
        first, last = int(start / size), min(bins - 1, int(end / size))
        for index in range(max(0, first), last + 1):
            overlap = min(end, (index + 1) * size) - max(start, index * size)
            sums[index] += count * max(0.0, overlap)
    return [((index + 0.5) * size, round(total / size, 2)) for index, total in enumerate(sums)] if steps else []
