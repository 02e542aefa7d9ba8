"""The run of the notebook: its settings, its log, and a session on the attached model, again and again if need be."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aimo_solver.clock import RunClock, process_age_s
from aimo_solver.config import Config, load_config
from aimo_solver.errors import RunDirectoryError
from aimo_solver.kaggle.gateway import in_rerun
from aimo_solver.kaggle.narrator import Narrator
from aimo_solver.kaggle.run import Run
from aimo_solver.log.environment import describe_environment
from aimo_solver.log.writer import NullLog, RunLog
from aimo_solver.paths import find_compile_cache, find_model
from aimo_solver.server.wheels import Installation

if TYPE_CHECKING:
    from aimo_solver.solve.session import Session

_TRIED = 3  # numbers, since others may take one between the look at the folder and its use

log = logging.getLogger(__name__)


def notebook_run(model: str, settings: Mapping[str, Any], wheels: Installation, directory: Path = Path("runs")) -> Run:
    """The run of the notebook; its log goes to a new folder in `directory`.

    In a rerun the clock counts from the start of this process, which exists for the run alone and whose seconds before
    the first cell are on the session's bill. Elsewhere a kernel may have been idle for hours, so it counts from now.

    Raises:
        ConfigError: `settings` has an option that is unknown or impossible, or options that do not agree.
    """
    budget = load_config(settings).budget
    started = time.monotonic() - (process_age_s() if in_rerun() else 0.0)
    sessions = _Sessions(model, settings, wheels, directory, started)
    return Run(sessions.bring_up, budget, RunClock.begin(budget, time.monotonic, started), sessions.finish)


class _Sessions:
    """The notebook's sessions, and what lives longer than each: the log, and what was installed."""

    def __init__(self, model: str, settings: Mapping[str, Any], wheels: Installation, directory: Path, started: float) -> None:
        self._model = model
        self._settings = settings
        self._wheels = wheels
        self._directory = directory
        self._started = started
        self._log: RunLog | None = None

    @asynccontextmanager
    async def bring_up(self, narrator: Narrator) -> AsyncIterator[Session]:
        """A session; every step is taken anew, since what failed may have been a mount that came late."""
        from aimo_solver.solve.session import local_session  # the libraries behind it load when the gateway is served

        folder = await asyncio.to_thread(find_model, self._model)
        config = await asyncio.to_thread(_config, folder, self._settings)
        if self._log is None:
            self._log = await asyncio.to_thread(open_log, self._directory, config, self._started)
        self._wheels = await asyncio.to_thread(self._wheels.renewed)
        try:
            async with local_session(folder, config, self._log, narrator, self._wheels) as session:
                yield session
        except Exception as error:
            self._log.event("boot_failed", error=f"{type(error).__name__}: {error}")
            raise

    def finish(self) -> None:
        """Ends the log."""
        if self._log is not None:
            self._log.finish()


class _EchoingLog(RunLog):
    """A run log whose events can be read in the notebook as well."""

    def event(self, kind: str, **values: Any) -> None:
        super().event(kind, **values)
        if not kind.startswith("problem_"):
            log.info("%s %s", kind, ", ".join(f"{name}={value}" for name, value in values.items()))


def open_log(directory: Path, config: Config, started: float) -> RunLog:
    """A log in a new folder in `directory`; in a temporary folder if that cannot be, and else one that writes nothing."""
    environment = describe_environment()
    for place in _places(directory):
        try:
            return _EchoingLog.create(place, config=config, environment=environment, started=started)
        except RunDirectoryError as error:
            log.error("no log here: %s", error)
    log.error("no log is kept of this run")
    return NullLog(config, started)


def _places(directory: Path) -> Iterator[Path]:
    """Where a log may go, the best first: the next free numbers, then a temporary folder."""
    try:
        names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
        numbers = [int(name[4:]) for name in names if name.startswith("run-") and name[4:].isdecimal()]
        largest = max(numbers, default=0)
        yield from (directory / f"run-{largest + step}" for step in range(1, _TRIED + 1))
    except OSError as error:
        log.error("%s cannot be looked into: %s", directory, error.strerror)
    try:
        yield Path(tempfile.mkdtemp(prefix="aimo-run-"))
    except OSError as error:
        log.error("no temporary folder: %s", error.strerror)


def _config(folder: Path, settings: Mapping[str, Any]) -> Config:
    cache = find_compile_cache()
    return load_config({"server": {"jit_cache": str(cache)}} if cache else None, folder, settings)
