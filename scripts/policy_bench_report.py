"""The policies of the policy bench, and the tables of their runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import scipy
from numpy.typing import NDArray

from aimo_solver.config import load_config
from aimo_solver.lab.power import measure_spread, power_of_runs, resampled_power
from aimo_solver.lab.records import Group, read_groups
from aimo_solver.lab.replay import GroupOutcome, parse_policy, play
from aimo_solver.lab.statistics import Bootstrap, Interval, sign_test
from aimo_solver.log.reader import RunRecord, read_run
from aimo_solver.policy.selection import Method
from aimo_solver.policy.voting import VOTER_NAMES
from aimo_solver.results import FinishReason

COMMON = (
    "sampling.top_logprobs=5",
    "attempt.max_turns=8",
    "attempt.max_tokens=400",  # a right attempt takes about 90
    "attempt.answer_tokens=64",
    "kernels.timeout_s=2",
    "voting.stop=never",
)
"""Settings of every run."""


@dataclass(frozen=True, slots=True)
class Live:
    """A policy that is run live.

    Attributes:
        settings: on top of `COMMON`.
    """

    name: str
    settings: tuple[str, ...] = ()


_VARIANTS = 'prompt.variants={cold={base="bare",temperature=0.5},hot={base="bare",temperature=1.3}}'

LIVE = (
    Live("complete", ("selection.select=log", "selection.verify=log", "selection.least_s=1")),
    Live("equal=4", ("voting.stop=equal", "voting.equal=4")),
    Live("16 attempts in 8 slots, equal=4", ("voting.stop=equal", "voting.equal=4", "solver.max_attempts=16")),
    Live("equal=2", ("voting.stop=equal", "voting.equal=2")),
    Live("first", ("voting.stop=first",)),
    Live("uncatchable", ("voting.stop=uncatchable",)),
    Live("at most 150 tokens", ("attempt.max_tokens=150",)),
    Live("at most 2 turns", ("attempt.max_turns=2",)),
    Live("stop at the first box", ("attempt.stop_at_box=true",)),
    Live("early answers questioned", ("attempt.least_thinking=100",)),
    Live("loop detector", ("attempt.stop_loops=true",)),
    Live("temperature 0.5", ("sampling.temperature=0.5",)),
    Live("temperature 1.3", ("sampling.temperature=1.3",)),
    Live("mix of temperatures 0.5 and 1.3", (_VARIANTS, 'prompt.mix=["cold","hot"]')),
    Live("mix of prompts bare and tool", ('prompt.mix=["bare","tool"]',)),
)

REPEATS = tuple(
    replace(policy, name=f"{policy.name}, repeat {number}")
    for policy in LIVE
    if policy.name in ("equal=4", "equal=2")
    for number in range(1, 11)
)
"""Two rules ten times each, for the spread from run to run."""


# `default` is error-weighted.
VOTERS = ("majority", "default", *(name for name in VOTER_NAMES if name not in ("majority", "error-weighted")))
STOPS = (
    "equal=2", "equal=3", "equal=4", "equal=5", "uncatchable", "margin=3", "share=0.7", "consistency", "posterior=0.95", "first",
)  # fmt: skip


def folder_of(out: Path, policy: Live) -> Path:
    """Returns the policy's run directory."""
    return out / policy.name.replace(" ", "-").replace(",", "")


def count_finished(out: Path, policy: Live) -> int:
    """Returns the number of problems that the policy's run has finished."""
    folder = folder_of(out, policy)
    return len(read_run(folder).results) if (folder / "run.json").exists() else 0


@dataclass(frozen=True, slots=True)
class Row:
    """What one policy did, by problem id: whether the answer was right, and tokens sampled."""

    name: str
    how: str
    right: dict[str, bool]
    tokens: dict[str, float]


