"""Decides when to end a problem early. Pure: finished attempts in, the reason to end out.

A stop rule only ends the problem; the voter picks the answer. With `lead` and `second` the numbers (not weights) of votes for the
two most common answers:

    equal         lead >= equal
    uncatchable   lead - second > number of attempts that may still end
    margin        lead - second >= margin
    share         the voter's leader holds at least `share` of all scores, after `share_after` answers
    first         one answer
    consistency   lead >= k within the first n answers, for any (k, n) of the table; AIMO2's second place used (5, 7)
    posterior     `lead_probability` >= confidence (adaptive consistency, Aggarwal et al. 2023)
    never         waits for all attempts

Under every rule, `no_answers` attempts that ended without an answer end the problem.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aimo_solver.policy.options import VotingConfig
from aimo_solver.policy.voting import rank
from aimo_solver.results import Attempt


@dataclass(frozen=True, slots=True)
class Tally:
    """The input of the stop rules. The fields are numbers here and numpy arrays in the simulation.

    Attributes:
        finished: attempts that ended. answered: those of them with an answer.
        lead, second: votes of the two most common answers.
        share: part of all scores held by the voter's leader, 0..1.
        posterior: `lead_probability(lead, second)`.
        to_come: attempts that may still end.
    """

    finished: Any
    answered: Any
    lead: Any
    second: Any
    share: Any
    posterior: Any
    to_come: Any


def _consistent(tally: Tally, voting: VotingConfig) -> Any:
    holds = tally.lead < 0
    for equal, among in voting.consistency:
        holds = holds | ((tally.lead >= equal) & (tally.answered <= among))
    return holds


STOP_RULES: Mapping[str, Callable[[Tally, VotingConfig], Any]] = {
    "equal": lambda tally, voting: tally.lead >= voting.equal,
    "uncatchable": lambda tally, voting: tally.lead - tally.second > tally.to_come,
    "margin": lambda tally, voting: tally.lead - tally.second >= voting.margin,
    "share": lambda tally, voting: (tally.answered >= voting.share_after) & (tally.share >= voting.share),
    "first": lambda tally, voting: tally.answered >= 1,
    "consistency": _consistent,
    "posterior": lambda tally, voting: (tally.answered >= 1) & (tally.posterior >= voting.confidence),
    "never": lambda tally, voting: tally.lead < 0,
}
"""Stop rules by name: whether a tally ends its problem."""


def decide(
    attempts: Sequence[Attempt], voting: VotingConfig, *, max_attempts: int, confidence: float | None = None
) -> str | None:
    """Returns why the finished attempts end the problem: the stop rule, "confidence" or "no_answers"; None if they do not.

    Args:
        attempts: all that ended, with or without an answer.
        max_attempts: most attempts that the problem can have.
        confidence: from the allotment; if given, replaces the stop rule by `posterior` with this confidence.
    """
    candidates = rank(attempts, voting)
    votes = Counter(attempt.answer for attempt in attempts if attempt.answer is not None)
    (lead, second) = ([*sorted(votes.values(), reverse=True), 0, 0])[:2]
    tally = Tally(
        finished=len(attempts),
        answered=votes.total(),
        lead=lead,
        second=second,
        share=candidates[0].share if candidates else 0.0,
        posterior=lead_probability(lead, second),
        to_come=max_attempts - len(attempts),
    )
    if confidence is not None:
        if tally.answered and tally.posterior >= confidence:
            return "confidence"
    elif STOP_RULES[voting.stop](tally, voting):
        return voting.stop
    if voting.no_answers is not None and tally.finished - tally.answered >= voting.no_answers:
        return "no_answers"
    return None


def lead_probability(lead: int, second: int) -> float:
    """Returns the probability, 0..1, that the answer with `lead` votes is more likely than the one with `second` votes.

    Of attempts that give one of the two answers, let p be the probability of the first, with a uniform prior. Its posterior is
    Beta(lead + 1, second + 1), and P(p > 1/2) = P(Binomial(lead + second + 1, 1/2) <= lead).
    """
    draws = lead + second + 1
    return math.fsum(math.comb(draws, k) for k in range(lead + 1)) / 2.0**draws
