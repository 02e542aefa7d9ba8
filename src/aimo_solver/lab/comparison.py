"""Compares configurations, one run or several of each, on the same problems."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy

from aimo_solver.errors import UserError
from aimo_solver.lab.power import Spread, measure_spread, published_spread, runs_needed
from aimo_solver.lab.runs import LoggedRun, check_truths, common_problems, right_answers
from aimo_solver.lab.statistics import Floats, Interval, PairedDifference, clustered_share, paired_difference


@dataclass(frozen=True, slots=True)
class ScoredConfiguration:
    """One configuration.

    Attributes:
        score: mean right answers of a run on the common problems, with the interval clustered by problem.
        scores: of each run.
    """

    name: str
    score: Interval
    scores: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ConfigurationDifference:
    """One configuration against the first; differences in right answers on the common problems.

    Attributes:
        paired: by problem: the mean share of right runs. Its interval is for problems like these.
        repeated: interval for runs on exactly these problems, from the scores of the runs (Welch's t-test); None unless both have
            two runs whose scores differ.
        spread: of one run's score.
        needed: runs of each that find a true difference of this size in four of five cases; None if none do.
    """

    name: str
    paired: PairedDifference
    difference: Interval
    repeated: Interval | None
    spread: Spread
    needed: int | None


@dataclass(frozen=True, slots=True)
class ComparisonTable:
    """All configurations, and all but the first against the first, on `problems` common problems."""

    problems: int
    configurations: tuple[ScoredConfiguration, ...]
    differences: tuple[ConfigurationDifference, ...]


def compare_configurations(named: Mapping[str, Sequence[LoggedRun]]) -> ComparisonTable:
    """Compares each configuration with the first one.

    Raises:
        UserError: there are fewer than two configurations, no problem that all runs have, or different ones with the same id.
    """
    if len(named) < 2:
        raise UserError("compare needs two configurations or more: run directories, or folders that hold the runs of one each")
    everything = [run for runs in named.values() for run in runs]
    check_truths(everything)
    common = common_problems(everything)
    if not common:
        raise UserError("the runs have no problem with a known answer in common; compare runs of the same problems")
    outcomes = {name: right_answers(runs, common) for name, runs in named.items()}
    first, *others = outcomes.values()
    return ComparisonTable(
        problems=len(common),
        configurations=tuple(
            ScoredConfiguration(
                name, _scaled(clustered_share(right.mean(axis=0)), len(common)), tuple(map(int, right.sum(axis=1)))
            )
            for name, right in outcomes.items()
        ),
        differences=tuple(_difference(name, own, first) for name, own in zip(list(outcomes)[1:], others, strict=True)),
    )


def _difference(name: str, own: Floats, first: Floats) -> ConfigurationDifference:
    problems = own.shape[1]
    paired = paired_difference(own.mean(axis=0), first.mean(axis=0))
    difference = _scaled(paired.interval, problems)
    spread = _pooled_spread([own, first], problems)
    return ConfigurationDifference(name, paired, difference, _welch(own, first), spread, runs_needed(difference.mean, spread))


def _welch(own: Floats, first: Floats) -> Interval | None:
    a, b = own.sum(axis=1), first.sum(axis=1)
    if min(len(a), len(b)) < 2 or (np.ptp(a) == 0 and np.ptp(b) == 0):
        return None
    limits = scipy.stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    return Interval(float(a.mean() - b.mean()), float(limits.low), float(limits.high))


def _scaled(share: Interval, problems: int) -> Interval:
    return Interval(problems * share.mean, problems * share.low, problems * share.high)


def _pooled_spread(sets: Sequence[Floats], problems: int) -> Spread:
    """Returns the mean spread of the sets of two runs or more, each (runs, problems); without any, the published one."""
    spreads = [measure_spread(right, f"{len(right)} runs") for right in sets if len(right) > 1]
    if not spreads:
        return published_spread(problems)
    variance = sum(spread.deviation**2 for spread in spreads) / len(spreads)
    return replace(spreads[0], deviation=math.sqrt(variance), source=" and ".join(spread.source for spread in spreads))
