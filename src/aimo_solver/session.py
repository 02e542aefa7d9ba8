"""Everything a run needs, brought up side by side and taken down whole: server, engine, chat format, kernels, solver."""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aimo_solver.agent import AttemptTools
from aimo_solver.chat import ChatFormat, chat_format
from aimo_solver.config import Config
from aimo_solver.endpoint import find_model
from aimo_solver.engine import VllmEngine
from aimo_solver.errors import ConfigError, EndpointError, EngineError, ModelError
from aimo_solver.jitcache import shipped
from aimo_solver.kernels import KernelPool
from aimo_solver.machine import Machine, detect_machine, installed_flags
from aimo_solver.presets import Preset, choose, command
from aimo_solver.prewarm import prewarm
from aimo_solver.runlog import RunLog
from aimo_solver.server import ServerCommand, Supervisor, free_port
from aimo_solver.solver import Observer, Solver
from aimo_solver.warmup import warm_up
from aimo_solver.wheels import NOTHING_TO_INSTALL, Installation

SERVED_NAME = "model"
_UNTOLD_CONTEXT = 32_768  # tokens, for an endpoint that does not tell how many it holds


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
    run_dir: Path,
    observer: Observer | None = None,
    wheels: Installation = NOTHING_TO_INSTALL,
) -> AsyncIterator[Session]:
    """A session on a vLLM server of our own; its output goes to ``server.log`` in `run_dir`.

    Its stages run side by side, each with two events in the log: the kernels start, the model's files are read into the
    page cache, and the server starts, which waits for nothing but the wheels and the compile cache.

    Raises:
        ModelError: the folder cannot be used.
        WheelError: what the server needs could not be installed.
        ServerStartError: the server did not come up, not even with safe settings.
        KernelStartError: kernels do not come up.
    """
    check_model(model)
    async with AsyncExitStack() as stack:
        pool = KernelPool.from_config(config.kernels)
        stack.push_async_callback(pool.close)
        kernels = asyncio.create_task(_stage(log, "kernels", pool.start()), name="kernels")
        stack.push_async_callback(_cancelled, kernels)
        overtaken = threading.Event()
        reading = asyncio.create_task(_read_ahead(model, log, overtaken), name="weights")
        stack.push_async_callback(_cancelled, reading)
        stack.callback(overtaken.set)
        await _stage(log, "wheels", asyncio.to_thread(wheels.wait))
        chat = await asyncio.to_thread(_chat, model, config)
        machine = detect_machine()
        preset = choose(model, config.server, slots=config.solver.slots, machine=machine)
        engine, supervisor = await asyncio.to_thread(_server, model, config, log, run_dir, preset, machine, wheels)
        await stack.enter_async_context(engine)
        stack.push_async_callback(supervisor.stop)
        await _stage(log, "server", supervisor.start())
        overtaken.set()
        if machine.gpus:  # a CPU has nothing left to compile
            await _stage(log, "first requests", _warm_up(engine, config, preset.vocabulary, log))
        await kernels
        await reading
        yield _session(engine, chat, pool, config, log, observer)


def _server(
    model: Path, config: Config, log: RunLog, run_dir: Path, preset: Preset, machine: Machine, wheels: Installation
) -> tuple[VllmEngine, Supervisor]:
    """The client and the supervisor of a server that is not started yet."""
    port = free_port()
    cache = shipped(config.server.jit_cache, model, preset, machine, wheels.path)
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
        run_dir / "server.log",
        engine,
        start_timeout_s=config.server.start_timeout_s,
        stall_s=config.server.stall_s,
        restarts=config.server.restarts,
        on_event=log.event,
    )
    return engine, supervisor


async def _read_ahead(model: Path, log: RunLog, overtaken: threading.Event) -> None:
    async def read() -> None:
        log.event("weights_read", report=str(await asyncio.to_thread(prewarm, [model], stop=overtaken)))

    await _stage(log, "weights", read())


async def _warm_up(engine: VllmEngine, config: Config, vocabulary: int, log: RunLog) -> None:
    try:
        await warm_up(engine, slots=config.solver.slots, vocabulary=vocabulary)
    except* EngineError as errors:  # the first problem is slower then, and the supervisor sees to the server
        log.event("warm_up_failed", error=str(errors.exceptions[0]))


async def _stage(log: RunLog, name: str, work: Coroutine[Any, Any, None]) -> None:
    """Awaits a stage of the boot, with an event at its start and its end."""
    log.event("stage_started", stage=name)
    began = time.monotonic()
    outcome = "failed"
    try:
        await work
        outcome = "done"
    finally:
        log.event("stage_ended", stage=name, seconds=round(time.monotonic() - began, 3), outcome=outcome)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


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
        engine = await stack.enter_async_context(
            VllmEngine(
                endpoint.url,
                served.name,
                config.sampling,
                context_tokens=served.context_tokens or _UNTOLD_CONTEXT,
                api_key=endpoint.api_key,
            )
        )
        await engine.probe()
        pool = KernelPool.from_config(config.kernels)
        stack.push_async_callback(pool.close)
        await pool.start()
        yield _session(engine, chat, pool, config, log, observer)


def _chat(model: Path, config: Config) -> ChatFormat:
    return chat_format(model, config.prompt.family, reasoning_effort=config.prompt.reasoning_effort)


def _session(
    engine: VllmEngine, chat: ChatFormat, pool: KernelPool, config: Config, log: RunLog, observer: Observer | None
) -> Session:
    tools = AttemptTools(engine=engine, chat=chat, pool=pool, limits=config.attempt, kernels=config.kernels, clock=time.monotonic)
    return Session(Solver(tools, config, log, observer), engine, tools)
