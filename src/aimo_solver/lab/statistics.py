"""Confidence intervals by resampling problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % bootstrap interval over problems."""

    mean: float
    low: float
    high: float


class Bootstrap:
    """Resamples problems with replacement; the groups of a problem stay together, since they are not independent."""

    def __init__(self, problem_of: Sequence[str], samples: int, seed: int) -> None:
        names, self._index = np.unique(np.array(problem_of), return_inverse=True)
        self.problems = len(names)
        chances = np.full(self.problems, 1 / self.problems)
        self._weights = np.random.default_rng(seed).multinomial(self.problems, chances, size=samples).astype(float)

    def mean(self, values: Sequence[float] | Floats) -> Interval:
        """Mean over groups."""
        array = np.asarray(values, dtype=float)
        sums = np.bincount(self._index, weights=array, minlength=self.problems)
        counts = np.bincount(self._index, minlength=self.problems)
        return _interval(float(array.mean()), (self._weights @ sums) / (self._weights @ counts))

    def mean_over_problems(self, values: Sequence[float] | Floats) -> Interval:
        """Mean over problems of the mean over their groups."""
        sums = np.bincount(self._index, weights=np.asarray(values, dtype=float), minlength=self.problems)
        means = sums / np.bincount(self._index, minlength=self.problems)
        return _interval(float(means.mean()), self._weights @ means / self.problems)


def _interval(mean: float, resampled: Floats) -> Interval:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(mean, float(low), float(high))
