"""One problem, on scripted models: parallel attempts, early stop, backfill, the clock, and faults that stay inside."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from aimo_solver.agent import AgentRun, AttemptTools
from aimo_solver.attempt import Attempt, FinishReason
from aimo_solver.budget import Allotment
from aimo_solver.chat import chat_format
from aimo_solver.config import Config
from aimo_solver.kernels import KernelPool
from aimo_solver.model_folder import ModelFolder
from aimo_solver.problems import Problem
from aimo_solver.runlog import NullLog, ProblemResult
from aimo_solver.settings import load_config
from aimo_solver.solver import FALLBACK_ANSWER, SilentObserver, Solver
from tests.fakes import Play, ScriptedEngine
from tests.tiny_tokenizers import gemma_folder

pytestmark = [pytest.mark.kernels, pytest.mark.asyncio(loop_scope="module")]
PROBLEM = Problem("p", "What is 1 + 1?", 2)


class Collector(SilentObserver):
    def __init__(self) -> None:
        self.attempts: list[Attempt] = []

    def attempt_finished(self, attempt: Attempt) -> None:
        self.attempts.append(attempt)


class Desk:
    """Solves on scripts: for each attempt's index, the answer it gives (None: none) and after how many seconds."""

    def __init__(self, folder: Path, pool: KernelPool) -> None:
        self._tokenizer = ModelFolder.read(folder).tokenizer
        self._chat = chat_format(folder, "gemma")
        self._pool = pool
        self.seen = Collector()
        self.engine = ScriptedEngine(lambda index: ())

    def answers(self, answer: int | None, after_s: float = 0.02) -> Sequence[Play]:
        text = "I give up.<turn|>" if answer is None else f"\\boxed{{{answer}}}<turn|>"
        tokens = self._tokenizer.encode_template(text)
        return [Play(tokens, delay_s=after_s, chunk=len(tokens)), Play(self._tokenizer.encode_template("?}<turn|>"))]

    def thinks_on(self) -> Sequence[Play]:
        endless = Play(self._tokenizer.encode_template("so "), endless=True, delay_s=0.05)
        return [endless, endless]

    def solver(self, script: Callable[[int], Sequence[Play]], *settings: str) -> Solver:
        config: Config = load_config(settings=["voting.voter=majority", *settings])
        self.engine = ScriptedEngine(script)
        tools = AttemptTools(
            engine=self.engine,
            chat=self._chat,
            pool=self._pool,
            limits=config.attempt,
            kernels=config.kernels,
            clock=time.monotonic,
        )
        return Solver(tools, config, NullLog(), self.seen)

    async def solve(self, script: Callable[[int], Sequence[Play]], *settings: str, seconds: float = 30.0) -> ProblemResult:
        return await self.solver(script, *settings).solve(PROBLEM, Allotment(seconds))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[KernelPool]:
    async with KernelPool(size=2) as pool:
        yield pool


@pytest.fixture
def desk(tmp_path: Path, pool: KernelPool) -> Desk:
    return Desk(gemma_folder(tmp_path / "model"), pool)


async def test_the_vote_decides(desk: Desk) -> None:
    result = await desk.solve(lambda index: desk.answers(2 if index < 5 else 7), "voting.stop=never")
    assert (result.answer, result.votes, result.attempts, result.right) == (2, 5, 8, True)


async def test_four_equal_answers_cancel_the_rest(desk: Desk) -> None:
    result = await desk.solve(lambda index: desk.answers(2) if index < 4 else desk.thinks_on())
    assert (result.answer, result.votes, result.attempts, result.reason) == (2, 4, 8, "equal")
    assert desk.engine.running == 0
    cancelled = [attempt for attempt in desk.seen.attempts if attempt.finish_reason is FinishReason.CANCELLED]
    assert len(cancelled) == 4
    assert all(attempt.finish_order is None for attempt in cancelled)


async def test_a_freed_slot_takes_the_next_attempt(desk: Desk) -> None:
    settings = ("solver.slots=3", "solver.max_attempts=9", "voting.stop=never")
    result = await desk.solve(lambda index: desk.answers(index), *settings)
    assert result.attempts == 9
    assert desk.engine.most_running == 3


