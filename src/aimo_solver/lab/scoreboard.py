"""Replays and simulations as terminal tables, plain values for JSON, and figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table

from aimo_solver.lab.calibration import calibration
from aimo_solver.lab.replay import Replay, Score
from aimo_solver.lab.simulate import Simulation, SweepPoint
from aimo_solver.lab.statistics import Interval

_WIDTH_IN, _HEIGHT_IN = 6.4, 4.0


def replay_tables(replay: Replay, *, strata: bool = False) -> tuple[Table, ...]:
    """The score table; with `strata` also right answers per run."""
    title = f"{replay.groups} groups of {replay.problems} problems; the truth is present in {replay.oracle} (oracle)"
    if replay.left_out:
        title += f"; {replay.left_out} groups left out that this comparison may not use"
    table = _table(title, "policy", "right", "lost", "changed", "accuracy %", "difference %", "two-run %", "seconds", "k tokens")
    table.caption = "brackets: 95 % bootstrap intervals over problems"
    for number, score in enumerate(replay.scores):
        table.add_row(
            score.policy.name,
            str(score.right),
            str(score.lost),
            str(score.changed) if number else "",
            _percent(score.accuracy),
            _percent(score.diff, signed=True) if number else "",
            f"{100 * score.two_run.mean:.1f}",
            "not logged" if score.mean_seconds is None else f"{score.mean_seconds:.0f}",
            "not logged" if score.mean_tokens is None else f"{score.mean_tokens / 1000:.0f}",
        )
    return (table, _strata_table(replay)) if strata else (table,)


def _strata_table(replay: Replay) -> Table:
    names = [score.policy.name for score in replay.scores]
    table = _table("right answers by run (gained, missed against the first policy)", "run", "groups", "truth present", *names)
    table.columns[0].no_wrap, table.columns[0].overflow, table.columns[0].min_width = False, "fold", 24
    for row in zip(*(score.strata for score in replay.scores), strict=True):
        cells = [
            f"{stratum.right}" + (f" (+{stratum.gained} -{stratum.missed})" if stratum.gained or stratum.missed else "")
            for stratum in row
        ]
        table.add_row(row[0].run, str(row[0].groups), str(row[0].truth_present), *cells)
    return table


def simulation_table(simulations: Sequence[Simulation]) -> Table:
    """One row per configuration."""
    first = simulations[0]
    title = f"{first.competitions:,} competitions of {first.problems} problems, each run twice (the two-run score is the same)"
    table = _table(
        title,
        "configuration", "score", "difference", "sd", "seconds", "longest", "late %", "M tokens", "overruns",
    )  # fmt: skip
    table.caption = "brackets: 95 % bootstrap intervals over the problems; sd: of one run's score; late: problems out of time"
    for number, one in enumerate(simulations):
        table.add_row(
            one.name,
            f"{one.score.mean:.2f} [{one.score.low:.1f}, {one.score.high:.1f}]",
            f"{one.diff.mean:+.2f} [{one.diff.low:+.2f}, {one.diff.high:+.2f}]" if number else "",
            f"{one.spread:.2f}",
            f"{one.seconds:,.0f}",
            f"{one.longest:,.0f}",
            f"{100 * one.undecided:.1f}",
            f"{one.tokens / 1e6:.1f}",
            str(one.overruns),
        )
    return table


def replay_values(replay: Replay) -> dict[str, Any]:
    """Plain values: `policies` maps names to figures; `oracle` counts the groups in which the truth is present.

    Accuracies and differences are parts of 1, times seconds.
    """
    return {
        "groups": replay.groups,
        "problems": replay.problems,
        "left_out": replay.left_out,
        "oracle": replay.oracle,
        "policies": {score.policy.name: _score_values(score) for score in replay.scores},
    }


def _score_values(score: Score) -> dict[str, Any]:
    return {
        "groups": score.groups,
        "right": score.right,
        "lost": score.lost,
        "changed": score.changed,
        **_interval_values("accuracy", score.accuracy),
        **_interval_values("two_run", score.two_run),
        "mean_seconds": score.mean_seconds,
        "mean_tokens": score.mean_tokens,
        **_interval_values("diff", score.diff),
        "runs": {
            stratum.run: {
                "groups": stratum.groups,
                "right": stratum.right,
                "oracle": stratum.truth_present,
                "gained": stratum.gained,
                "missed": stratum.missed,
            }
            for stratum in score.strata
        },
    }


def simulation_values(simulations: Sequence[Simulation]) -> dict[str, Any]:
    """Plain values: `policies` maps names to figures; scores are right answers of one run, times seconds."""
    return {
        "competitions": simulations[0].competitions,
        "problems": simulations[0].problems,
        "policies": {
            one.name: {
                **_interval_values("score", one.score),
                "spread": one.spread,
                "two_run": one.two_run,
                **_interval_values("diff", one.diff),
                "mean_seconds": one.seconds,
                "longest_seconds": one.longest,
                "mean_tokens": one.tokens,
                "overruns": one.overruns,
                "undecided": one.undecided,
            }
            for one in simulations
        },
    }


def tokens_figure(replay: Replay) -> Figure:
    """Part of the groups that are decided by a number of tokens, all attempts together, per policy."""
    figure, axes = _figure("tokens until the decision (all attempts)", "part of the groups")
    for score, colour in zip(replay.scores, _colours(len(replay.scores)), strict=True):
        tokens = np.sort([outcome.tokens for outcome in score.outcomes if outcome.tokens])
        axes.step(tokens, np.arange(1, len(tokens) + 1) / len(tokens), where="post", color=colour, label=score.policy.name)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    axes.legend(fontsize="x-small")
    return figure


def calibration_figure(score: Score, bins: int = 5) -> Figure:
    """How often the answer is right, by its share of the vote; bars are 95 % Wilson intervals, figures counts of groups."""
    figure, axes = _figure("the answer's share of the vote", "part that is right")
    axes.plot([0, 1], [0, 1], color="0.7", linestyle="--", label="share = chance to be right")
    for part in calibration(score.outcomes, bins):
        x, y, (low, high) = part.share, part.accuracy, part.interval
        axes.errorbar(x, y, yerr=[[max(0.0, y - low)], [max(0.0, high - y)]], fmt="o", color="C0", capsize=3)
        axes.annotate(str(part.count), (x, y), textcoords="offset points", xytext=(6, -3), fontsize="small")
    axes.set_xlim(0, 1.05)
    axes.set_ylim(0, 1.05)
    axes.set_title(score.policy.name, fontsize="medium")
    axes.legend(fontsize="x-small", loc="lower right")
    return figure


def budget_figure(points: Sequence[SweepPoint]) -> Figure:
    """Expected score against the time limit, per configuration; bands are 95 % intervals over problems."""
    figure, axes = _figure("time limit, hours", f"expected score of {points[0].simulations[0].problems}")
    hours = [point.time_limit_s / 3600 for point in points]
    names = [one.name for one in points[0].simulations]
    for number, (name, colour) in enumerate(zip(names, _colours(len(names)), strict=True)):
        scores = [point.simulations[number].score for point in points]
        axes.plot(hours, [score.mean for score in scores], marker=".", color=colour, label=name)
        if number == 0:
            axes.fill_between(hours, [s.low for s in scores], [s.high for s in scores], color=colour, alpha=0.12)
    axes.legend(fontsize="x-small", loc="lower right")
    return figure


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _figure(x: str, y: str) -> tuple[Figure, Axes]:
    # A Figure of its own, not pyplot's: nothing global, no display, nothing to close.
    figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(color="0.92")
    return figure, axes


def _colours(count: int) -> list[Any]:
    palette = colormaps["tab10" if count <= 10 else "tab20"]
    return [palette(number % palette.N) for number in range(count)]


def _interval_values(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _percent(interval: Interval, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{100 * interval.mean:{sign}.1f} [{100 * interval.low:{sign}.1f}, {100 * interval.high:{sign}.1f}]"
