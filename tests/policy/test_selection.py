"""A second look at contested problems: the questions, and the count of the replies."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimo_solver.config import Config
from aimo_solver.policy.options import SelectionConfig, VotingConfig
from aimo_solver.policy.selection import (
    PROMPTS,
    Contender,
    Method,
    SelectionResult,
    count_picks,
    is_contested,
    settle,
    shorten,
    shortlist,
    write_questions,
)
from aimo_solver.policy.voting import rank
from aimo_solver.problems import Answer, Candidate, Problem
from aimo_solver.results import Attempt, FinishReason

PROBLEM = Problem("p", "How many {a, b} are there, with $\\frac{1}{2}$ braces {0}?", 12)
SELECTION = SelectionConfig()
SHOWN = (Contender(7, "first"), Contender(12, "second"), Contender(5, "third"))
methods = pytest.mark.parametrize("method", list(Method))


def attempt(index: int, answer: int | None, **values: Any) -> Attempt:
    return Attempt(problem_id="p", index=index, answer=answer, finish_reason=FinishReason.ANSWERED, **values)


def vote(*answers: int | None) -> tuple[Candidate, ...]:
    return rank([attempt(index, answer) for index, answer in enumerate(answers)], VotingConfig())


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ((1, 1, 1, 2, 2), False),
        ((1, 1, 2, 2), True),
        ((1, 2, 3), True),
        ((1, None, None), False),
        ((), False),
        ((1, 1, 1, 1), False),
    ],
)
def test_a_vote_is_contested_if_its_leader_has_no_clear_share(answers: tuple[int | None, ...], expected: bool) -> None:
    assert is_contested(vote(*answers), SelectionConfig(clear_share=0.6)) is expected


def test_each_candidate_is_shown_with_its_most_reliable_attempt() -> None:
    attempts = [
        attempt(0, 7, tool_errors=9),
        attempt(1, 7),
        attempt(2, 7, seen_in_tool=True),
        attempt(3, 12),
        attempt(4, 12),
        attempt(5, 5),
    ]
    finals = {0: "zero", 1: "one", 2: "   ", 3: "", 5: "five"}
    shown = shortlist(rank(attempts, VotingConfig()), attempts, finals, SelectionConfig(candidates=2))
    assert shown == (Contender(7, "one"), Contender(12, "(no explanation was given)"))


@given(st.text(max_size=3_000), st.integers(100, 2_000))
def test_a_summary_is_the_end_of_the_text(text: str, chars: int) -> None:
    short = shorten(text, chars)
    assert 0 < len(short) <= chars
    whole = text.strip()
    if len(whole) <= chars:
        assert short == (whole or "(no explanation was given)")
    else:
        assert whole.endswith(short.removeprefix("[...] "))


def test_a_summary_begins_at_a_border() -> None:
    text = "a" * 500 + "\n\nTherefore the count is even.\n" + "It follows that the answer is $\\boxed{12}$. " * 3
    assert shorten(text, 200).startswith("[...] Therefore the count is even.")


@methods
def test_half_of_the_questions_are_in_reversed_order(method: Method) -> None:
    texts = [one.text for one in write_questions(method, PROBLEM, SHOWN, SelectionConfig(asks=6))]
    orders = [[answer for _, answer in sorted((text.rindex(str(answer)), answer) for answer in (7, 12, 5))] for text in texts]
    assert orders == [[7, 12, 5], [5, 12, 7]] * 3


@methods
def test_a_question_contains_the_problem_and_every_candidate_but_no_votes(method: Method) -> None:
    for one in write_questions(method, PROBLEM, SHOWN, SELECTION):
        text = PROMPTS[method].fill(one.text, Config()).user
        assert text.startswith(PROBLEM.text)
        assert "\\boxed{}" in text
        assert "votes" not in text
        assert (one.id, one.truth) == (PROBLEM.id, PROBLEM.truth)


def test_select_shows_solutions_and_verify_only_values() -> None:
    for contender in SHOWN:
        assert all(contender.summary in one.text for one in write_questions(Method.SELECT, PROBLEM, SHOWN, SELECTION))
        assert not any(contender.summary in one.text for one in write_questions(Method.VERIFY, PROBLEM, SHOWN, SELECTION))


replies = st.lists(st.none() | st.sampled_from([5, 7, 12, 99]), max_size=9)


@given(replies)
def test_the_verdict_is_a_candidate_with_most_picks(answers: list[Answer | None]) -> None:
    verdict = count_picks(Method.SELECT, SHOWN, answers)
    picks = {one.answer: answers.count(one.answer) for one in SHOWN}
    if verdict.answer is None:
        assert not any(picks.values())
    else:
        assert verdict.votes == picks[verdict.answer] == max(picks.values())
    assert verdict.picks == tuple(answer if answer in picks else None for answer in answers)


def test_equal_picks_go_to_the_higher_candidate_of_the_vote() -> None:
    assert count_picks(Method.SELECT, SHOWN, [5, 12]).answer == 12


@given(replies, replies)
def test_only_a_clear_verdict_overrules_the_vote(first: list[int | None], second: list[int | None]) -> None:
    candidates = vote(7, 7, 7, 12, 12, 5, 5)
    verdicts = [count_picks(Method.SELECT, SHOWN, first), count_picks(Method.VERIFY, SHOWN, second)]
    answer = settle(candidates, verdicts)
    clear = [verdict.answer for verdict in verdicts if 2 * verdict.votes > len(verdict.picks)]
    assert answer == (clear[0] if clear else 7)


def test_without_candidates_there_is_no_answer() -> None:
    assert settle((), []) is None
    assert count_picks(Method.VERIFY, (), [5]) == SelectionResult(Method.VERIFY, None, (None,), 0)
