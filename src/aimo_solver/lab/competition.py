"""Plays all competitions of one configuration in step, on arrays.

N = competitions * RUNS plays; a play is one run over all problems.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from aimo_solver.config import Config
from aimo_solver.errors import ConfigError
from aimo_solver.lab.records import Group
from aimo_solver.lab.statistics import Floats
from aimo_solver.policy.budget import Clock, allot
from aimo_solver.policy.stopping import RULES, Tally, leads
from aimo_solver.policy.voting import VOTERS, Ballot, ballot_of

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

RUNS = 2  # the private set is run twice
_NO_ANSWER = -1  # code
_BALLOT = ("votes", "clean", "sure", "tail_sure", "evidence")


class Pool:
    """Groups as padded arrays: one row per group, one column per attempt."""

    def __init__(self, groups: Sequence[Group], config: Config) -> None:
        self.groups = tuple(groups)
        most = max(len(group.attempts) for group in groups)
        shape = (len(groups), most)
        self.size = np.array([len(group.attempts) for group in groups])
        self.tokens = np.zeros(shape)
        self.code = np.full(shape, _NO_ANSWER)
        self.weights = {name: np.zeros(shape) for name in _BALLOT}
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
                if attempt.answer is None:
                    continue
                self.code[row, column] = answers.index(attempt.answer)
                ballot = ballot_of(attempt, config.voting)
                for name in _BALLOT:
                    self.weights[name][row, column] = getattr(ballot, name)


class Competitions:
    """All competitions of one configuration, played problem by problem.

    Attributes:
        right: whether the answer was right, (N, problems); play 2 i + r is run r of competition i.
        drawn: the group of each problem, (competitions, problems).
        used, tokens: seconds since process start and tokens sampled so far, (N,).
        limit: seconds that no play may exceed.
        undecided: problems that ran out of time, over all plays.
    """

    def __init__(
        self, pool: Pool, config: Config, competitions: int, problems: int, startup_s: float, rate: Floats, seed: int
    ) -> None:
        if config.voting.voter not in VOTERS:
            raise ConfigError("voting.voter", f"{config.voting.voter} cannot be simulated; known: {', '.join(VOTERS)}")
        self.pool, self._config, self._problems, self._seed = pool, config, problems, seed
        self._competitions = competitions
        self._plays = competitions * RUNS
        self.limit = config.budget.time_limit_s - config.budget.margin_s
        self.used = np.full(self._plays, float(startup_s))
        self.tokens = np.zeros(self._plays)
        self.right = np.zeros((self._plays, problems), dtype=bool)
        self.drawn = np.zeros((competitions, problems), dtype=np.int64)
        self.undecided = 0
        self._rate = rate
        most = config.solver.max_attempts
        self._leads = np.array([[leads(lead, second) for second in range(most + 1)] for lead in range(most + 1)])

    def play(self, number: int) -> None:
        """Plays problem `number` of all competitions."""
        draw = np.random.default_rng((self._seed, number))
        group = draw.integers(len(self.pool.groups), size=self._competitions)
        self.drawn[:, number] = group
        group = np.repeat(group, RUNS)
        # Drawn attempt by attempt, so that a configuration with more of them sees the same first ones.
        uniform = draw.random((self._config.solver.max_attempts, self._plays)).T
        attempt = (uniform * self.pool.size[group, None]).astype(np.int64)
        left = self.limit - self.used
        given = [allot(Clock(seconds, self._problems - number - 1), self._config.budget) for seconds in left.tolist()]
        solver = self._config.solver
        allowed = np.array([min(solver.max_attempts, a.max_attempts or solver.max_attempts) for a in given])
        slots = np.minimum(allowed, [min(solver.slots, a.slots or solver.slots) for a in given])
        confidence = np.array([np.nan if a.confidence is None else a.confidence for a in given])
        work = _Problem(self.pool, self._config, group, attempt, self._rate, self._leads)
        answer = work.run(np.array([a.seconds for a in given]), slots, allowed, confidence)
        self.right[:, number] = answer == self.pool.truth[group]
        self.used += work.now
        self.tokens += work.spent
        self.undecided += int(work.timed_out.sum())


class _Problem:
    """One problem in all plays.

    Attributes:
        now: seconds since the problem's start, (N,).
        spent: tokens, (N,).
        timed_out: whether time ran out before a decision and before the last attempt ended, (N,).
    """

    def __init__(self, pool: Pool, config: Config, group: Ints, attempt: Ints, rate: Floats, table: Floats) -> None:
        self._voting, self._rate, self._table = config.voting, rate, table
        row = group[:, None]
        self._tokens = pool.tokens[row, attempt]
        self._code = pool.code[row, attempt]
        self._weights = {name: pool.weights[name][row, attempt] for name in _BALLOT}
        plays = len(group)
        self._ballots = {name: np.zeros((plays, pool.codes)) for name in _BALLOT}
        self._finished = np.zeros(plays, dtype=np.int64)
        self.now = np.zeros(plays)
        self.spent = np.zeros(plays)
        self.timed_out = np.zeros(plays, dtype=bool)

    def run(self, seconds: Floats, slots: Ints, allowed: Ints, confidence: Floats) -> Ints:
        """Runs every play until it is decided, out of attempts or out of time; returns the codes of the answers."""
        column = np.arange(self._tokens.shape[1])
        to_do = np.where(column < slots[:, None], self._tokens, np.inf)  # tokens left of running attempts; inf: not running
        started = slots.copy()
        alive = np.flatnonzero(seconds > 0)
        self.timed_out[seconds <= 0] = True
        while len(alive):
            left = to_do[alive]
            next_ = left.argmin(axis=1)
            least = left[np.arange(len(alive)), next_]
            running = np.isfinite(left).sum(axis=1)
            rate = self._rate[running]
            step = np.where(running > 0, least / np.where(running > 0, rate, 1), 0.0)
            over = self.now[alive] + step > seconds[alive]
            step = np.where(over, seconds[alive] - self.now[alive], step)
            to_do[alive] = left - (rate * step)[:, None]
            self.spent[alive] += rate * step * running
            self.now[alive] = np.where(over, seconds[alive], self.now[alive] + step)
            self.timed_out[alive[over]] = True
            alive, next_ = alive[~over], next_[~over]
            to_do[alive, next_] = np.inf
            self._count(alive, next_)
            more = started[alive] < allowed[alive]
            filled = alive[more]
            to_do[filled, started[filled]] = self._tokens[filled, started[filled]]
            started[filled] += 1
            out = self._finished[alive] == allowed[alive]
            alive = alive[~(out | self._decided(alive, allowed, confidence))]
        return self._answers()

    def _count(self, plays: Ints, attempt: Ints) -> None:
        self._finished[plays] += 1
        code = self._code[plays, attempt]
        plays, attempt, code = plays[code != _NO_ANSWER], attempt[code != _NO_ANSWER], code[code != _NO_ANSWER]
        for name, ballots in self._ballots.items():
            ballots[plays, code] += self._weights[name][plays, attempt]

    def _decided(self, plays: Ints, allowed: Ints, confidence: Floats) -> Bools:
        votes = self._ballots["votes"][plays]
        top = np.sort(votes, axis=1)[:, ::-1]
        lead = top[:, 0].astype(np.int64)
        second = top[:, 1].astype(np.int64) if top.shape[1] > 1 else np.zeros_like(lead)
        answered = votes.sum(axis=1).astype(np.int64)
        tally = Tally(
            finished=self._finished[plays],
            answered=answered,
            lead=lead,
            second=second,
            share=self._share(plays) if self._voting.stop == "share" else None,
            posterior=self._table[lead, second],
            to_come=allowed[plays] - self._finished[plays],
        )
        bar = confidence[plays]
        by_rule = RULES[self._voting.stop](tally, self._voting)
        stop: Bools = np.where(np.isnan(bar), by_rule, (answered >= 1) & (tally.posterior >= bar))
        if self._voting.no_answers is not None:
            stop = stop | (tally.finished - tally.answered >= self._voting.no_answers)
        return stop

    def _scores(self, plays: Ints) -> Floats:
        own = {name: ballots[plays] for name, ballots in self._ballots.items()}
        total = {name: np.maximum(ballots.sum(axis=1, keepdims=True), 1e-300) for name, ballots in own.items()}
        scores: Floats = np.round(VOTERS[self._voting.voter](Ballot(**own), Ballot(**total)), 9)
        scores[own["votes"] == 0] = 0.0
        return scores

    def _share(self, plays: Ints) -> Floats:
        scores = self._scores(plays)
        leader = self._winners(scores, self._ballots["votes"][plays])
        total = np.maximum(scores.sum(axis=1), 1e-300)
        shares: Floats = np.round(scores[np.arange(len(plays)), leader] / total, 9)
        return shares

    def _answers(self) -> Ints:
        plays = np.arange(len(self.now))
        votes = self._ballots["votes"]
        winners = self._winners(self._scores(plays), votes)
        winners[votes.sum(axis=1) == 0] = _NO_ANSWER
        return winners

    @staticmethod
    def _winners(scores: Floats, votes: Floats) -> Ints:
        best = scores == scores.max(axis=1, keepdims=True)
        winners: Ints = np.where(best, votes, -1.0).argmax(axis=1)
        return winners
