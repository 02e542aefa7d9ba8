"""What another voter or stop rule would have made of logged attempts.

A policy is named VOTER, or VOTER/STOP, or VOTER/STOP=VALUE: ``majority``, ``default/equal=4``, ``entropy/share=0.6``.
``default`` is the configured voter; a voter alone sees all attempts. ``select`` and ``verify`` take what the run's second
look at contested problems chose, where it was clear, and otherwise what ``default`` takes. Policies are compared on the same
groups: those whose records allow what the policies do (`records.Use`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aimo_solver.config import config_from
from aimo_solver.errors import ConfigError
from aimo_solver.lab.records import Group, Use
from aimo_solver.lab.statistics import Bootstrap, Interval
from aimo_solver.options import VotingConfig
from aimo_solver.policy.selection import Method
from aimo_solver.policy.stopping import RULES, decided
from aimo_solver.policy.voting import VOTERS, rank

_VALUE_OF = {"equal": "equal", "margin": "margin", "share": "share", "posterior": "confidence"}


@dataclass(frozen=True, slots=True)
class Policy:
    """A voter and a stop rule under one name. `method` is the second look that has the last word, None without."""

    name: str
    voting: VotingConfig
    method: Method | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy made of one group.

    Attributes:
        answer: None if no attempt had one.
        share: the answer's part of all scores, 0..1.
        votes: attempts that gave it, of those seen.
        seen: attempts that had ended when the policy stopped.
        seconds: until then; None if the group is not timed.
        tokens: sampled until then by all attempts, running ones included; 0 if not logged.
    """

    group: Group
    answer: int | None
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
    """One run's part of a score. `gained` and `missed` are the groups that only this or only the first policy gets right."""

    run: str
    groups: int
    right: int
    truth_present: int
    gained: int
    missed: int


@dataclass(frozen=True, slots=True)
class Score:
    """A policy's result.

    Attributes:
        lost: groups in which the truth is present and another answer was taken.
        changed: groups in which it takes another answer than the first policy.
        accuracy: of groups.
        two_run: expected score of a problem that is run twice, both right 1, one right 0.5; every problem counts once.
        diff: accuracy minus the first policy's, paired.
        mean_seconds, mean_tokens: over the groups where they were logged; None if there is none.
    """

    policy: Policy
    outcomes: tuple[Outcome, ...]
    groups: int
    right: int
    lost: int
    changed: int
    accuracy: Interval
    two_run: Interval
    diff: Interval
    mean_seconds: float | None
    mean_tokens: float | None
    strata: tuple[Stratum, ...]


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
    """The policy of a name.

    Args:
        voting: what `default` is, and where the values of rules come from that the name leaves out.
        stop: the stop rule of a name without one.

    Raises:
        ConfigError: no such voter or stop rule, or an impossible value.
    """
    voter, slash, ending = name.partition("/")
    rule, equals, value = ending.partition("=")
    voters = ["default", *VOTERS, "proximity"]
    if voter not in (*voters, *Method):
        raise ConfigError(f"policy {name}", f"no such voter; known: {', '.join([*voters, *Method])}")
    if not slash:
        rule = stop
    elif rule not in RULES:
        raise ConfigError(f"policy {name}", f"no such stop rule; known: {', '.join(RULES)}")
    values: dict[str, Any] = {"voter": voter if voter in voters[1:] else voting.voter, "stop": rule}
    if equals:
        if rule not in _VALUE_OF:
            raise ConfigError(f"policy {name}", f"{rule} takes no value")
        values[_VALUE_OF[rule]] = value
    plain = {field: getattr(voting, field) for field in VotingConfig.__dataclass_fields__}
    return Policy(name, config_from({"voting": plain | values}).voting, Method(voter) if voter in set(Method) else None)


