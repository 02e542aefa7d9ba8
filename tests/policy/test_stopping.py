"""Stop rules: when a problem ends early."""

from __future__ import annotations

import math
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimo_solver.policy.options import VotingConfig
from aimo_solver.policy.stopping import STOP_RULES, decide, lead_probability
from aimo_solver.policy.voting import rank
from aimo_solver.results import Attempt, FinishReason

MOST = 12
VALUES = (None, 1, 2, 3, 4)


def answers(count: int) -> st.SearchStrategy[list[int | None]]:
    """Bytes are drawn ten times faster than lists."""
    return st.binary(min_size=count, max_size=count).map(lambda drawn: [VALUES[byte % len(VALUES)] for byte in drawn])


streams = answers(MOST)


def attempts(given_: list[int | None]) -> list[Attempt]:
    reason = {True: FinishReason.ANSWERED, False: FinishReason.NO_ANSWER}
    return [Attempt(problem_id="p", index=i, answer=a, finish_reason=reason[a is not None]) for i, a in enumerate(given_)]


def stop_at(given_: list[int | None], voting: VotingConfig, confidence: float | None = None) -> float:
    """Returns the number of attempts after which a rule stops; infinity if never."""
    ended = attempts(given_)
    for count in range(1, len(given_) + 1):
        if decide(ended[:count], voting, max_attempts=MOST, confidence=confidence) is not None:
            return count
    return math.inf


def test_the_options_list_exactly_the_rules() -> None:
    assert set(get_args(get_type_hints(VotingConfig)["stop"])) == set(STOP_RULES)


