"""pass@k and maj@k, against values computed by hand and against enumeration."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from statistics import fmean

import pytest

from aimo_solver.lab.estimators import Outcomes, count_outcomes, majority_at_k, pass_at_k
from aimo_solver.results import FinishReason
from tests.lab.groups import make_attempt


def answers_of(outcomes: Outcomes) -> list[int | None]:
    """One answer per attempt: 0 is right, the others are wrong."""
    votes: list[int | None] = [0] * outcomes.right + [None] * outcomes.silent
    return votes + [number for number, count in enumerate(outcomes.wrong, 1) for _ in range(count)]


def majority_is_right(answers: tuple[int | None, ...]) -> float:
    """The probability that a fair draw among the most frequent answers gives 0."""
    votes = Counter(answer for answer in answers if answer is not None)
    best = [answer for answer in votes if votes[answer] == max(votes.values())]
    return (0 in best) / max(1, len(best))


def test_outcomes_are_counted_for_what_they_are() -> None:
    attempts = [make_attempt(index, answer) for index, answer in enumerate((7, 7, 3, 4, 4, None))]
    cut = [
        make_attempt(6, None, finish_reason=FinishReason.CANCELLED),
        make_attempt(7, None, finish_reason=FinishReason.DEADLINE),
    ]
    forced = make_attempt(8, 7, finish_reason=FinishReason.CANCELLED)  # asked for its answer before it was cut off
    outcomes = count_outcomes([*attempts, *cut, forced], 7)
    assert outcomes == Outcomes(right=3, wrong=(2, 1), silent=2, cancelled=1)
    assert outcomes.ended == 8


def test_pass_at_k_by_hand() -> None:
    assert pass_at_k(1, 4, 1) == pytest.approx(0.25)
    assert pass_at_k(1, 4, 2) == pytest.approx(0.5)  # 3 of the 6 pairs hold the right attempt
    assert pass_at_k(2, 5, 3) == pytest.approx(0.9)  # 1 of the 10 triples holds neither
    assert pass_at_k(0, 4, 4) == 0
    assert pass_at_k(1, 4, 4) == 1


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_pass_at_k_is_the_mean_over_all_choices_of_k(count: int) -> None:
    for right in range(count + 1):
        outcomes = [True] * right + [False] * (count - right)
        for k in range(1, count + 1):
            assert pass_at_k(right, count, k) == pytest.approx(fmean(map(any, combinations(outcomes, k))))


def test_majority_at_k_by_hand() -> None:
    # Two right, one wrong: each pair with both right wins, the two mixed pairs are ties.
    assert majority_at_k(Outcomes(2, (1,)), 1) == pytest.approx(2 / 3)
    assert majority_at_k(Outcomes(2, (1,)), 2) == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert majority_at_k(Outcomes(2, (1,)), 3) == 1
    assert majority_at_k(Outcomes(1, (1, 1)), 3) == pytest.approx(1 / 3)
    assert majority_at_k(Outcomes(1, (), silent=3), 2) == pytest.approx(0.5)  # the right attempt is in half of the pairs
    assert majority_at_k(Outcomes(2, (3,)), 5) == 0
    assert majority_at_k(Outcomes(0, (3,)), 2) == 0


@pytest.mark.parametrize(
    "outcomes",
    [
        Outcomes(3, (3, 2, 1), silent=1),
        Outcomes(1, (4, 1, 1), silent=2),
        Outcomes(4, (2, 2), silent=0),
        Outcomes(2, (2, 2, 2)),
        Outcomes(5, (), silent=3),
    ],
)
def test_majority_at_k_is_the_mean_over_all_choices_of_k(outcomes: Outcomes) -> None:
    for k in range(1, outcomes.ended + 1):
        expected = fmean(map(majority_is_right, combinations(answers_of(outcomes), k)))
        assert majority_at_k(outcomes, k) == pytest.approx(expected), k


def test_many_attempts_are_counted_exactly() -> None:
    many = Outcomes(80, (40, 20, *[1] * 20))
    assert majority_at_k(many, 1) == pytest.approx(0.5)
    assert majority_at_k(many, 16) > majority_at_k(many, 4) > 0.5
    assert pass_at_k(80, 160, 16) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("k", [0, 4])
def test_k_beyond_the_attempts_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match="from 1 to the 3 attempts"):
        pass_at_k(1, 3, k)
    with pytest.raises(ValueError, match="from 1 to the 3 attempts"):
        majority_at_k(Outcomes(1, (1,), silent=1), k)
