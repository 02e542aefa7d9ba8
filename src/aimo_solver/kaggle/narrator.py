"""What the reader of a notebook sees of its run, and what is known of the answers if voting itself breaks down."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

from aimo_solver.clock import RunClock
from aimo_solver.log.reader import ProblemResult
from aimo_solver.policy.budget import Allotment
from aimo_solver.problems import Problem
from aimo_solver.results import Attempt

if TYPE_CHECKING:
    from aimo_solver.solve.attempt import AgentRun

log = logging.getLogger(__name__)


class Narrator:
    """Tells the notebook's reader what happens, and counts answers beside the vote.

    Attributes:
        answers: how often attempts gave each answer, per problem id.
    """

    def __init__(self, clock: RunClock) -> None:
        self.answers: dict[str, Counter[int]] = {}
        self._clock = clock

    def problem_started(self, problem: Problem, allotment: Allotment) -> None:
        self.answers.setdefault(problem.id, Counter())  # it may start again, in another session

    def attempt_changed(self, run: AgentRun) -> None: ...

    def attempt_finished(self, attempt: Attempt) -> None:
        if attempt.answer is not None:
            self.answers[attempt.problem_id][attempt.answer] += 1
        log.info(
            "  attempt %d: %s (%s) after %.0f s, %d tokens, %d calls, %d of them failed",
            attempt.index,
            "no answer" if attempt.answer is None else attempt.answer,
            attempt.finish_reason,
            attempt.seconds,
            attempt.tokens,
            attempt.tool_calls,
            attempt.tool_errors,
        )

    def problem_finished(self, result: ProblemResult) -> None:
        log.info(
            "problem %s: %d by %d votes of %d attempts after %.0f s (%s); %.0f s are left",
            result.problem_id,
            result.answer,
            result.votes,
            result.attempts,
            result.seconds,
            result.reason,
            self._clock.left_s,
        )
