"""The interface of observers, which follow the problems of a run while they are solved: logs, progress, counters."""

from __future__ import annotations

from typing import Protocol

from aimo_solver.problems import Problem, ProblemResult
from aimo_solver.results import Attempt
from aimo_solver.solve.attempt import RunningAttempt


class Observer(Protocol):
    """Follows problems while they are solved. Subclasses override the methods they need."""

    def problem_started(self, problem: Problem, allotted_s: float) -> None:
        return

    def attempt_changed(self, attempt: RunningAttempt) -> None:
        return

    def attempt_finished(self, attempt: Attempt) -> None:
        return

    def problem_finished(self, result: ProblemResult) -> None:
        return
