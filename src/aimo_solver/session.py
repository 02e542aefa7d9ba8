"""Everything a run needs, brought up side by side and taken down whole: server, engine, chat format, kernels, solver."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from aimo_solver.agent import AttemptTools
from aimo_solver.chat import ChatFormat, chat_format
from aimo_solver.config import Config
from aimo_solver.engine import VllmEngine, find_model
from aimo_solver.errors import EndpointError, ModelError
from aimo_solver.kernels import KernelPool
from aimo_solver.machine import detect_machine, installed_flags
from aimo_solver.presets import choose, command
from aimo_solver.runlog import RunLog
from aimo_solver.server import ServerCommand, Supervisor, free_port
from aimo_solver.solver import Observer, Solver

SERVED_NAME = "model"


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
    model: Path, config: Config, log: RunLog, run_dir: Path, observer: Observer | None = None
) -> AsyncIterator[Session]:
    """A session on a vLLM server of our own; its output goes to ``server.log`` in `run_dir`.

    Raises:
        ModelError: the folder cannot be used.
        ServerStartError: the server did not come up, not even with safe settings.
    """
    check_model(model)
    chat = _chat(model, config)
    preset = choose(model, config.server, slots=config.solver.slots, machine=detect_machine())
    port = free_port()
    commands = []
    for flags in (preset, preset.safe(eager=False), preset.safe()):
        built = command(flags, model, port, SERVED_NAME, installed_flags())
        commands.append(ServerCommand(built.args, built.env))
        for dropped in built.dropped:
            log.event("flag_dropped", flag=dropped.name, reason="unknown to the installed vLLM")
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(
            VllmEngine(f"http://127.0.0.1:{port}", SERVED_NAME, config.sampling, context_tokens=preset.context_tokens)
        )
        supervisor = Supervisor(
            commands,
            run_dir / "server.log",
            engine,
            start_timeout_s=config.server.start_timeout_s,
            stall_s=config.server.stall_s,
            restarts=config.server.restarts,
            on_event=log.event,
        )
        stack.push_async_callback(supervisor.stop)
        pool = _pool(config)
        stack.push_async_callback(pool.close)
        await asyncio.gather(supervisor.start(), pool.start())
        engine.context_tokens = (await find_model(engine.base_url, SERVED_NAME)).context_tokens
        yield _session(engine, chat, pool, config, log, observer)


@asynccontextmanager
async def endpoint_session(
    endpoint: Endpoint, model: Path | None, config: Config, log: RunLog, observer: Observer | None = None
) -> AsyncIterator[Session]:
    """A session on a server that runs already. `model` is the folder with the served model's tokenizer.

    Raises:
        EndpointError: it does not answer, or serves another model.
    """
    served = await find_model(endpoint.url, endpoint.served_model, api_key=endpoint.api_key)
    folder = model or Path(served.root)
    if model is None and not (served.root and folder.is_dir()):
        raise EndpointError(endpoint.url, f"serves {served.name}; give the folder with its tokenizer by --model")
    check_model(folder)
    chat = _chat(folder, config)
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(
            VllmEngine(endpoint.url, served.name, config.sampling, context_tokens=served.context_tokens, api_key=endpoint.api_key)
        )
        pool = _pool(config)
        stack.push_async_callback(pool.close)
        await pool.start()
        yield _session(engine, chat, pool, config, log, observer)


def _chat(model: Path, config: Config) -> ChatFormat:
    return chat_format(model, config.prompt.family, reasoning_effort=config.prompt.reasoning_effort)


def _pool(config: Config) -> KernelPool:
    raise NotImplementedError


def _session(
    engine: VllmEngine, chat: ChatFormat, pool: KernelPool, config: Config, log: RunLog, observer: Observer | None
) -> Session:
    tools = AttemptTools(engine=engine, chat=chat, pool=pool, limits=config.attempt, kernels=config.kernels, clock=time.monotonic)
    return Session(Solver(tools, config, log, observer), engine, tools)
