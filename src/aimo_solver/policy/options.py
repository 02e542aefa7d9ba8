"""Options of votes, stop rules, the second look, and budgets."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from aimo_solver.options import STRICT, Count, NonNegative, Positive, Share


@dataclass(frozen=True)
class Plan:
    """Attempts of one problem: at a time, in total, and the equal answers that end it under the stop rule `equal`."""

    slots: int
    max_attempts: int
    equal: int


LARGER_PLANS = (Plan(12, 12, 5), Plan(16, 16, 8))
"""With `solver.grow`, the plans that pay off in the simulation where there is time (docs/policies.md)."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VotingConfig:
    """How an answer is chosen, and when a problem ends early.

    Attributes:
        voter: the rule that ranks answers, see policy/voting.py.
        forced_weight: weight of an answer that had to be asked for, relative to one that an attempt gave by itself.
        error_penalty: `error-weighted` counts a vote as 1 / (1 + error_penalty * tool_errors).
        proximity: the voter `proximity` clusters answers that differ by at most this share of the larger one.
        refine: how the voter `proximity` chooses the answer of a cluster.
        stop: the rule that ends a problem early, see policy/stopping.py.
        equal: for `equal`, votes for one answer.
        margin: for `margin`, lead in votes over every other answer.
        share: for `share`, share of all scores once there are `share_after` answers.
        consistency: for `consistency`, pairs (k, n): k equal answers among the first n.
        confidence: for `posterior`, probability that the leader is the more likely of the first two answers.
        no_answers: attempts without an answer that end a problem under any rule; None means no limit.
    """

    voter: Literal["majority", "error-weighted", "entropy", "tail-entropy", "vote-share", "lexicographic", "proximity"] = (
        "error-weighted"
    )
    forced_weight: Annotated[float, Field(gt=0, le=10)] = 1.0
    error_penalty: NonNegative = 0.1
    proximity: Annotated[float, Field(ge=0, lt=1)] = 0.05
    refine: Literal["median", "trimmed-mean"] = "median"
    stop: Literal["equal", "uncatchable", "margin", "share", "first", "consistency", "posterior", "never"] = "equal"
    equal: Count = 4
    margin: Count = 3
    share: Share = 0.7
    share_after: Count = 4
    consistency: tuple[tuple[Count, Count], ...] = ((3, 3), (4, 5), (5, 7))
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    no_answers: Count | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SelectionConfig:
    """A second look at problems whose vote has no clear winner, see policy/selection.py.

    Attributes:
        select, verify: "off", "log" (asked and logged, but the vote decides) or "use" (a clear choice decides).
        clear_share: the vote is clear if its leader has at least this share of all scores.
        candidates: how many are shown.
        asks: attempts per method, half of them with the candidates in reversed order.
        summary_chars: longest summary of a candidate.
        least_s: there is no second look with less time left.
    """

    select: Literal["off", "log", "use"] = "off"
    verify: Literal["off", "log", "use"] = "off"
    clear_share: Share = 0.6
    candidates: Annotated[int, Field(ge=2)] = 3
    asks: Annotated[int, Field(ge=2, multiple_of=2)] = 4
    summary_chars: Annotated[int, Field(ge=100)] = 1_500
    least_s: NonNegative = 60.0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BudgetConfig:
    """How time is allotted to problems.

    Attributes:
        rule: how a problem's seconds follow from the time left, see policy/budget.py.
        time_limit_s: from process start to the end of everything; 5 h on Kaggle.
        margin_s: part of time_limit_s that no problem gets.
        reserve_s: reserved for each later problem.
        cap_s: most seconds for one problem.
        least_s: a problem gets at least this, or all the time left, so that some problems are solved instead of none when time
            is short; policy/budget.py gives the reason for 10.
        saturation_s: for `marginal`, seconds after which a problem's chance has reached 63 % of its maximum.
        problems: expected number of problems where it is not known.
    """

    rule: Literal["greedy", "clamp", "even", "tiers", "marginal"] = "greedy"
    time_limit_s: Positive = 18_000.0
    margin_s: NonNegative = 300.0
    reserve_s: NonNegative = 300.0
    cap_s: Positive = 900.0
    least_s: NonNegative = 10.0
    saturation_s: Positive = 110.0
    problems: Count = 50
