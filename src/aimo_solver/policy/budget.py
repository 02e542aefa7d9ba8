"""Decides how many seconds a problem gets. Pure: time left and problems left in, an allotment out.

`left` is the time left for all problems, `later` the number of problems after this one (of waves, if problems run in
parallel), and `even` is left / (later + 1). No problem gets more than `left`.

    greedy     left - reserve_s * later, at least `even`, at most cap_s
    clamp      left - reserve_s * later, at least reserve_s, at most cap_s: common in public notebooks
    even       `even`
    tiers      a multiple of `even` and a number of attempts, by the tier that `even` falls into (`TIERS`)
    marginal   left - reserve_s / 2 * later, at most cap_s, but at least `even`; the problem ends earlier once the vote is surer
               than `confidence_bar`, which rises with `even`

Under every rule a problem gets at least least_s (or cap_s), or all that is left if that is less. When time is short, the first
problems get enough time to be solved, and the last ones get none. In 2,259 logged attempts of gpt-oss-120b, 8 at a time, slices
of 5 s win 1.8 answers per 1,000 s, slices of 10, 20 or 40 s win 3.5 to 4.3, and slices of 100 s win 3.1. So the default is 10 s.
Small models end earlier and leave the rest to later problems. Less than a tenth of least_s counts as nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from aimo_solver.policy.options import BudgetConfig


@dataclass(frozen=True, slots=True)
class Allotment:
    """Limits for one problem.

    Attributes:
        seconds: 0 <= seconds <= left_s.
        max_attempts: None means the configured number.
        confidence: of the vote, 0..1, at which the problem ends early; None leaves that to the configured stop rule.
        left_s: seconds left, including `seconds`. later: problems, or waves of them, that share the rest.
    """

    seconds: float
    max_attempts: int | None = None
    confidence: float | None = None
    left_s: float = 0.0
    later: int = 0


@dataclass(frozen=True, slots=True)
class Tier:
    """At `even_s` seconds per problem or more, a problem gets `times` that much and `max_attempts`."""

    even_s: float
    times: float
    max_attempts: int | None


TIERS = (
    Tier(even_s=480, times=3.0, max_attempts=None),
    Tier(even_s=300, times=2.5, max_attempts=None),
    Tier(even_s=150, times=2.0, max_attempts=8),
    Tier(even_s=60, times=1.5, max_attempts=6),
    Tier(even_s=0, times=1.0, max_attempts=4),
)
"""Five tiers like those of AIMO2's second place, with values of our own."""


def allot(left_s: float, later: int, budget: BudgetConfig, *, parallel: int = 1) -> Allotment:
    """Returns the limits of the next problem. 0 seconds means that it should not be started.

    Args:
        left_s: seconds until the end of the run, less the margin.
        later: problems that have not started yet, without this one.
        parallel: problems that are solved at the same time.
    """
    left = max(0.0, left_s)
    least = min(budget.least_s, budget.cap_s)
    if left < least / 10:
        return Allotment(0.0)
    waves = math.ceil(max(0, later) / max(1, parallel))
    wish = BUDGET_RULES[budget.rule](left, waves, budget)
    return replace(wish, seconds=min(max(wish.seconds, least), left), left_s=left, later=waves)


def _tiers(left: float, later: int, budget: BudgetConfig) -> Allotment:
    even = left / (later + 1)
    tier = next(tier for tier in TIERS if even >= tier.even_s)
    return Allotment(even * tier.times, max_attempts=tier.max_attempts)


def _marginal(left: float, later: int, budget: BudgetConfig) -> Allotment:
    even = left / (later + 1)
    seconds = max(even, min(budget.cap_s, left - budget.reserve_s / 2 * later))
    return Allotment(seconds, confidence=confidence_bar(even, budget))


def confidence_bar(even_s: float, budget: BudgetConfig) -> float:
    """Returns the confidence of the vote, 0.5..1, above which another second is worth more on another problem.

    The chance to solve a problem in t seconds is about 1 - exp(-t / saturation_s), so the gain of a second elsewhere is
    proportional to exp(-even_s / saturation_s). Here a second helps only if the leader is wrong, with the probability
    1 - confidence. Both are equal at confidence = 1 - exp(-even_s / saturation_s).
    """
    return max(0.5, 1 - math.exp(-even_s / budget.saturation_s))


BUDGET_RULES: Mapping[str, Callable[[float, int, BudgetConfig], Allotment]] = {
    "greedy": lambda left, later, budget: Allotment(min(budget.cap_s, max(left - budget.reserve_s * later, left / (later + 1)))),
    "clamp": lambda left, later, budget: Allotment(max(budget.reserve_s, min(budget.cap_s, left - budget.reserve_s * later))),
    "even": lambda left, later, budget: Allotment(left / (later + 1)),
    "tiers": _tiers,
    "marginal": _marginal,
}
"""Budget rules by name: (seconds left, later problems, options) -> allotment."""
