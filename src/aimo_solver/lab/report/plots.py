"""The report's drawings as inline SVG. Colours are CSS classes, so that they follow the page's light or dark theme."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape

from aimo_solver.lab.report.data import ProblemReport, RunReport, Verdict
from aimo_solver.lab.report.svg import Canvas, Format, clock, duration, short, ticks, time_ticks
from aimo_solver.lab.report.timeline import Doing, Stage, is_fault


def gantt(report: RunReport, key: str = "") -> Markup:
    """The whole run: boot, problems, faults, and how many GPU streams and kernels were busy. `key` begins the links."""
    lanes = _lanes(report)
    top, lane = 8, 18
    streams_top = top + lane * (max(lanes.values(), default=0) + 2) + 14
    canvas = Canvas(1000, streams_top + 158, report.seconds, left=64)
    canvas.x_axis(time_ticks(report.seconds), clock)
    canvas.text(56, top + 12, "boot", "lane", "end")
    for stage in report.boot:
        style = "v-boot" if stage.outcome == "done" else "v-bad"
        canvas.rect(stage.start, stage.end, top, 14, style, f"{stage.name}: {duration(stage.end - stage.start)}")
    canvas.text(56, top + lane + 12, "problems", "lane", "end")
    for problem in report.problems:
        record = problem.record
        end = record.ended if record.ended is not None else record.t + problem.seconds
        title = f"{problem.id}: {problem.verdict}, {duration(end - record.t)}"
        y = top + lane * (1 + lanes[problem.id])
        canvas.add(f'<a href="#{key}{escape(anchor(problem.id))}">')
        canvas.rect(record.t, end, y, 14, f"v-{style_of(problem.verdict)}", title)
        canvas.add("</a>")
    slots = int(report.run.config["solver"]["slots"])
    for name, steps, y, style, least in (
        ("streams", report.streams, streams_top, "d-thinking", slots),
        ("kernels", report.kernels, streams_top + 74, "d-tool", 1),
    ):
        _area(canvas, name, steps, y, style, least)
    for event in report.notable:
        if is_fault(event):
            x = canvas.x(event.t)
            title = f"<title>{escape(event.kind)} after {duration(event.t)}</title>"
            canvas.add(f'<path d="M{x:g},{top}V{canvas.height - 22}" class="fault">{title}</path>')
    return canvas.svg("The run over time")


def budget(report: RunReport, key: str = "") -> Markup:
    """Seconds given to each problem, and used."""
    problems = [problem for problem in report.problems if problem.record.allotted_s is not None]
    high = max((max(problem.record.allotted_s or 0.0, problem.seconds) for problem in problems), default=1.0)
    canvas = Canvas(1000, 190, max(16, len(problems)))
    y = canvas.y_axis(time_ticks(high)[::2] if high > 600 else time_ticks(high), high, clock, 10, 172)
    for number, problem in enumerate(problems):
        given = problem.record.allotted_s or 0.0
        title = f"{problem.id}: {duration(problem.seconds)} of {duration(given)}, {problem.verdict}"
        canvas.add(f'<a href="#{key}{escape(anchor(problem.id))}">')
        canvas.rect(number + 0.12, number + 0.88, y(given), 172 - y(given), "given", title)
        canvas.rect(
            number + 0.12, number + 0.88, y(problem.seconds), 172 - y(problem.seconds), f"v-{style_of(problem.verdict)}", title
        )
        canvas.add("</a>")
    return canvas.svg("Budget given and used")


def histogram(groups: Sequence[tuple[str, Sequence[float]]], form: Format, label: str, bins: int = 24) -> Markup:
    """Stacked counts of values; `groups` are (colour class, values). The last bin takes the highest hundredth."""
    values = sorted(value for _, group in groups for value in group)
    high = values[min(len(values) - 1, int(len(values) * 0.99))] if values else 1.0
    marks = ticks(high) if form is not clock else time_ticks(high)
    canvas = Canvas(480, 200, high or 1.0)
    size = (high or 1.0) / bins
    counts = [[0] * bins for _ in groups]
    for row, (_, group) in zip(counts, groups, strict=True):
        for value in group:
            row[min(bins - 1, int(value / size))] += 1
    most = max((sum(column) for column in zip(*counts, strict=True)), default=1)
    y = canvas.y_axis(ticks(most, 4), most, short, 10, 178)
    canvas.x_axis(marks, form, 10)
    for index in range(bins):
        below = 0
        for row, (style, _) in zip(counts, groups, strict=True):
            if row[index]:
                bottom, top = y(below), y(below + row[index])
                canvas.rect((index + 0.06) * size, (index + 0.94) * size, top, bottom - top, style, str(row[index]), 1)
                below += row[index]
    return canvas.svg(label, "half")


def boot(stages: Sequence[Stage]) -> Markup:
    """Stages of the boot, one row each."""
    end = max(stage.end for stage in stages) * 1.12
    canvas = Canvas(1000, 26 * len(stages) + 30, end, left=150)
    canvas.x_axis(time_ticks(end), clock)
    for row, stage in enumerate(stages):
        title = f"{duration(stage.start)} to {duration(stage.end)}"
        canvas.text(142, 26 * row + 19, stage.name, "lane", "end")
        canvas.rect(stage.start, stage.end, 26 * row + 6, 17, "v-boot" if stage.outcome == "done" else "v-bad", title, 3)
        note = duration(stage.end - stage.start) + ("" if stage.outcome == "done" else f", {stage.outcome}")
        canvas.text(canvas.x(stage.end) + 6, 26 * row + 19, note, "tick")
    return canvas.svg("Stages of the boot")


def timeline(problem: ProblemReport) -> Markup:
    """Attempts of one problem: thinking, tool, waiting; the answer behind each."""
    high = max([problem.seconds, *(attempt.end for attempt in problem.attempts)])
    row, top = 19, 6
    canvas = Canvas(1000, top + row * len(problem.attempts) + 24, high, left=36, pad=110)
    canvas.x_axis(time_ticks(high), clock)
    for number, report in enumerate(problem.attempts):
        attempt, y = report.attempt, top + row * number
        canvas.text(28, y + 12, str(attempt.index), "lane", "end")
        title = f"attempt {attempt.index}: {attempt.finish_reason}, {short(attempt.tokens)} tokens, {duration(attempt.seconds)}"
        canvas.add(f"<g><title>{escape(title)}</title>")
        for doing in Doing:
            path = "".join(
                f"M{canvas.x(part.start):g},{y}h{max(canvas.x(part.end) - canvas.x(part.start), 0.7):.1f}v14h-"
                f"{max(canvas.x(part.end) - canvas.x(part.start), 0.7):.1f}z"
                for part in report.segments
                if part.doing is doing
            )
            if path:
                canvas.add(f'<path d="{path}" class="d-{doing}"/>')
        canvas.add("</g>")
        label = str(attempt.answer) if attempt.answer is not None else str(attempt.finish_reason).replace("_", " ")
        style = answer_style(attempt.answer, problem.record.truth)
        canvas.text(canvas.x(report.end) + 6, y + 12, label, f"answer {style}")
    return canvas.svg("Attempts over time")


def votes(problem: ProblemReport) -> Markup:
    """Votes of the five strongest answers over time."""
    shown = [candidate.answer for candidate in problem.answers[:5]]
    truth = problem.record.truth
    if truth is not None and problem.right_votes and truth not in shown:
        shown[-1:] = [truth]
    most = max((candidate.votes for vote in problem.votes for candidate in vote.candidates), default=1)
    canvas = Canvas(480, 200, problem.seconds, left=30, pad=64)
    canvas.x_axis(time_ticks(problem.seconds), clock, 10)
    y = canvas.y_axis([value for value in ticks(most, 5) if value == int(value)], most, short, 12, 178)
    taken: list[float] = []
    for rank, answer in reversed(list(enumerate(shown))):
        points, count = [(0.0, 0)], 0
        for vote in problem.votes:
            now = next((candidate.votes for candidate in vote.candidates if candidate.answer == answer), 0)
            if now != count:
                points += [(vote.t, count), (vote.t, now)]
                count = now
        points.append((problem.seconds, count))
        style = answer_style(answer, truth) if truth is not None else f"rank{rank}"
        line = " ".join(f"{canvas.x(t):g},{y(value):g}" for t, value in points)
        canvas.add(f'<polyline points="{line}" class="line {style}{" first" if rank == 0 else ""}"/>')
        height = y(count) + 4
        while any(abs(height - other) < 12 for other in taken):
            height -= 12
        taken.append(height)
        canvas.text(canvas.x(problem.seconds) + 5, height, str(answer), f"answer {style}")
    return canvas.svg("Votes over time", "half")


def entropy(problem: ProblemReport) -> Markup:
    """Mean entropy of stretches of tokens, one line per attempt."""
    curves = [(attempt, attempt.entropy) for attempt in problem.attempts if attempt.entropy]
    far = max((curve[-1][0] for _, curve in curves), default=1)
    highest = sorted(value for _, curve in curves for _, value in curve)
    high = highest[int(len(highest) * 0.995)] * 1.05 if highest else 1.0
    canvas = Canvas(480, 200, far, left=36)
    canvas.x_axis(ticks(far, 5), short, 10)
    y = canvas.y_axis(ticks(high, 4), high or 1.0, lambda value: f"{value:g}", 12, 178)
    for report, curve in curves:
        line = " ".join(f"{canvas.x(tokens):g},{y(min(value, high)):g}" for tokens, value in curve)
        style = answer_style(report.attempt.answer, problem.record.truth)
        canvas.add(f'<polyline points="{line}" class="thin {style}"><title>attempt {report.attempt.index}</title></polyline>')
    return canvas.svg("Entropy over tokens", "half")


def anchor(problem_id: str) -> str:
    return "p-" + "".join(char if char.isalnum() or char in "-_" else f".{ord(char):x}" for char in problem_id)


def style_of(verdict: Verdict) -> str:
    """The colour class of a verdict."""
    return {Verdict.RIGHT: "good", Verdict.UNKNOWN: "plain", Verdict.OPEN: "mute", Verdict.OUTVOTED: "near"}.get(verdict, "bad")


def answer_style(answer: int | None, truth: int | None) -> str:
    """The colour class of an answer."""
    if answer is None:
        return "mute"
    return "plain" if truth is None else "good" if answer == truth else "bad"


def _lanes(report: RunReport) -> dict[str, int]:
    """A row for each problem, so that those solved side by side do not overlap."""
    free: list[float] = []
    lanes = {}
    for problem in sorted(report.problems, key=lambda problem: problem.record.t):
        start = problem.record.t
        lane = next((number for number, end in enumerate(free) if end <= start + 0.001), len(free))
        free[lane : lane + 1] = [problem.record.ended or start + problem.seconds]
        lanes[problem.id] = lane
    return lanes


def _area(canvas: Canvas, name: str, steps: Sequence[tuple[float, int]], top: float, style: str, least: int) -> None:
    most = max([least, *(count for _, count in steps)])
    base = top + 52
    y = canvas.y_axis([0, most], most, short, top, base)
    canvas.text(56, top + 20, name, "lane", "end")
    canvas.text(56, top + 34, "busy", "lane", "end")
    means = _means(steps, canvas.right, 450)
    if means:
        line = "".join(f"L{canvas.x(t):g},{y(value):g}" for t, value in means)
        canvas.add(f'<path d="M{canvas.x(0):g},{base:g}{line}L{canvas.x(means[-1][0]):g},{base:g}z" class="{style} area"/>')


def _means(steps: Sequence[tuple[float, int]], high: float, bins: int) -> list[tuple[float, float]]:
    """The mean of a step function over equal bins of 0..high, at the bins' middles."""
    size = high / bins
    sums = [0.0] * bins
    for (start, count), (end, _) in zip(steps, [*steps[1:], (high, 0)], strict=False):
        first, last = int(start / size), min(bins - 1, int(end / size))
        for index in range(max(0, first), last + 1):
            overlap = min(end, (index + 1) * size) - max(start, index * size)
            sums[index] += count * max(0.0, overlap)
    return [((index + 0.5) * size, round(total / size, 2)) for index, total in enumerate(sums)] if steps else []
