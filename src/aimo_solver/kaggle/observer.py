"""What a run logs while it solves problems: a line for each attempt and problem, and its progress in a file."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from aimo_solver.clock import RunClock
from aimo_solver.problems import Answer, Problem, ProblemResult
from aimo_solver.results import Attempt

if TYPE_CHECKING:
    from aimo_solver.kaggle.summary import ServerMeter
    from aimo_solver.solve.attempt import RunningAttempt

PROGRESS_S = 60.0  # between two lines of the progress file

log = logging.getLogger(__name__)


class LoggingObserver:
    """Logs each attempt and problem that ends, and counts answers, in case the vote fails.

    Attributes:
        answers: how many attempts gave each answer, by problem id; empty for a problem without one.
        finished: problems that the solver has ended.
        clock: of the run.
        meter: of the session's server, if there is one.
    """

    def __init__(self, clock: RunClock) -> None:
        self.answers: dict[str, Counter[Answer]] = {}
        self.finished = 0
        self.meter: ServerMeter | None = None
        self.clock = clock

    def problem_started(self, problem: Problem, allotted_s: float) -> None:
        self.answers.setdefault(problem.id, Counter())  # a problem may start again in another session
        if self.meter is not None:
            self.meter.begin()

    def attempt_changed(self, attempt: RunningAttempt) -> None: ...

    def attempt_finished(self, attempt: Attempt) -> None:
        if attempt.answer is not None:
            self.answers[attempt.problem_id][attempt.answer] += 1
        answer = "no answer" if attempt.answer is None else attempt.answer
        calls = f"{attempt.tool_calls} calls, {attempt.tool_errors} of them failed"
        spent = f"{attempt.seconds:.0f} s, {attempt.tokens} tokens, {calls}"
        log.info("  attempt %d: %s (%s) after %s", attempt.index, answer, attempt.finish_reason, spent)

    def problem_finished(self, result: ProblemResult) -> None:
        self.finished += 1
        verdict = "" if result.right is None else " (right)" if result.right else f" (wrong: {result.truth})"
        votes = f"{result.votes} votes of {result.attempts} attempts after {result.seconds:.0f} s ({result.reason})"
        measured = "" if self.meter is None else f"{self.meter.describe(result)}; "
        left = f"{measured}{self.clock.left_s:.0f} s are left"
        log.info("problem %s: %s%s by %s; %s", result.problem_id, result.answer, verdict, votes, left)


class ProgressFile:
    """Appends a line to a file every minute, in a thread of its own. A line that cannot be written is left out."""

    def __init__(self, path: Path, describe: Callable[[], str]) -> None:
        """Starts at once; `describe` returns one line."""
        self._path = path
        self._describe = describe
        self._ended = threading.Event()
        # A daemon thread outside the event loop: a disk that hangs holds up nothing.
        self._thread = threading.Thread(target=self._write_lines, name="progress", daemon=True)
        with contextlib.suppress(RuntimeError):  # no thread is left
            self._thread.start()

    def end(self) -> None:
        """Writes a last line and stops."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(1.0)

    def _write_lines(self) -> None:
        ended = False
        while True:
            with contextlib.suppress(OSError), self._path.open("a", encoding="utf-8") as file:
                file.write(f"{self._describe()}\n")
            if ended:
                return
            ended = self._ended.wait(PROGRESS_S)
