"""The report's section on choosing the answer: what the run's own attempts say of its vote, stop rule and time limits.

Score against a time limit per problem, tokens until the decision, and how far a share of the vote can be trusted. Numbers
first, drawings behind them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from markupsafe import Markup

from aimo_solver.config import config_from
from aimo_solver.lab.calibration import Bin, calibration
from aimo_solver.lab.records import Group, group_of
from aimo_solver.lab.replay import Policy, parse_policy, play
from aimo_solver.lab.report.data import ProblemReport, RunReport, Verdict
from aimo_solver.lab.report.svg import Canvas, clock, short, ticks, time_ticks
from aimo_solver.options import VotingConfig
from aimo_solver.policy.selection import Method
from aimo_solver.policy.voting import rank

_UNKNOWN = -1  # no answer is; a problem whose truth nobody knows is asked for tokens only
_BASE, _TOP = 218, 12  # pixels: the bottom and the top of a drawing's inner part


@dataclass(frozen=True, slots=True)
class Moment:
    """Had each problem been stopped `seconds` after its start: how many the vote has right, and how many hold the truth."""

    seconds: float
    right: int
    present: int


@dataclass(frozen=True, slots=True)
class Spent:
    """A stop rule on the run's attempts.

    Attributes:
        name: for people.
        style: colour class.
        tokens: of all attempts together until the decision, by problem, lowest first.
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
class Choice:
    """What a run's attempts say of its policy.

    Attributes:
        known: problems that ended and whose truth is known; `moments` and `bins` are about them, and empty without any.
        ended: as many of them as were right in the end.
        moments: in order of time, from second 0 on.
        spent: over all problems that ended; empty if no tokens were logged.
    """

    known: int
    ended: int
    moments: tuple[Moment, ...]
    spent: tuple[Spent, ...]
    bins: tuple[Bin, ...]


def choice(report: RunReport) -> Choice:
    """Works it out from the attempts that voted; second looks have no vote."""
    voting = _voting(report.run.config)
    problems = [problem for problem in report.problems if problem.record.result]
    groups = [group for problem in problems if (group := _group(report.name, problem))]
    known = [group for group in groups if group.truth != _UNKNOWN]
    return Choice(
        known=report.known,
        ended=sum(problem.verdict is Verdict.RIGHT for problem in problems),
        moments=_moments(known, voting),
        spent=tuple(spent for policy, style in _rules(voting) if (spent := _spent(groups, policy, style)).tokens),
        bins=calibration([play(group, Policy("own", voting)) for group in known]),
    )


def _voting(config: Mapping[str, Any]) -> VotingConfig:
    # A run of another version may lack options, or have others.
    own = {name: value for name, value in config.get("voting", {}).items() if name in VotingConfig.__dataclass_fields__}
    return config_from({"voting": own}).voting


def _group(run: str, problem: ProblemReport) -> Group | None:
    looks = set(Method)
    voted = [one.attempt for one in problem.attempts if not one.running and one.attempt.prompt not in looks]
    truth = _UNKNOWN if problem.record.truth is None else problem.record.truth
    return replace(group_of(voted, run=run, truth=truth), timed=True) if voted else None


def _moments(groups: Sequence[Group], voting: VotingConfig) -> tuple[Moment, ...]:
    changes: list[tuple[float, int, int]] = []
    for group in groups:
        right = present = False
        for count, attempt in enumerate(group.ended, 1):
            seen = rank(group.ended[:count], voting)
            now = bool(seen) and seen[0].answer == group.truth
            there = present or attempt.answer == group.truth
            if (now, there) != (right, present):
                changes.append((group.end(attempt), now - right, there - present))
            right, present = now, there
    moments = [Moment(0.0, 0, 0)] if groups else []
    for seconds, gained, found in sorted(changes):
        last = moments[-1]
        moments.append(Moment(seconds, last.right + gained, last.present + found))
    return tuple(moments)


def _rules(voting: VotingConfig) -> list[tuple[Policy, str]]:
    """The run's own stop rule between the quickest one and none, each with a colour."""
    rules = {
        "first": replace(parse_policy("default/first", voting), name="the first answer"),
        "never": replace(parse_policy("default/never", voting), name="all attempts"),
        voting.stop: Policy(f"this run's rule, {voting.stop}", voting),
    }
    colours = {"first": "near", "never": "mute"} | {voting.stop: "plain"}
    return [(rules[stop], colours[stop]) for stop in dict.fromkeys(("first", voting.stop, "never"))]


