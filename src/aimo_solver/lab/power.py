"""How many runs it takes to see a difference between two configurations on the same problems.

The spread is that of one run's score when the same configuration runs again on the same problems. Differences are tested with a
t-test of the scores of n runs against n runs, at 5 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike

from aimo_solver.lab.statistics import Floats

_LEVEL = 0.05
_MOST_RUNS = 100_000


@dataclass(frozen=True, slots=True)
class Spread:
    """How much the score of one configuration varies from run to run.

    Attributes:
        deviation: standard deviation of one run's score, in right answers of `problems`.
        source: what it was measured on.
        chances: by problem, the share of runs that are right, for `resampled_power`.
    """

    deviation: float
    problems: int
    source: str
    chances: tuple[float, ...]


def measure_spread(right: ArrayLike, source: str, problems: int | None = None) -> Spread:
    """Measures the spread on repeats of a configuration, for a competition of `problems` problems like these.

    The variances of the problems are added, which assumes that the problems of a run are independent.

    Args:
        right: (runs, problems), 1 where the run was right.

    Raises:
        ValueError: there are fewer than two runs, or no problem.
    """
    outcomes = np.asarray(right, dtype=float)
    runs, measured = outcomes.shape
    if runs < 2 or not measured:
        raise ValueError(f"a spread needs two runs and a problem (got {runs} and {measured})")
    problems = problems or measured
    variance = float(outcomes.var(axis=0, ddof=1).sum()) * problems / measured
    return Spread(math.sqrt(variance), problems, source, tuple(np.resize(outcomes.mean(axis=0), problems).tolist()))


def published_spread(problems: int = 50) -> Spread:
    """Returns the spread of a public notebook that was submitted 21 times: 39.3 +- 1.7 of 50 right (AIMO Progress Prize 3).

    The chances of the problems follow the beta distribution with that mean and spread.
    """
    mean, deviation = 39.3 / 50, 1.7 / math.sqrt(50)
    within = deviation**2 / (mean * (1 - mean))  # for a beta distribution s / (s + 1), with s the sum of its parameters
    total = within / (1 - within)
    levels = (np.arange(problems) + 0.5) / problems
    chances = scipy.special.betaincinv(total * mean, total * (1 - mean), levels)
    source = "39.3 +- 1.7 of 50, a public notebook submitted 21 times"
    return Spread(deviation * math.sqrt(problems), problems, source, tuple(chances.tolist()))


def power_of_runs(difference: float, spread: Spread, runs: int) -> float:
    """Returns the probability that the test of `runs` against `runs` finds a true `difference`, in right answers, with its sign.

    From the noncentral t distribution; 0 for a single run each, whose spread cannot be measured.
    """
    if runs < 2:
        return 0.0
    if spread.deviation <= 0:
        return float(difference != 0)
    freedom = 2 * runs - 2
    shift = abs(difference) / (spread.deviation * math.sqrt(2 / runs))
    critical = scipy.special.stdtrit(freedom, 1 - _LEVEL / 2)
    return float(scipy.stats.nct.sf(critical, freedom, shift))


def runs_needed(difference: float, spread: Spread, power: float = 0.8) -> int | None:
    """Returns the smallest number of runs of each configuration that finds the difference with that probability.

    Returns None if 100,000 are not enough.
    """
    low, high = 1, 2
    while power_of_runs(difference, spread, high) < power:
        low, high = high, 2 * high
        if low > _MOST_RUNS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of_runs(difference, spread, middle) >= power else (middle, high)
    return high if high <= _MOST_RUNS else None


def resampled_power(difference: float, spread: Spread, runs: int, trials: int = 10_000, seed: int = 0) -> float:
    """Returns the share of simulated comparisons in which the test finds the difference, to check `power_of_runs`.

    Each run draws every problem with its chance. The scores are stretched about their mean to the spread's deviation, because a
    few repeats understate the variance of chances that are measured on them.
    """
    if runs < 2:
        return 0.0
    exactly: Floats = np.ones(1)  # probability of each score
    for chance in spread.chances:
        exactly = np.convolve(exactly, (1 - chance, chance)).clip(0).astype(float)
    exactly /= exactly.sum()
    scores = np.arange(len(exactly))
    mean = float(scores @ exactly)
    simulated = math.sqrt(max(0.0, float((scores - mean) ** 2 @ exactly)))
    if simulated <= 0:
        return float(difference != 0)
    draw = np.random.default_rng(seed)
    drawn = draw.choice(scores, size=(2, trials, runs), p=exactly)
    stretched = (drawn - mean) * spread.deviation / simulated
    stretched[0] += abs(difference)
    means, variances = stretched.mean(axis=2), stretched.var(axis=2, ddof=1)
    gap, error = means[0] - means[1], np.sqrt(variances.sum(axis=0) / runs)
    critical = scipy.special.stdtrit(2 * runs - 2, 1 - _LEVEL / 2)
    return float((gap > critical * error).mean())