async def test_no_attempt_starts_after_the_decision(desk: Desk) -> None:
    result = await desk.solve(lambda index: desk.answers(5), "solver.slots=2", "solver.max_attempts=8")
    assert result.attempts <= 5  # four equal, and the one beside the fourth


async def test_the_clock_ends_the_problem_with_the_best_so_far(desk: Desk) -> None:
    started = time.monotonic()
    result = await desk.solve(lambda index: desk.answers(2) if index == 0 else desk.thinks_on(), seconds=6.0)
    assert (result.answer, result.reason) == (2, "time")
    assert time.monotonic() - started < 30


async def test_answers_forced_at_the_deadline_count(desk: Desk) -> None:
    def script(index: int) -> Sequence[Play]:
        return [desk.thinks_on()[0], Play(desk._tokenizer.encode_template("2}<turn|>"))]

    result = await desk.solve(script, seconds=12.0)
    assert (result.answer, result.votes) == (2, 8)


async def test_without_any_answer_the_fallback_is_given(desk: Desk) -> None:
    result = await desk.solve(lambda index: desk.answers(None))
    assert (result.answer, result.votes, result.candidates) == (FALLBACK_ANSWER, 0, ())


async def test_no_time_still_gives_an_integer_at_once(desk: Desk) -> None:
    started = time.monotonic()
    result = await desk.solve(lambda index: desk.thinks_on(), seconds=0.0)
    assert result.answer == FALLBACK_ANSWER
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("fault", [RuntimeError("defect"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
async def test_a_defect_in_an_attempt_costs_that_attempt_only(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    whole = AgentRun.run

    async def faulty(run: AgentRun) -> Attempt:
        if run.index == 0:
            raise fault
        return await whole(run)

    monkeypatch.setattr(AgentRun, "run", faulty)
    result = await desk.solve(lambda index: desk.answers(2), "voting.stop=never")
    assert (result.answer, result.votes, result.attempts) == (2, 7, 8)


async def test_cancelling_a_problem_frees_every_stream(desk: Desk) -> None:
    task = asyncio.create_task(desk.solve(lambda index: desk.thinks_on()))
    while desk.engine.running < 8:  # noqa: ASYNC110 - the engine tells nobody how many run
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert desk.engine.running == 0


@pytest.mark.parametrize(("mode", "answer"), [("use", 7), ("log", 2), ("off", 2)])
async def test_a_contested_vote_gets_a_second_look(desk: Desk, mode: str, answer: int) -> None:
    """Five votes for 2, three for 7; asked again, the model always picks 7."""
    settings = (f"selection.select={mode}", "selection.clear_share=0.7", "voting.stop=never", "selection.least_s=1")
    result = await desk.solve(lambda index: desk.answers(2 if index < 5 else 7), *settings)
    assert result.answer == answer
    assert result.attempts == (8 if mode == "off" else 12)
    prompts = [attempt.prompt for attempt in desk.seen.attempts]
    assert prompts.count("select") == (0 if mode == "off" else 4)


async def test_problems_side_by_side_do_not_mix(desk: Desk) -> None:
    solver = desk.solver(lambda index: desk.answers(2), "voting.stop=never")
    problems = [Problem(str(number), "x", 2) for number in range(4)]
    results = await asyncio.gather(*(solver.solve(problem, Allotment(30.0)) for problem in problems))
    assert [(result.problem_id, result.attempts) for result in results] == [(str(number), 8) for number in range(4)]


async def test_the_best_so_far_can_be_asked_at_any_time(desk: Desk) -> None:
    solver = desk.solver(lambda index: desk.answers(2) if index == 0 else desk.thinks_on())
    assert solver.best("p") == FALLBACK_ANSWER
    task = asyncio.create_task(solver.solve(PROBLEM, Allotment(30.0)))
    while not desk.seen.attempts:  # noqa: ASYNC110 - the collector tells nobody
        await asyncio.sleep(0.01)
    assert solver.best("p") == 2
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
