"""Confidence intervals and tests."""

from __future__ import annotations

import numpy as np
import pytest

from aimo_solver.lab.statistics import Bootstrap, Interval, proportion, sign_test


def test_a_mean_without_spread_has_no_width() -> None:
    assert Bootstrap("abc", 200).mean([2.0, 2.0, 2.0]) == Interval(2.0, 2.0, 2.0)
    assert Bootstrap("aa", 200).mean([1.0, 2.0]) == Interval(1.5, 1.5, 1.5)


def test_the_interval_covers_the_truth_about_as_often_as_stated() -> None:
    draw = np.random.default_rng(0)
    covered = 0
    for seed in range(300):
        hits = (draw.random(60) < 0.7).astype(float)
        interval = Bootstrap(range(60), 500, seed).mean(hits)
        covered += interval.low <= 0.7 <= interval.high
    assert 0.88 <= covered / 300 <= 0.99


def test_the_interval_of_a_clear_difference_excludes_zero() -> None:
    interval = Bootstrap(range(40)).mean([1] * 12 + [0] * 28)
    assert interval.mean == pytest.approx(0.3)
    assert 0 < interval.low < interval.mean < interval.high < 0.5


def test_groups_of_one_problem_are_resampled_together() -> None:
    # Ten copies of five problems hold no more evidence than five problems.
    problems = [number % 5 for number in range(50)]
    values = [float(number < 3) for number in problems]
    copies, alone = Bootstrap(problems, 4_000).mean(values), Bootstrap(range(5), 4_000).mean(values[:5])
    assert copies == alone
    apart = Bootstrap(range(50), 4_000).mean(values)
    assert apart.high - apart.low < 0.5 * (copies.high - copies.low)


def test_a_problem_with_many_groups_counts_once_per_problem() -> None:
    draws = Bootstrap("aaab", 1_000)
    assert draws.problems == 2
    assert draws.mean([1, 1, 1, 0]).mean == 0.75
    assert draws.mean_over_problems([1, 1, 1, 0]).mean == pytest.approx(0.5)


def test_a_proportion_has_the_wilson_interval() -> None:
    # Wilson 1927; 8 of 10 in any statistics package: 0.4902, 0.9433.
    interval = proportion(8, 10)
    assert (interval.mean, round(interval.low, 4), round(interval.high, 4)) == (0.8, 0.4902, 0.9433)
    assert proportion(0, 5).low == pytest.approx(0)
    assert proportion(5, 5).high == pytest.approx(1)


def test_the_sign_test_is_the_exact_binomial_test() -> None:
    assert sign_test(0, 5) == pytest.approx(2 / 32)
    assert sign_test(1, 5) == pytest.approx(2 * (1 + 6) / 64)
    assert sign_test(3, 3) == pytest.approx(1.0)
    assert sign_test(0, 0) == 1.0
