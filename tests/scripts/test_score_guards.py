"""Scores of guards on recorded attempts."""

from __future__ import annotations

import sys

import pytest

from aimo_solver.policy.loops import WINDOW
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

from score_guards import Recorded, first_box, score_boxes, score_early, score_limit, score_loops, split_turns


def recorded(*texts: str, answer: int | None, truth: int = 7, seconds: float = 10.0) -> Recorded:
    """An attempt with a token per character, which ends with a final text."""
    return Recorded(tuple([*map(ord, text)] for text in texts), texts, answer, truth, seconds, final=True)


def test_a_stop_at_the_first_box_gains_and_loses_answers() -> None:
    attempts = [
        recorded("so \\boxed{7}. no", "\\boxed{8}", answer=8),
        recorded("so \\boxed{8}. no", "\\boxed{7}", answer=7),
        recorded("a form: \\boxed{}", "\\boxed{7} or \\boxed{7}", answer=7),
    ]
    score = score_boxes(attempts)
    assert (score.changed, score.changed_right, score.right, score.right_after) == (2, 1, 2, 2)
    assert score.saved == 2 * (len(". no") + len("\\boxed{7}"))


@pytest.mark.parametrize(
    ("text", "expected"), [("", None), ("\\boxed{", None), ("\\boxed{N}", None), ("\\boxed{N} \\boxed{4} \\boxed{5}", (4, 19))]
)
def test_the_first_box_with_an_answer_is_found(text: str, expected: tuple[int, int] | None) -> None:
    assert first_box(text) == expected


def test_attempts_that_loop_or_take_long_count_as_lost() -> None:
    attempts = [recorded("so" * WINDOW, "\\boxed{7}", answer=7), recorded("short", "\\boxed{7}", answer=7, seconds=40.0)]
    loops, limit = score_loops(attempts), score_limit(attempts, 20.0)
    assert (loops.changed, loops.right, loops.right_after) == (1, 2, 1)
    assert (limit.changed, limit.saved, limit.right_after) == (1, round(attempts[1].tokens / 2), 1)


def test_early_answers_are_counted_with_their_share_of_right_ones() -> None:
    attempts = [recorded("t" * 10, "f", answer=7), recorded("t" * 10, "f", answer=1), recorded("t" * 99, "f", answer=7)]
    score = score_early(attempts, 50)
    assert (score.changed, score.changed_right, score.right_after) == (2, 1, None)


def test_inserted_tokens_are_not_part_of_turns() -> None:
    tokens = [1, 2, 90, 5, 5, 80, 81, 3, 91, 5, 80, 81, 4]
    assert list(split_turns(tokens, {90, 91}, (80, 81))) == [[1, 2, 90], [3, 91], [4]]
