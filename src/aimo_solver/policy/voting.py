"""Ranks the answers of a problem's attempts. Pure: attempts in, candidates out.

The attempts that gave one answer form its ballot; attempts without an answer do not count. An attempt whose answer was asked for
(`FinishReason.FORCED`) counts `forced_weight` times in all sums. A voter turns a ballot into a score:

    majority         number of votes (self-consistency, Wang et al. 2023)
    error-weighted   sum of 1 / (1 + error_penalty * tool_errors), the rule of the solver-medal notebook
    entropy          sum of 1/H, H the attempt's mean token entropy
    tail-entropy     sum of 1/H, H the median over the attempt's last window of tokens
    vote-share       2.0 share of votes + 0.3 share of 1/H (tail) + 0.5 if at least half of all votes: the rule of AIMO3's
                     second place, with its terms as shares, so that another vote for the winner never makes it lose
    lexicographic    number of votes, then the mean of `evidence`
    proximity        answers within 5 % of a neighbour form a cluster. Its score is the sum of its votes, its answer the median
                     or, with refine = "trimmed-mean", the rounded mean of the middle half, which no attempt need have given

Candidates are ordered by score, then by weighted votes; ties go to the smaller answer. The order of attempts does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import median_low
from typing import Any

from aimo_solver.policy.options import VotingConfig
from aimo_solver.problems import Answer, Candidate
from aimo_solver.results import Attempt, FinishReason

TYPICAL_ENTROPY = 0.63  # nats, assumed if not measured: the median of 1,614 logged attempts of gpt-oss-120b
LEAST_ENTROPY = 0.05  # nats; lower ones count as this much
_DIGITS = 9  # scores are rounded before they are compared, so that rounding errors decide no tie


@dataclass(frozen=True, slots=True)
class Ballot:
    """Weighted sums over the attempts that gave one answer.

    The fields are numbers here and numpy arrays in the simulation, which uses the same voters.

    Attributes:
        votes: sum of the weights; the number of attempts if `forced_weight` is 1.
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
"""(ballot of an answer, ballot of all answers) -> score > 0. `proximity` scores clusters and is handled by `rank`."""

VOTER_NAMES = (*VOTERS, "proximity")


def rank(attempts: Sequence[Attempt], voting: VotingConfig) -> tuple[Candidate, ...]:
    """Returns the candidates, best first; () if no attempt has an answer."""
    by_answer: dict[Answer, list[Ballot]] = {}
    for attempt in attempts:
        if attempt.answer is not None:
            by_answer.setdefault(attempt.answer, []).append(ballot_of(attempt, voting))
    if not by_answer:
        return ()
    ballots = {answer: _sum(own) for answer, own in by_answer.items()}
    scored: list[tuple[Answer, float, float, int]]
    if voting.voter == "proximity":
        texts = [answer for answer in ballots if isinstance(answer, str)]
        scored = [(answer, ballots[answer].votes, ballots[answer].votes, len(by_answer[answer])) for answer in texts]
        scored += _clusters({answer: own for answer, own in by_answer.items() if isinstance(answer, int)}, voting)
    else:
        voter, total = VOTERS[voting.voter], _sum(list(ballots.values()))
        scores = {answer: round(voter(ballot, total), _DIGITS) for answer, ballot in ballots.items()}
        scored = [(answer, scores[answer], ballot.votes, len(by_answer[answer])) for answer, ballot in ballots.items()]
    whole = math.fsum(score for _, score, _, _ in scored)
    scored.sort(key=lambda entry: (-entry[1], -entry[2], entry[0]))
    return tuple(Candidate(answer, score, votes, round(score / whole, _DIGITS)) for answer, score, _, votes in scored)


def ballot_of(attempt: Attempt, voting: VotingConfig) -> Ballot:
    """Returns the ballot of a single attempt."""
    weight = voting.forced_weight if attempt.finish_reason is FinishReason.FORCED else 1
    tail = attempt.entropy if attempt.tail_entropy is None else attempt.tail_entropy
    return Ballot(
        votes=weight,
        clean=weight / (1 + voting.error_penalty * attempt.tool_errors),
        sure=weight / _entropy(attempt.entropy),
        tail_sure=weight / _entropy(tail),
        evidence=weight * evidence(attempt),
    )


def evidence(attempt: Attempt) -> float:
    """Returns how reliable an attempt looks apart from its answer, 0..1.

    0.4 / (1 + tail entropy) + 0.3 / (1 + tool errors) + 0.2 if the answer appeared in a tool's output + 0.1 if the attempt
    finished by itself.
    """
    tail = _entropy(attempt.entropy if attempt.tail_entropy is None else attempt.tail_entropy)
    by_itself = attempt.finish_reason is FinishReason.ANSWERED
    return 0.4 / (1 + tail) + 0.3 / (1 + attempt.tool_errors) + 0.2 * attempt.seen_in_tool + 0.1 * by_itself


def _entropy(measured: float | None) -> float:
    return TYPICAL_ENTROPY if measured is None or math.isnan(measured) else max(measured, LEAST_ENTROPY)


def _sum(ballots: Sequence[Ballot]) -> Ballot:
    # fsum is exact, so the order of the attempts does not change a score.
    return Ballot(*(math.fsum(getattr(ballot, field.name) for ballot in ballots) for field in fields(Ballot)))


def _clusters(ballots: Mapping[int, Sequence[Ballot]], voting: VotingConfig) -> list[tuple[int, float, float, int]]:
    clusters: list[list[int]] = []
    for answer in sorted(ballots):
        if clusters and answer - clusters[-1][-1] <= voting.proximity * abs(answer):
            clusters[-1].append(answer)
        else:
            clusters.append([answer])
    given = [[answer for answer in cluster for _ in ballots[answer]] for cluster in clusters]
    scores = [math.fsum(ballot.votes for answer in cluster for ballot in ballots[answer]) for cluster in clusters]
    refine = median_low if voting.refine == "median" else _trimmed_mean
    return [(refine(answers), score, score, len(answers)) for answers, score in zip(given, scores, strict=True)]


def _trimmed_mean(answers: Sequence[int]) -> int:
    cut = len(answers) // 4
    middle = answers[cut : len(answers) - cut]
    return round(sum(middle) / len(middle))
