"""How many seconds a problem gets. Pure: the clock's state in, an allotment out.

`left` is what is left for everything, `later` the problems still to come after this one. With several problems side by side
`later` counts waves of them. Nothing ever gets more than `left`. Let `even` be left / (later + 1):

    greedy     left - reserve_s * later, at least `even`, at most cap_s
    clamp      left - reserve_s * later, at least reserve_s, at most cap_s: what public notebooks do, but never more than is left
    even       `even`
    tiers      a multiple of `even` and a number of attempts by the speed level that `even` falls into (TIERS)
    marginal   left - reserve_s / 2 * later, at most cap_s, but at least `even`; the problem ends earlier, when the vote is surer
               than a bar that rises with `even`: see `bar`

Under every rule a problem gets at least least_s (or cap_s), or all that is left if that is less: when there is not enough
for everybody, as many problems as fit get a slice that can win, and the last ones nothing. In 2,259 logged attempts of
gpt-oss-120b, 8 side by side at one problem, a slice of 5 s wins 1.8 answers per 1,000 s, one of 10, 20 or 40 s wins 3.5 to
4.3, and one of 100 s 3.1: shorter ones are lost, longer ones help fewer problems. So the default is 10 s, which suits small
models too: theirs end earlier, and what they leave goes to the problems behind them. Less than a tenth of least_s is not
worth a start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from aimo_solver.options import BudgetConfig


@dataclass(frozen=True, slots=True)
class Clock:
    """The state of the one clock.

    Attributes:
        left_s: seconds left to the end of everything, the margin taken off.
        later: problems that have not started yet, this one not counted.
        parallel: problems that are solved side by side.
    """

    left_s: float
    later: int
    parallel: int = 1


@dataclass(frozen=True, slots=True)
class Allotment:
    """What a problem may use.

    Attributes:
        seconds: 0 <= seconds <= left_s.
        slots, max_attempts: upper bounds; None leaves them to the configuration.
        confidence: how sure the vote must be to end the problem early, 0..1; None leaves it to the stop rule.
    """

    seconds: float
    slots: int | None = None
    max_attempts: int | None = None
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Tier:
    """A speed level: from `even_s` seconds per problem on, a problem gets `times` that much and `max_attempts`."""

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
"""Five levels, as AIMO2's second place had; the figures are ours."""


def allot(clock: Clock, budget: BudgetConfig) -> Allotment:
    """What the next problem may use. Never more than `clock.left_s`, never negative; 0 seconds: it is not worth a start."""
    left = max(0.0, clock.left_s)
    least = min(budget.least_s, budget.cap_s)
    if left < least / 10:
        return Allotment(0.0)
    waves = math.ceil(max(0, clock.later) / max(1, clock.parallel))
    wish = RULES[budget.rule](left, waves, budget)
    return replace(wish, seconds=min(max(wish.seconds, least), left))


def _greedy(left: float, later: int, budget: BudgetConfig) -> Allotment:
    return Allotment(min(budget.cap_s, max(left - budget.reserve_s * later, left / (later + 1))))


def _clamp(left: float, later: int, budget: BudgetConfig) -> Allotment:
    return Allotment(max(budget.reserve_s, min(budget.cap_s, left - budget.reserve_s * later)))


def _even(left: float, later: int, budget: BudgetConfig) -> Allotment:
    return Allotment(left / (later + 1))


def _tiers(left: float, later: int, budget: BudgetConfig) -> Allotment:
    even = left / (later + 1)
    tier = next(tier for tier in TIERS if even >= tier.even_s)
    return Allotment(even * tier.times, max_attempts=tier.max_attempts)


def _marginal(left: float, later: int, budget: BudgetConfig) -> Allotment:
    even = left / (later + 1)
    seconds = max(even, min(budget.cap_s, left - budget.reserve_s / 2 * later))
    return Allotment(seconds, confidence=bar(even, budget))


def bar(even_s: float, budget: BudgetConfig) -> float:
    """The confidence at which a further second is worth more on another problem, 0.5..1.

    The chance to solve a problem grows with its seconds t about as 1 - exp(-t / saturation_s), so a second more elsewhere
    brings in proportion to exp(-even_s / saturation_s). Here it can only help if the leader is wrong, which has the chance
    1 - confidence. Both are worth the same at confidence = 1 - exp(-even_s / saturation_s).
    """
    return max(0.5, 1 - math.exp(-even_s / budget.saturation_s))


RULES: Mapping[str, Callable[[float, int, BudgetConfig], Allotment]] = {
    "greedy": _greedy,
    "clamp": _clamp,
    "even": _even,
    "tiers": _tiers,
    "marginal": _marginal,
}
