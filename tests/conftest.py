"""The vLLM server of the test session, and how tests are distributed over workers."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from aimo_solver.config import Config
from aimo_solver.errors import ServerError
from aimo_solver.server.client import VllmEngine
from aimo_solver.server.machine import Gpu
from aimo_solver.server.process import ServerCommand, ServerProcess, free_port

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "data" / "pocket-model"
H100 = Gpu("NVIDIA H100 80GB HBM3", 81_559 << 20, (9, 0), "580.1")

# A busy machine is not a failure. `make fast` draws fewer examples, by ``--hypothesis-profile=quick``.
_untimed = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", _untimed)
settings.register_profile("quick", _untimed, max_examples=10)
settings.load_profile("thorough")


_SCATTERED = {"tests/kaggle/test_notebook.py"}  # its tests take a minute or more each, and share nothing
_SHARES_SERVER = re.compile(r"\bvllm: Served\b")


class ModuleScheduling(LoadScopeScheduling):  # type: ignore[misc] # pytest-xdist has no types
    """Keeps a module's tests on one worker, and on one worker all modules that use the session's server.

    ``--dist loadgroup`` of pytest-xdist 3.8 would do that by a mark, but has no effect under pytest 9.2: it writes the group to
    an attribute that pytest no longer reads.
    """

    def _split_scope(self, nodeid: str) -> str:
        module = _module(nodeid)
        if module in _SCATTERED:
            return nodeid
        return "vllm" if _shares_server(module) else module


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ModuleScheduling:
    config.option.loadscopereorder = False  # in the order of `pytest_collection_modifyitems`
    return ModuleScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests that use the server, and sorts modules by their time: first those that start servers of their own."""
    own_servers, slow = set(), set()
    for item in items:
        module = _module(item.nodeid)
        if "vllm" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.vllm)
        elif item.get_closest_marker("vllm"):
            own_servers.add(module)
        if any(item.get_closest_marker(name) for name in ("vllm", "kernels", "slow")):
            slow.add(module)
    items.sort(key=lambda item: (_module(item.nodeid) not in own_servers, _module(item.nodeid) not in slow))


def _module(nodeid: str) -> str:
    return nodeid.partition("::")[0]


@cache
def _shares_server(module: str) -> bool:
    return _SHARES_SERVER.search((ROOT / module).read_text(encoding="utf-8")) is not None


@dataclass(frozen=True)
class Served:
    """A running vLLM server."""

    url: str
    name: str
    model: Path
    context_tokens: int

    def engine(self, config: Config | None = None) -> VllmEngine:
        """Returns a client for the test's event loop."""
        return VllmEngine(self.url, self.name, (config or Config()).sampling, context_tokens=self.context_tokens)


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The embedded model, with 32 slots, as for ``evaluate --problems-in-parallel 4``."""
    running = os.environ.get("AIMO_TEST_ENDPOINT")  # a server with the embedded model that is already running
    if running:
        yield Served(running, MODEL.name, MODEL, 4_096)
        return
    with serving(tmp_path_factory.mktemp("vllm"), slots=32) as served:
        yield served


@contextmanager
def serving(folder: Path, *settings: str, slots: int) -> Iterator[Served]:
    """The embedded model on a server started by `aimo-solver serve`, which ends in order with Ctrl-C; its log is in `folder`."""
    port = free_port()
    served = Served(f"http://127.0.0.1:{port}", MODEL.name, MODEL, 4_096)
    options = [argument for setting in ("sampling.seed=0", *settings) for argument in ("--set", setting)]
    serve = "-m", "aimo_solver.cli", "serve", "--port", str(port), "--slots", str(slots), *options
    server = ServerProcess(ServerCommand((sys.executable, *serve)), folder / "server.log")
    with asyncio.Runner() as runner:

        async def start() -> None:
            engine = served.engine()
            await server.start(engine.healthy, 300)
            await engine.close()

        runner.run(start())
        try:
            yield served
            _interrupt(server)
        finally:
            runner.run(server.stop())


def _interrupt(server: ServerProcess) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGINT)
    end = time.monotonic() + 60
    while server.alive and time.monotonic() < end:
        time.sleep(0.1)
    ended = server.error(ServerError, "ended by Ctrl-C")
    assert ended.exit_code == 0, str(ended)
