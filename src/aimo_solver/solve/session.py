"""A session: server, engine, chat format, kernels and solver, started concurrently and closed together.

The optional stages (kernels, read-ahead, compile cache, first requests) never stop a boot, and a part that cannot be closed
does not keep the others open. The run's log records both.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from aimo_solver.chat.families import load_chat_format
from aimo_solver.config import Config, check_context
from aimo_solver.kernels.pool import KernelPool
from aimo_solver.log.writer import RunLog
from aimo_solver.problems import ProblemResult
from aimo_solver.server.checks import Health, kv_check
from aimo_solver.server.client import VllmEngine
from aimo_solver.server.compile_cache import add_cache
from aimo_solver.server.completions import read_drafts
from aimo_solver.server.launch import LaunchPlan, check_model, plan_launch
from aimo_solver.server.machine import difference, recorded_versions, running_versions
from aimo_solver.server.readahead import read_ahead
from aimo_solver.server.speculation import without_min_p
from aimo_solver.server.supervisor import StartHistory, Supervisor
from aimo_solver.server.warmup import warm_up
from aimo_solver.server.wheels import NOTHING_TO_INSTALL, Installation
from aimo_solver.solve.attempt import Resources, Unify, keep_answer
from aimo_solver.solve.observer import Observer
from aimo_solver.solve.solver import Solver

_WHEELS_S = 900.0  # pip takes a minute or two; if it takes longer than this, it hangs on a mount that is gone
_CACHE_S = 120.0  # a compile cache is in place within seconds
_WARM_UP_S = 120.0  # first requests took 10 s on an H200
STRAGGLERS_S = 30.0  # kernels are ready long before a server; if not, attempts wait for them or go without
_CLOSE_S = 20.0  # for each part; a server gets 5 s to end by itself and 10 s to be killed

_T = TypeVar("_T")


@dataclass(slots=True)
class Session:
    """A solver that is ready, and its parts.

    Attributes:
        solver: may be replaced by one with another log.
        plan: how the server was started; None at an endpoint.
        warning: a problem that may slow the run down, in one line; None if there is none.
    """

    solver: Solver
    engine: VllmEngine
    resources: Resources
    plan: LaunchPlan | None = None
    warning: str | None = None

    @property
    def lost(self) -> str | None:
        """Why the server is gone for good, in one line; None while it runs or is being restarted."""
        return None if self.engine.lost is None else str(self.engine.lost).partition("\n")[0]


@asynccontextmanager
async def local_session(
    model: Path,
    config: Config,
    log: RunLog,
    observers: Sequence[Observer] = (),
    wheels: Installation = NOTHING_TO_INSTALL,
    unify: Unify = keep_answer,
    history: StartHistory | None = None,
) -> AsyncIterator[Session]:
    """Starts a session on a vLLM server of its own, whose output goes to the log's ``server.log``; for `unify` see `Resources`.

    `history` is shared by the sessions of a run that opens several.

    Its stages run concurrently, each with two events in the log: the kernels start, the model's files are read into the
    page cache, and the server starts, which waits only for the wheels and the compile cache.

    Raises:
        ModelError: the folder cannot be used.
        ConfigError: an option does not fit the model.
        WheelError: the packages that the image lacks could not be installed.
        ServerStartError: the server did not come up, not even with safe settings.
    """
    check_model(model)
    history = history or StartHistory()
    async with AsyncExitStack() as stack:
        boot = Boot(stack, config, log)
        pool, kernels = boot.start_kernels()
        overtaken = threading.Event()
        reading = boot.in_background("weights", _read_weights(model, log, overtaken))
        stack.callback(overtaken.set)
        await boot.stage("wheels", asyncio.to_thread(wheels.wait, max(0.0, min(_WHEELS_S, history.left_s()))))
        chat = await asyncio.to_thread(load_chat_format, model, config.prompt.family)
        plan = await asyncio.to_thread(plan_launch, model, config, wheels)
        check_context(config, plan.context_tokens)
        running = running_versions(wheels.path, plan.gpus)
        log.event("versions", **asdict(running), difference=difference(await asyncio.to_thread(recorded_versions), running))
        for flag in plan.dropped:
            log.event("flag_dropped", flag=flag.name, reason="unknown to the installed vLLM")
        if (drafting := plan.speculation) is not None:
            top_p = without_min_p(config.sampling).top_p  # in place of min_p
            log.event("speculation", method=drafting.method, tokens=drafting.tokens, draft=str(drafting.draft), top_p=top_p)
        if plan.gpus or config.server.compile_cache:
            adding = asyncio.to_thread(add_cache, plan)
            plan = await boot.optional_stage("compile cache", adding, plan, limit_s=_CACHE_S)
        plan = history.first_plan(plan)
        engine = plan.engine()
        boot.close_later("engine", engine.close)
        supervisor = Supervisor(plan, engine, log.server_log, log.event)
        boot.close_later("server", supervisor.stop)
        await boot.stage("server", history.start(supervisor))
        overtaken.set()
        if plan.gpus:  # a CPU has nothing left to compile
            requests = warm_up(engine, slots=plan.slots, vocabulary=plan.vocabulary)
            await boot.optional_stage("first requests", requests, None, limit_s=_WARM_UP_S)
        await asyncio.wait({kernels, reading}, timeout=STRAGGLERS_S)
        warning = await check_cache(engine, config.solver.streams, log)
        resources = Resources(engine=engine, chat=chat, pool=pool, config=config, unify=unify)
        observers = [*observers, _RestartRefill(supervisor)]
        if plan.speculation is not None:
            observers.append(drafts := _DraftLog(engine, log))
            boot.close_later("counts of drafts", drafts.close)
        yield Session(Solver(resources, log, observers), engine, resources, supervisor.plan, warning)


async def check_cache(engine: VllmEngine, streams: int, log: RunLog) -> str | None:
    """Logs the size of the server's KV cache; returns the warning of `kv_check`, None if it is large enough or unknown."""
    tokens, context = await engine.kv_cache_tokens(), engine.context_tokens
    if tokens is None:
        return None
    check = kv_check(tokens, streams, context)
    warning = None if check.health is Health.OK else f"the {check.name} holds {check.finding}; {check.advice}"
    log.event("kv_cache", tokens=tokens, streams=streams, context_tokens=context, warning=warning)
    return warning


