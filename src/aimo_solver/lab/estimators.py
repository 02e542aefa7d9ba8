"""What k attempts at a problem would yield, from the outcomes of n >= k; exact averages over all choices of k of the n."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import comb

from aimo_solver.problems import Answer
from aimo_solver.results import Attempt, FinishReason


@dataclass(frozen=True, slots=True)
class Outcomes:
    """How the attempts at one problem ended.

    Attributes:
        right: attempts with the true answer.
        wrong: number of attempts for each other answer, largest first.
        silent: attempts that ended without an answer, for whatever reason but a cancellation.
        cancelled: attempts that were cut off when the problem was decided; their answers are unknown.
    """

    right: int
    wrong: tuple[int, ...] = ()
    silent: int = 0
    cancelled: int = 0

    @property
    def ended(self) -> int:
        """Attempts whose outcome is known."""
        return self.right + sum(self.wrong) + self.silent


def is_cancelled(attempt: Attempt) -> bool:
    """Returns whether the attempt was cut off when the problem was decided, so that its answer is unknown."""
    return attempt.answer is None and attempt.finish_reason is FinishReason.CANCELLED


def count_outcomes(attempts: Iterable[Attempt], truth: Answer) -> Outcomes:
    """Counts the outcomes of the attempts at one problem."""
    attempts = tuple(attempts)
    votes = Counter(attempt.answer for attempt in attempts if attempt.answer is not None)
    right = votes.pop(truth, 0)
    cancelled = sum(is_cancelled(attempt) for attempt in attempts)
    silent = len(attempts) - cancelled - right - votes.total()
    return Outcomes(right, tuple(sorted(votes.values(), reverse=True)), silent, cancelled)


def pass_at_k(right: int, count: int, k: int) -> float:
    """Returns the probability that k of `count` attempts, `right` of them right, have at least one that is right.

    The unbiased estimator of pass@k (Chen et al. 2021, arXiv 2107.03374, equation 1).

    Raises:
        ValueError: k is below 1 or above `count`.
    """
    _check(k, count)
    return 1 - comb(count - right, k) / comb(count, k)


def majority_at_k(outcomes: Outcomes, k: int) -> float:
    """Returns the probability that the most frequent answer of k of the attempts that ended is the true one (maj@k).

    Equally frequent answers are drawn with equal probability; attempts without an answer have no vote. A generating function
    counts the choices of k by the votes of the true answer and the number of answers tied with it.

    Raises:
        ValueError: k is below 1 or above the number of attempts that ended.
    """
    _check(k, outcomes.ended)
    total = 0.0
    for votes in range(1, min(k, outcomes.right) + 1):
        ways = {(0, 0): 1}  # (attempts chosen, answers tied) -> number of choices
        for count in outcomes.wrong:
            ways = _with_answer(ways, count, votes, k - votes)
        for (chosen, tied), number in ways.items():
            rest = comb(outcomes.silent, k - votes - chosen)
            total += comb(outcomes.right, votes) * number * rest / (tied + 1)
    return total / comb(outcomes.ended, k)


def _with_answer(ways: dict[tuple[int, int], int], count: int, votes: int, most: int) -> dict[tuple[int, int], int]:
    """Adds an answer with `count` attempts, of which at most `votes` are chosen; `most` bounds the attempts chosen."""
    added: Counter[tuple[int, int]] = Counter()
    for (chosen, tied), number in ways.items():
        for more in range(min(count, votes, most - chosen) + 1):
            added[chosen + more, tied + (more == votes)] += number * comb(count, more)
    return added


def _check(k: int, count: int) -> None:
    if not 1 <= k <= count:
        raise ValueError(f"k must be from 1 to the {count} attempts that ended (got {k})")
