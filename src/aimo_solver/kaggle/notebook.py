"""The notebook's run: its settings, and its sessions with the attached model, the installed wheels and the log."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aimo_solver.answers import ANSWER_RANGE, FALLBACK_ANSWER
from aimo_solver.clock import RunClock, process_age_s
from aimo_solver.config import Config, load_config
from aimo_solver.errors import AimoError, ConfigError, PathNotFoundError, RunDirectoryError
from aimo_solver.kaggle.gateway import in_rerun
from aimo_solver.kaggle.observer import LoggingObserver
from aimo_solver.kaggle.run import Run
from aimo_solver.log.writer import NullLog, RunLog, describe_environment
from aimo_solver.paths import find_compile_cache, find_model
from aimo_solver.policy.budget import Allotment
from aimo_solver.policy.options import BudgetConfig
from aimo_solver.problems import Answer, Problem, ProblemResult
from aimo_solver.server.checks import Check, Health
from aimo_solver.server.launch import LaunchPlan
from aimo_solver.server.machine import detect_gpus, recorded_versions
from aimo_solver.server.speculation import plan_speculation, read_model_config
from aimo_solver.server.wheels import Installation

if TYPE_CHECKING:
    from aimo_solver.server.supervisor import StartHistory
    from aimo_solver.solve.session import Session

_OLDEST_S = 900.0  # Kaggle's gateway waits no longer for the server, so a process that seems older has a wrong start time
_NUMBERS_TRIED = 3  # another run may take a number after the folder was listed
_EVENTS_KEPT = 1_000

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
    the first cell; an age above 15 minutes cannot be, and counts as 0. Elsewhere the process may have been idle for hours, so the
    clock counts from now.

    With `dry_run` there is no model: every problem is answered with 0 after that many seconds.

    Raises:
        ConfigError: `settings` has an option that is unknown or invalid, or options that contradict each other.
    """
    settings = {**settings, "server": {**settings.get("server", {}), "draft_model": draft}} if draft else settings
    config = load_config(settings)
    if config.answers.kind != "integer":
        raise ConfigError("answers.kind", "Kaggle's gateway takes integers only")
    possible = range(config.answers.modulus) if config.answers.modulus else config.answers.possible
    if not ANSWER_RANGE[0] <= possible[0] <= possible[-1] <= ANSWER_RANGE[-1]:
        raise ConfigError(
            "answers.range", f"{possible[0]} to {possible[-1]}; the notebook answers with 0 to {ANSWER_RANGE[-1]} only"
        )
    budget = config.budget
    age_s = process_age_s() if in_rerun() else 0.0
    if age_s > _OLDEST_S:  # the whole run would be over at once
        log.error("the notebook's process seems %.0f s old; the clock counts from now", age_s)
        age_s = 0.0
    started = time.monotonic() - age_s
    sessions = NotebookSessions(model, settings, wheels, directory, started)
    clock = RunClock.begin(budget, time.monotonic, started)
    return NotebookRun(sessions, dry_run, budget, clock, directory.parent / "progress.txt")


class NotebookRun(Run):
    """The run of the notebook. Unless `dry_run` is 0, it is `dry`: every problem is answered with 0 after that many seconds."""

    def __init__(self, sessions: NotebookSessions, dry_run: float, budget: BudgetConfig, clock: RunClock, progress: Path) -> None:
        self.sessions = sessions
        self.dry = bool(dry_run)
        opener = _DrySession(dry_run).open if dry_run else sessions.open
        super().__init__(opener, budget, clock, sessions.finish, progress)

    @property
    def out_of_time(self) -> bool:
        return self._clock.left_s <= 0


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


