"""Scores voters and stop rules on logged attempts.

A policy is named VOTER, VOTER/STOP or VOTER/STOP=VALUE: ``majority``, ``default/equal=4``, ``entropy/share=0.6``. VOTER:WEIGHT
sets `voting.forced_weight`: ``default:0.5/equal=4``.
``default`` is the configured voter; a voter without a stop rule sees all attempts. ``select`` and ``verify`` take the clear
choices of the run's second look at contested problems, and elsewhere the answer of ``default``. All policies are compared on
the same groups: those whose records allow the comparison (`records.Use`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from aimo_solver.config import load_config
from aimo_solver.errors import ConfigError
from aimo_solver.lab.records import Group, Use
from aimo_solver.lab.statistics import Bootstrap, Interval, proportion
from aimo_solver.policy.options import VotingConfig
from aimo_solver.policy.selection import Method
from aimo_solver.policy.stopping import STOP_RULES, decide
from aimo_solver.policy.voting import VOTER_NAMES, rank
from aimo_solver.problems import Answer

_VALUE_OF = {"equal": "equal", "margin": "margin", "share": "share", "posterior": "confidence"}


@dataclass(frozen=True, slots=True)
class Policy:
    """A named voter and stop rule. `method` is the second look whose clear choices override the vote, if any."""

    name: str
    voting: VotingConfig
    method: Method | None = None


@dataclass(frozen=True, slots=True)
class GroupOutcome:
    """The result of a policy on one group.

    Attributes:
        answer: None if no attempt gave one.
        share: the answer's share of all scores, 0..1.
        votes: attempts with that answer, of those seen.
        seen: attempts that had ended when the policy stopped.
        seconds: time of the decision, from the problem's start; None if the group is not timed.
        tokens: sampled by all attempts until the decision, running ones included; 0 if not logged.
    """

    group: Group
    answer: Answer | None
    share: float
    votes: int
    seen: int
    seconds: float | None
    tokens: float

    @property
    def right(self) -> bool:
        return self.answer == self.group.truth


@dataclass(frozen=True, slots=True)
class Stratum:
    """One run's share of a score.

    Attributes:
        oracle: groups in which the truth is present.
        gained, missed: groups that only this policy, or only the first one, gets right.
    """

    run: str
    groups: int
    right: int
    oracle: int
    gained: int
    missed: int


@dataclass(frozen=True, slots=True)
class Score:
    """The result of a policy on all groups.

    Attributes:
        changed: groups in which its answer is not the first policy's.
        accuracy: share of groups with the right answer.
        two_run: expected score of a problem that is run twice, both right 1, one right 0.5; every problem counts once.
        diff: accuracy minus the first policy's, paired.
    """

    policy: Policy
    outcomes: tuple[GroupOutcome, ...]
    changed: int
    accuracy: Interval
    two_run: Interval
    diff: Interval
    strata: tuple[Stratum, ...]

    @property
    def right(self) -> int:
        return sum(outcome.right for outcome in self.outcomes)

    @property
    def lost(self) -> int:
        """Groups in which the truth is present and another answer was chosen."""
        return sum(outcome.group.truth_present and not outcome.right for outcome in self.outcomes)

    @property
    def mean_seconds(self) -> float | None:
        """Over the timed groups; None without any."""
        timed = [outcome.seconds for outcome in self.outcomes if outcome.seconds is not None]
        return fmean(timed) if timed else None

    @property
    def mean_tokens(self) -> float | None:
        """Over the groups whose tokens were logged; None without any."""
        logged = [outcome.tokens for outcome in self.outcomes if outcome.tokens]
        return fmean(logged) if logged else None


@dataclass(frozen=True, slots=True)
class Replay:
    """All policies on the same groups.

    Attributes:
        oracle: groups in which the truth is present.
        problems: distinct problems among the groups.
        left_out: groups whose records do not allow this comparison.
    """

    scores: tuple[Score, ...]
    oracle: int
    groups: int
    problems: int
    left_out: int


def parse_policy(name: str, voting: VotingConfig, *, stop: str = "never") -> Policy:
    """Returns the policy that a name stands for.

    Args:
        voting: gives `default` its voter, and rules the values that the name leaves out.
        stop: the stop rule of a name without one.

    Raises:
        ConfigError: there is no such voter or stop rule, or a value is impossible.
    """
    choice, slash, ending = name.partition("/")
    voter, colon, weight = choice.partition(":")
    rule, equals, value = ending.partition("=") if slash else (stop, "", "")
    known = ["default", *VOTER_NAMES, *Method]
    if voter not in known:
        raise ConfigError(f"policy {name}", f"no such voter; known: {', '.join(known)}")
    if rule not in STOP_RULES:
        raise ConfigError(f"policy {name}", f"no such stop rule; known: {', '.join(STOP_RULES)}")
    if equals and rule not in _VALUE_OF:
        raise ConfigError(f"policy {name}", f"{rule} takes no value")
    values: dict[str, Any] = asdict(voting) | {"voter": voter if voter in VOTER_NAMES else voting.voter, "stop": rule}
    if colon:
        values["forced_weight"] = weight
    if equals:
        values[_VALUE_OF[rule]] = value
    return Policy(name, load_config({"voting": values}).voting, Method(voter) if voter in set(Method) else None)


def replay(groups: Sequence[Group], policies: Sequence[Policy], *, samples: int = 10_000, seed: int = 0) -> Replay:
    """Scores policies; all others are compared with the first.

    Voters alone are scored on groups fit for accuracy. If any policy stops early, all are scored on groups fit for stopping,
    and accuracies are then comparable only with each other.

    Args:
        samples: bootstrap samples of the problems.

    Raises:
        ConfigError: no group is fit for the comparison.
    """
    stopping = any(policy.voting.stop != "never" for policy in policies)
    chosen = [group for group in groups if (Use.STOPPING if stopping else Use.ACCURACY) in group.use]
    if not chosen:
        raise ConfigError("policy", "no group of these records is fit for this comparison")
    outcomes = [tuple(play(group, policy) for group in chosen) for policy in policies]
    draws = Bootstrap([group.problem_id for group in chosen], samples, seed)
    return Replay(
        scores=tuple(_score(policy, own, outcomes[0], draws) for policy, own in zip(policies, outcomes, strict=True)),
        oracle=sum(group.truth_present for group in chosen),
        groups=len(chosen),
        problems=draws.problems,
        left_out=len(groups) - len(chosen),
    )


def play(group: Group, policy: Policy) -> GroupOutcome:
    """Applies a policy to one group: shows attempts in order of finishing until the stop rule is satisfied."""
    voting, attempts, seen = policy.voting, group.attempts, len(group.ended)
    if voting.stop != "never":
        for count in range(1, len(group.ended) + 1):
            if decide(group.ended[:count], voting, max_attempts=len(group.attempts)) is not None:
                attempts, seen = group.ended[:count], count
                break
    now = max(map(group.end, attempts), default=0.0)
    tokens = sum(a.tokens * min(1.0, now / group.end(a)) if group.end(a) > 0 else a.tokens for a in group.attempts)
    candidates = rank(group.ended[:seen], voting)
    second_look = group.choices.get(policy.method) if policy.method else None
    best = next((one for one in candidates if one.answer == second_look), candidates[0] if candidates else None)
    return GroupOutcome(
        group=group,
        answer=best.answer if best else None,
        share=best.share if best else 0.0,
        votes=best.votes if best else 0,
        seen=seen,
        seconds=now if group.timed else None,
        tokens=tokens,
    )


def _score(policy: Policy, own: tuple[GroupOutcome, ...], first: tuple[GroupOutcome, ...], draws: Bootstrap) -> Score:
    right = [outcome.right for outcome in own]
    pairs = list(zip(own, first, strict=True))
    runs = dict.fromkeys(outcome.group.run for outcome in own)
    return Score(
        policy=policy,
        outcomes=own,
        changed=sum(a.answer != b.answer for a, b in pairs),
        accuracy=draws.mean(right),
        # The two runs of a problem are drawn from its groups: (1 + 1, 1 + 0 or 0 + 0) / 2 is on average their mean.
        two_run=draws.mean_over_problems(right),
        diff=draws.mean([a.right - b.right for a, b in pairs]),
        strata=tuple(_stratum(run, [pair for pair in pairs if pair[0].group.run == run]) for run in runs),
    )


def _stratum(run: str, pairs: Sequence[tuple[GroupOutcome, GroupOutcome]]) -> Stratum:
    return Stratum(
        run=run,
        groups=len(pairs),
        right=sum(own.right for own, _ in pairs),
        oracle=sum(own.group.truth_present for own, _ in pairs),
        gained=sum(own.right and not first.right for own, first in pairs),
        missed=sum(first.right and not own.right for own, first in pairs),
    )


@dataclass(frozen=True, slots=True)
class Bin:
    """Outcomes whose answers have about the same share of the vote.

    Attributes:
        low, high: limits of the share, 0..1.
        share: mean share in the bin.
        count, right: outcomes, and those that are right.
    """

    low: float
    high: float
    share: float
    count: int
    right: int

    @property
    def accuracy(self) -> Interval:
        """Share of outcomes that are right, with its Wilson interval."""
        return proportion(self.right, self.count)


def calibration_bins(outcomes: Sequence[GroupOutcome], bins: int = 5) -> tuple[Bin, ...]:
    """Returns the non-empty bins of equal width, lowest share first. Outcomes without an answer are left out."""
    inside: list[list[GroupOutcome]] = [[] for _ in range(bins)]
    for outcome in outcomes:
        if outcome.answer is not None:
            inside[min(int(outcome.share * bins), bins - 1)].append(outcome)
    return tuple(
        Bin(
            low=number / bins,
            high=(number + 1) / bins,
            share=fmean(outcome.share for outcome in own),
            count=len(own),
            right=sum(outcome.right for outcome in own),
        )
        for number, own in enumerate(inside)
        if own
    )
