"""The verdict on an endurance run, and its page."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import jinja2
from markupsafe import Markup

from aimo_solver.lab.report.format import short_number, short_time, ticks, time_ticks
from aimo_solver.lab.report.svg import WIDE, Chart, Scale, plot_css
from endurance_faults import Fault

LEAST_RIGHT = 0.98
_PAGE = Path(__file__).with_name("endurance_report.html.jinja")
_PLOTTED = {
    "memory_mb": "Memory of the solver, MB",
    "below_mb": "Memory of all processes below it, MB",
    "descriptors": "File descriptors",
    "processes": "Processes",
    "threads": "Threads",
    "files": "Temporary files",
}
# Growth allowed from the second to the last fifth of the problems: a share, and a number.
_ALLOWED = {"memory_mb": (0.15, 20.0), "descriptors": (0.1, 8), "threads": (0.1, 4), "processes": (0.25, 4), "files": (0.25, 8)}


@dataclass(frozen=True)
class Sample:
    """Resources of the run at one moment.

    Attributes:
        asked: problems so far.
        memory_mb, descriptors, threads: of the solver's process.
        below_mb, processes: of all its descendants; shared memory counts once for each.
        files: in the folders of kernels and servers in the temporary folder, without compile caches.
    """

    t: float
    asked: int
    memory_mb: float
    below_mb: float
    descriptors: int
    threads: int
    processes: int
    files: int


@dataclass(frozen=True)
class Outcome:
    """An endurance run that ended or was interrupted.

    Attributes:
        truth: answers by problem id.
        minutes: the run's time limit.
        left: processes and files that outlived it.
    """

    seed: int
    truth: dict[str, int]
    minutes: float
    events: list[dict[str, Any]]
    samples: list[Sample]
    left: tuple[str, ...]
    planned: tuple[Fault, ...]

    @cached_property
    def answers(self) -> dict[str, int]:
        return {event["problem"]: event["answer"] for event in self.events if event["kind"] == "answered"}

    @property
    def right(self) -> int:
        return sum(self.answers.get(problem) == answer for problem, answer in self.truth.items())

    @property
    def seconds(self) -> float:
        return max((event["t"] for event in self.events), default=0.0)

    @property
    def faults(self) -> list[dict[str, Any]]:
        """The injected faults, each with its details and the seconds until the next answer."""
        rows = []
        for event in self.events:
            if event["kind"] != "fault":
                continue
            later = [other for other in self.events if other["t"] >= event["t"]]
            over = next((other for other in later if other["kind"] == "over" and other["what"] == event["what"]), {})
            answer = next((other["t"] - event["t"] for other in later if other["kind"] == "answered"), None)
            asked = sum(other["kind"] == "asked" and other["t"] <= event["t"] for other in self.events)
            rows.append({**event, "detail": over.get("detail", "lasted until the end"), "answer_s": answer, "asked": asked})
        return rows

    @cached_property
    def growth(self) -> dict[str, tuple[float, float]]:
        """Medians over the second and the last fifth of the problems; empty where there are no samples of both."""
        count = len(self.truth)
        early = [sample for sample in self.samples if 0.2 * count <= sample.asked < 0.4 * count]
        late = [sample for sample in self.samples if 0.8 * count <= sample.asked]
        if not early or not late:
            return {}
        return {
            field.name: (
                median(getattr(sample, field.name) for sample in early),
                median(getattr(sample, field.name) for sample in late),
            )
            for field in fields(Sample)
        }

    @property
    def deviations(self) -> list[str]:
        """What is not as expected, one line each."""
        found = []
        if len(self.answers) < len(self.truth):
            found.append(f"{len(self.truth) - len(self.answers)} problems without an answer")
        if self.right < LEAST_RIGHT * len(self.truth):
            found.append(f"only {self.right} of {len(self.truth)} right")
        done = [event["what"] for event in self.events if event["kind"] == "fault"]
        if len(done) < sum(len(fault.kinds) for fault in self.planned):
            found.append(f"only {len(done)} faults were injected")
        if self.seconds > 60 * self.minutes:
            found.append(f"it took {self.seconds:.0f} s of {60 * self.minutes:.0f}")
        for name, (part, number) in _ALLOWED.items():
            early, late = self.growth.get(name, (0.0, 0.0))
            if late > early * (1 + part) + number:
                found.append(f"{name} grew from {early:g} to {late:g}")
        if self.left:
            found.append(f"left behind: {', '.join(self.left)}")
        return found

    @property
    def summary(self) -> list[str]:
        """Lines for the terminal."""
        lines = [
            f"{len(self.answers)} of {len(self.truth)} answered, {self.right} right ({self.right / len(self.truth):.1%}) "
            f"in {self.seconds:.0f} s, {len(self.faults)} faults, seed {self.seed}"
        ]
        lines += [f"{name}: {self.growth[name][0]:g} early, {self.growth[name][1]:g} late" for name in _ALLOWED if self.growth]
        return lines + [f"NOT AS EXPECTED: {deviation}" for deviation in self.deviations]


def write_page(outcome: Outcome, path: Path) -> None:
    """Writes the report as one HTML page."""
    page = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(_PAGE.read_text(encoding="utf-8"))
    messages = [event for event in outcome.events if event["kind"] == "log" and _is_about_faults(event["text"])]
    wrong = [
        (problem, answer, outcome.answers.get(problem, "none"))
        for problem, answer in outcome.truth.items()
        if outcome.answers.get(problem) != answer
    ]
    html = page.render(outcome=outcome, messages=messages, wrong=wrong, css=Markup(plot_css()), charts=_charts(outcome))
    path.write_text(html, encoding="utf-8")


def _is_about_faults(text: str) -> bool:
    return (
        text.startswith(("server_", "kernel", "boot", "the ", "run log", "problem "))
        and " votes of " not in text
        and " gets " not in text
    )


def _charts(outcome: Outcome) -> list[Chart]:
    answered = [event for event in outcome.events if event["kind"] == "answered"]
    right = [event for event in answered if outcome.truth.get(event["problem"]) == event["answer"]]
    chart, y = _empty_chart(outcome, "Problems answered, and answered right", len(answered))
    for events, style in ((answered, "line mute"), (right, "line good")):
        chart.steps([(event["t"], number) for number, event in enumerate(events, 1)], y, style)
    charts = [chart]
    for name, label in _PLOTTED.items():
        points = [(sample.t, getattr(sample, name)) for sample in outcome.samples]
        chart, y = _empty_chart(outcome, label, max((value for _, value in points), default=1.0))
        chart.line(points, y, "line plain")
        charts.append(chart)
    return charts


def _empty_chart(outcome: Outcome, label: str, high: float) -> tuple[Chart, Scale]:
    """A chart over the run's time up to `high`, with its faults."""
    chart = Chart(label, (WIDE, 130), (0, outcome.seconds))
    chart.x_axis(time_ticks(outcome.seconds), short_time)
    y = chart.y_axis(ticks(high, 4), high, short_number)
    for fault in outcome.faults:
        chart.vertical(fault["t"], y(high), chart.base, "fault", fault["what"])
    return chart, y
