"""Confidence intervals over problems."""

from __future__ import annotations

import numpy as np
import pytest

from aimo_solver.lab.statistics import Bootstrap


def test_a_mean_without_spread_has_no_width() -> None:
    interval = Bootstrap(["a", "b", "c"], 200, 0).mean([2.0, 2.0, 2.0])
    assert (interval.mean, interval.low, interval.high) == (2.0, 2.0, 2.0)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    luck = np.random.default_rng(0)
    covered = 0
    for seed in range(300):
        hits = (luck.random(60) < 0.7).astype(float)
        interval = Bootstrap([str(number) for number in range(60)], 500, seed).mean(hits)
        covered += interval.low <= 0.7 <= interval.high
    assert 0.88 <= covered / 300 <= 0.99


def test_groups_of_one_problem_are_resampled_together() -> None:
    # Ten copies of five problems know no more than five problems.
    problems = [str(number % 5) for number in range(50)]
    values = [float(number % 5 < 3) for number in range(50)]
    copies, alone = Bootstrap(problems, 4_000, 0).mean(values), Bootstrap(problems[:5], 4_000, 0).mean(values[:5])
    assert copies == alone
    apart = Bootstrap([str(number) for number in range(50)], 4_000, 0).mean(values)
    assert apart.high - apart.low < 0.5 * (copies.high - copies.low)


def test_a_problem_with_many_groups_counts_once_per_problem() -> None:
    draws = Bootstrap(["a", "a", "a", "b"], 1_000, 0)
    assert draws.mean([1, 1, 1, 0]).mean == 0.75
    assert draws.mean_over_problems([1, 1, 1, 0]).mean == pytest.approx(0.5)