class NotebookSessions:
    """Opens the notebook's sessions, and keeps what outlasts them: the log, the wheels, how the server started.

    Attributes:
        checks: of the last boot outside the competition.
        plan: of the last session's server.
    """

    def __init__(self, model: str, settings: Mapping[str, Any], wheels: Installation, directory: Path, started: float) -> None:
        self.checks: Sequence[Check] = ()
        self.plan: LaunchPlan | None = None
        self._model = model
        self._settings = settings
        self._wheels = wheels
        self._directory = directory
        self._started: float | None = started
        self._repeat: int | None = None
        self._log: RunLog | None = None
        self._session: Session | None = None
        self._draft_problem: str | None = None
        self._failure: Exception | None = None  # of the last boot
        self._history: StartHistory | None = None
        self._clock: RunClock

    @asynccontextmanager
    async def open(self, observer: LoggingObserver) -> AsyncIterator[Session]:
        """Yields a session. Every step is repeated for each session: it may have failed because a mount appeared late."""
        # Their dependencies are imported after the gateway is served.
        from aimo_solver.kaggle.summary import ServerMeter, summarise_boot
        from aimo_solver.server.supervisor import StartHistory
        from aimo_solver.solve.session import local_session

        folder = await asyncio.to_thread(find_model, self._model)
        config = await asyncio.to_thread(self._config, folder)
        if self._log is None:
            self._log = await asyncio.to_thread(self._open_log, config)
        if self._draft_problem is not None:
            self._log.event("draft_left_out", reason=self._draft_problem)
        self._wheels = await asyncio.to_thread(self._wheels.renewed, self._failure)
        self._clock = observer.clock
        self._history = self._history or StartHistory(lambda: self._clock.left_s)
        try:
            opening = local_session(folder, config, self._log, [observer], self._wheels, history=self._history)
            async with opening as session:
                self._failure = None
                observer.meter = meter = ServerMeter(session.engine)
                if session.plan is not None and not in_rerun():
                    events = tuple(self._log.events) if isinstance(self._log, _PrintedLog) else ()
                    try:
                        self.checks = await summarise_boot(session, events, self._log.server_log)
                    except (OSError, RuntimeError) as error:  # no descriptor or thread is left; the session is ready
                        log.warning("no summary of the boot: %s", error)
                self.plan, self._session = session.plan, session
                async with meter.watching():
                    yield session
        except Exception as error:
            self._failure = error
            self._log.event("boot_failed", error=f"{type(error).__name__}: {error}")
            raise

    @property
    def fallback(self) -> Sequence[str]:
        """What failed starts had changed about the server that served last, restarts included."""
        return () if self._history is None else self._history.adjustments.steps

    def diagnose(self) -> list[Check]:
        """Examines the machine and the model after a boot that failed."""
        from aimo_solver.solve.doctor import examine

        try:
            folder = find_model(self._model)
            config = self._config(folder)
        except (PathNotFoundError, ConfigError) as error:
            return [Check("model", Health.BROKEN, str(error), "attach the model (Add input), and set MODEL to its handle")]
        with ThreadPoolExecutor(1) as thread:  # a notebook's cells run in an event loop
            return thread.submit(lambda: asyncio.run(examine(folder, config, self._wheels))).result()

    def begin_repeat(self, number: int) -> None:
        """Writes the problems that follow to the run directory of this repeat, numbered from 1, beside those of the others.

        The server's output and events stay in the first directory.
        """
        self._repeat = number
        previous = self._log
        if not isinstance(previous, _PrintedLog) or self._session is None:
            return
        try:
            directory = previous.directory.parent / str(number)
            self._log = _PrintedLog.create(directory, config=load_config(previous.config), environment=_environment())
        except RunDirectoryError as error:
            log.error("repeat %d has no log of its own: %s", number, error)
            return
        self._session.solver = self._session.solver.with_log(self._log)
        previous.finish()

    def _open_log(self, config: Config) -> RunLog:
        started = time.monotonic() if self._started is None else self._started
        self._started = None  # times of a run that starts again count from that start
        return open_log(self._directory, config, started, "" if self._repeat is None else str(self._repeat))

    def _config(self, folder: Path) -> Config:
        cache = find_compile_cache()
        config = load_config({"server": {"compile_cache": str(cache)}} if cache else None, folder, self._settings)
        self._draft_problem = None
        if config.server.draft_model is None:
            return config
        try:
            server = replace(config.server, draft_model=str(find_model(config.server.draft_model)))
            on_gpu = bool(detect_gpus())
            plan_speculation(replace(config, server=server), read_model_config(folder), config.solver.streams, on_gpu=on_gpu)
        except AimoError as error:  # a draft changes the speed only
            self._draft_problem = str(error)
            server = replace(config.server, speculative="none")
        return replace(config, server=server)

    def finish(self) -> None:
        """Ends the log."""
        finished, self._log, self._repeat = self._log, None, None
        if finished is not None:
            finished.finish()


class _PrintedLog(RunLog):
    """A run log whose events also appear in the notebook's output. `events` are the last ones, in memory."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.events: deque[tuple[str, Mapping[str, Any]]] = deque(maxlen=_EVENTS_KEPT)
        super().__init__(*arguments, **named)

    def event(self, kind: str, **values: Any) -> None:
        super().event(kind, **values)
        if not kind.startswith("problem_"):
            self.events.append((kind, values))
            log.info("%s %s", kind, ", ".join(f"{name}={_shorten(str(value))}" for name, value in values.items()))


def _shorten(text: str) -> str:
    """Returns the first and the last line of a text; the run prints errors in full, once."""
    lines = text.strip().splitlines()
    return text if len(lines) < 2 else f"{lines[0]} ... {lines[-1].strip()}"


def _environment() -> dict[str, Any]:
    """Describes this machine, and the versions that the attached wheels were tested on."""
    recorded = recorded_versions()
    return describe_environment() | ({"wheels": asdict(recorded)} if recorded is not None else {})


def open_log(directory: Path, config: Config, started: float, repeat: str = "") -> RunLog:
    """Opens a log in a new folder in `directory`, else in a temporary folder, else one that writes nothing.

    With `repeat` it is a folder of that name in the new one.
    """
    environment = _environment()
    for folder in _log_folders(directory):
        try:
            return _PrintedLog.create(folder / repeat, config=config, environment=environment, started=started)
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
