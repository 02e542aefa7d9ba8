"""Confidence intervals and tests of the lab, computed by scipy.

scipy loads `scipy.stats` on first use, so commands that need no statistics start without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


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


def proportion(hits: int, count: int) -> Interval:
    """Returns the part `hits` of `count` with its Wilson score interval."""
    interval = scipy.stats.binomtest(hits, count).proportion_ci(method="wilson")
    return Interval(hits / count, float(interval.low), float(interval.high))


def sign_test(less: int, more: int) -> float:
    """Returns the two-sided p-value of the exact sign test (McNemar's test, exact form); 1 without observations."""
    return float(scipy.stats.binomtest(less, less + more).pvalue) if less + more else 1.0
