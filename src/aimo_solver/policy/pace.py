"""Chooses how many attempts the next problem gets, by the speed measured so far. Pure: totals of the run in, a plan out.

A plan with more slots samples more tokens per problem, about in proportion to its slots, and decodes them faster, but less than
proportionally. With W the mean tokens per slot that a problem needs, and V the tokens per second under a plan,

    expected seconds of a problem = W * slots / V

What a problem needs is about exponentially distributed: its standard deviation is near its mean. Problems that ran out of time
are censored observations, so W is the sum over all problems divided by the number k of those that did not. The mean over n
problems to come, predicted from k, has a relative standard deviation of sqrt(1/n + 1/k). It takes the largest plan whose expected
seconds, plus one such deviation, fit into the time left per problem; a plan that turns out to be too slow is not taken again. The
first problem gets the smallest plan.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aimo_solver.policy.options import Plan
from aimo_solver.problems import ProblemResult


@dataclass(frozen=True, slots=True)
class PlanTotals:
    """What the problems of a run have taken, by plan: how many did not run out of time; tokens and seconds of all."""

    problems: Sequence[float]
    tokens: Sequence[float]
    seconds: Sequence[float]

    @classmethod
    def of(cls, plans: Sequence[Plan], results: Iterable[ProblemResult]) -> PlanTotals:
        """Sums the problems that sampled anything, by their slots."""
        ended = [result for result in results if result.tokens]
        by_plan = [[result for result in ended if result.slots == plan.slots] for plan in plans]
        return cls(
            problems=[sum(result.reason != "time" for result in own) for own in by_plan],
            tokens=[sum(result.tokens for result in own) for own in by_plan],
            seconds=[sum(result.seconds for result in own) for own in by_plan],
        )

    def speeds(self) -> dict[int, float]:
        """Returns the measured tokens per second by number of the plan."""
        sums = enumerate(zip(self.tokens, self.seconds, strict=True))
        return {number: tokens / seconds for number, (tokens, seconds) in sums if tokens > 0 and seconds > 0}


def expected_s(plans: Sequence[Plan], totals: PlanTotals, number: int) -> float:
    """Returns the expected seconds of a problem under a plan; infinite if no problem was measured to its end.

    An unmeasured plan gets the speed of the nearest measured one times the square root of the ratio of their slots: 16
    streams of gpt-oss-120b decode 1.41 times as fast as 8 on an H100.
    """
    speeds = totals.speeds()
    if not speeds or not sum(totals.problems):
        return math.inf
    near = min(speeds, key=lambda other: abs(other - number))
    speed = speeds[near] * math.sqrt(plans[number].slots / plans[near].slots)
    work = sum(tokens / plan.slots for plan, tokens in zip(plans, totals.tokens, strict=True)) / sum(totals.problems)
    return work * plans[number].slots / speed


def choose_plan(plans: Sequence[Plan], totals: PlanTotals, left_s: float, later: int) -> int:
    """Returns the number of the next problem's plan.

    Args:
        plans: by slots, ascending.
        left_s: seconds left for it and `later` problems.
    """
    solved = sum(totals.problems)
    if not solved:
        return 0
    margin = 1 + math.sqrt(1 / solved + 1 / (later + 1))
    each_s = left_s / (later + 1)
    return max(number for number in range(len(plans)) if not number or margin * expected_s(plans, totals, number) <= each_s)
