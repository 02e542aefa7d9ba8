"""Plays all competitions of one configuration in lockstep, on arrays.

N = competitions * RUNS plays; a play is one run over all problems.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from aimo_solver.config import Config
from aimo_solver.errors import ConfigError
from aimo_solver.lab.records import Group
from aimo_solver.lab.statistics import Floats
from aimo_solver.lab.throughput import Throughput, TokenTime
from aimo_solver.policy.budget import allot
from aimo_solver.policy.pace import PlanTotals, choose_plan
from aimo_solver.policy.stopping import STOP_RULES, Tally, lead_probability
from aimo_solver.policy.voting import VOTERS, Ballot, ballot_of

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

RUNS = 2  # the private set is run twice
PROMPT_TOKENS = 300  # of gpt-oss with its system message; tool results, 3 % of an attempt, are left out
_NO_ANSWER = -1  # code


class Order(StrEnum):
    """The order of a competition's problems by difficulty, the share of right attempts in their groups.

    `MIDDLE` puts the hard problems in the middle: the easier a problem, the nearer it is to the first or the last.
    """

    RANDOM = "random"
    FIRST = "hard-first"
    MIDDLE = "hard-middle"
    LAST = "hard-last"


def draw_problems(
    groups: Sequence[Group], competitions: int, problems: int | None, seed: int, order: Order = Order.RANDOM
) -> Ints:
    """Returns the indices of the groups that each competition plays, in order, (competitions, problems).

    Args:
        problems: drawn with replacement; None means every group once.
    """
    draw = np.random.default_rng(seed)
    if problems is None:
        drawn = draw.permuted(np.tile(np.arange(len(groups)), (competitions, 1)), axis=1)
    else:
        drawn = draw.integers(len(groups), size=(competitions, problems))
    if order is Order.RANDOM:
        return drawn
    ease = np.array([sum(one.answer == group.truth for one in group.attempts) / len(group.attempts) for group in groups])
    drawn = np.take_along_axis(drawn, ease[drawn].argsort(axis=1, kind="stable"), axis=1)
    if order is Order.LAST:
        return drawn[:, ::-1]
    return drawn if order is Order.FIRST else np.concatenate((drawn[:, ::-2], drawn[:, drawn.shape[1] % 2 :: 2]), axis=1)


class _Pool:
    """Groups as padded arrays: one row per group, one column per attempt."""

    def __init__(self, groups: Sequence[Group], config: Config) -> None:
        shape = (len(groups), max(len(group.attempts) for group in groups))
        self.size = np.array([len(group.attempts) for group in groups])
        self.tokens = np.zeros(shape)
        self.code = np.full(shape, _NO_ANSWER)
        self.ballot = np.zeros((*shape, len(fields(Ballot))))
        self.truth = np.full(len(groups), _NO_ANSWER - 1)
        self.codes = 1
        for row, group in enumerate(groups):
            # In ascending order: argmax breaks ties in favour of the smaller answer, as voting.rank does.
            answers = sorted({attempt.answer for attempt in group.ended if attempt.answer is not None})
            self.codes = max(self.codes, len(answers))
            if group.truth in answers:
                self.truth[row] = answers.index(group.truth)
            for column, attempt in enumerate(group.attempts):
                self.tokens[row, column] = max(1, attempt.tokens)
                if attempt.answer is not None:
                    self.code[row, column] = answers.index(attempt.answer)
                    self.ballot[row, column] = astuple(ballot_of(attempt, config.voting))


class Competitions:
    """All competitions of one configuration, played problem by problem.

    Attributes:
        right: whether the answer was right, (N, problems); play 2 i + r is run r of competition i.
        drawn: the group of each problem, (competitions, problems).
        used, tokens: seconds since process start and tokens sampled so far, (N,).
        groups: number of groups.
        limit: seconds that no play may exceed.
        undecided: problems that ran out of time, over all plays.
    """

    def __init__(
        self, groups: Sequence[Group], config: Config, drawn: Ints, startup_s: float, speed: Throughput, seed: int
    ) -> None:
        """`drawn` is from `draw_problems`."""
        if config.voting.voter not in VOTERS:
            raise ConfigError("voting.voter", f"{config.voting.voter} cannot be simulated; known: {', '.join(VOTERS)}")
        plays = len(drawn) * RUNS
        self.limit = config.budget.time_limit_s - config.budget.margin_s
        self.groups = len(groups)
        self.used = np.full(plays, float(startup_s))
        self.tokens = np.zeros(plays)
        self.right = np.zeros((plays, drawn.shape[1]), dtype=bool)
        self.drawn = drawn
        self.undecided = 0
        self._pool, self._config, self._seed = _Pool(groups, config), config, seed
        self._pace = TokenTime(speed, config.solver.streams)
        self._plans = config.plans
        # By play and plan.
        self._problems, self._sampled, self._seconds = np.zeros((3, plays, len(self._plans)))
        self._most = most = max(plan.max_attempts for plan in self._plans)
        self._leads = np.array([[lead_probability(lead, second) for second in range(most + 1)] for lead in range(most + 1)])

    def play(self, number: int) -> None:
        """Plays problem `number` of all competitions."""
        pool = self._pool
        plays, problems = self.right.shape
        draw = np.random.default_rng((self._seed, number))
        group = np.repeat(self.drawn[:, number], RUNS)
        # Drawn attempt by attempt, so that a configuration with more of them sees the same first ones.
        uniform = draw.random((self._most, plays)).T
        attempt = (uniform * pool.size[group, None]).astype(np.int64)
        left = self.limit - self.used
        given = [allot(seconds, problems - number - 1, self._config.budget) for seconds in left.tolist()]
        plan = self._choose_plans(left.tolist(), problems - number - 1)
        slots, most = np.array([(one.slots, one.max_attempts) for one in self._plans])[plan].T
        limits = _Limits(
            seconds=np.array([a.seconds for a in given]),
            attempts=np.minimum(most, [a.max_attempts or self._most for a in given]),
            slots=slots,
            plan=plan,
            confidence=np.array([np.nan if a.confidence is None else a.confidence for a in given]),
        )
        work = _Problem(pool, self._config, group, attempt, self._pace, self._leads)
        answer = work.run(limits)
        self.right[:, number] = answer == pool.truth[group]
        self.used += work.now
        self.tokens += work.spent
        self.undecided += int(work.timed_out.sum())
        every = np.arange(plays)
        for sums, values in ((self._problems, ~work.timed_out), (self._sampled, work.spent), (self._seconds, work.now)):
            sums[every, plan] += values

    def _choose_plans(self, left_s: Sequence[float], later: int) -> Ints:
        if len(self._plans) == 1:
            return np.zeros(len(left_s), dtype=np.int64)
        rows = zip(self._problems.tolist(), self._sampled.tolist(), self._seconds.tolist(), left_s, strict=True)
        return np.array([choose_plan(self._plans, PlanTotals(*row[:3]), row[3], later) for row in rows])


@dataclass(frozen=True, slots=True)
class _Limits:
    """What each play's problem gets, (N,)."""

    seconds: Floats
    attempts: Ints
    slots: Ints
    plan: Ints
    confidence: Floats  # NaN: by the stop rule