class _RestartRefill(Observer):
    """Resets the server's restarts after a problem that was answered."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def problem_finished(self, result: ProblemResult) -> None:
        if result.votes:
            self._supervisor.refill()


class _DraftLog(Observer):
    """Logs after each problem what the server has drafted since its start."""

    def __init__(self, engine: VllmEngine, log: RunLog) -> None:
        self._engine = engine
        self._log = log
        self._counts: set[asyncio.Task[None]] = set()

    def problem_finished(self, result: ProblemResult) -> None:
        task = asyncio.create_task(self._count(result.problem_id))
        self._counts.add(task)
        task.add_done_callback(self._counts.discard)

    async def _count(self, problem_id: str) -> None:
        counts = read_drafts(await self._engine.metrics())
        if counts is not None:
            per_step = round(counts.tokens_per_step, 3)
            self._log.event("drafts", problem_id=problem_id, **asdict(counts), tokens_per_step=per_step)

    async def close(self) -> None:
        """Waits for the last count."""
        if self._counts:
            await asyncio.wait(self._counts)


async def _read_weights(model: Path, log: RunLog, overtaken: threading.Event) -> None:
    log.event("weights_read", report=str(await asyncio.to_thread(read_ahead, [model], stop=overtaken)))


class Boot:
    """The stages of a session's start. What it starts is closed when `stack` unwinds."""

    def __init__(self, stack: AsyncExitStack, config: Config, log: RunLog) -> None:
        self._stack = stack
        self._config = config
        self._log = log

    async def stage(self, name: str, work: Awaitable[_T]) -> _T:
        """Awaits `work`, with an event at its start and its end."""
        self._log.event("stage_started", stage=name)
        began = time.monotonic()
        values: dict[str, str] = {"outcome": "done"}
        try:
            return await work
        except BaseException as error:  # a cancelled stage is logged too
            values = {"outcome": "failed", "error": f"{type(error).__name__}: {error}"}
            raise
        finally:
            self._log.event("stage_ended", stage=name, seconds=round(time.monotonic() - began, 3), **values)

    async def optional_stage(self, name: str, work: Awaitable[_T], fallback: _T, *, limit_s: float | None = None) -> _T:
        """Awaits `work`; returns `fallback` if it fails or takes longer than `limit_s`."""
        try:
            async with asyncio.timeout(limit_s):
                return await self.stage(name, work)
        except Exception:  # noqa: BLE001 (a run goes on without it; the stage's last event has the error)
            return fallback

    def in_background(self, name: str, work: Awaitable[None]) -> asyncio.Task[None]:
        """Runs an optional stage alongside the others; cancels it when the stack unwinds."""
        task = asyncio.create_task(self.optional_stage(name, work, None), name=name)

        async def cancel() -> None:
            task.cancel()
            await asyncio.wait({task})

        self.close_later(f"start of {name}", cancel)
        return task

    def start_kernels(self) -> tuple[KernelPool, asyncio.Task[None]]:
        """Returns a pool, and the task in which its kernels start."""
        pool = KernelPool.from_config(self._config.kernels, self._log.event, leases=self._config.solver.streams)
        self.close_later("kernels", pool.close)
        return pool, self.in_background("kernels", pool.start())

    def close_later(self, part: str, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Calls `close` when the stack unwinds; if it fails or hangs, the other parts are closed anyway."""

        async def close_part() -> None:
            try:
                async with asyncio.timeout(_CLOSE_S):
                    await close()
            except Exception as error:  # noqa: BLE001 (the other parts have to be closed too)
                self._log.event("teardown_failed", part=part, error=f"{type(error).__name__}: {error}")

        self._stack.push_async_callback(close_part)