# (stricter, the rule it implies): the second one has stopped wherever the first one stops.
def _implications() -> list[tuple[VotingConfig, VotingConfig]]:
    def rule(stop: Any, **values: Any) -> VotingConfig:
        return VotingConfig(stop=stop, voter="majority", **values)

    more = [rule("equal", equal=k) for k in range(1, 9)]
    pairs = [(later, earlier) for earlier in more for later in more if later.equal > earlier.equal]
    pairs += [(rule("margin", margin=m + 1), rule("margin", margin=m)) for m in range(1, 6)]
    pairs += [(rule("margin", margin=m), rule("equal", equal=m)) for m in range(1, 6)]
    pairs += [(rule("equal", equal=MOST // 2 + 1), rule("uncatchable"))]
    pairs += [(rule("share", share=high), rule("share", share=low)) for low, high in [(0.4, 0.6), (0.6, 0.8), (0.8, 1.0)]]
    pairs += [(rule("posterior", confidence=high), rule("posterior", confidence=low)) for low, high in [(0.6, 0.8), (0.8, 0.99)]]
    pairs += [(rule("consistency", consistency=((5, 7),)), rule("consistency", consistency=((3, 3), (5, 7))))]
    pairs += [(rule("consistency", consistency=((5, 7),)), rule("equal", equal=5))]
    pairs += [(rule("consistency", consistency=((5, 7),)), rule("consistency", consistency=((5, 9),)))]
    pairs += [(rule(stop), rule("first")) for stop in ("equal", "margin", "share", "consistency", "posterior")]
    pairs += [(rule("never"), rule(stop)) for stop in STOP_RULES]
    pairs += [(rule("equal"), rule("equal", no_answers=3)), (rule("never", no_answers=4), rule("never", no_answers=3))]
    return pairs


@pytest.mark.parametrize(("stricter", "implied"), _implications(), ids=lambda voting: voting.stop)
@given(given_=streams)
def test_a_rule_never_stops_later_than_a_stricter_one(
    stricter: VotingConfig, implied: VotingConfig, given_: list[int | None]
) -> None:
    assert stop_at(given_, implied) <= stop_at(given_, stricter)


@given(streams, st.floats(0.5, 0.99), st.floats(0.5, 0.99))
def test_a_lower_confidence_of_the_budget_never_stops_later(given_: list[int | None], one: float, other: float) -> None:
    low, high = sorted((one, other))
    voting = VotingConfig(stop="equal", equal=1)
    assert stop_at(given_, voting, confidence=low) <= stop_at(given_, voting, confidence=high)


@given(streams, st.data())
def test_an_uncatchable_leader_wins(given_: list[int | None], data: st.DataObject) -> None:
    voting = VotingConfig(stop="uncatchable", voter="majority")
    count = stop_at(given_, voting)
    if count == math.inf:
        return
    winner = rank(attempts(given_[: int(count)]), voting)[0].answer
    future = data.draw(answers(MOST - int(count)))
    assert rank(attempts(given_[: int(count)] + future), voting)[0].answer == winner


@given(streams)
def test_uncatchable_stops_as_early_as_it_can(given_: list[int | None]) -> None:
    voting = VotingConfig(stop="uncatchable", voter="majority")
    count = stop_at(given_, voting)
    before = MOST if count == math.inf else int(count) - 1
    if before == 0 or before == MOST:
        return
    shown = given_[:before]
    votes = {answer: shown.count(answer) for answer in {*shown, 98, 99} - {None}}  # 98 and 99: answers nobody has given
    lead = max(votes, key=lambda answer: votes[answer])
    rival = max((answer for answer in votes if answer != lead), key=lambda answer: votes[answer])
    future = shown + [rival] * (MOST - before)
    assert future.count(rival) >= future.count(lead)


@given(streams, st.sampled_from(sorted(STOP_RULES)), st.none() | st.integers(1, 5))
def test_the_reason_is_a_rule_of_the_configuration(given_: list[int | None], stop: Any, no_answers: int | None) -> None:
    voting = VotingConfig(stop=stop, no_answers=no_answers)
    for count in range(MOST + 1):
        assert decide(attempts(given_[:count]), voting, max_attempts=MOST) in (None, stop, "no_answers")


@pytest.mark.parametrize("stop", sorted(STOP_RULES))
def test_nothing_is_decided_before_an_attempt_ended(stop: Any) -> None:
    assert decide([], VotingConfig(stop=stop, no_answers=1), max_attempts=8) is None


def test_equal_counts_answers_not_attempts() -> None:
    voting = VotingConfig(stop="equal", equal=3)
    assert stop_at([1, None, 2, 1, None, 1], voting) == 6


def test_consistency_counts_within_the_first_answers() -> None:
    voting = VotingConfig(stop="consistency", consistency=((5, 7),))
    assert stop_at([1, 2, 1, 2, 1, 1, 1], voting) == 7
    assert stop_at([1, 2, 1, 2, 2, 1, 1, 1, 1], voting) == math.inf
    assert stop_at([1, None, 1, None, None, 1, 1, 2, 1], voting) == 9  # attempts without an answer do not count


def test_attempts_without_an_answer_end_a_hopeless_problem() -> None:
    assert decide(attempts([None, None, None]), VotingConfig(no_answers=3), max_attempts=8) == "no_answers"
    assert decide(attempts([None] * 7), VotingConfig(), max_attempts=8) is None


def test_share_waits_for_enough_answers() -> None:
    voting = VotingConfig(stop="share", share=0.75, share_after=4, voter="majority")
    assert stop_at([1, 1, 1, 2, 1], voting) == 4


@given(st.integers(0, 20), st.integers(0, 20))
def test_the_posterior_is_the_beta_distributions_upper_half(lead: int, second: int) -> None:
    import mpmath

    exact = mpmath.betainc(lead + 1, second + 1, 0.5, 1, regularized=True)
    assert lead_probability(lead, second) == pytest.approx(float(exact), rel=1e-12)
    assert lead_probability(lead, second) + lead_probability(second, lead) == pytest.approx(1)


def test_a_confidence_from_the_budget_replaces_the_rule() -> None:
    four = attempts([1, 1, 1, 1])
    assert decide(four, VotingConfig(equal=4), max_attempts=8, confidence=0.98) is None
    assert decide(four, VotingConfig(equal=8), max_attempts=8, confidence=0.96) == "confidence"
