"""Spread from run to run, and the number of runs that a difference needs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy

from aimo_solver.lab.power import Spread, measure_spread, power_of_runs, published_spread, resampled_power, runs_needed


def test_the_spread_adds_the_variances_of_the_problems() -> None:
    # By problem: 1 1, 0 1, 0 1, 1 0. Three problems have the unbiased variance 1/2.
    spread = measure_spread([[1, 0, 0, 1], [1, 1, 1, 0]], "two runs")
    assert spread.deviation == pytest.approx(math.sqrt(1.5))
    assert spread.chances == (1.0, 0.5, 0.5, 0.5)
    assert measure_spread([[1, 0, 0, 1], [1, 1, 1, 0]], "two runs", problems=8).deviation == pytest.approx(math.sqrt(3))


def test_the_spread_is_unbiased() -> None:
    draw = np.random.default_rng(0)
    chances = draw.beta(0.4, 0.1, 50)
    measured = [measure_spread(draw.random((3, 50)) < chances, "").deviation ** 2 for _ in range(2_000)]
    assert np.mean(measured) == pytest.approx(float((chances * (1 - chances)).sum()), rel=0.03)


def test_a_spread_needs_two_runs() -> None:
    with pytest.raises(ValueError, match="two runs"):
        measure_spread([[1, 0]], "one run")


def test_the_published_spread_is_reproduced_by_its_chances() -> None:
    spread = published_spread(50)
    chances = np.array(spread.chances)
    assert spread.deviation == pytest.approx(1.7)
    assert chances.sum() == pytest.approx(39.3, abs=0.2)
    assert math.sqrt(float((chances * (1 - chances)).sum())) == pytest.approx(1.7, abs=0.1)
    assert published_spread(200).deviation == pytest.approx(3.4)


def test_power_is_that_of_the_t_test_in_the_tables() -> None:
    # Cohen 1988, table 2.3.5 (two-sided 5 %): d = 0.5 with 64 a group has power 0.80, d = 0.8 with 26 a group 0.81.
    spread = published_spread(50)
    assert power_of_runs(0.5 * 1.7, spread, 64) == pytest.approx(0.801, abs=2e-3)
    assert power_of_runs(0.8 * 1.7, spread, 26) == pytest.approx(0.807, abs=2e-3)
    assert runs_needed(0.5 * 1.7, spread) == 64
    assert runs_needed(0.8 * 1.7, spread) == 26
    assert power_of_runs(0, spread, 20) == pytest.approx(0.025)
    assert power_of_runs(5, spread, 200) == 1
    assert power_of_runs(5, spread, 1) == 0


@pytest.mark.parametrize(("difference", "runs"), [(0.0, 10), (1.0, 10), (1.0, 46), (2.0, 5), (3.0, 6)])
def test_resampled_comparisons_confirm_the_power(difference: float, runs: int) -> None:
    for spread in (published_spread(50), measured()):
        assert resampled_power(difference, spread, runs) == pytest.approx(power_of_runs(difference, spread, runs), abs=0.03)


@pytest.mark.parametrize("runs", [5, 10, 15])
def test_whole_runs_drawn_with_replacement_confirm_the_power(runs: int) -> None:
    scores = np.array([14, 19, 22, 19, 26, 20, 22, 17, 21, 21])  # ten repeats, docs/statistics.md
    spread = Spread(float(scores.std(ddof=1)), 30, "ten repeats", ())
    # Drawing from ten runs understates their variance by a tenth.
    drawn = np.random.default_rng(0).choice(scores - scores.mean(), size=(2, 20_000, runs)) * (10 / 9) ** 0.5
    gap = 3 + drawn[0].mean(axis=1) - drawn[1].mean(axis=1)
    error = np.sqrt(drawn.var(axis=2, ddof=1).sum(axis=0) / runs)
    significant = gap > scipy.stats.t.ppf(0.975, 2 * runs - 2) * error
    assert np.mean(significant) == pytest.approx(power_of_runs(3, spread, runs), abs=0.025)


def measured() -> Spread:
    draw = np.random.default_rng(3)
    chances = draw.beta(1, 1, 50)
    return measure_spread(draw.random((5, 50)) < chances, "five runs")


def test_runs_that_never_differ_need_the_fewest_runs() -> None:
    spread = measure_spread([[1, 0], [1, 0]], "equal runs")
    assert runs_needed(1, spread) == 2
    assert resampled_power(1, spread, 2) == 1


def test_a_difference_beyond_any_number_of_runs_has_none() -> None:
    assert runs_needed(0.01, published_spread(50)) is None
    assert runs_needed(0, published_spread(50)) is None