class _Problem:
    """One problem in all plays.

    Attributes:
        now: seconds since the problem's start, (N,).
        spent: tokens, (N,).
        timed_out: whether time ran out before a decision and before the last attempt ended, (N,).
    """

    def __init__(self, pool: _Pool, config: Config, group: Ints, attempt: Ints, pace: TokenTime, table: Floats) -> None:
        self._voting, self._pace, self._table = config.voting, pace, table
        self._equal = [plan.equal for plan in config.plans]
        row = group[:, None]
        self._tokens = pool.tokens[row, attempt]
        self._code = pool.code[row, attempt]
        self._ballot = pool.ballot[row, attempt]
        plays = len(group)
        self._ballots = np.zeros((plays, pool.codes, pool.ballot.shape[2]))  # sums by answer
        self._votes = np.zeros((plays, pool.codes), dtype=np.int64)  # attempts by answer
        self._finished = np.zeros(plays, dtype=np.int64)
        self.now = np.zeros(plays)
        self.spent = np.zeros(plays)
        self.timed_out = np.zeros(plays, dtype=bool)

    def run(self, limits: _Limits) -> Ints:
        """Runs every play until it is decided, out of attempts or out of time; returns the codes of the answers."""
        seconds, allowed = limits.seconds, limits.attempts
        slots = np.minimum(limits.slots, allowed)
        column = np.arange(self._tokens.shape[1])
        to_do = np.where(column < slots[:, None], self._tokens, np.inf)  # tokens left of running attempts; inf: not running
        started = slots.copy()
        alive = np.flatnonzero(seconds > 0)
        self.timed_out[seconds <= 0] = True
        while len(alive):
            left = to_do[alive]
            next_ = left.argmin(axis=1)
            least = left[np.arange(len(alive)), next_]
            runs = np.isfinite(left)
            running = runs.sum(axis=1)
            least = np.where(running > 0, least, 0.0)
            sampled = np.where(runs, self._tokens[alive] - left, 0.0).sum(axis=1)
            # The mean depth half-way; a step's time is linear in it.
            step = least * self._pace(running, PROMPT_TOKENS + sampled / np.maximum(running, 1) + least / 2)
            over = self.now[alive] + step > seconds[alive]
            rest = np.where(over, seconds[alive] - self.now[alive], step)
            tokens = np.where(over, least * rest / np.maximum(step, 1e-12), least)
            to_do[alive] = left - tokens[:, None]
            self.spent[alive] += tokens * running
            self.now[alive] = np.where(over, seconds[alive], self.now[alive] + rest)
            self.timed_out[alive[over]] = True
            alive, next_ = alive[~over], next_[~over]
            to_do[alive, next_] = np.inf
            self._count(alive, next_)
            more = started[alive] < allowed[alive]
            filled = alive[more]
            to_do[filled, started[filled]] = self._tokens[filled, started[filled]]
            started[filled] += 1
            out = self._finished[alive] == allowed[alive]
            alive = alive[~(out | self._decided(alive, limits))]
        return self._leaders(np.arange(len(self.now)))[0]

    def _count(self, plays: Ints, attempt: Ints) -> None:
        self._finished[plays] += 1
        code = self._code[plays, attempt]
        plays, attempt, code = plays[code != _NO_ANSWER], attempt[code != _NO_ANSWER], code[code != _NO_ANSWER]
        self._ballots[plays, code] += self._ballot[plays, attempt]
        self._votes[plays, code] += 1

    def _decided(self, plays: Ints, limits: _Limits) -> Bools:
        votes = self._votes[plays]
        top = np.sort(votes, axis=1)[:, ::-1]
        lead, second = top[:, 0], top[:, 1] if top.shape[1] > 1 else np.zeros_like(top[:, 0])
        answered = votes.sum(axis=1)
        tally = Tally(
            finished=self._finished[plays],
            answered=answered,
            lead=lead,
            second=second,
            share=self._leaders(plays)[1] if self._voting.stop == "share" else None,
            posterior=self._table[lead, second],
            to_come=limits.attempts[plays] - self._finished[plays],
        )
        bar = limits.confidence[plays]
        rule = STOP_RULES[self._voting.stop]
        by_rule = np.choose(limits.plan[plays], [rule(tally, replace(self._voting, equal=equal)) for equal in self._equal])
        stop: Bools = np.where(np.isnan(bar), by_rule, (answered >= 1) & (tally.posterior >= bar))
        if self._voting.no_answers is not None:
            stop = stop | (tally.finished - tally.answered >= self._voting.no_answers)
        return stop

    def _leaders(self, plays: Ints) -> tuple[Ints, Floats]:
        """Returns the codes of the leading answers and their shares of all scores; ties are broken as in voting.rank."""
        own = self._ballots[plays]
        total = np.maximum(own.sum(axis=1, keepdims=True), 1e-300)
        voter = VOTERS[self._voting.voter]
        votes = own[:, :, 0]
        scores = np.round(voter(Ballot(*np.moveaxis(own, 2, 0)), Ballot(*np.moveaxis(total, 2, 0))), 9) * (votes > 0)
        leader = np.where(scores == scores.max(axis=1, keepdims=True), votes, -1.0).argmax(axis=1)
        shares = np.round(scores[np.arange(len(plays)), leader] / np.maximum(scores.sum(axis=1), 1e-300), 9)
        return np.where(votes.any(axis=1), leader, _NO_ANSWER), shares
