"""What came of an endurance run: judged, and shown on a page."""

from __future__ import annotations

import io
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import jinja2
from matplotlib.figure import Figure

from endurance_faults import Fault

LEAST_RIGHT = 0.98
_PAGE = Path(__file__).with_name("endurance_report.html.jinja")
# What the last fifth of the problems may have more than the second fifth: a part, and a number.
_ALLOWED = {"memory_mb": (0.15, 20.0), "descriptors": (0.1, 8), "threads": (0.1, 4), "processes": (0.25, 4), "files": (0.25, 8)}


@dataclass(frozen=True)
class Sample:
    """What the run held at one moment.

    Attributes:
        asked: problems so far.
        memory_mb, descriptors, threads: of the solver's process.
        below_mb, processes: of all processes below it; memory that they share counts once for each.
        files: of the solver in the temporary folder; every vLLM that is killed leaves some of its own there.
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
    """An endurance run that is over, or was ended.

    Attributes:
        truth: answers by problem id.
        minutes: the run's time limit.
        left: what outlived it.
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
        """The faults done, each with what it met and the seconds until the next answer."""
        rows = []
        for event in self.events:
            if event["kind"] != "fault":
                continue
            later = [other for other in self.events if other["t"] >= event["t"]]
            over = next((other for other in later if other["kind"] == "over" and other["what"] == event["what"]), {})
            answer = next((other["t"] - event["t"] for other in later if other["kind"] == "answered"), None)
            asked = sum(other["kind"] == "asked" and other["t"] <= event["t"] for other in self.events)
            rows.append({**event, "detail": over.get("detail", "went on to the end"), "answer_s": answer, "asked": asked})
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
    def complaints(self) -> list[str]:
        """What is not as expected."""
        found = []
        if len(self.answers) < len(self.truth):
            found.append(f"{len(self.truth) - len(self.answers)} problems without an answer")
        if self.right < LEAST_RIGHT * len(self.truth):
            found.append(f"only {self.right} of {len(self.truth)} right")
        done = [event["what"] for event in self.events if event["kind"] == "fault"]
        if len(done) < sum(len(fault.kinds) for fault in self.planned):
            found.append(f"only {len(done)} faults were done")
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
        return lines + [f"NOT AS EXPECTED: {complaint}" for complaint in self.complaints]


def write(outcome: Outcome, path: Path) -> None:
    """Writes the page."""
    said = [event for event in outcome.events if event["kind"] == "log" and _tells_of_a_fault(event["text"])]
    wrong = [
        (problem, answer, outcome.answers.get(problem, "none"))
        for problem, answer in outcome.truth.items()
        if outcome.answers.get(problem) != answer
    ]
    page = jinja2.Environment(autoescape=True).from_string(_PAGE.read_text(encoding="utf-8"))

    path.write_text(page.render(outcome=outcome, said=said, wrong=wrong, plots=_plots(outcome)), encoding="utf-8")


def _tells_of_a_fault(text: str) -> bool:
    return (
        text.startswith(("server_", "kernel", "boot", "the ", "run log", "problem "))
        and " votes of " not in text
        and " gets " not in text
    )


def _plots(outcome: Outcome) -> str:
    shown = {"memory_mb": "solver, MB", "below_mb": "processes below, MB", "descriptors": "descriptors", "processes": "processes"}
    shown |= {"threads": "threads", "files": "temporary files"}
    figure = Figure(figsize=(10, 11), layout="constrained")
    axes = figure.subplots(len(shown) + 1, 1, sharex=True)
    answered = [event["t"] for event in outcome.events if event["kind"] == "answered"]
    right = [
        event["t"]
        for event in outcome.events
        if event["kind"] == "answered" and outcome.truth.get(event["problem"]) == event["answer"]
    ]
    axes[0].step(answered, range(1, len(answered) + 1), label="answered")
    axes[0].step(right, range(1, len(right) + 1), label="right")
    axes[0].legend(loc="upper left")
    for axis, (name, title) in zip(axes[1:], shown.items(), strict=True):
        axis.plot([sample.t for sample in outcome.samples], [getattr(sample, name) for sample in outcome.samples], linewidth=0.8)
        axis.set_ylabel(title)
        axis.set_ylim(bottom=0)
    for axis in axes:
        for fault in outcome.faults:
            axis.axvline(fault["t"], color="tab:red", linewidth=0.5)
    axes[-1].set_xlabel("seconds; red lines are faults")
    page = io.StringIO()
    figure.savefig(page, format="svg")
    return page.getvalue()[page.getvalue().index("<svg") :]
