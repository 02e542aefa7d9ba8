"""The run of the notebook: its settings, its log, and sessions on the attached model."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aimo_solver.clock import RunClock, process_age_s
from aimo_solver.config import Config, load_config
from aimo_solver.errors import AimoError, ConfigError, RunDirectoryError
from aimo_solver.kaggle.gateway import in_rerun
from aimo_solver.kaggle.run import LoggingObserver, Run
from aimo_solver.log.environment import describe_environment
from aimo_solver.log.writer import NullLog, RunLog
from aimo_solver.paths import find_compile_cache, find_model
from aimo_solver.server.speculation import plan_speculation, read_model_config
from aimo_solver.server.wheels import Installation

if TYPE_CHECKING:
    from aimo_solver.server.starts import StartHistory
    from aimo_solver.solve.session import Session

_NUMBERS_TRIED = 3  # another run may take a number after the folder was listed

log = logging.getLogger(__name__)


def notebook_run(
    model: str, settings: Mapping[str, Any], wheels: Installation, directory: Path = Path("runs"), *, draft: str = ""
) -> Run:
    """Returns the run of the notebook, which writes its log to a new folder in `directory`.

    `model` and `draft` (server/speculation.py) are Kaggle's handles or folders; without a draft, or with one that does not fit,
    no tokens are drafted.

    In a rerun the clock counts from the start of this process, because the session's time limit includes the seconds before
    the first cell. Elsewhere the process may have been idle for hours, so the clock counts from now.

    Raises:
        ConfigError: `settings` has an option that is unknown or invalid, or options that contradict each other.
    """
    config = load_config(settings, {"server": {"draft_model": draft}} if draft else None)
    if config.answers.kind != "integer":
        raise ConfigError("answers.kind", "Kaggle's gateway takes integers only")
    budget = config.budget
    started = time.monotonic() - (process_age_s() if in_rerun() else 0.0)
    clock = RunClock.begin(budget, time.monotonic, started)
    sessions = _Sessions(model, settings, draft, wheels, directory, started, clock)
    return Run(sessions.open, budget, clock, sessions.finish)


class _Sessions:
    """Opens the notebook's sessions, and keeps what outlives a session: the log, the installed wheels, how the server started."""

    def __init__(
        self,
        model: str,
        settings: Mapping[str, Any],
        draft: str,
        wheels: Installation,
        directory: Path,
        started: float,
        clock: RunClock,
    ) -> None:
        self._clock = clock
        self._history: StartHistory | None = None
        self._model = model
        self._settings = settings
        self._draft = draft
        self._wheels = wheels
        self._directory = directory
        self._started = started
        self._log: RunLog | None = None
        self._draft_problem: str | None = None
        self._failure: Exception | None = None  # of the last boot

    @asynccontextmanager
    async def open(self, observer: LoggingObserver) -> AsyncIterator[Session]:
        """Yields a session. Every step is repeated for each session, since it may have failed for a mount that came late."""
        from aimo_solver.server.starts import StartHistory
        from aimo_solver.solve.session import local_session  # their dependencies are imported after the gateway is served

        folder = await asyncio.to_thread(find_model, self._model)
        config = await asyncio.to_thread(self._config, folder)
        if self._log is None:
            self._log = await asyncio.to_thread(open_log, self._directory, config, self._started)
        if self._draft_problem is not None:
            self._log.event("draft_left_out", reason=self._draft_problem)
        self._wheels = await asyncio.to_thread(self._wheels.renewed, self._failure)
        self._history = self._history or StartHistory(lambda: self._clock.left_s)
        try:
            opening = local_session(folder, config, self._log, [observer], self._wheels, history=self._history)
            async with opening as session:
                yield session
        except Exception as error:
            self._failure = error
            self._log.event("boot_failed", error=f"{type(error).__name__}: {error}")
            raise

    def _config(self, folder: Path) -> Config:
        cache = find_compile_cache()
        draft = {"server": {"draft_model": self._draft}} if self._draft else None
        config = load_config({"server": {"compile_cache": str(cache)}} if cache else None, folder, self._settings, draft)
        self._draft_problem = None
        if config.server.draft_model is None:
            return config
        try:
            server = replace(config.server, draft_model=str(find_model(config.server.draft_model)))
            plan_speculation(server, read_model_config(folder), config.solver.streams)
        except AimoError as error:  # a run answers as well without a draft
            self._draft_problem = str(error)
            server = replace(config.server, speculative="none")
        return replace(config, server=server)

    def finish(self) -> None:
        """Ends the log."""
        if self._log is not None:
            self._log.finish()


class _PrintedLog(RunLog):
    """A run log whose events also appear in the notebook's output."""

    def event(self, kind: str, **values: Any) -> None:
        super().event(kind, **values)
        if not kind.startswith("problem_"):
            log.info("%s %s", kind, ", ".join(f"{name}={value}" for name, value in values.items()))


def open_log(directory: Path, config: Config, started: float) -> RunLog:
    """Opens a log in a new folder in `directory`, else in a temporary folder, else one that writes nothing."""
    environment = describe_environment()
    for folder in _log_folders(directory):
        try:
            return _PrintedLog.create(folder, config=config, environment=environment, started=started)
        except RunDirectoryError as error:
            log.error("no log in this folder: %s", error)
    log.error("this run keeps no log")
    return NullLog(config, started)


def _log_folders(directory: Path) -> Iterator[Path]:
    """Yields the folders to try: run-N with the next numbers in `directory`, then a temporary one."""
    try:
        names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
        numbers = [int(name[4:]) for name in names if name.startswith("run-") and name[4:].isdecimal()]
        largest = max(numbers, default=0)
        yield from (directory / f"run-{largest + step}" for step in range(1, _NUMBERS_TRIED + 1))
    except OSError as error:
        log.error("%s cannot be listed: %s", directory, error.strerror)
    try:
        yield Path(tempfile.mkdtemp(prefix="aimo-run-"))
    except OSError as error:
        log.error("no temporary folder: %s", error.strerror)
