"""One problem on real vLLM: slots stay busy until the decision, and are free after it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from aimo_solver.agent import AgentRun, AttemptTools
from aimo_solver.budget import Allotment
from aimo_solver.chat import chat_format
from aimo_solver.config import Config, load_config
from aimo_solver.engine import VllmEngine
from aimo_solver.kernels import KernelPool
from aimo_solver.problems import Problem
from aimo_solver.runlog import NullLog
from aimo_solver.solver import SilentObserver, Solver
from tests.conftest import MODEL, Served

pytestmark = [pytest.mark.vllm, pytest.mark.kernels]
PROBLEM = Problem("p", "What is the remainder of $794^{2846}$ modulo 4042?", 2218)


class Watcher(SilentObserver):
    """Knows which attempts run, and which of them wait for the model."""

    def __init__(self) -> None:
        self.runs: dict[int, AgentRun] = {}

    def attempt_changed(self, run: AgentRun) -> None:
        self.runs[run.index] = run

    def attempt_finished(self, attempt: object) -> None:
        self.runs.pop(attempt.index, None)  # type: ignore[attr-defined]


@pytest.fixture
async def pool() -> AsyncIterator[KernelPool]:
    async with KernelPool(size=8) as pool:
        yield pool


def solver(engine: VllmEngine, pool: KernelPool, config: Config, watcher: Watcher) -> Solver:
    tools = AttemptTools(
        engine=engine,
        chat=chat_format(MODEL),
        pool=pool,
        limits=config.attempt,
        kernels=config.kernels,
        clock=time.monotonic,
    )
    return Solver(tools, config, NullLog(), watcher)


async def test_freed_slots_are_filled_until_the_attempts_are_used_up(vllm: Served, pool: KernelPool) -> None:
    settings = ["solver.slots=4", "solver.max_attempts=24", "voting.stop=never", 'prompt.mix=["bare"]']
    config = load_config(settings=settings)
    watcher = Watcher()
    busy: list[tuple[int, int]] = []
    async with vllm.engine(config) as engine:
        task = asyncio.create_task(solver(engine, pool, config, watcher).solve(PROBLEM, Allotment(120.0)))
        while not task.done():
            thinking = sum(run.state == "thinking" for run in watcher.runs.values())
            started = max(watcher.runs, default=0)
            server = await engine.running_requests()
            if 4 <= started < 20:  # neither the first nor the last ones
                busy.append((thinking, server))
            await asyncio.sleep(0.02)
        result = await task
    assert result.attempts == 24
    assert len(busy) >= 5
    assert max(server for _, server in busy) == 4
    # An attempt that does not run Python has its request on the server: no slot is left idle.
    # (The server updates its figures once per step, so a single look can be late.)
    assert sum(abs(thinking - server) <= 1 for thinking, server in busy) >= 0.6 * len(busy)


async def test_after_a_decision_the_server_runs_nothing(vllm: Served, pool: KernelPool) -> None:
    config = load_config(settings=["voting.equal=1", 'prompt.mix=["bare"]'])
    async with vllm.engine(config) as engine:
        result = await solver(engine, pool, config, Watcher()).solve(PROBLEM, Allotment(120.0))
        decided = time.monotonic()
        while await engine.running_requests():
            assert time.monotonic() - decided < 2
        print(f"free after {1e3 * (time.monotonic() - decided):.0f} ms")
    assert result.reason == "equal"
    assert result.attempts == 8
