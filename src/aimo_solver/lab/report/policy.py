"""How well a run's vote, stop rule and time limits served it, computed from its own attempts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from aimo_solver.lab.lost_problem import read_voting
from aimo_solver.lab.records import Group, group_attempts
from aimo_solver.lab.replay import Bin, GroupOutcome, Policy, calibration_bins, parse_policy, play
from aimo_solver.lab.report.data import ProblemReport, RunReport, Verdict
from aimo_solver.policy.options import VotingConfig
from aimo_solver.policy.selection import Method
from aimo_solver.policy.voting import rank

_UNKNOWN = -1  # never an answer; a problem of unknown truth counts for tokens only


@dataclass(frozen=True, slots=True)
class Moment:
    """Problems that the vote has right, and that have an attempt with the truth, if each had been stopped after `seconds`."""

    seconds: float
    right: int
    present: int


@dataclass(frozen=True, slots=True)
class StopRule:
    """A stop rule applied to the run's attempts.

    Attributes:
        style: colour class.
        tokens: of all attempts until the decision, by problem, lowest first.
        right: of the problems with known truth.
    """

    name: str
    style: str
    tokens: tuple[float, ...]
    right: int

    @property
    def median(self) -> float:
        return median(self.tokens)


@dataclass(frozen=True, slots=True)
class PolicyReport:
    """A run's policy.

    Attributes:
        known: problems that ended and whose truth is known; `moments` and `bins` are about them, and empty without any.
        right: those answered right.
        moments: by time, from second 0.
        rules: over all problems that ended; empty if no tokens were logged.
        bins: shares of the vote, and how often they were right.
    """

    known: int
    right: int
    moments: tuple[Moment, ...]
    rules: tuple[StopRule, ...]
    bins: tuple[Bin, ...]


def assess_policy(report: RunReport) -> PolicyReport:
    """Replays the attempts that voted; a second look has no vote."""
    voting = read_voting(report.run.config)
    problems = [problem for problem in report.problems if problem.record.result]
    groups = [group for problem in problems if (group := _group(report.name, problem))]
    known = [group for group in groups if group.truth != _UNKNOWN]
    rules = [stop_rule(policy.name, style, [play(group, policy) for group in groups]) for policy, style in _policies(voting)]
    return PolicyReport(
        known=report.known,
        right=sum(problem.verdict is Verdict.RIGHT for problem in problems),
        moments=_moments(known, voting),
        rules=tuple(rule for rule in rules if rule.tokens),
        bins=calibration_bins([play(group, Policy("own", voting)) for group in known]),
    )


def stop_rule(name: str, style: str, outcomes: Sequence[GroupOutcome]) -> StopRule:
    """Collects what a stop rule did on each problem."""
    tokens = sorted(outcome.tokens for outcome in outcomes if outcome.tokens)
    return StopRule(name, style, tuple(tokens), sum(outcome.right for outcome in outcomes))


def _group(run: str, problem: ProblemReport) -> Group | None:
    looks = set(Method)
    voted = [one.attempt for one in problem.attempts if not one.running and one.attempt.prompt not in looks]
    truth = _UNKNOWN if problem.record.truth is None else problem.record.truth
    return replace(group_attempts(voted, run=run, truth=truth), timed=True) if voted else None


def _moments(groups: Sequence[Group], voting: VotingConfig) -> tuple[Moment, ...]:
    changes: list[tuple[float, int, int]] = []
    for group in groups:
        right = present = False
        for count, attempt in enumerate(group.ended, 1):
            ranked = rank(group.ended[:count], voting)
            now_right = bool(ranked) and ranked[0].answer == group.truth
            now_present = present or attempt.answer == group.truth
            if (now_right, now_present) != (right, present):
                changes.append((group.end(attempt), now_right - right, now_present - present))
            right, present = now_right, now_present
    moments = [Moment(0.0, 0, 0)] if groups else []
    for seconds, right_change, present_change in sorted(changes):
        last = moments[-1]
        moments.append(Moment(seconds, last.right + right_change, last.present + present_change))
    return tuple(moments)


def _policies(voting: VotingConfig) -> list[tuple[Policy, str]]:
    """The run's own stop rule between the quickest one and none, each with a colour class."""
    own = (Policy(f"this run's rule, {voting.stop}", voting), "plain first")
    rules = {
        "first": (replace(parse_policy("default/first", voting), name="the first answer"), "near"),
        voting.stop: own,
        "never": (replace(parse_policy("default/never", voting), name="all attempts"), "mute"),
    }
    return list((rules | {voting.stop: own}).values())
