"""The report as one HTML file that opens from disk: no network, no other file."""

from __future__ import annotations

import importlib.metadata
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from aimo_solver.config import Config
from aimo_solver.lab.report import plots, policy
from aimo_solver.lab.report.compare import Comparison
from aimo_solver.lab.report.data import AttemptReport, RunReport, Verdict
from aimo_solver.lab.report.svg import clock, duration, plain, points, short
from aimo_solver.lab.report.text import TrajectoryText, fit
from aimo_solver.lab.report.timeline import is_fault

TEXT_LIMIT = 15_000_000  # characters of packed trajectories in one page; larger runs lose the middle of their longest texts

_COLUMNS = (
    ("#", "num"),
    ("id", ""),
    ("result", ""),
    ("answer", "num"),
    ("truth", "num"),
    ("votes", "num"),
    ("answers", "num"),
    ("calls", "num"),
    ("errors", "num"),
    ("tokens", "num"),
    ("time", "num"),
    ("ended by", ""),
)
_FILTERS = (
    ("all", "all"),
    ("lost", "|".join((Verdict.OUTVOTED, Verdict.NOT_FOUND, Verdict.NO_ANSWER))),
    ("outvoted", Verdict.OUTVOTED),
    ("contested", "contested"),
)
_ANSWER_LEGEND = Markup(
    '<ul class="legend"><li><i class="v-good"></i>right</li><li><i class="v-bad"></i>wrong</li>'
    '<li><i class="v-plain"></i>truth unknown</li><li><i class="v-mute"></i>no answer</li></ul>'
)


@dataclass(frozen=True, slots=True)
class Tile:
    """A figure of the score card."""

    name: str
    value: str
    note: str


@dataclass(frozen=True, slots=True)
class Drawings:
    """The plots of one problem."""

    timeline: Markup
    votes: Markup
    entropy: Markup


class _View:
    """A run as the template wants it. `key` keeps the anchors of two runs on one page apart."""

    def __init__(self, report: RunReport, key: str, texts: Sequence[TrajectoryText | None]) -> None:
        self.report = report
        self.key = key
        self.verdicts = [(str(name), plots.style_of(name), count) for name in Verdict if (count := report.verdicts[name])]
        self.tiles = tiles(report)
        self.filters = _FILTERS
        self.lost = [p for p in report.problems if p.verdict in (Verdict.OUTVOTED, Verdict.NOT_FOUND, Verdict.NO_ANSWER)]
        self.lost.sort(key=lambda problem: list(Verdict).index(problem.verdict))
        self.shares = _shares(report)
        self.gantt = plots.gantt(report, key)
        self.budget = plots.budget(report, key)
        self.tokens = plots.histogram(_groups(report, "tokens"), short, "Tokens per attempt")
        self.seconds = plots.histogram(_groups(report, "seconds"), clock, "Seconds per attempt")
        self.choice = policy.choice(report)
        self.boot = plots.boot(report.boot) if report.boot else None
        self.most_errors = max(report.tool_errors.values(), default=1)
        self.endings = Counter(_ending(attempt) for attempt in report.attempts).most_common()
        self.most_endings = self.endings[0][1] if self.endings else 1
        self.drawings = [Drawings(plots.timeline(p), plots.votes(p), plots.entropy(p)) for p in report.problems]
        given = iter(texts)
        self.texts = {problem.id: [next(given) for _ in problem.attempts] for problem in report.problems}
        self._defaults: dict[str, dict[str, Any]] = json.loads(json.dumps(Config().as_dict()))

    def changed(self, section: str, name: str, value: Any) -> bool:
        """True for an option that is not at its default."""
        known = self._defaults.get(section, {})
        return name in known and value != known[name]


def render(reports: Sequence[RunReport], comparison: Comparison | None = None) -> str:
    """The page for one run, or for two and their comparison."""
    environment = Environment(
        loader=PackageLoader("aimo_solver.lab.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    loader = environment.loader
    assert loader is not None
    css, js = (Markup(loader.get_source(environment, name)[0]) for name in ("report.css", "report.js"))
    limit = TEXT_LIMIT // len(reports)
    views = [
        _View(report, f"{'ab'[number]}-" if comparison else "", fit([attempt.text for attempt in report.attempts], limit))
        for number, report in enumerate(reports)
    ]
    return environment.get_template("report.html.j2").render(
        title=" against ".join(report.name for report in reports),
        compared=comparison is not None,
        comparison=comparison,
        views=views,
        columns=_COLUMNS,
        answer_legend=_ANSWER_LEGEND,
        css=css,
        js=js,
        version=importlib.metadata.version("aimo-solver"),
        duration=duration,
        clock=clock,
        points=points,
        plain=plain,
        short=short,
        anchor=plots.anchor,
        style_of=plots.style_of,
        answer_style=plots.answer_style,
        policy=policy,
        is_fault=is_fault,
    )


def write_html(path: Path, reports: Sequence[RunReport], comparison: Comparison | None = None) -> None:
    path.write_text(render(reports, comparison), encoding="utf-8", newline="\n")


def tiles(report: RunReport) -> list[Tile]:
    """The figures beside the score."""
    attempts, problems = len(report.attempts), len(report.problems)
    limit = report.run.config["budget"]["time_limit_s"]
    failed = report.tool_errors.total()
    solving = sum(problem.seconds for problem in report.problems)
    shares, slots = report.shares, report.run.config["solver"]["slots"]
    return [
        Tile("Time", duration(report.seconds), f"of {duration(limit)}"),
        Tile("Per problem", duration(solving / problems if problems else 0), "mean, from start to answer"),
        Tile("Attempts", f"{attempts:,}", f"{attempts / problems:.1f} per problem" if problems else ""),
        Tile("Tokens", short(report.tokens), f"{report.tokens / report.seconds:,.0f} per second" if report.seconds else ""),
        Tile("Streams busy", f"{shares.thinking / solving:.1f}" if solving else "–", f"mean, of {slots} slots"),
        Tile("Tool calls", f"{report.tool_calls:,}", f"{failed / report.tool_calls:.1%} failed" if report.tool_calls else ""),
    ]


def _shares(report: RunReport) -> list[tuple[str, str, float, float]]:
    shares = report.shares
    rows = (
        ("thinking", "d-thinking", shares.thinking),
        ("Python", "d-tool", shares.tool),
        ("waiting", "d-waiting", shares.waiting),
        ("idle", "d-idle", shares.idle),
    )
    total = sum(seconds for _, _, seconds in rows) or 1.0
    return [(name, style, seconds, round(seconds / total, 4)) for name, style, seconds in rows]


def _groups(report: RunReport, what: str) -> list[tuple[str, list[float]]]:
    groups: dict[str, list[float]] = {"good": [], "bad": [], "plain": [], "mute": []}
    for problem in report.problems:
        for attempt in problem.attempts:
            style = plots.answer_style(attempt.attempt.answer, problem.record.truth)
            groups[style].append(float(getattr(attempt.attempt, what)))
    return [(f"v-{style}", values) for style, values in groups.items()]


def _ending(attempt: AttemptReport) -> str:
    return "still running" if attempt.running else str(attempt.attempt.finish_reason)
