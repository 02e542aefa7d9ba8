"""Confidence intervals and tests of the lab, computed by scipy.

scipy loads `scipy.stats` on first use, so commands that need no statistics start without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_UNSEEN = 0.15
"""With less, intervals for pass@16 of 40 cover too rarely at 30 and 50 problems; with 0.2, coverage at 50 exceeds 97 %."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % confidence interval."""

    mean: float
    low: float
    high: float


class Bootstrap:
    """Percentile intervals from resampling problems; groups of one problem are dependent and resampled together.

    Every interval of one instance uses the same resamples.

    Args:
        problem_of: the problem of each group.
        samples: number of resamples.
    """

    def __init__(self, problem_of: Sequence[str] | Sequence[int], samples: int = 10_000, seed: int = 0) -> None:
        self._index = np.unique(list(problem_of), return_inverse=True)[1]
        self._groups = np.bincount(self._index).astype(float)
        self._samples, self._seed = samples, seed

    @property
    def problems(self) -> int:
        """Number of distinct problems."""
        return len(self._groups)

    def mean(self, values: ArrayLike) -> Interval:
        """Returns the mean over groups."""
        return self._interval(lambda sums, groups, axis=-1: sums.sum(axis) / groups.sum(axis), self._sums(values), self._groups)

    def mean_over_problems(self, values: ArrayLike) -> Interval:
        """Returns the mean over problems of the mean over their groups."""
        return self._interval(np.mean, self._sums(values) / self._groups)

    def _sums(self, values: ArrayLike) -> Floats:
        return np.bincount(self._index, weights=np.asarray(values, dtype=float)).astype(float)

    def _interval(self, statistic: Callable[..., Floats], *data: Floats) -> Interval:
        mean = float(statistic(*data))
        if self.problems < 2:  # scipy refuses to resample a single observation
            return Interval(mean, mean, mean)
        resampled = scipy.stats.bootstrap(
            data, statistic, paired=True, vectorized=True, n_resamples=self._samples, method="percentile",
            rng=np.random.default_rng(self._seed),
        )  # fmt: skip
        return Interval(mean, *map(float, resampled.confidence_interval))


def clustered_share(hits: ArrayLike, counts: ArrayLike | None = None) -> Interval:
    """Returns the ratio of two sums over problems, the independent units, with its interval.

    Wilson's score interval with the effective sample size, as `survey::svyciprop(method = "wilson")` in R, and a quantile of t
    with one degree of freedom fewer than there are problems. Where nearly all problems have the same value, the few that would
    show the spread may be missing, so the variance also counts `_UNSEEN` problems that failed and as many that succeeded, as
    long as it stays below that of problems that only fail or succeed. docs/statistics.md has the coverage.

    Args:
        hits: by problem, from 0 to its count: right attempts, or a probability.
        counts: by problem, one each by default. Problems with 0 are left out.

    Raises:
        ValueError: no problem has a count.
    """
    values = np.asarray(hits, dtype=float)
    sizes = np.ones_like(values) if counts is None else np.asarray(counts, dtype=float)
    values, sizes = values[sizes > 0], sizes[sizes > 0]
    problems = len(values)
    if not problems:
        raise ValueError("no problem has a count")
    share = float(values.sum() / sizes.sum())
    scale = problems / max(1, problems - 1) / float(sizes.sum()) ** 2
    variance = scale * float(((values - share * sizes) ** 2).sum())
    if variance > 1e-12:
        unseen = _UNSEEN * float(sizes.mean()) ** 2 * (share**2 + (1 - share) ** 2)
        all_or_nothing = scale * share * (1 - share) * float((sizes**2).sum())
        variance = max(variance, min(variance + scale * unseen, all_or_nothing))
    effective = share * (1 - share) / variance if variance > 1e-12 else float(problems)
    quantile = float(scipy.special.stdtrit(max(1, problems - 1), 0.975))
    weight = quantile**2 / effective
    centre = (share + weight / 2) / (1 + weight)
    half = quantile / (1 + weight) * math.sqrt(max(0.0, share * (1 - share)) / effective + weight / (4 * effective))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """A against B on the same problems.

    Attributes:
        interval: mean difference A - B per problem; interval of the paired t-test over problems. If all differences are equal it
            reaches as far as the share of problems that may still differ (one-sided 97.5 % bound for none of n).
        probability: that A is better on problems like these: the posterior of the mean difference under a flat prior,
            which is overconfident where true differences are small.
        better, worse: problems on which A is better, and worse.
        p_value: of the sign test over these problems.
    """

    interval: Interval
    probability: float
    better: int
    worse: int
    p_value: float


def paired_difference(a: ArrayLike, b: ArrayLike) -> PairedDifference:
    """Compares A with B by problem: shares of 1, in the same order.

    Raises:
        ValueError: there are no problems.
    """
    differences = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    problems = len(differences)
    if not problems:
        raise ValueError("no problems to compare")
    better, worse = int((differences > 1e-9).sum()), int((differences < -1e-9).sum())
    mean = float(differences.mean())
    if np.ptp(differences) < 1e-9:
        reach = 1 - 0.025 ** (1 / problems)
        interval = Interval(mean, max(-1.0, mean - reach), min(1.0, mean + reach))
        # All n problems are better: how likely it is, under a uniform prior, that more than half of such problems are.
        surely = 1 - 0.5 ** (problems + 1)
        probability = surely if better else 1 - surely if worse else 0.5
    else:
        error = float(differences.std(ddof=1)) / math.sqrt(problems)
        half = error * float(scipy.special.stdtrit(problems - 1, 0.975))
        interval = Interval(mean, mean - half, mean + half)
        probability = float(scipy.special.stdtr(problems - 1, mean / error))
    return PairedDifference(interval, probability, better, worse, sign_test(better, worse))


def proportion(hits: int, count: int) -> Interval:
    """Returns the part `hits` of `count` with its Wilson score interval."""
    interval = scipy.stats.binomtest(hits, count).proportion_ci(method="wilson")
    return Interval(hits / count, float(interval.low), float(interval.high))


def sign_test(less: int, more: int) -> float:
    """Returns the two-sided p-value of the exact sign test (McNemar's test, exact form); 1 without observations."""
    # Twice the smaller tail, as the distribution is symmetric; binomtest takes 50 times as long.
    return min(1.0, 2 * float(scipy.special.bdtr(min(less, more), less + more, 0.5))) if less + more else 1.0
