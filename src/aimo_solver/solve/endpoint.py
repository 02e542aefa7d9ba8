"""Sessions on vLLM servers that this library did not start; not part of the notebook."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from aimo_solver.chat.families import load_chat_format
from aimo_solver.config import Config, check_context
from aimo_solver.errors import ConfigError, EngineError, UserError
from aimo_solver.log.writer import RunLog
from aimo_solver.options import SamplingConfig
from aimo_solver.server.client import VllmEngine
from aimo_solver.server.completions import ServedModel, read_drafts
from aimo_solver.server.launch import check_model
from aimo_solver.solve.attempt import Resources, Unify, keep_answer
from aimo_solver.solve.observer import Observer
from aimo_solver.solve.server_group import GroupSolver, ServerGroup
from aimo_solver.solve.session import STRAGGLERS_S, Boot, Session, check_cache

_UNKNOWN_CONTEXT = 32_768  # tokens, for an endpoint that does not report its context


class EndpointError(UserError):
    """An endpoint that does not answer, or does not serve the model."""

    def __init__(self, url: str, problem: str) -> None:
        super().__init__(f"endpoint {url}: {problem}")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server is, and which of its models to use.

    Attributes:
        url: without the ``/v1``.
        served_model: None if it serves one model only.
    """

    url: str
    served_model: str | None = None
    api_key: str | None = None


@asynccontextmanager
async def endpoint_session(
    endpoints: Sequence[Endpoint],
    model: Path,
    config: Config,
    log: RunLog,
    observers: Sequence[Observer] = (),
    unify: Unify = keep_answer,
) -> AsyncIterator[Session]:
    """Starts a session on one or more servers. `model` is the folder with the served model's tokenizer.

    Raises:
        EndpointError: one does not answer, serves another model, or sends no token ids.
        ConfigError: an option that only the server can apply, or fewer concurrent problems than servers.
    """
    if config.sampling.seed is not None:
        raise ConfigError("sampling.seed", "belongs to the server; start the endpoint with --seed instead")
    parallel = config.solver.parallel
    if parallel < len(endpoints):
        raise ConfigError("solver.parallel", f"{parallel} at a time would leave some of {len(endpoints)} endpoints idle")
    served = [await find_served_model(endpoint) for endpoint in endpoints]
    for endpoint, found in zip(endpoints, served, strict=True):
        if found.name != served[0].name:
            raise EndpointError(endpoint.url, f"serves {found.name}, but {endpoints[0].url} serves {served[0].name}")
    check_model(model)
    chat = load_chat_format(model, config.prompt.family)
    contexts = [found.context_tokens or _UNKNOWN_CONTEXT for found in served]
    check_context(config, min(contexts))
    async with AsyncExitStack() as stack:
        boot = Boot(stack, config, log)
        engines = []
        for endpoint, found, context in zip(endpoints, served, contexts, strict=True):
            engine = VllmEngine(endpoint.url, found.name, config.sampling, context_tokens=context, api_key=endpoint.api_key)
            boot.close_later("engine", engine.close)
            engine.speculates = read_drafts(await engine.metrics()) is not None
            with _reported(endpoint, "samples no token: "):
                await engine.probe()
            engines.append(engine)
        pool, kernels = boot.start_kernels()
        await asyncio.wait({kernels}, timeout=STRAGGLERS_S)
        streams = -(-parallel // len(engines)) * config.solver.most_slots
        warnings = [await check_cache(engine, streams, log) for engine in engines]
        group = ServerGroup(engines, log.event)
        await stack.enter_async_context(group.watched())
        resources = Resources(engine=engines[0], chat=chat, pool=pool, config=config, unify=unify)
        solver = GroupSolver(group, resources, log, observers)
        yield Session(solver, engines[0], resources, warning=next(filter(None, warnings), None))


@contextmanager
def _reported(endpoint: Endpoint, what: str = "") -> Iterator[None]:
    """Raises an EndpointError of one line, which names the endpoint, for a failed request."""
    try:
        yield
    except EngineError as error:
        problem = f"{what}{' '.join(str(error).split())}; start a vLLM server there, or check host, port and API key"
        raise EndpointError(endpoint.url, problem) from None


async def find_served_model(endpoint: Endpoint) -> ServedModel:
    """Returns the model to use at an endpoint.

    Raises:
        EndpointError: nothing answers there, or it does not serve that model; the message names those it serves.
    """
    async with VllmEngine(endpoint.url, "", SamplingConfig(), context_tokens=1, api_key=endpoint.api_key) as engine:
        with _reported(endpoint):
            models = await engine.served_models()
    names = ", ".join(model.name for model in models)
    if endpoint.served_model is None and len(models) != 1:
        raise EndpointError(engine.base_url, f"serves {names or 'no model'}; choose one with --served-model")
    for model in models:
        if endpoint.served_model in (None, model.name):
            return model
    raise EndpointError(engine.base_url, f"does not serve {endpoint.served_model}; it serves {names}")


def find_endpoint_folder(endpoint: Endpoint) -> Path:
    """Returns the folder that an endpoint serves its model from, if it is on this machine too.

    Raises:
        EndpointError: it does not answer, or its folder is not here.
    """
    served = asyncio.run(find_served_model(endpoint))
    if not (served.root and Path(served.root).is_dir()):
        raise EndpointError(endpoint.url, f"serves {served.name}; give the folder with its tokenizer by --model")
    return Path(served.root)