def replay(groups: Sequence[Group], policies: Sequence[Policy], *, samples: int = 10_000, seed: int = 0) -> Replay:
    """Scores policies; the first one is what the others are compared with.

    Voters alone are scored on groups fit for accuracy. As soon as one policy stops early, all are scored on groups fit for
    stopping, and accuracies are then only comparable with each other.

    Args:
        samples: bootstrap samples of the problems.
    """
    stopping = any(policy.voting.stop != "never" for policy in policies)
    chosen = [group for group in groups if (Use.STOPPING if stopping else Use.ACCURACY) in group.use]
    if not chosen:
        raise ConfigError("policy", "no group of these records is fit for this comparison")
    played = [tuple(play(group, policy) for group in chosen) for policy in policies]
    draws = Bootstrap([group.problem_id for group in chosen], samples, seed)
    scores = tuple(_score(policy, own, played[0], draws) for policy, own in zip(policies, played, strict=True))
    return Replay(
        scores=scores,
        oracle=sum(group.truth_present for group in chosen),
        groups=len(chosen),
        problems=draws.problems,
        left_out=len(groups) - len(chosen),
    )


def play(group: Group, policy: Policy) -> Outcome:
    """One group under one policy: attempts are shown in order of finishing until the stop rule has enough."""
    voting = policy.voting
    total = len(group.attempts)
    seen = len(group.ended)
    stopped = False
    if voting.stop != "never":
        for count in range(1, len(group.ended) + 1):
            if decided(group.ended[:count], voting, max_attempts=total) is not None:
                seen, stopped = count, True
                break
    shown = group.ended[:seen]
    ends = [group.end(attempt) for attempt in (shown if stopped else group.attempts)]
    now = max(ends, default=0.0)
    tokens = sum(a.tokens * min(1.0, now / group.end(a)) if group.end(a) > 0 else a.tokens for a in group.attempts)
    candidates = rank(shown, voting)
    second_look = group.choices.get(policy.method) if policy.method else None
    best = next((one for one in candidates if one.answer == second_look), candidates[0] if candidates else None)
    return Outcome(
        group=group,
        answer=best.answer if best else None,
        share=best.share if best else 0.0,
        votes=best.votes if best else 0,
        seen=seen,
        seconds=now if group.timed else None,
        tokens=tokens,
    )


def _score(policy: Policy, own: Sequence[Outcome], first: Sequence[Outcome], draws: Bootstrap) -> Score:
    right = np.array([outcome.right for outcome in own], dtype=float)
    base = np.array([outcome.right for outcome in first], dtype=float)
    timed = [outcome.seconds for outcome in own if outcome.seconds is not None]
    counted = [outcome.tokens for outcome in own if outcome.tokens]
    runs = dict.fromkeys(outcome.group.run for outcome in own)
    pairs = list(zip(own, first, strict=True))
    return Score(
        policy=policy,
        outcomes=tuple(own),
        groups=len(own),
        right=int(right.sum()),
        lost=sum(outcome.group.truth_present and not outcome.right for outcome in own),
        changed=sum(a.answer != b.answer for a, b in pairs),
        accuracy=draws.mean(right),
        # The two runs of a problem are drawn from its groups: (1 + 1, 1 + 0 or 0 + 0) / 2 is on average their mean.
        two_run=draws.mean_over_problems(right),
        diff=draws.mean(right - base),
        mean_seconds=float(np.mean(timed)) if timed else None,
        mean_tokens=float(np.mean(counted)) if counted else None,
        strata=tuple(_stratum(run, [pair for pair in pairs if pair[0].group.run == run]) for run in runs),
    )


def _stratum(run: str, pairs: Sequence[tuple[Outcome, Outcome]]) -> Stratum:
    return Stratum(
        run=run,
        groups=len(pairs),
        right=sum(own.right for own, _ in pairs),
        truth_present=sum(own.group.truth_present for own, _ in pairs),
        gained=sum(own.right and not first.right for own, first in pairs),
        missed=sum(first.right and not own.right for own, first in pairs),
    )
