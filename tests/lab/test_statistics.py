"""Confidence intervals and tests."""

from __future__ import annotations

import numpy as np
import pytest

from aimo_solver.lab.statistics import Bootstrap, Interval, clustered_share, paired_difference, proportion, sign_test
from tests.lab.coverage import DIFFICULTIES, Shape, cover_difference, cover_pass_at_k


def test_a_mean_without_spread_has_no_width() -> None:
    assert Bootstrap("abc", 200).mean([2.0, 2.0, 2.0]) == Interval(2.0, 2.0, 2.0)
    assert Bootstrap("aa", 200).mean([1.0, 2.0]) == Interval(1.5, 1.5, 1.5)


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


def test_a_share_of_single_attempts_has_the_wilson_interval_with_a_quantile_of_t() -> None:
    # 8 of 10, one attempt per problem: variance 10 / 9 * 0.16 / 10, so 9 effective problems; t(9) = 2.262.
    interval = clustered_share([1] * 8 + [0] * 2)
    weight = 2.262157**2 / 9
    centre, half = (0.8 + weight / 2) / (1 + weight), 2.262157 / (1 + weight) * (0.16 / 9 + weight / 36) ** 0.5
    assert interval.mean == 0.8
    assert interval.low == pytest.approx(centre - half, abs=1e-5)
    assert interval.high == pytest.approx(centre + half, abs=1e-5)


def test_a_share_weighs_problems_by_their_counts_and_leaves_out_those_without() -> None:
    assert clustered_share([3, 0, 0], [4, 2, 0]).mean == 0.5
    assert clustered_share([3, 0, 0], [4, 2, 0]) == clustered_share([3, 0], [4, 2])
    with pytest.raises(ValueError, match="no problem"):
        clustered_share([0], [0])


def test_ten_copies_of_each_attempt_are_no_more_evidence() -> None:
    hits, counts = np.array([4, 3, 0, 2, 4, 1]), np.full(6, 4)
    alone, copied = clustered_share(hits, counts), clustered_share(10 * hits, 10 * counts)
    assert copied.low == pytest.approx(alone.low)
    assert copied.high == pytest.approx(alone.high)


def test_a_share_without_spread_still_has_an_interval() -> None:
    assert clustered_share([1] * 50).high == pytest.approx(1)
    assert 0.9 < clustered_share([1] * 50).low < 0.95
    assert clustered_share([0.5] * 50).low < 0.4
    assert clustered_share([1]).low < 0.2


PROBLEMS = 50
SIMULATIONS = 1_000


@pytest.mark.parametrize("shape", DIFFICULTIES.values(), ids=DIFFICULTIES)
@pytest.mark.parametrize(("attempts", "k"), [(1, 1), (8, 1), (8, 4), (40, 16)])
def test_the_interval_of_pass_at_k_covers_the_truth_in_93_to_97_percent(shape: Shape, attempts: int, k: int) -> None:
    assert 0.93 <= cover_pass_at_k(shape, PROBLEMS, attempts, k, SIMULATIONS) <= 0.97


def test_the_interval_of_a_share_of_unequal_groups_covers_the_truth_in_93_to_97_percent() -> None:
    draw = np.random.default_rng(0)
    chances = draw.beta(1, 1, size=(SIMULATIONS, PROBLEMS))
    counts = 1 + draw.binomial(12, 1 - chances)  # harder problems have more attempts
    hits = draw.binomial(counts, chances)
    many = draw.beta(1, 1, size=1_000_000)
    truth = float((many * (1 + 12 * (1 - many))).mean() / (1 + 12 * (1 - many)).mean())
    intervals = [clustered_share(*rows) for rows in zip(hits, counts, strict=True)]
    assert 0.93 <= np.mean([interval.low <= truth <= interval.high for interval in intervals]) <= 0.97


@pytest.mark.parametrize("shape", DIFFICULTIES.values(), ids=DIFFICULTIES)
@pytest.mark.parametrize("runs", [1, 5])
def test_the_interval_of_a_paired_difference_covers_the_truth_in_93_to_97_percent(shape: Shape, runs: int) -> None:
    assert 0.93 <= cover_difference(shape, PROBLEMS, runs, SIMULATIONS) <= 0.97


def test_the_bootstrap_covers_the_truth_in_93_to_97_percent() -> None:
    draw = np.random.default_rng(0)
    hits = (draw.random((400, 95)) < 0.7).astype(float)  # as many problems as the replay has
    intervals = [Bootstrap(range(95), 500, seed).mean(row) for seed, row in enumerate(hits)]
    assert 0.93 <= np.mean([interval.low <= 0.7 <= interval.high for interval in intervals]) <= 0.97


def test_a_paired_difference_by_hand() -> None:
    # Differences 1, 0, 0, 1, -1, 1, 0, 1: mean 3 / 8, variance 31 / 56; t(7) = 2.364624.
    compared = paired_difference([1, 1, 0, 1, 0, 1, 0, 1], [0, 1, 0, 0, 1, 0, 0, 0])
    half = 2.364624 * (31 / 56 / 8) ** 0.5
    assert compared.interval.mean == 0.375
    assert compared.interval.low == pytest.approx(0.375 - half, abs=1e-5)
    assert compared.interval.high == pytest.approx(0.375 + half, abs=1e-5)
    assert (compared.better, compared.worse) == (4, 1)
    assert compared.p_value == pytest.approx(2 * (1 + 5) / 32)
    assert compared.probability == pytest.approx(0.9015, abs=1e-3)  # t = 1.4255 with 7 degrees of freedom


def test_equal_runs_are_not_known_to_be_equal() -> None:
    compared = paired_difference([1] * 50, [1] * 50)
    assert compared.interval.mean == 0
    assert compared.interval.high == -compared.interval.low == pytest.approx(1 - 0.025 ** (1 / 50))
    assert (compared.probability, compared.p_value) == (0.5, 1.0)
    assert paired_difference([1, 1, 1], [0, 0, 0]).probability == pytest.approx(15 / 16)
    assert paired_difference([0, 0, 0], [1, 1, 1]).probability == pytest.approx(1 / 16)


def test_the_probability_that_a_is_better_is_how_often_it_is() -> None:
    draw = np.random.default_rng(0)
    effects = draw.uniform(-0.2, 0.2, SIMULATIONS)
    differences = effects[:, None] + draw.normal(0, 0.3, (SIMULATIONS, PROBLEMS))
    probability = np.array([paired_difference(row, np.zeros(PROBLEMS)).probability for row in differences])
    for low, high in ((0.02, 0.3), (0.3, 0.7), (0.7, 0.98)):
        inside = (probability >= low) & (probability < high)
        assert np.mean(effects[inside] > 0) == pytest.approx(probability[inside].mean(), abs=0.06)
