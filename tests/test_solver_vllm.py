"""One problem on real vLLM: slots stay busy until the decision, and are free after it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aimo_solver.agent import AttemptTools
from aimo_solver.attempt import Attempt
from aimo_solver.budget import Allotment
from aimo_solver.chat import chat_format
from aimo_solver.config import Config, load_config
from aimo_solver.engine import CompletionRequest, VllmEngine
from aimo_solver.kernels import KernelPool
from aimo_solver.problems import Problem
from aimo_solver.runlog import NullLog
from aimo_solver.solver import SilentObserver, Solver
from tests.conftest import MODEL, Served

pytestmark = [pytest.mark.vllm, pytest.mark.kernels]
PROBLEM = Problem("p", "What is the remainder of $794^{2846}$ modulo 4042?", 2218)


class Finished(SilentObserver):
    """Keeps what ended."""

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []

    def attempt_finished(self, attempt: Attempt) -> None:
        self.attempts.append(attempt)


class RamblingEngine(VllmEngine):
    """A model that never ends a turn."""

    def _body(self, request: CompletionRequest) -> dict[str, Any]:
        return super()._body(request) | {"ignore_eos": True, "stop_token_ids": [], "stop": []}


@pytest.fixture
async def pool() -> AsyncIterator[KernelPool]:
    async with KernelPool(size=8) as pool:
        yield pool


def solver(engine: VllmEngine, pool: KernelPool, config: Config, watcher: SilentObserver) -> Solver:
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
    config = load_config(settings=["solver.slots=4", "solver.max_attempts=24", "voting.stop=never", 'prompt.mix=["bare"]'])
    finished = Finished()
    async with vllm.engine(config) as engine:
        result = await solver(engine, pool, config, finished).solve(PROBLEM, Allotment(300.0))
    assert result.attempts == 24
    # Until the last one starts, four run: their times add up to four times that time, but for the moments of change.
    last_start = max(attempt.started_s for attempt in finished.attempts)
    ran = sum(min(last_start - attempt.started_s, attempt.seconds) for attempt in finished.attempts)
    assert 3.6 * last_start < ran <= 4 * last_start


async def test_the_server_has_as_many_requests_as_there_are_slots(vllm: Served, pool: KernelPool) -> None:
    """By its own metrics, whose figures come a little late. The attempts are long, so that most looks fall between changes."""
    limits = ["attempt.max_tokens=500", "attempt.answer_tokens=8"]
    rules = ["solver.slots=4", "solver.max_attempts=8", "voting.stop=never", 'prompt.mix=["bare"]']
    config = load_config(settings=[*limits, *rules])
    finished = Finished()
    seen: list[int] = []
    async with RamblingEngine(vllm.url, vllm.name, config.sampling, context_tokens=vllm.context_tokens) as engine:
        task = asyncio.create_task(solver(engine, pool, config, finished).solve(PROBLEM, Allotment(600.0)))
        while not task.done():
            running = await engine.running_requests()
            if engine.tokens_streamed and len(finished.attempts) <= 4:  # a freed slot finds another attempt
                seen.append(running)
            await asyncio.sleep(0.02)
        result = await task
    assert result.attempts == 8
    assert seen.count(4) > 0.7 * len(seen)
    print(f"{seen.count(4)} of {len(seen)} looks found 4")


async def test_after_a_decision_the_server_runs_nothing(vllm: Served, pool: KernelPool) -> None:
    config = load_config(settings=["voting.equal=1", 'prompt.mix=["bare"]'])
    async with vllm.engine(config) as engine:
        result = await solver(engine, pool, config, SilentObserver()).solve(PROBLEM, Allotment(120.0))
        decided = time.monotonic()
        while await engine.running_requests():
            assert time.monotonic() - decided < 20
        print(f"free after {1e3 * (time.monotonic() - decided):.0f} ms")
    assert result.reason == "equal"
    assert result.attempts == 8
