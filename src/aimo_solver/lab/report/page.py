"""The report as one HTML file, which needs neither a network nor other files."""

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
from aimo_solver.lab.report import plots, policy_plots
from aimo_solver.lab.report.compare import Comparison
from aimo_solver.lab.report.data import LOST, RunReport, Verdict
from aimo_solver.lab.report.format import (
    duration,
    percent,
    percentage_points,
    plain_value,
    prefix_losses,
    short_number,
    short_time,
)
from aimo_solver.lab.report.policy import assess_policy
from aimo_solver.lab.report.text import fit_texts
from aimo_solver.lab.report.timeline import count_drafts, is_fault

TEXT_LIMIT = 15_000_000  # characters of packed trajectories in one page; larger runs lose the middle of their longest texts

_FILTERS = (("all", "all"), ("lost", "|".join(LOST)), ("outvoted", Verdict.OUTVOTED), ("contested", "contested"))
_ANSWER_LEGEND = Markup(
    '<ul class="legend"><li><i class="good"></i>right</li><li><i class="bad"></i>wrong</li>'
    '<li><i class="plain"></i>truth unknown</li><li><i class="mute"></i>no answer</li></ul>'
)


@dataclass(frozen=True, slots=True)
class Tile:
    """One number of the score card."""

    name: str
    value: str
    note: str


class _View:
    """What the template of a run shows. Anchors begin with `key`, so that two runs fit on one page."""

    def __init__(self, report: RunReport, key: str, texts: Sequence[str | None]) -> None:
        self.report = report
        self.key = key
        self.outcomes = [(str(outcome), plots.outcome_style(outcome), count) for outcome, count in report.outcomes]
        self.tiles = tiles(report)
        lost = [(problem, problem.loss.cause.near) for problem in report.problems if problem.loss]
        self.lost = [problem for problem, _ in sorted(lost, key=lambda pair: not pair[1])]
        self.near = sum(near for _, near in lost)
        self.answered = sum(problem.verdict is Verdict.UNKNOWN for problem in report.problems)
        self.shares = _shares(report)
        self.policy = assess_policy(report)
        self.run_chart = plots.run_chart(report, key)
        self.budget_chart = plots.budget_chart(report, key)
        self.tokens_chart = plots.histogram(_by_answer(report, "tokens"), short_number, "Tokens per attempt")
        self.seconds_chart = plots.histogram(_by_answer(report, "seconds"), short_time, "Seconds per attempt")
        self.boot_chart = plots.boot_chart(report.boot) if report.boot else None
        self.endings = Counter(
            "still running" if attempt.running else str(attempt.attempt.finish_reason) for attempt in report.attempts
        ).most_common()
        remaining = iter(texts)
        self.texts = {problem.id: [next(remaining) for _ in problem.attempts] for problem in report.problems}
        self._defaults: dict[str, dict[str, Any]] = json.loads(json.dumps(Config().as_dict()))

    def changed(self, section: str, name: str, value: Any) -> bool:
        """Whether an option differs from its default."""
        known = self._defaults.get(section, {})
        return name in known and value != known[name]


def page_environment() -> Environment:
    """The templates of pages, with what all of them use."""
    loader = PackageLoader("aimo_solver.lab.report", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    sources = {name: Markup(loader.get_source(environment, name)[0]) for name in ("plot.css", "report.css", "report.js")}
    functions = (duration, percent, percentage_points, plain_value, prefix_losses, short_number, short_time, is_fault)
    environment.globals.update({function.__name__: function for function in functions})
    environment.globals.update(
        css=sources["plot.css"] + sources["report.css"],
        js=sources["report.js"],
        version=importlib.metadata.version("aimo-solver"),
        plots=plots,
    )
    return environment


def render_page(reports: Sequence[RunReport], comparison: Comparison | None = None) -> str:
    """The page of one run, or of two and their comparison."""
    environment = page_environment()
    limit = TEXT_LIMIT // len(reports)
    views = [
        _View(report, f"{'ab'[number]}-" if comparison else "", fit_texts([attempt.text for attempt in report.attempts], limit))
        for number, report in enumerate(reports)
    ]
    return environment.get_template("report.html.j2").render(
        title=" against ".join(report.name for report in reports),
        comparison=comparison,
        views=views,
        filters=_FILTERS,
        answer_legend=_ANSWER_LEGEND,
        policy_plots=policy_plots,
    )


def write_page(path: Path, reports: Sequence[RunReport], comparison: Comparison | None = None) -> None:
    path.write_text(render_page(reports, comparison), encoding="utf-8", newline="\n")


def tiles(report: RunReport) -> list[Tile]:
    """The score card of a run."""
    attempts, problems = len(report.attempts), len(report.problems)
    limit = report.run.config["budget"]["time_limit_s"]
    failed = report.tool_errors.total()
    solving = sum(problem.seconds for problem in report.problems)
    shares = report.shares
    rate = f"{report.tokens / report.seconds:,.0f} per second" if report.seconds else ""
    drafts = count_drafts(report.run.events)
    figures = [
        Tile("Time", duration(report.seconds), f"of {duration(limit)}"),
        Tile("Per problem", duration(solving / problems if problems else 0), "mean, from start to answer"),
        Tile("Attempts", f"{attempts:,}", f"{attempts / problems:.1f} per problem" if problems else ""),
        Tile("Tokens", short_number(report.tokens), rate),
        Tile("Streams busy", f"{shares.thinking / solving:.1f}" if solving else "–", f"mean, of {report.slots} slots"),
        Tile("Tool calls", f"{report.tool_calls:,}", f"{failed / report.tool_calls:.1%} failed" if report.tool_calls else ""),
    ]
    if drafts is not None and drafts.drafted:
        accepted = f"{drafts.accepted / drafts.drafted:.0%} of {drafts.drafted / drafts.steps:.1f} drafted tokens accepted"
        figures.append(Tile("Tokens per step", f"{drafts.tokens_per_step:.2f}", accepted))
    return figures


def _shares(report: RunReport) -> list[tuple[str, str, float, float]]:
    """Name, colour class, seconds and share of each use of the slots."""
    shares = report.shares
    rows = (
        ("thinking", "thinking", shares.thinking),
        ("Python", "tool", shares.tool),
        ("waiting", "waiting", shares.waiting),
        ("idle", "idle", shares.idle),
    )
    total = sum(seconds for _, _, seconds in rows) or 1.0
    return [(name, style, seconds, round(seconds / total, 4)) for name, style, seconds in rows]


def _by_answer(report: RunReport, field: str) -> list[tuple[str, list[float]]]:
    """The values of a field of all attempts, by the colour class of their answers."""
    groups: dict[str, list[float]] = {"good": [], "bad": [], "plain": [], "mute": []}
    for problem in report.problems:
        for attempt in problem.attempts:
            style = plots.answer_style(attempt.attempt.answer, problem.record.truth)
            groups[style].append(float(getattr(attempt.attempt, field)))
    return list(groups.items())
