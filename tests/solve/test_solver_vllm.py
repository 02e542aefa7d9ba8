"""One problem on real vLLM: slots are busy until the decision, and free after it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from aimo_solver.chat.families import load_chat_format
from aimo_solver.clock import RunClock
from aimo_solver.config import Config, load_config
from aimo_solver.kernels.pool import KernelPool
from aimo_solver.lab.bench.loop import count_requests
from aimo_solver.log.reader import read_run
from aimo_solver.log.writer import NullLog, RunLog
from aimo_solver.policy.budget import Allotment
from aimo_solver.problems import Problem
from aimo_solver.results import Attempt
from aimo_solver.server.client import VllmEngine
from aimo_solver.server.engine import CompletionRequest
from aimo_solver.solve.attempt import Resources
from aimo_solver.solve.evaluate import evaluate
from aimo_solver.solve.observer import Observer
from aimo_solver.solve.solver import Solver
from tests.conftest import MODEL, Served

pytestmark = [pytest.mark.vllm, pytest.mark.kernels]
PROBLEM = Problem("p", "What is the remainder of $794^{2846}$ modulo 4042?", 2218)


class Finished(Observer):
    """Collects the finished attempts."""

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
    async with KernelPool(size=1, spares=0) as pool:  # for attempts without Python
        yield pool


def solver(engine: VllmEngine, pool: KernelPool, config: Config, *observers: Observer) -> Solver:
    resources = Resources(engine=engine, chat=load_chat_format(MODEL), pool=pool, config=config)
    return Solver(resources, NullLog(), observers)


async def test_freed_slots_start_attempts_until_none_are_left(vllm: Served, pool: KernelPool) -> None:
    config = load_config(settings=["solver.slots=4", "solver.max_attempts=14", "voting.stop=never", 'prompt.mix=["bare"]'])
    finished = Finished()
    async with vllm.engine(config) as engine:
        result = await solver(engine, pool, config, finished).solve(PROBLEM, Allotment(300.0))
    assert result.attempts == 14
    # In any order of attempts, the k-th end frees the slot of the (k + 4)-th start.
    starts = sorted(attempt.started_s for attempt in finished.attempts)
    ends = sorted(attempt.started_s + attempt.seconds for attempt in finished.attempts)
    gaps = [start - end for start, end in zip(starts[4:], ends, strict=False)]
    assert min(gaps) >= 0
    # A median, as a busy machine may pause.
    assert median(gaps) < 0.1 * median(attempt.seconds for attempt in finished.attempts)


async def test_the_server_runs_as_many_requests_as_there_are_slots(vllm: Served, pool: KernelPool) -> None:
    """By the server's metrics, at first and after freed slots started further attempts."""
    limits = ["attempt.max_tokens=250", "attempt.answer_tokens=8"]
    rules = ["solver.slots=4", "solver.max_attempts=4096", "voting.stop=never", 'prompt.mix=["bare"]']
    config = load_config(settings=[*limits, *rules])
    finished = Finished()
    async with RamblingEngine(vllm.url, vllm.name, config.sampling, context_tokens=vllm.context_tokens) as engine:

        async def full(after_attempts: int) -> None:
            running = 0
            while running < 4 or len(finished.attempts) < after_attempts:
                assert not problem.done()
                running = await count_requests(engine.base_url)
                assert running <= 4
                await asyncio.sleep(0.05)  # the metrics take the server milliseconds

        while await count_requests(engine.base_url):
            pass  # requests of an earlier test
        problem = asyncio.create_task(solver(engine, pool, config, finished).solve(PROBLEM, Allotment(600.0)))
        for after_attempts in (0, 1, 5):
            await full(after_attempts)
        problem.cancel()
        await asyncio.wait([problem])


async def test_four_problems_side_by_side_run_all_their_attempts_at_once(vllm: Served, pool: KernelPool, tmp_path: Path) -> None:
    """32 running requests by the server's metrics; every attempt is asked for its answer when its tokens are used up."""
    limits = ["attempt.max_tokens=60", "attempt.answer_tokens=8", "voting.stop=never", 'prompt.mix=["bare"]']
    config = load_config(settings=[*limits, "solver.parallel=4"])
    problems = [Problem(str(number), PROBLEM.text, PROBLEM.truth) for number in range(4)]
    clock = RunClock.begin(config.budget, time.monotonic, time.monotonic())
    with RunLog.create(tmp_path / "run", config=config, environment={}) as log:
        async with RamblingEngine(vllm.url, vllm.name, config.sampling, context_tokens=vllm.context_tokens) as engine:
            resources = Resources(engine=engine, chat=load_chat_format(MODEL), pool=pool, config=config)
            solve = Solver(resources, log).solve
            solving = asyncio.create_task(evaluate(solve, problems, config.budget, clock, parallel=4))
            most = 0
            while not solving.done():
                most = max(most, await count_requests(engine.base_url, "running"))
                await asyncio.sleep(0.05)
            await solving
    assert most == 32
    run = read_run(tmp_path / "run")
    assert len(run.attempts) == 32
    for attempt in run.attempts:
        trajectory = run.read_trajectory(attempt.problem_id, attempt.index)
        assert trajectory is not None
        assert attempt.answer is not None or "ask_answer" in {step.why for step in trajectory.steps}


async def test_after_a_decision_the_server_is_idle(vllm: Served, pool: KernelPool) -> None:
    config = load_config(settings=["voting.equal=1", 'prompt.mix=["bare"]'])
    async with vllm.engine(config) as engine:
        result = await solver(engine, pool, config).solve(PROBLEM, Allotment(120.0))
        decided = time.monotonic()
        while await count_requests(engine.base_url):
            assert time.monotonic() - decided < 20
        print(f"free after {1e3 * (time.monotonic() - decided):.0f} ms")
    assert result.reason == "equal"
    assert result.attempts == 8