def report(out: Path) -> list[str]:
    """Returns the tables' lines."""
    folder = folder_of(out, LIVE[0])
    whole = read_run(folder)
    done = {result.problem_id for result in whole.results}
    groups = [group for group in read_groups([folder]) if group.problem_id in done]
    rows = [*_replayed(groups), *_live(out)]
    attempts = [(attempt, group.truth) for group in groups for attempt in group.attempts]
    right = sum(attempt.answer == truth for attempt, truth in attempts)
    forced = sum(attempt.finish_reason is FinishReason.FORCED for attempt, _ in attempts)
    silent = sum(attempt.answer is None for attempt, _ in attempts)
    lines = [
        f"{len(groups)} problems, {len(attempts)} attempts: pass@1 {right / len(attempts):.3f}, without an answer "
        f"{silent / len(attempts):.3f}, forced {forced / len(attempts):.3f}; the truth is present in "
        f"{sum(group.truth_present for group in groups)} problems",
        "",
        "| policy | how | problems | right | accuracy % | difference to majority, points | gained, lost | p | tokens |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    return [*lines, *(_line(row, rows[0]) for row in rows), "", *_contested(whole, groups), "", *_repeated(out)]


def _contested(whole: RunRecord, groups: Sequence[Group]) -> list[str]:
    """Returns a line on the second looks."""
    asked = [event for event in whole.events if event.kind == "selection"]
    lines = []
    for method in Method:
        own = [event for event in asked if event.values["method"] == method]
        picks = [pick for event in own for pick in event.values["picks"]]
        chosen = sum(pick is not None for pick in picks)
        clear = sum(method in group.choices for group in groups)
        lines.append(f"{method}: asked at {len(own)} problems, {chosen} of {len(picks)} replies pick a candidate, {clear} clear")
    return lines


def _repeated(out: Path) -> list[str]:
    """Returns the table of the rules that were run several times; `lab.power` next to resampled runs."""
    lines = [
        "| rule | runs | mean | standard deviation | from the problems | equal halves that differ at 5 % | "
        "power for +5, 5 runs each: formula, resampled |",
        "|---|---|---|---|---|---|---|",
    ]
    for rule in ("equal=4", "equal=2"):
        records = [read_run(folder_of(out, one)) for one in REPEATS if one.name.startswith(rule) and count_finished(out, one)]
        whole = max((len(record.results) for record in records), default=0)
        runs = [
            [one.answer == one.truth for one in sorted(record.results, key=lambda one: one.problem_id)]
            for record in records
            if len(record.results) == whole
        ]
        if len(runs) < 4:
            continue
        scores = np.array(runs).sum(axis=1)
        spread = measure_spread(runs, rule)
        half = len(scores) // 2
        halves = [set(chosen) for chosen in itertools.combinations(range(2 * half), half) if 0 in chosen]
        differ = sum(_differ(scores, chosen, 2 * half) for chosen in halves)
        power = f"{power_of_runs(5, spread, 5):.2f}, {resampled_power(5, spread, 5):.2f}"
        cells = [rule, len(runs), f"{scores.mean():.1f} of {whole}", f"{scores.std(ddof=1):.2f}", f"{spread.deviation:.2f}"]
        lines.append(f"| {' | '.join(map(str, [*cells, f'{differ} of {len(halves)}', power]))} |")
    return lines


def _differ(scores: NDArray[np.int64], chosen: set[int], count: int) -> bool:
    """Returns whether the t-test at 5 % finds a difference between the chosen half of the runs and the other half."""
    one = scores[sorted(chosen)]
    other = scores[[number for number in range(count) if number not in chosen]]
    error = np.sqrt((one.var(ddof=1) + other.var(ddof=1)) / len(one))
    return bool(abs(one.mean() - other.mean()) > scipy.special.stdtrit(count - 2, 0.975) * error)


def _replayed(groups: Sequence[Group]) -> list[Row]:
    voting = load_config().voting
    unforced = [_without_forced(group) for group in groups]
    rows = [_row(name, "replayed", [play(group, parse_policy(name, voting)) for group in groups]) for name in VOTERS]
    rows.append(
        _row("majority, no forced answers", "replayed", [play(group, parse_policy("majority", voting)) for group in unforced])
    )
    rows += [_row(name, "replayed", [play(group, parse_policy(f"default/{name}", voting)) for group in groups]) for name in STOPS]
    # The extra tokens of a second look are not counted.
    rows += [
        _row(name, "asked live", [play(group, parse_policy(name, voting)) for group in groups]) for name in ("select", "verify")
    ]
    return rows


def _without_forced(group: Group) -> Group:
    ended = tuple(
        replace(attempt, answer=None) if attempt.finish_reason is FinishReason.FORCED else attempt for attempt in group.ended
    )
    return replace(group, ended=ended)


def _row(name: str, how: str, outcomes: Sequence[GroupOutcome]) -> Row:
    return Row(
        name, how, {one.group.problem_id: one.right for one in outcomes}, {one.group.problem_id: one.tokens for one in outcomes}
    )


def _live(out: Path) -> Iterator[Row]:
    for policy in LIVE[1:]:
        folder = folder_of(out, policy)
        if (folder / "run.json").exists():
            yield _live_row(policy.name, read_run(folder))


def _live_row(name: str, record: RunRecord) -> Row:
    return Row(
        name,
        "live",
        {one.problem_id: one.answer == one.truth for one in record.results},
        {one.problem_id: float(one.tokens) for one in record.results},
    )


def _line(row: Row, first: Row) -> str:
    both = [problem for problem in row.right if problem in first.right]
    if not both:
        return f"| {row.name} | {row.how} | 0 | | | | | | |"
    draws = Bootstrap(both)
    own = [row.right[problem] for problem in both]
    other = [first.right[problem] for problem in both]
    gained = sum(a and not b for a, b in zip(own, other, strict=True))
    lost = sum(b and not a for a, b in zip(own, other, strict=True))
    tokens = sum(row.tokens[problem] for problem in both) / len(both)
    cells = [row.name, row.how, str(len(both)), str(sum(own)), _percent(draws.mean(own))]
    if row is first:
        cells += ["", "", ""]
    else:
        difference = draws.mean([a - b for a, b in zip(own, other, strict=True)])
        cells += [_percent(difference, "+"), f"+{gained} -{lost}", f"{sign_test(lost, gained):.2g}"]
    return f"| {' | '.join([*cells, f'{tokens:.0f}'])} |"


def _percent(interval: Interval, sign: str = "") -> str:
    return f"{100 * interval.mean:{sign}.1f} [{100 * interval.low:{sign}.1f}, {100 * interval.high:{sign}.1f}]"
