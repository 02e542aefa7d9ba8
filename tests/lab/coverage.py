"""How often the 95 % intervals of `lab.statistics` contain the true value, by simulation.

python -m tests.lab.coverage
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np

from aimo_solver.lab.estimators import pass_at_k
from aimo_solver.lab.statistics import Interval, clustered_share, paired_difference

Shape = tuple[float, float]

DIFFICULTIES: dict[str, Shape] = {"as in AIMO": (0.41, 0.11), "even": (1.0, 1.0), "hard": (0.3, 0.7)}
"""Beta distributions of the probability that an attempt is right; the first has the published mean and run-to-run spread."""


def cover_pass_at_k(shape: Shape, problems: int, attempts: int, k: int, simulations: int = 3_000) -> float:
    """Returns the share of intervals of pass@k that contain the true value."""
    draw = np.random.default_rng(k)
    right = draw.binomial(attempts, draw.beta(*shape, size=(simulations, problems)))
    estimate = np.array([pass_at_k(number, attempts, k) for number in range(attempts + 1)])[right]
    truth = float(1 - ((1 - draw.beta(*shape, size=1_000_000)) ** k).mean())
    return _share((clustered_share(row) for row in estimate), truth)


def cover_difference(shape: Shape, problems: int, runs: int, simulations: int = 3_000) -> float:
    """Returns the share of intervals of a paired difference that contain the true one; p rises by p (1 - p) / 5."""
    draw = np.random.default_rng(runs)
    chances = draw.beta(*shape, size=(simulations, problems))
    better = chances + chances * (1 - chances) / 5
    many = draw.beta(*shape, size=1_000_000)
    a, b = draw.binomial(runs, better) / runs, draw.binomial(runs, chances) / runs
    intervals = (paired_difference(*rows).interval for rows in zip(a, b, strict=True))
    return _share(intervals, float((many * (1 - many)).mean()) / 5)


def _share(intervals: Iterable[Interval], truth: float) -> float:
    return float(np.mean([interval.low <= truth <= interval.high for interval in intervals]))


def main() -> None:
    rows: dict[str, Callable[[Shape, int], float]] = {
        f"pass@{k} of {n}": partial(cover_pass_at_k, attempts=n, k=k) for n, k in ((1, 1), (8, 1), (8, 4), (8, 8), (40, 16))
    }
    rows |= {f"difference, {runs} runs each": partial(cover_difference, runs=runs) for runs in (1, 5)}
    sizes = (10, 30, 50, 100)
    print(f"| % | {' | '.join(f'{size} problems' for size in sizes)} |\n|---|{'---|' * len(sizes)}")
    for name, cover in rows.items():
        found = [[100 * cover(shape, size) for shape in DIFFICULTIES.values()] for size in sizes]
        print(f"| {name} | {' | '.join(f'{min(one):.1f} - {max(one):.1f}' for one in found)} |", flush=True)


if __name__ == "__main__":
    main()
