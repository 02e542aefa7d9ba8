"""When enough is known to end a problem. Pure: finished attempts in, a decision out.

Rules count votes; the voter decides which answer is taken. Let `lead` and `second` be the votes of the two answers that most
attempts gave:

    equal         lead >= equal
    uncatchable   lead - second > attempts still to come
    margin        lead - second >= margin
    share         the voter's leader holds at least `share` of all scores, after `share_after` answers
    first         one answer
    consistency   lead >= k within the first n answers, for any (k, n) of the table; (5, 7) is what AIMO2's second place used
    posterior     the chance that `lead` is the likelier one of the two, by a Beta posterior, is at least `confidence`
                  (Aggarwal et al. 2023, adaptive consistency)
    never         all attempts are waited for

Beside any rule, `no_answers` attempts that ended without an answer end the problem.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aimo_solver.options import VotingConfig
from aimo_solver.policy.voting import rank
from aimo_solver.results import Attempt


@dataclass(frozen=True, slots=True)
class Decision:
    """A problem is decided.

    Attributes:
        answer: the leader; None if nobody gave an answer.
        reason: name of the rule that said so.
    """

    answer: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Tally:
    """What stop rules look at. Numbers here; numpy arrays of them in the simulation.

    Attributes:
        finished, answered: attempts that ended, and those of them with an answer.
        lead, second: votes of the two answers with most votes.
        share: part of all scores that the voter's leader holds, 0..1.
        posterior: `leads` of the two.
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


RULES: Mapping[str, Callable[[Tally, VotingConfig], Any]] = {
    "equal": lambda tally, voting: tally.lead >= voting.equal,
    "uncatchable": lambda tally, voting: tally.lead - tally.second > tally.to_come,
    "margin": lambda tally, voting: tally.lead - tally.second >= voting.margin,
    "share": lambda tally, voting: (tally.answered >= voting.share_after) & (tally.share >= voting.share),
    "first": lambda tally, voting: tally.answered >= 1,
    "consistency": _consistent,
    "posterior": lambda tally, voting: (tally.answered >= 1) & (tally.posterior >= voting.confidence),
    "never": lambda tally, voting: tally.lead < 0,
}
"""Whether a tally ends its problem."""


def decided(
    attempts: Sequence[Attempt], voting: VotingConfig, *, max_attempts: int, confidence: float | None = None
) -> Decision | None:
    """Whether the finished attempts decide the problem.

    Args:
        attempts: those that ended, whether or not with an answer.
        max_attempts: how many there can be in all.
        confidence: from the budget's allotment; if given, the rule is `posterior` with this bar.
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
        posterior=leads(lead, second),
        to_come=max_attempts - len(attempts),
    )
    answer = candidates[0].answer if candidates else None
    if confidence is not None:
        if tally.answered and tally.posterior >= confidence:
            return Decision(answer, "confidence")
    elif RULES[voting.stop](tally, voting):
        return Decision(answer, voting.stop)
    if voting.no_answers is not None and tally.finished - tally.answered >= voting.no_answers:
        return Decision(answer, "no_answers")
    return None


def leads(lead: int, second: int) -> float:
    """The chance that an answer with `lead` votes is likelier to be drawn again than one with `second`, 0..1.

    Each of two answers is drawn with an unknown chance, uniform a priori. Given the votes its posterior is
    Beta(lead + 1, second + 1), and its mass above one half is P(Binomial(lead + second + 1, 1/2) <= lead).
    """
    draws = lead + second + 1
    return math.fsum(math.comb(draws, k) for k in range(lead + 1)) / 2.0**draws
