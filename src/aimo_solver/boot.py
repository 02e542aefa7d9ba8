"""A run behind the gateway: boots in the background, then solves what the gateway brings, until the clock is over.

One asyncio loop in a thread of its own holds everything: kernels, the vLLM server, the solver. The first problem waits
for the boot. If the boot fails for good, every problem is answered at once with the fallback answer, and the log says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import tomllib
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from aimo_solver.attempt import Attempt
from aimo_solver.budget import Allotment, Clock, allot
from aimo_solver.clock import RunClock, process_age_s
from aimo_solver.config import BudgetConfig, Config
from aimo_solver.errors import AimoError, BootError, RunDirectoryError
from aimo_solver.gateway import Work, in_rerun
from aimo_solver.paths import find_compile_cache, find_model
from aimo_solver.problems import Problem
from aimo_solver.runlog import NullLog, ProblemResult, RunLog, describe_environment
from aimo_solver.settings import config_from
from aimo_solver.wheels import Installation

if TYPE_CHECKING:
    from aimo_solver.agent import AgentRun

GRACE_S = 5.0  # a solver that is that late is not waited for any longer
_LEAST_S = 1.0  # nothing is started for less

log = logging.getLogger(__name__)


class Solves(Protocol):
    """What a run needs of a solver."""

    async def solve(self, problem: Problem, allotment: Allotment) -> ProblemResult: ...

    def best(self, problem_id: str) -> int: ...


BringUp = Callable[["Narrator"], AbstractAsyncContextManager[Solves]]


def notebook_run(model: str, settings: Mapping[str, Any], wheels: Installation, directory: Path = Path("runs")) -> Run:
    """The run of the notebook; its log goes to a new folder in `directory`.

    In a rerun the clock counts from the start of this process, which exists for the run alone and whose seconds before
    the first cell are on the session's bill. Elsewhere a kernel may have been idle for hours, so it counts from now.

    Raises:
        ConfigError: `settings` has an option that is unknown or impossible.
    """
    budget = config_from(settings).budget
    started = time.monotonic() - (process_age_s() if in_rerun() else 0.0)
    clock = RunClock.begin(budget, time.monotonic, started)

    @asynccontextmanager
    async def bring_up(narrator: Narrator) -> AsyncIterator[Solves]:
        from aimo_solver.session import local_session  # the libraries behind it load when the gateway is served

        folder = await asyncio.to_thread(find_model, model)
        config = _config(folder, settings)
        run_log = _open_log(directory, config, started)
        try:
            async with local_session(folder, config, run_log, run_log.directory, narrator, wheels) as session:
                yield session.solver
        finally:
            run_log.finish()

    return Run(bring_up, budget, clock)


class Run:
    """The `Solving` of a gateway. Seconds are handed out so that everything ends inside the clock's limit."""

    def __init__(self, bring_up: BringUp, budget: BudgetConfig, clock: RunClock) -> None:
        """`bring_up(narrator)` yields a solver that is ready, in the run's loop, and takes everything down behind it."""
        self._bring_up = bring_up
        self._budget = budget
        self._clock = clock
        self._narrator = Narrator(clock)
        self._begun = 0
        self._solving: set[asyncio.Task[int]] = set()
        self._thread = threading.Thread(target=self._live, name="aimo-solver", daemon=True)
        self._loop: asyncio.AbstractEventLoop
        self._life: asyncio.Task[None]
        self._booted: asyncio.Future[Solves | str]  # the solver, or why there is none

    def start(self) -> None:
        """Boots in the background; returns at once."""
        self._loop = asyncio.new_event_loop()
        self._life = self._loop.create_task(self._boot(), name="boot")
        self._booted = self._loop.create_future()
        self._thread.start()

    def begin(self, problem_id: str, text: str) -> Work:
        """See `Solving.begin`. Problems wait for the boot, and fail at once if it failed."""
        if not self._thread.is_alive():
            raise BootError("the run is not started, or closed")
        self._begun += 1
        work = Work(self._clock.end, best=lambda: self._best(problem_id))
        solving = self._solve(Problem(problem_id, text), self._begun, work)
        work.answer = asyncio.run_coroutine_threadsafe(solving, self._loop)
        return work

    def close(self) -> None:
        """Takes everything down: problems under way, the server, the kernels. Does nothing the second time."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop has just closed
                self._loop.call_soon_threadsafe(self._end)
            self._thread.join()

    async def _solve(self, problem: Problem, number: int, work: Work) -> int:
        task = asyncio.current_task()
        assert task is not None
        self._solving.add(task)
        task.add_done_callback(self._solving.discard)
        solver = await asyncio.shield(self._booted)
        if isinstance(solver, str):
            raise BootError(solver)
        allotment = allot(Clock(self._clock.left_s, max(0, self._budget.problems - number)), self._budget)
        work.ends_at = min(self._clock.now() + allotment.seconds + GRACE_S, self._clock.limit)
        if allotment.seconds < _LEAST_S:
            raise BootError("no time is left for it")
        log.info("problem %s, number %d of %d, gets %.0f s", problem.id, number, self._budget.problems, allotment.seconds)
        return (await solver.solve(problem, allotment)).answer

    def _best(self, problem_id: str) -> int | None:
        """The leader of the vote; what most attempts answered if voting itself broke down."""
        answers = self._narrator.answers.get(problem_id, Counter())
        solver = self._booted.result() if self._booted.done() else None
        voted = None if solver is None or isinstance(solver, str) else solver.best(problem_id)
        return voted if voted in answers else max(answers, key=lambda answer: answers[answer], default=None)

    def _live(self) -> None:
        asyncio.set_event_loop(self._loop)
        while not self._life.done():
            try:
                self._loop.run_until_complete(self._life)
            except (SystemExit, KeyboardInterrupt):
                # asyncio lets these out of the loop wherever they are raised; nothing else in it has ended.
                log.error("a task tried to end the process\n%s", traceback.format_exc())
            except asyncio.CancelledError:
                break
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _boot(self) -> None:
        started = time.monotonic()
        try:
            async with self._bring_up(self._narrator) as solver:
                log.info("booted in %.1f s; %.0f s are left", time.monotonic() - started, self._clock.left_s)
                self._booted.set_result(solver)
                await asyncio.Event().wait()  # until close() cancels it
        except Exception as error:  # noqa: BLE001 (the gateway answers on, with the reason)
            told = str(error) if isinstance(error, AimoError) else traceback.format_exc()
            log.error("the boot failed, so every problem gets the fallback answer at once: %s", told)
            if not self._booted.done():
                self._booted.set_result(f"the boot failed: {str(error).splitlines()[0] if str(error) else repr(error)}")
            await asyncio.Event().wait()

    def _end(self) -> None:
        async def end() -> None:
            for task in self._solving:
                task.cancel()
            await asyncio.gather(*self._solving, return_exceptions=True)
            self._life.cancel()

        self._loop.create_task(end(), name="end")


class Narrator:
    """Tells the notebook's reader what happens, and counts answers beside the vote.

    Attributes:
        answers: how often attempts gave each answer, per problem id.
    """

    def __init__(self, clock: RunClock) -> None:
        self.answers: dict[str, Counter[int]] = {}
        self._clock = clock

    def problem_started(self, problem: Problem, allotment: Allotment) -> None:
        self.answers[problem.id] = Counter()

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


def _config(folder: Path, settings: Mapping[str, Any]) -> Config:
    """What the model's folder recommends, with the notebook's settings on top."""
    advice = folder / "aimo.toml"
    values = tomllib.loads(advice.read_text(encoding="utf-8")) if advice.is_file() else {}
    cache = find_compile_cache()
    if cache is not None:
        values.setdefault("server", {}).setdefault("jit_cache", str(cache))
    return config_from({section: {**values.get(section, {}), **settings.get(section, {})} for section in {**values, **settings}})


class _EchoingLog(RunLog):
    """A run log whose events can be read in the notebook as well."""

    def event(self, kind: str, **values: Any) -> None:
        super().event(kind, **values)
        if not kind.startswith("problem_"):
            log.info("%s %s", kind, ", ".join(f"{name}={value}" for name, value in values.items()))


def _open_log(directory: Path, config: Config, started: float) -> RunLog:
    number = sum(1 for _ in directory.glob("*")) + 1 if directory.is_dir() else 1
    try:
        return _EchoingLog.create(directory / f"run-{number}", config=config, environment=describe_environment(), started=started)
    except RunDirectoryError as error:
        log.error("no log is kept of this run: %s", error)
        return NullLog()
