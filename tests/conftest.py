"""One vLLM server with the embedded model for the whole test session."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from aimo_solver.config import Config, load_config
from aimo_solver.server.client import VllmEngine
from aimo_solver.server.launch import plan_launch
from aimo_solver.server.machine import Gpu
from aimo_solver.server.process import ServerProcess

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "data" / "pocket-model"
H100 = Gpu("NVIDIA H100 80GB HBM3", 81_559 << 20, (9, 0), "580.1")

settings.register_profile("untimed", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups in its own hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests that use the server; runs those that share it, or a module's fixtures, on the same worker."""
    for item in items:
        shares_server = "vllm" in getattr(item, "fixturenames", ())
        if shares_server:
            item.add_marker(pytest.mark.vllm)
        item.add_marker(pytest.mark.xdist_group("vllm" if shares_server else item.nodeid.partition("::")[0]))


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
    running = os.environ.get("AIMO_TEST_ENDPOINT")  # a server with the embedded model that is already running
    if running:
        yield Served(running, "pocket", MODEL, 4_096)
        return
    plan = replace(plan_launch(MODEL, load_config({"sampling": {"seed": 0}}), slots=16), served_name="pocket")
    served = Served(plan.url, plan.served_name, MODEL, plan.context_tokens)
    with asyncio.Runner() as runner:
        server = ServerProcess(plan.command, tmp_path_factory.mktemp("vllm") / "server.log")

        async def start() -> None:
            engine = served.engine()
            await server.start(engine.healthy, 300)
            await engine.close()

        runner.run(start())
        yield served
        runner.run(server.stop())
