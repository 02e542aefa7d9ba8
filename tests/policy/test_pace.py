"""How many attempts the next problem gets, with scripted clocks."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimo_solver.policy.options import LARGER_PLANS, Plan
from aimo_solver.policy.pace import PlanTotals, choose_plan, expected_s
from aimo_solver.problems import ProblemResult

PLANS = (Plan(8, 8, 4), *LARGER_PLANS)


def result(number: int, slots: int, tokens: int, seconds: float) -> ProblemResult:
    return ProblemResult(problem_id=str(number), answer=1, reason="equal", slots=slots, tokens=tokens, seconds=seconds)


def test_problems_are_summed_by_plan() -> None:
    counted = [result(0, 8, 800, 1.0), result(1, 8, 1_600, 2.0), result(2, 16, 3_200, 2.0)]
    totals = PlanTotals.of(PLANS, [*counted, result(3, 8, 0, 9.0), result(4, 3, 5, 1.0)])
    assert totals == PlanTotals([2, 0, 1], [2_400, 0, 3_200], [3.0, 0, 2.0])
    assert totals.speeds() == {0: 800, 2: 1_600}


def test_a_problem_that_ran_out_of_time_adds_to_the_work_of_the_others() -> None:
    decided = [result(0, 8, 80_000, 100.0), result(1, 8, 80_000, 100.0)]
    cut = replace(result(2, 8, 80_000, 100.0), reason="time")
    assert expected_s(PLANS, PlanTotals.of(PLANS, decided), 0) == pytest.approx(100)
    assert expected_s(PLANS, PlanTotals.of(PLANS, [*decided, cut]), 0) == pytest.approx(150)
    assert expected_s(PLANS, PlanTotals.of(PLANS, [cut]), 0) == math.inf
    assert choose_plan(PLANS, PlanTotals.of(PLANS, [cut]), 1e9, 0) == 0


def test_expected_seconds_by_hand() -> None:
    totals = PlanTotals([2, 0, 0], [160_000, 0, 0], [250.0, 0, 0])
    # 10,000 tokens per slot and problem at 640 tokens/s; twice the slots are assumed to decode 1.41 times as fast.
    assert expected_s(PLANS, totals, 0) == pytest.approx(125)
    assert expected_s(PLANS, totals, 2) == pytest.approx(160_000 / (640 * 2**0.5))
    measured = PlanTotals([2, 0, 1], [160_000, 0, 160_000], [250.0, 0, 200.0])
    assert expected_s(PLANS, measured, 2) == pytest.approx(160_000 / 800)


@pytest.mark.parametrize(("each_s", "slots"), [(150, 8), (215, 8), (230, 12), (255, 12), (265, 16), (900, 16)])
def test_more_time_per_problem_allows_more_attempts(each_s: float, slots: int) -> None:
    # 125 s each so far: 153 s expected with 12 slots, 177 s with 16; and the margin is 1 + (1/9 + 1/9) ** 0.5 = 1.47.
    totals = PlanTotals([9, 0, 0], [9 * 80_000, 0, 0], [9 * 125.0, 0, 0])
    assert PLANS[choose_plan(PLANS, totals, 9 * each_s, 8)].slots == slots


def test_a_plan_that_turns_out_slow_is_left_again() -> None:
    before = PlanTotals([9, 0, 0], [9 * 80_000, 0, 0], [9 * 125.0, 0, 0])
    assert choose_plan(PLANS, before, 40 * 280.0, 39) == 2
    after = PlanTotals([9, 0, 1], [9 * 80_000, 0, 160_000], [9 * 125.0, 0, 600.0])  # 16 streams no faster than 3
    assert choose_plan(PLANS, after, 39 * 280.0, 38) == 1


def test_the_first_problem_gets_the_smallest_plan() -> None:
    assert choose_plan(PLANS, PlanTotals([0, 0, 0], [0, 0, 0], [0, 0, 0]), 1e9, 0) == 0


@given(st.floats(50, 5_000), st.floats(0.2, 1.0), st.floats(1.0, 4.0))
def test_equal_problems_that_fit_with_the_smallest_plan_fit_with_growth(speed: float, power: float, slack: float) -> None:
    def seconds(plan: Plan) -> float:  # speed grows as slots ** power, whatever the rule assumes
        return 10_000 * plan.slots / (speed * math.pow(plan.slots / 8, power))

    limit, used, results = 50 * slack * seconds(PLANS[0]), 0.0, list[ProblemResult]()
    for number in range(50):
        plan = PLANS[choose_plan(PLANS, PlanTotals.of(PLANS, results), limit - used, 49 - number)]
        used += seconds(plan)
        results.append(result(number, plan.slots, 10_000 * plan.slots, seconds(plan)))
    assert used <= limit * (1 + 1e-9)


@given(st.integers(0, 49), st.floats(0, 1e6), st.floats(1, 1e6))
def test_less_time_never_gives_more_attempts(later: int, less_s: float, more_s: float) -> None:
    totals = PlanTotals([3, 1, 0], [300_000, 90_000, 0], [400.0, 150.0, 0])
    assert choose_plan(PLANS, totals, less_s, later) <= choose_plan(PLANS, totals, less_s + more_s, later)
