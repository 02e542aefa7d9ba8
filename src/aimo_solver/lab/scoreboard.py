"""Replays, simulations and forecasts as terminal tables and plain values for JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from aimo_solver.lab.forecast import Difficulty, Errors, Forecast
from aimo_solver.lab.replay import Replay, Score
from aimo_solver.lab.simulate import Simulation
from aimo_solver.lab.statistics import Floats, Interval

_CAPTION = "brackets: 95 % bootstrap intervals over problems"


def replay_tables(replay: Replay, *, strata: bool = False) -> tuple[Table, ...]:
    """Builds the score table; with `strata` also right answers by run."""
    title = f"{replay.groups} groups of {replay.problems} problems; the truth is present in {replay.oracle} (oracle)"
    if replay.left_out:
        title += f"; {replay.left_out} groups left out that do not allow this comparison"
    columns = ("policy", "right", "lost", "changed", "accuracy %", "difference %", "two-run %", "seconds", "k tokens")
    rows = [
        (
            score.policy.name,
            score.right,
            score.lost,
            score.changed if number else "",
            _percent(score.accuracy),
            _percent(score.diff, "+") if number else "",
            f"{100 * score.two_run.mean:.1f}",
            "not logged" if score.mean_seconds is None else f"{score.mean_seconds:.0f}",
            "not logged" if score.mean_tokens is None else f"{score.mean_tokens / 1000:.0f}",
        )
        for number, score in enumerate(replay.scores)
    ]
    table = _table(title, columns, rows, _CAPTION)
    return (table, _strata_table(replay)) if strata else (table,)


def _strata_table(replay: Replay) -> Table:
    title = "right answers by run (gained, missed against the first policy)"
    columns = ("run", "groups", "truth present", *(score.policy.name for score in replay.scores))
    rows = []
    for strata in zip(*(score.strata for score in replay.scores), strict=True):
        changes = [f" (+{one.gained} -{one.missed})" if one.gained or one.missed else "" for one in strata]
        right = (f"{one.right}{change}" for one, change in zip(strata, changes, strict=True))
        rows.append((strata[0].run, strata[0].groups, strata[0].oracle, *right))
    table = _table(title, columns, rows)
    table.columns[0].no_wrap, table.columns[0].overflow, table.columns[0].min_width = False, "fold", 24
    return table


def simulation_table(simulations: Sequence[Simulation]) -> Table:
    """Builds a table with one row per configuration."""
    first = simulations[0]
    title = f"{first.competitions:,} competitions of {first.problems} problems, each run twice (the two-run score is the same)"
    columns = ("configuration", "score", "difference", "sd", "run to run", "seconds", "longest", "late %", "M tokens", "overruns")
    rows = [
        (
            one.name,
            f"{one.score.mean:.2f} [{one.score.low:.1f}, {one.score.high:.1f}]",
            f"{one.diff.mean:+.2f} [{one.diff.low:+.2f}, {one.diff.high:+.2f}]" if number else "",
            f"{one.spread:.2f}",
            f"{one.run_spread:.2f}",
            f"{one.mean_seconds:,.0f}",
            f"{one.longest_seconds:,.0f}",
            f"{100 * one.undecided:.1f}",
            f"{one.mean_tokens / 1e6:.1f}",
            one.overruns,
        )
        for number, one in enumerate(simulations)
    ]
    return _table(
        title, columns, rows, f"{_CAPTION}; sd: of one run's score; run to run: on the same problems; late: problems out of time"
    )


def replay_values(replay: Replay) -> dict[str, Any]:
    """Returns plain values: `policies` maps names to results, `oracle` counts the groups in which the truth is present.

    Accuracies and differences are shares of 1, times seconds.
    """
    policies = {score.policy.name: _score_values(score) for score in replay.scores}
    return {**_plain(replay, "groups", "problems", "left_out", "oracle"), "policies": policies}


def _score_values(score: Score) -> dict[str, Any]:
    figures = _plain(score, "right", "lost", "changed", "accuracy", "two_run", "mean_seconds", "mean_tokens", "diff")
    return {"groups": len(score.outcomes), **figures, "runs": {stratum.run: asdict(stratum) for stratum in score.strata}}


def simulation_values(simulations: Sequence[Simulation]) -> dict[str, Any]:
    """Returns plain values: `policies` maps names to results; scores are right answers of one run, times seconds."""
    figures = (
        "score", "spread", "run_spread", "two_run", "diff", "mean_seconds", "longest_seconds", "mean_tokens", "overruns",
        "undecided",
    )  # fmt: skip
    policies = {one.name: _plain(one, *figures) for one in simulations}
    return {**_plain(simulations[0], "competitions", "problems"), "policies": policies}


def fit_values(
    difficulty: Difficulty, uplifts: Floats, errors: Errors, given: Mapping[int, float], problems: int
) -> dict[str, Any]:
    """Returns plain values of what a forecast was fitted to and of the fit."""
    return {
        "pass_at": {count: round(problems * share, 1) for count, share in sorted(given.items())},
        "fitted_pass_at": {count: round(problems * difficulty.pass_at(count), 1) for count in sorted(given)},
        "beta": [round(difficulty.a, 3), round(difficulty.b, 3)],
        "uplift": [round(float(value), 2) for value in (uplifts[0], *np.quantile(uplifts, (0.025, 0.975)))],
        "pass_at_1_with_tools": round(float(difficulty.chances(problems, float(uplifts[0])).sum()), 1),
        "silent": round(errors.silent, 3),
        "same_wrong_answer": {chance: round(float(errors.sameness(chance)), 2) for chance in (0.1, 0.5, 0.9)},
        "same_wrong_answer_precision": round(errors.precision, 2),
    }


def forecast_table(forecasts: Sequence[Forecast], problems: int) -> Table:
    """Builds a table with one row per configuration."""
    columns = ("configuration", "score", "difference", "run to run", "seconds", "M tokens")
    rows = [
        (
            one.name,
            f"{one.score.mean:.1f} [{one.score.low:.1f}, {one.score.high:.1f}]",
            f"{one.diff.mean:+.1f} [{one.diff.low:+.1f}, {one.diff.high:+.1f}]" if number else "",
            f"{one.run_spread:.2f}",
            f"{one.mean_seconds:,.0f}",
            f"{one.mean_tokens / 1e6:.1f}",
        )
        for number, one in enumerate(forecasts)
    ]
    caption = "brackets: 95 % of the problem sets and uplifts; run to run: standard deviation on the same problems"
    return _table(f"forecast scores of {problems}", columns, rows, caption)


def forecast_values(forecasts: Sequence[Forecast]) -> dict[str, Any]:
    """Returns plain values by configuration; scores are right answers of one run."""
    return {one.name: _plain(one, "score", "run_spread", "diff", "mean_seconds", "mean_tokens") for one in forecasts}


def _plain(record: object, *names: str) -> dict[str, Any]:
    """Returns some attributes by name, intervals as three numbers."""
    values: dict[str, Any] = {}
    for name in names:
        value = getattr(record, name)
        if isinstance(value, Interval):
            values |= {name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high}
        else:
            values[name] = value
    return values


def _table(title: str, columns: Sequence[str], rows: Iterable[tuple[object, ...]], caption: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=not number)
    for row in rows:
        table.add_row(*map(str, row))
    return table


def _percent(interval: Interval, sign: str = "") -> str:
    return f"{100 * interval.mean:{sign}.1f} [{100 * interval.low:{sign}.1f}, {100 * interval.high:{sign}.1f}]"
