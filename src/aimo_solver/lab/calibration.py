"""How far a share of the vote can be trusted: shares in bins, against the part that is right. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from aimo_solver.lab.replay import Outcome


@dataclass(frozen=True, slots=True)
class Bin:
    """Outcomes whose winner holds about the same share of the vote.

    Attributes:
        low, high: the bin's borders, 0..1.
        share: the mean share in it.
        count, right: outcomes, and those that are right.
    """

    low: float
    high: float
    share: float
    count: int
    right: int

    @property
    def accuracy(self) -> float:
        return self.right / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of `accuracy`."""
        return wilson(self.right, self.count)


def calibration(outcomes: Sequence[Outcome], bins: int = 5) -> tuple[Bin, ...]:
    """Bins of equal width that hold anything, lowest share first. Outcomes without an answer are left out."""
    inside: list[list[Outcome]] = [[] for _ in range(bins)]
    for outcome in outcomes:
        if outcome.answer is not None:
            inside[min(int(outcome.share * bins), bins - 1)].append(outcome)
    return tuple(
        Bin(
            low=number / bins,
            high=(number + 1) / bins,
            share=math.fsum(outcome.share for outcome in own) / len(own),
            count=len(own),
            right=sum(outcome.right for outcome in own),
        )
        for number, own in enumerate(inside)
        if own
    )


def wilson(hits: int, count: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927)."""
    z = 1.959964
    share, scale = hits / count, 1 + z * z / count
    middle = (share + z * z / (2 * count)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)
