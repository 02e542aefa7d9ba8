"""Which answer wins. Pure: attempts in, ranked candidates out.

Every attempt with an answer is on the ballot of that answer; attempts without one count nowhere. A voter turns an answer's
ballot into a score:

    majority         number of votes (self-consistency, Wang et al. 2023)
    error-weighted   sum of 1 / (1 + error_penalty * tool_errors), the rule of the solver-medal notebook
    entropy          sum of 1/H, H the attempt's mean token entropy
    tail-entropy     sum of 1/H, H the median over the attempt's last window of tokens
    vote-share       2.0 share of votes + 0.3 share of 1/H (tail) + 0.5 if at least half of all votes: the rule of AIMO3's
                     second place, its confidence and consensus parts written as shares so that a further vote never hurts
    lexicographic    number of votes; equal numbers are ordered by the mean of `evidence`
    proximity        answers within 5 % of a neighbour form a cluster, which scores the sum of its votes and is represented by
                     its median or, with refine = "trimmed-mean", by the rounded mean of its middle half, which may be
                     an answer that nobody gave

Ties: the higher score, then more votes, then the smaller answer. The order in which attempts are listed never matters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from aimo_solver.options import VotingConfig
from aimo_solver.results import Attempt, FinishReason

TYPICAL_ENTROPY = 0.63  # nats; median of 1,614 logged attempts of gpt-oss-120b; stands for an entropy that was not measured
LEAST_ENTROPY = 0.05  # nats; a model that is surer than this is not trusted more
_DIGITS = 9  # scores are compared after rounding: the order of a sum must not decide a tie


@dataclass(frozen=True, slots=True)
class Candidate:
    """An answer on the ballot.

    Attributes:
        score: what the voter gave it; comparable within one ranking only.
        votes: attempts that gave it.
        share: its part of all scores, 0..1.
    """

    answer: int
    score: float
    votes: int
    share: float


@dataclass(frozen=True, slots=True)
class Ballot:
    """What the attempts for one answer add up to.

    Numbers here; the simulation fills the same fields with numpy arrays and calls the same voters.

    Attributes:
        votes: attempts.
        clean: sum of 1 / (1 + error_penalty * tool_errors).
        sure, tail_sure: sum of 1/H, of the mean and of the tail entropy.
        evidence: sum of `evidence` over the attempts.
    """

    votes: Any
    clean: Any
    sure: Any
    tail_sure: Any
    evidence: Any


def _vote_share(ballot: Ballot, total: Ballot) -> Any:
    consensus = 2 * ballot.votes >= total.votes
    return 2.0 * ballot.votes / total.votes + 0.3 * ballot.tail_sure / total.tail_sure + 0.5 * consensus


VOTERS: Mapping[str, Callable[[Ballot, Ballot], Any]] = {
    "majority": lambda ballot, total: ballot.votes * 1.0,
    "error-weighted": lambda ballot, total: ballot.clean,
    "entropy": lambda ballot, total: ballot.sure,
    "tail-entropy": lambda ballot, total: ballot.tail_sure,
    "vote-share": _vote_share,
    "lexicographic": lambda ballot, total: ballot.votes + ballot.evidence / (ballot.votes + 1),
}
"""Score of an answer from its ballot and the ballot of all answers together. `proximity` is not of this kind."""


def rank(attempts: Sequence[Attempt], voting: VotingConfig) -> tuple[Candidate, ...]:
    """Candidates, best first; () when no attempt has an answer."""
    by_answer: dict[int, list[Ballot]] = {}
    for attempt in attempts:
        if attempt.answer is not None:
            by_answer.setdefault(attempt.answer, []).append(ballot_of(attempt, voting))
    if not by_answer:
        return ()
    ballots = {answer: _sum(own) for answer, own in by_answer.items()}
    if voting.voter == "proximity":
        scored = _clusters({answer: ballot.votes for answer, ballot in ballots.items()}, voting)
    else:
        voter, total = VOTERS[voting.voter], _sum(list(ballots.values()))
        scored = [(answer, round(voter(ballot, total), _DIGITS), ballot.votes) for answer, ballot in ballots.items()]
    whole = math.fsum(score for _, score, _ in scored)
    scored.sort(key=lambda entry: (-entry[1], -entry[2], entry[0]))
    return tuple(Candidate(answer, score, votes, round(score / whole, _DIGITS)) for answer, score, votes in scored)


def ballot_of(attempt: Attempt, voting: VotingConfig) -> Ballot:
    """What one attempt adds to the ballot of its answer."""
    tail = attempt.entropy if attempt.tail_entropy is None else attempt.tail_entropy
    return Ballot(
        votes=1,
        clean=1 / (1 + voting.error_penalty * attempt.tool_errors),
        sure=1 / _entropy(attempt.entropy),
        tail_sure=1 / _entropy(tail),
        evidence=evidence(attempt),
    )


def evidence(attempt: Attempt) -> float:
    """How much speaks for an attempt beside its answer, 0..1.

    0.4 for a sure end (1 / (1 + tail entropy)), 0.3 for few tool errors (1 / (1 + errors)), 0.2 for an answer that stood in
    a tool's output, 0.1 for having finished by itself.
    """
    tail = _entropy(attempt.entropy if attempt.tail_entropy is None else attempt.tail_entropy)
    by_itself = attempt.finish_reason is FinishReason.ANSWERED
    return 0.4 / (1 + tail) + 0.3 / (1 + attempt.tool_errors) + 0.2 * attempt.seen_in_tool + 0.1 * by_itself


def _entropy(measured: float | None) -> float:
    return TYPICAL_ENTROPY if measured is None or math.isnan(measured) else max(measured, LEAST_ENTROPY)


def _sum(ballots: Sequence[Ballot]) -> Ballot:
    # fsum is exact, so the order of attempts cannot change a score.
    weights = (math.fsum(getattr(ballot, field.name) for ballot in ballots) for field in fields(Ballot)[1:])
    return Ballot(sum(ballot.votes for ballot in ballots), *weights)


def _clusters(votes: Mapping[int, int], voting: VotingConfig) -> list[tuple[int, float, int]]:
    clusters: list[list[int]] = []
    for answer in sorted(votes):
        if clusters and answer - clusters[-1][-1] <= voting.proximity * abs(answer):
            clusters[-1].append(answer)
        else:
            clusters.append([answer])
    given = [[answer for answer in cluster for _ in range(votes[answer])] for cluster in clusters]
    refine = _median if voting.refine == "median" else _trimmed_mean
    return [(refine(answers), float(len(answers)), len(answers)) for answers in given]


def _median(answers: Sequence[int]) -> int:
    return answers[(len(answers) - 1) // 2]  # the lower one of two, so that it is an answer that was given


def _trimmed_mean(answers: Sequence[int]) -> int:
    cut = len(answers) // 4
    middle = answers[cut : len(answers) - cut]
    return round(sum(middle) / len(middle))
