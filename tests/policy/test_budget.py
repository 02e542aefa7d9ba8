"""Budgets: seconds for a problem."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimo_solver.policy.budget import BUDGET_RULES, TIERS, allot, confidence_bar
from aimo_solver.policy.options import BudgetConfig

budgets = st.builds(
    BudgetConfig,
    rule=st.sampled_from(sorted(BUDGET_RULES)),
    reserve_s=st.floats(0, 2_000),
    cap_s=st.floats(1, 5_000),
    saturation_s=st.floats(1, 1_000),
)
rules = pytest.mark.parametrize("rule", sorted(BUDGET_RULES))


def test_the_options_list_exactly_the_rules() -> None:
    assert set(get_args(get_type_hints(BudgetConfig)["rule"])) == set(BUDGET_RULES)


@given(st.floats(-1e5, 1e5), st.integers(-3, 200), st.integers(1, 8), budgets)
def test_never_more_than_is_left_and_never_negative(left: float, later: int, parallel: int, budget: BudgetConfig) -> None:
    given_ = allot(left, later, budget, parallel=parallel)
    assert 0 <= given_.seconds <= max(0, left)
    assert given_.max_attempts is None or given_.max_attempts >= 1
    assert given_.confidence is None or 0.5 <= given_.confidence <= 1


@given(budgets, st.floats(0, 20_000), st.lists(st.tuples(st.floats(0, 1), st.floats(0, 400)), min_size=1, max_size=60))
def test_budgets_add_up_to_no_more_than_the_limit(
    budget: BudgetConfig, limit: float, problems: list[tuple[float, float]]
) -> None:
    # Each problem uses a part of its seconds, and then the clock jumps ahead.
    left = limit
    for number, (part, jump) in enumerate(problems):
        used = part * allot(left, len(problems) - number - 1, budget).seconds
        assert used <= max(0.0, left)
        left -= used + jump


@given(budgets, st.floats(1, 20_000), st.integers(0, 60))
def test_a_problem_gets_something_while_anything_is_left(budget: BudgetConfig, left: float, later: int) -> None:
    assert allot(left, later, budget).seconds > 0


@given(budgets.filter(lambda budget: budget.rule != "tiers"), st.floats(0, 20_000), st.floats(0, 20_000), st.integers(0, 60))
def test_more_time_left_never_gives_less(budget: BudgetConfig, one: float, other: float, later: int) -> None:
    less, more = sorted((one, other))
    assert allot(less, later, budget).seconds <= allot(more, later, budget).seconds * (1 + 1e-12)


@given(budgets, st.floats(0, 20_000), st.integers(0, 60))
def test_fewer_problems_to_come_never_give_less(budget: BudgetConfig, left: float, later: int) -> None:
    if budget.rule != "tiers":
        assert allot(left, later + 1, budget).seconds <= allot(left, later, budget).seconds * (1 + 1e-12)


@rules
def test_with_little_time_as_many_problems_as_fit_get_a_useful_slice(rule: Any) -> None:
    """30 problems, 17 s, and a model that needs 2 s: even shares of half a second would win none."""
    budget = BudgetConfig(rule=rule, least_s=2.0)
    left, won = 17.0, 0
    for number in range(30):
        seconds = allot(left, 29 - number, budget).seconds
        won += seconds >= 2.0
        left -= min(seconds, 2.0)
    assert won == 8


@rules
def test_less_than_the_least_goes_to_one_problem_and_a_tenth_of_it_to_none(rule: Any) -> None:
    budget = BudgetConfig(rule=rule, least_s=10.0)
    assert [allot(left, 29, budget).seconds for left in (25.0, 10.0, 7.0, 1.0, 0.9, 0.0)] == [
        25.0 if rule == "clamp" else 10.0,
        10.0,
        7.0,
        1.0,
        0.0,
        0.0,
    ]


def test_the_cap_is_above_the_least() -> None:
    assert allot(100.0, 9, BudgetConfig(cap_s=4.0, least_s=10.0)).seconds == 4.0


def test_greedy_is_what_is_left_minus_reserves_at_most_the_cap() -> None:
    budget = BudgetConfig(rule="greedy", reserve_s=300, cap_s=900)
    assert allot(17_700, 49, budget).seconds == 900
    assert allot(15_500, 49, budget).seconds == 800
    assert allot(700, 1, budget).seconds == 400
    assert allot(700, 0, budget).seconds == 700
    assert allot(5_000, 0, budget).seconds == 900


def test_greedy_falls_back_to_an_even_share_when_reserves_are_more_than_is_left() -> None:
    assert allot(600, 9, BudgetConfig(rule="greedy")).seconds == pytest.approx(60)


@pytest.mark.parametrize("rule", ["even", "tiers", "marginal"])
def test_the_last_problem_may_use_everything_that_is_left(rule: Any) -> None:
    assert allot(5_000, 0, BudgetConfig(rule=rule)).seconds == 5_000


@pytest.mark.parametrize("rule", ["greedy", "clamp", "marginal"])
def test_reserves_shrink_with_the_number_of_later_problems(rule: Any) -> None:
    budget = BudgetConfig(rule=rule, cap_s=20_000)
    given_ = [allot(3_000, later, budget).seconds for later in (9, 5, 2, 0)]
    assert given_ == sorted(given_)
    assert given_[-1] == 3_000


def test_clamp_stays_between_reserve_and_cap_if_that_much_is_left() -> None:
    budget = BudgetConfig(rule="clamp", reserve_s=300, cap_s=900)
    assert allot(9_000, 49, budget).seconds == 300
    assert allot(200, 49, budget).seconds == 200
    assert allot(17_700, 49, budget).seconds == 900


def test_less_time_per_problem_means_a_faster_tier() -> None:
    budget = BudgetConfig(rule="tiers")
    attempts = [allot(even * 10, 9, budget).max_attempts or 99 for even in (600, 400, 200, 100, 10)]
    assert attempts == [tier.max_attempts or 99 for tier in TIERS]
    assert attempts == sorted(attempts, reverse=True)


@given(st.floats(0, 5_000), st.floats(0, 5_000))
def test_the_confidence_bar_rises_with_the_time_per_problem(one: float, other: float) -> None:
    less, more = sorted((one, other))
    assert confidence_bar(less, BudgetConfig()) <= confidence_bar(more, BudgetConfig())


@rules
def test_only_marginal_sets_a_confidence(rule: Any) -> None:
    assert (allot(10_000, 20, BudgetConfig(rule=rule)).confidence is not None) == (rule == "marginal")


@rules
def test_with_problems_side_by_side_later_ones_count_in_waves(rule: Any) -> None:
    budget = BudgetConfig(rule=rule)
    assert allot(3_000, 8, budget, parallel=4) == allot(3_000, 2, budget)
    assert allot(3_000, 9, budget, parallel=4) == allot(3_000, 3, budget)