def _spent(groups: Sequence[Group], policy: Policy, style: str) -> Spent:
    outcomes = [play(group, policy) for group in groups]
    tokens = sorted(outcome.tokens for outcome in outcomes if outcome.tokens)
    return Spent(policy.name, style, tuple(tokens), sum(outcome.right for outcome in outcomes))


def score_figure(choice: Choice) -> Markup:
    """Problems right against seconds per problem: by the vote, and with the truth among the answers."""
    last = max((moment.seconds for moment in choice.moments), default=1.0) * 1.02
    canvas = Canvas(480, 240, last, left=34, pad=40)
    canvas.x_axis(time_ticks(last), clock, _TOP)
    y = canvas.y_axis([mark for mark in ticks(choice.known, 5) if mark == int(mark)], choice.known, short, _TOP, _BASE)
    for name, style in (("present", "line mute"), ("right", "line plain first")):
        path, level = f"M{canvas.x(0):g},{y(0):g}", 0
        for moment in choice.moments:
            if getattr(moment, name) != level:
                level = getattr(moment, name)
                path += f"H{canvas.x(moment.seconds):g}V{y(level):g}"
        canvas.add(f'<path d="{path}H{canvas.x(last):g}" class="{style}"/>')
    canvas.add(f'<circle cx="{canvas.x(last):g}" cy="{y(choice.ended):g}" r="4.5" class="v-good"/>')
    canvas.text(canvas.x(last) + 9, y(choice.ended) + 4, str(choice.ended), "answer good")
    return canvas.svg(f"Problems right against seconds per problem, of {choice.known}; {choice.ended} in the end", "half")


def tokens_figure(choice: Choice) -> Markup:
    """Problems decided by a number of tokens, per stop rule."""
    low = min(spent.tokens[0] for spent in choice.spent) / 1.15
    high = max(spent.tokens[-1] for spent in choice.spent) * 1.15
    count = max(len(spent.tokens) for spent in choice.spent)
    canvas = Canvas(480, 240, math.log10(high / low), left=34)
    canvas.x_axis([math.log10(mark / low) for mark in _decades(low, high)], lambda log: short(round(low * 10**log)), _TOP)
    y = canvas.y_axis([mark for mark in ticks(count, 5) if mark == int(mark)], count, short, _TOP, _BASE)
    for spent in choice.spent:
        path = f"M{canvas.x(0):g},{y(0):g}"
        for number, tokens in enumerate(spent.tokens, 1):
            path += f"H{canvas.x(math.log10(tokens / low)):g}V{y(number):g}"
        path += f"H{canvas.x(canvas.right):g}"
        canvas.add(f'<path d="{path}" class="line {spent.style}{" first" if spent.style == "plain" else ""}"/>')
    return canvas.svg("Problems decided against tokens of all attempts together, by stop rule", "half")


def calibration_figure(bins: Sequence[Bin]) -> Markup:
    """The part that is right against the winner's share of the vote; whiskers are 95 % intervals, areas and figures counts."""
    canvas = Canvas(480, 240, 1.0, left=44, pad=24)
    canvas.x_axis([0, 0.2, 0.4, 0.6, 0.8, 1], _percent, _TOP)
    y = canvas.y_axis([0, 0.25, 0.5, 0.75, 1], 1, _percent, _TOP, _BASE)
    canvas.add(f'<path d="M{canvas.x(0):g},{y(0):g}L{canvas.x(1):g},{y(1):g}" class="guide"/>')
    most = max(10, *(part.count for part in bins))  # a single problem is a small dot in any run
    for part in bins:
        x, middle, (low, high) = canvas.x(part.share), y(part.accuracy), part.interval
        radius = round(3 + 8 * math.sqrt(part.count / most), 1)
        canvas.add(f'<path d="M{x:g},{y(low):g}V{y(high):g}" class="whisker"/>')
        canvas.add(f'<circle cx="{x:g}" cy="{middle:g}" r="{radius:g}" class="v-plain"/>')
        canvas.text(x - radius - 4, middle + 4, str(part.count), "answer", "end")
    return canvas.svg("Part right against the winner's share of the vote, with counts of problems", "half")


def _decades(low: float, high: float) -> list[float]:
    """Round values between, so many that they do not touch: 1, 2, 5, 10 ... or powers of ten only."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        marks = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(marks) <= 7:
            break
    return marks


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
