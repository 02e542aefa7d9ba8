"""Replays and simulations as terminal tables and plain values for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from aimo_solver.lab.replay import Replay, Score
from aimo_solver.lab.simulate import Simulation
from aimo_solver.lab.statistics import Interval


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
        "groups": len(score.outcomes),
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


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _interval_values(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _percent(interval: Interval, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{100 * interval.mean:{sign}.1f} [{100 * interval.low:{sign}.1f}, {100 * interval.high:{sign}.1f}]"
