"""The run of the notebook: its settings, and what a run outside the competition needs besides."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aimo_solver.answers import FALLBACK_ANSWER
from aimo_solver.clock import RunClock, process_age_s
from aimo_solver.config import load_config
from aimo_solver.errors import ConfigError
from aimo_solver.kaggle.gateway import in_rerun
from aimo_solver.kaggle.observer import LoggingObserver
from aimo_solver.kaggle.run import Run
from aimo_solver.kaggle.sessions import NotebookSessions
from aimo_solver.options import BudgetConfig
from aimo_solver.policy.budget import Allotment
from aimo_solver.problems import Answer, Problem, ProblemResult
from aimo_solver.server.wheels import Installation

log = logging.getLogger(__name__)


def notebook_run(
    model: str,
    settings: Mapping[str, Any],
    wheels: Installation,
    directory: Path = Path("runs"),
    *,
    draft: str = "",
    dry_run: float = 0.0,
) -> NotebookRun:
    """Returns the run of the notebook, which writes its log to a new folder in `directory`.

    `model` and `draft` (server/speculation.py) are Kaggle's handles or folders; without a draft, or with one that does not fit,
    no tokens are drafted.

    In a rerun the clock counts from the start of this process, because the session's time limit includes the seconds before
    the first cell. Elsewhere the process may have been idle for hours, so the clock counts from now.

    With `dry_run` there is no model: every problem is answered with 0 after so many seconds.

    Raises:
        ConfigError: `settings` has an option that is unknown or invalid, or options that contradict each other.
    """
    settings = {**settings, "server": {**settings.get("server", {}), "draft_model": draft}} if draft else settings
    config = load_config(settings)
    if config.answers.kind != "integer":
        raise ConfigError("answers.kind", "Kaggle's gateway takes integers only")
    budget = config.budget
    started = time.monotonic() - (process_age_s() if in_rerun() else 0.0)
    sessions = NotebookSessions(model, settings, wheels, directory, started)
    clock = RunClock.begin(budget, time.monotonic, started)
    return NotebookRun(sessions, dry_run, budget, clock, directory.parent / "progress.txt")


class NotebookRun(Run):
    """The run of the notebook. With `dry_run` every problem is answered with 0 after so many seconds; 0 solves it."""

    def __init__(self, sessions: NotebookSessions, dry_run: float, budget: BudgetConfig, clock: RunClock, progress: Path) -> None:
        self.sessions = sessions
        opener = _DrySession(dry_run).open if dry_run else sessions.open
        super().__init__(opener, budget, clock, sessions.finish, progress)


class _DrySession:
    """Answers every problem with 0 after a delay: only the gateway's clock matters."""

    lost: str | None = None

    def __init__(self, seconds: float) -> None:
        self.solver = self
        self._seconds = seconds

    @asynccontextmanager
    async def open(self, observer: LoggingObserver) -> AsyncIterator[_DrySession]:
        yield self

    async def solve(self, problem: Problem, allotment: Allotment) -> ProblemResult:
        await asyncio.sleep(min(self._seconds, allotment.seconds))
        log.info("problem %s: 0 after %.0f s, as DRY_RUN is set", problem.id, self._seconds)
        return ProblemResult(problem_id=problem.id, answer=FALLBACK_ANSWER, truth=problem.truth, reason="dry run", votes=1)

    def best(self, problem_id: str) -> Answer:
        return FALLBACK_ANSWER
