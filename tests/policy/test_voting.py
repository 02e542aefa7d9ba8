"""Voters: which answer wins."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimo_solver.policy.options import VotingConfig
from aimo_solver.policy.voting import VOTER_NAMES, VOTERS, Ballot, evidence, rank
from aimo_solver.results import Attempt, FinishReason

entropies = st.none() | st.floats(0, 3) | st.just(float("nan"))
# Few different answers, so that ties and clusters are common; neighbours within 5 % and large ones among them.
answers = st.sampled_from([0, 1, 2, 98, 100, 103, 105, 99_000, 99_999])


def attempts(answer: st.SearchStrategy[int | None], *, least: int = 0, most: int = 12) -> st.SearchStrategy[list[Attempt]]:
    one = st.builds(
        Attempt,
        problem_id=st.just("p"),
        index=st.just(0),
        answer=answer,
        finish_reason=st.sampled_from(FinishReason),
        tool_errors=st.integers(0, 40),
        entropy=entropies,
        tail_entropy=entropies,
        seen_in_tool=st.booleans(),
    )
    return st.lists(one, min_size=least, max_size=most)


def attempt(answer: int | None, finish_reason: FinishReason = FinishReason.ANSWERED, **values: Any) -> Attempt:
    return Attempt(problem_id="p", index=0, answer=answer, finish_reason=finish_reason, **values)


voters = st.sampled_from(VOTER_NAMES)


def test_the_options_list_exactly_the_voters() -> None:
    assert set(get_args(get_type_hints(VotingConfig)["voter"])) == set(VOTER_NAMES)


@given(attempts(st.none() | answers), voters)
def test_candidates_are_answers_of_the_attempts(given_: list[Attempt], voter: Any) -> None:
    there = {attempt.answer for attempt in given_} - {None}
    ranked = rank(given_, VotingConfig(voter=voter))
    assert {candidate.answer for candidate in ranked} <= there
    assert bool(ranked) == bool(there)
    if voter != "proximity":
        assert len(ranked) == len(there)


@given(attempts(answers, least=1))
def test_trimmed_mean_stays_inside_its_cluster(given_: list[Attempt]) -> None:
    # The only voter that may return an answer that no attempt gave.
    voting = VotingConfig(voter="proximity", refine="trimmed-mean")
    for candidate in rank(given_, voting):
        there = [attempt.answer for attempt in given_ if isinstance(attempt.answer, int)]
        assert isinstance(candidate.answer, int)
        near = [answer for answer in there if abs(answer - candidate.answer) <= 0.16 * max(answer, candidate.answer)]
        assert min(near) <= candidate.answer <= max(near)
        assert candidate.votes <= len(near)


def test_trimmed_mean_can_be_a_new_answer() -> None:
    given_ = [attempt(100), attempt(103)]
    assert rank(given_, VotingConfig(voter="proximity", refine="trimmed-mean"))[0].answer == 102
    assert rank(given_, VotingConfig(voter="proximity", refine="median"))[0].answer == 100


@given(attempts(st.none() | answers), voters, st.sampled_from(["median", "trimmed-mean"]), st.randoms(use_true_random=False))
def test_order_of_attempts_does_not_matter(given_: list[Attempt], voter: Any, refine: Any, luck: random.Random) -> None:
    voting = VotingConfig(voter=voter, refine=refine)
    shuffled = luck.sample(given_, len(given_))
    assert rank(given_, voting) == rank(shuffled, voting)


@given(attempts(st.none() | answers), attempts(st.none()), voters)
def test_attempts_without_an_answer_change_nothing(given_: list[Attempt], empty: list[Attempt], voter: Any) -> None:
    voting = VotingConfig(voter=voter)
    assert rank([*empty, *given_], voting) == rank(given_, voting)
    assert rank(empty, voting) == ()


@given(attempts(answers, least=1), voters, attempts(st.just(0), least=1, most=4))
def test_more_votes_for_the_winner_never_make_it_lose(given_: list[Attempt], voter: Any, more: list[Attempt]) -> None:
    voting = VotingConfig(voter=voter)
    winner = rank(given_, voting)[0].answer
    assert isinstance(winner, int)
    for vote in more:
        given_ = [*given_, attempt(winner, tool_errors=vote.tool_errors, entropy=vote.entropy, tail_entropy=vote.tail_entropy)]
        assert rank(given_, voting)[0].answer == winner


@given(attempts(answers, least=1), voters)
def test_scores_fall_and_shares_add_up_to_one(given_: list[Attempt], voter: Any) -> None:
    ranked = rank(given_, VotingConfig(voter=voter))
    assert [c.score for c in ranked] == sorted((c.score for c in ranked), reverse=True)
    assert sum(c.share for c in ranked) == pytest.approx(1)
    assert sum(c.votes for c in ranked) == len(given_)


@given(attempts(answers, least=1), st.sampled_from(["majority", "lexicographic"]))
def test_voters_by_votes_rank_the_most_votes_first(given_: list[Attempt], voter: Any) -> None:
    ranked = rank(given_, VotingConfig(voter=voter))
    assert ranked[0].votes == max(candidate.votes for candidate in ranked)


@pytest.mark.parametrize("voter", VOTER_NAMES)
def test_a_full_tie_goes_to_the_smaller_answer(voter: Any) -> None:
    assert rank([attempt(70), attempt(20), attempt(50)], VotingConfig(voter=voter))[0].answer == 20


def test_fewer_tool_errors_outweigh_a_tie() -> None:
    given_ = [attempt(1, tool_errors=5), attempt(2, tool_errors=1)]
    assert rank(given_, VotingConfig(voter="majority"))[0].answer == 1
    assert rank(given_, VotingConfig(voter="error-weighted"))[0].answer == 2
    assert rank(given_, VotingConfig(voter="lexicographic"))[0].answer == 2
    assert rank(given_, VotingConfig(voter="error-weighted", error_penalty=0))[0].answer == 1


def test_error_weights_follow_the_documented_formula() -> None:
    given_ = [attempt(1, tool_errors=0), attempt(1, tool_errors=10), attempt(2, tool_errors=5)]
    first, second = rank(given_, VotingConfig(voter="error-weighted", error_penalty=0.1))
    assert (first.answer, first.votes, first.score) == (1, 2, 1.5)
    assert (second.answer, second.votes) == (2, 1)
    assert second.score == pytest.approx(1 / 1.5)


def test_entropy_covers_the_whole_attempt_and_tail_entropy_its_end() -> None:
    given_ = [attempt(1, entropy=0.2, tail_entropy=0.9), attempt(2, entropy=0.4, tail_entropy=0.3)]
    assert rank(given_, VotingConfig(voter="entropy"))[0].answer == 1
    assert rank(given_, VotingConfig(voter="tail-entropy"))[0].answer == 2


def test_an_entropy_of_zero_has_a_limited_weight() -> None:
    given_ = [attempt(1, entropy=0.0), *(attempt(2, entropy=0.6) for _ in range(13))]
    assert rank(given_, VotingConfig(voter="entropy"))[0].answer == 2


def test_vote_share_adds_confidence_and_consensus_to_the_share() -> None:
    given_ = [attempt(1, tail_entropy=0.5), attempt(1, tail_entropy=0.5), attempt(2, tail_entropy=0.25)]
    first, second = rank(given_, VotingConfig(voter="vote-share"))
    assert first.score == pytest.approx(2 * 2 / 3 + 0.3 * 0.5 + 0.5)
    assert second.score == pytest.approx(2 * 1 / 3 + 0.3 * 0.5)


def test_proximity_adds_the_votes_of_near_answers() -> None:
    given_ = [attempt(7), attempt(7), attempt(98), attempt(100), attempt(103)]
    assert rank(given_, VotingConfig(voter="majority"))[0].answer == 7
    first = rank(given_, VotingConfig(voter="proximity"))[0]
    assert (first.answer, first.votes) == (100, 3)
    assert rank(given_, VotingConfig(voter="proximity", proximity=0.0))[0].answer == 7


@given(attempts(answers, least=1))
def test_evidence_is_between_0_and_1(given_: list[Attempt]) -> None:
    assert all(0 < evidence(attempt) <= 1 for attempt in given_)


@pytest.mark.parametrize("voter", VOTER_NAMES)
def test_forced_weight_scales_the_votes_of_answers_that_were_asked_for(voter: Any) -> None:
    given_ = [attempt(7), *(attempt(70, FinishReason.FORCED) for _ in range(2))]
    assert rank(given_, VotingConfig(voter=voter))[0].answer == 70
    first, second = rank(given_, VotingConfig(voter=voter, forced_weight=0.25))
    assert (first.answer, first.votes, second.votes) == (7, 1, 2)
    assert rank(given_[1:], VotingConfig(voter=voter, forced_weight=0.25))[0].answer == 70


@given(attempts(answers, least=1), voters, st.sampled_from([0.5, 2.0]))
def test_one_weight_for_all_attempts_changes_no_order(given_: list[Attempt], voter: Any, weight: float) -> None:
    forced = [replace(one, finish_reason=FinishReason.FORCED) for one in given_]
    alike, weighted = (rank(forced, VotingConfig(voter=voter, forced_weight=each)) for each in (1.0, weight))
    if voter != "lexicographic":  # its evidence counts less than one vote, whatever a vote weighs
        assert [one.answer for one in weighted] == [one.answer for one in alike]


@pytest.mark.parametrize("voter", VOTERS)
def test_voters_give_the_same_for_arrays_and_numbers(voter: Any) -> None:
    import numpy as np

    own = [Ballot(*np.linspace(2.0, 1.0, len(Ballot.__slots__))), Ballot(*np.linspace(1.0, 3.0, len(Ballot.__slots__)))]
    total = Ballot(*(sum(getattr(ballot, name) for ballot in own) for name in Ballot.__slots__))
    columns = Ballot(*(np.array([getattr(ballot, name) for ballot in own]) for name in Ballot.__slots__))
    assert VOTERS[voter](columns, total).tolist() == [VOTERS[voter](ballot, total) for ballot in own]
