"""Several servers: problems are spread over them, and none is lost with a server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tokenizers import Tokenizer

from aimo_solver.chat.families import load_chat_format
from aimo_solver.clock import RunClock
from aimo_solver.config import load_config
from aimo_solver.errors import ConfigError
from aimo_solver.log.reader import RunRecord, read_run
from aimo_solver.log.writer import NullLog, RunLog
from aimo_solver.options import SamplingConfig
from aimo_solver.problems import Problem
from aimo_solver.results import FinishReason
from aimo_solver.server.client import VllmEngine
from aimo_solver.server.process import free_port
from aimo_solver.solve import server_group
from aimo_solver.solve.attempt import Resources
from aimo_solver.solve.endpoint import Endpoint, EndpointError, endpoint_session
from aimo_solver.solve.evaluate import evaluate
from aimo_solver.solve.server_group import GroupSolver, ServerGroup
from tests.conftest import MODEL, ROOT
from tests.fakes import ScriptedPool
from tests.http_vllm import HttpVllm, event

TURN = Tokenizer.from_file(str(MODEL / "tokenizer.json")).encode("The answer is \\boxed{7}.<turn|>", add_special_tokens=False).ids
HALF = len(TURN) // 2
CONFIG = load_config(
    settings=["solver.slots=2", "solver.max_attempts=2", "voting.stop=never", "solver.parallel=2", 'prompt.mix=["bare"]']
)


class Continuing(HttpVllm):
    """A model that continues a turn of which the prompt has the first half; `continued` counts such requests."""

    continued = 0

    def completion(self, body: dict[str, Any]) -> web.Response:
        halved = body["prompt"][-HALF:] == TURN[:HALF]
        self.continued += halved
        self.turn = TURN[HALF:] if halved else TURN
        return super().completion(body)


class Halting(HttpVllm):
    """A server that sends the first half of a turn and then nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.for_good = self._halt

    def serve(self, port: int) -> None:
        web.run_app(self.application(), host="127.0.0.1", port=port)

    async def _halt(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        choice = {"index": 0, "text": "", "finish_reason": None, "token_ids": TURN[:HALF]}
        await response.write(event({"choices": [choice]}).encode())
        await asyncio.Event().wait()
        return response


@asynccontextmanager
async def killable(port: int) -> AsyncIterator[tuple[VllmEngine, asyncio.subprocess.Process]]:
    """Yields the client of a `Halting` server in a process of its own."""
    program = "import sys; from tests.solve.test_server_group import Halting; Halting().serve(int(sys.argv[1]))"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, str(port), cwd=ROOT, stdout=subprocess.DEVNULL)
    async with VllmEngine(f"http://127.0.0.1:{port}", "m", SamplingConfig(), context_tokens=65_536) as engine:
        await engine.wait_ready()
        yield engine, process
    await process.wait()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0.01)


async def solve(
    engines: Sequence[VllmEngine], directory: Path, problems: int, meanwhile: Callable[[], Any] = lambda: asyncio.sleep(0)
) -> RunRecord:
    """Solves problems with the answer 7, two at a time; `meanwhile` runs beside them."""
    with RunLog.create(directory, config=CONFIG, environment={}) as log:
        group = ServerGroup(engines, log.event)
        resources = Resources(engine=engines[0], chat=load_chat_format(MODEL), pool=ScriptedPool(), config=CONFIG)
        solver = GroupSolver(group, resources, log)
        clock = RunClock.begin(CONFIG.budget, time.monotonic, time.monotonic())
        todo = [Problem(str(number), "What is $3 + 4$?", 7) for number in range(problems)]
        async with group.watched(), asyncio.timeout(20):
            await asyncio.gather(evaluate(solver.solve, todo, CONFIG.budget, clock, parallel=2), meanwhile())
    return read_run(directory)


def assert_nothing_lost(run: RunRecord, problems: int) -> None:
    assert [result.answer for result in run.results] == [7] * problems
    assert {attempt.finish_reason for attempt in run.attempts} == {FinishReason.ANSWERED}
    assert {attempt.tokens for attempt in run.attempts} == {len(TURN)}
    assert len(run.attempts) == 2 * problems


async def test_problems_are_spread_and_an_attempt_stays_on_its_server(tmp_path: Path) -> None:
    first, second = Continuing(), Continuing()
    async with first.engine() as one, second.engine() as other:
        run = await solve([one, other], tmp_path / "run", 6)
    assert_nothing_lost(run, 6)
    assert (len(first.requests), len(second.requests)) == (6, 6)


@pytest.mark.slow
async def test_a_server_that_is_killed_in_mid_turn_loses_nothing(tmp_path: Path) -> None:
    other = Continuing()
    async with killable(free_port()) as (engine, process), other.engine() as survivor:

        async def kill() -> None:
            await until(lambda: engine.tokens_streamed == 2 * HALF)
            process.kill()

        run = await solve([engine, survivor], tmp_path / "run", 6, kill)
    assert_nothing_lost(run, 6)
    assert other.continued == 2  # sent with the tokens that the killed server had sampled
    assert [event.values["url"] for event in run.events if event.kind == "endpoint_fault"] == [engine.base_url]


async def test_a_server_that_hangs_in_mid_turn_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_group, "_PROBE_S", 0.02)
    hanging, other = Halting(), Continuing()
    async with hanging.engine() as engine, other.engine() as survivor:

        async def hang() -> None:
            await until(lambda: engine.tokens_streamed == 2 * HALF)
            hanging.health = 503

        run = await solve([engine, survivor], tmp_path / "run", 4, hang)
    assert_nothing_lost(run, 4)
    assert other.continued == 2


async def test_a_server_that_answers_again_gets_problems_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_group, "_PROBE_S", 0.02)
    events: list[tuple[str, str]] = []
    first = HttpVllm()
    async with first.engine() as one, HttpVllm().engine() as other:
        group = ServerGroup([one, other], lambda kind, **values: events.append((kind, values["url"])))
        first.health = 503
        with group.place() as placed:
            await placed.wait_ready()
            assert placed.faults == 1
            with group.place() as another:
                await another.wait_ready()
                assert another.faults == 0  # placed on the one that answers, though it has a problem already
        first.health = 200
        async with group.watched():
            await until(lambda: len(events) == 2)
        with group.place() as placed, group.place() as another:
            await asyncio.gather(placed.wait_ready(), another.wait_ready())
            assert (placed.faults, another.faults) == (0, 0)
    assert events == [("endpoint_fault", one.base_url), ("endpoint_recovered", one.base_url)]


async def test_endpoints_that_do_not_fit_together_are_refused_in_one_line() -> None:
    second = HttpVllm()
    second.models = '{"data": [{"id": "other", "max_model_len": 4096}]}'
    async with HttpVllm().engine() as one, second.engine() as other:
        endpoints = [Endpoint(engine.base_url) for engine in (one, other)]
        with pytest.raises(EndpointError, match=f"serves other, but {one.base_url} serves m"):
            async with endpoint_session(endpoints, MODEL, CONFIG, NullLog()):
                pass
        with pytest.raises(ConfigError, match=r"solver\.parallel: 2 at a time would leave some of 3 endpoints idle"):
            async with endpoint_session([*endpoints, Endpoint("http://127.0.0.1:1")], MODEL, CONFIG, NullLog()):
                pass
