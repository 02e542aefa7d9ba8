"""One problem, on scripted models: parallel attempts, early stop, backfill, the clock, and faults that stay inside."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
import pytest_asyncio

import aimo_solver.solve.solver as solver_module
from aimo_solver.answers import FALLBACK_ANSWER
from aimo_solver.chat.families import load_chat_format
from aimo_solver.chat.model_folder import ModelFolder
from aimo_solver.clock import RunClock
from aimo_solver.config import Config, load_config
from aimo_solver.kernels.pool import KernelPool
from aimo_solver.log.writer import NullLog, ProblemResult, RunLog
from aimo_solver.options import BudgetConfig, VotingConfig
from aimo_solver.policy.budget import Allotment
from aimo_solver.problems import Problem
from aimo_solver.results import Attempt, FinishReason
from aimo_solver.solve.attempt import AgentRun, AttemptTools
from aimo_solver.solve.evaluate import evaluate
from aimo_solver.solve.solver import Observer, SilentObserver, Solver
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
        self._chat = load_chat_format(folder, "gemma")
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

    def solver(
        self,
        script: Callable[[int], Sequence[Play]],
        *settings: str,
        log: RunLog | None = None,
        observer: Observer | None = None,
        **hooks: Callable[[ProblemResult], None],
    ) -> Solver:
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
        return Solver(tools, config, log or NullLog(), observer or self.seen, **hooks)

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


class Broken(SilentObserver):
    """An observer with a defect in every method."""

    def problem_started(self, *values: object) -> None:
        raise RuntimeError("observer")

    attempt_changed = attempt_finished = problem_finished = problem_started  # type: ignore[assignment]


class BrokenLog(NullLog):
    """A run log with a defect wherever the solver writes of votes and results, and in its events."""

    def votes(self, *values: object, **named: object) -> None:
        raise RuntimeError("log")

    event = problem_started = attempt_finished = problem_finished = votes  # type: ignore[assignment]


class Events(NullLog):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, Any]]] = []

    def event(self, kind: str, **values: Any) -> None:
        self.seen.append((kind, values))


async def test_a_server_lost_twice_by_one_problem_ends_its_attempts(desk: Desk) -> None:
    """The next problem must have a restart left; the attempts of this one would kill the server again."""
    solver = desk.solver(lambda index: desk.answers(2) if index == 0 else desk.thinks_on())
    solving = asyncio.create_task(solver.solve(PROBLEM, Allotment(60.0)))
    while not desk.seen.attempts:  # noqa: ASYNC110 - the collector tells nobody
        await asyncio.sleep(0.01)
    desk.engine.faults += 1
    await asyncio.sleep(1.5)
    assert not solving.done()
    desk.engine.faults += 1
    result = await asyncio.wait_for(solving, 10)
    assert (result.answer, result.reason, result.votes) == (2, "server", 1)
    assert desk.engine.running == 0


async def test_losses_of_earlier_problems_do_not_count(desk: Desk) -> None:
    solver = desk.solver(lambda index: desk.answers(2))
    desk.engine.faults = 7
    assert (await solver.solve(PROBLEM, Allotment(30.0))).reason == "equal"


async def test_who_wants_to_know_is_told_of_every_end(desk: Desk) -> None:
    ended: list[ProblemResult] = []
    solver = desk.solver(lambda index: desk.answers(2), on_problem_end=ended.append)
    assert ended == [await solver.solve(PROBLEM, Allotment(30.0))]


async def test_defects_of_log_observer_and_hook_cost_nothing(desk: Desk) -> None:
    def hook(result: ProblemResult) -> None:
        raise RuntimeError("hook")

    solver = desk.solver(lambda index: desk.answers(2), log=BrokenLog(), observer=Broken(), on_problem_end=hook)
    result = await solver.solve(PROBLEM, Allotment(30.0))
    assert (result.answer, result.reason) == (2, "equal")
    assert result.votes >= 4


@pytest.mark.parametrize("part", ["rank", "decide", "is_contested"])
async def test_a_defect_in_voting_or_in_the_second_look_leaves_the_plain_vote(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def defect(*values: object, **options: object) -> NoReturn:
        raise RuntimeError("defect")

    whole = solver_module.rank

    def broken_rank(attempts: Sequence[Attempt], voting: VotingConfig) -> object:
        return whole(attempts, voting) if voting.voter == "majority" else defect()

    monkeypatch.setattr(solver_module, part, broken_rank if part == "rank" else defect)
    events = Events()
    settings = ("voting.stop=never", "voting.voter=entropy", "selection.select=use", "selection.least_s=1")
    solver = desk.solver(lambda index: desk.answers(2 if index < 5 else 7), *settings, log=events)
    result = await solver.solve(PROBLEM, Allotment(30.0))
    assert (result.answer, result.attempts) == (2, 8)
    faults = [values for kind, values in events.seen if kind == "problem_fault"]
    assert faults
    assert "RuntimeError: defect" in faults[0]["traceback"]


async def test_a_defect_in_one_problem_costs_that_problem_only(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = solver_module._ProblemWork.run_attempts

    async def faulty(work: solver_module._ProblemWork) -> str:
        if work._problem.id == "1":
            raise RuntimeError("defect")
        return await whole(work)

    monkeypatch.setattr(solver_module._ProblemWork, "run_attempts", faulty)
    events = Events()
    solver = desk.solver(lambda index: desk.answers(2), log=events)
    problems = [Problem(str(number), "x", 2) for number in range(4)]
    budget = BudgetConfig(time_limit_s=400)
    clock = RunClock.begin(budget, time.monotonic, time.monotonic())
    results = await evaluate(solver, problems, budget, clock, parallel=4)
    assert [(result.problem_id, result.answer) for result in results] == [("0", 2), ("1", FALLBACK_ANSWER), ("2", 2), ("3", 2)]
    assert [(kind, values["problem_id"]) for kind, values in events.seen if kind == "problem_fault"] == [("problem_fault", "1")]


async def test_an_attempt_that_will_not_end_does_not_hold_up_its_problem(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = asyncio.Event()

    async def stubborn(run: AgentRun) -> Attempt:
        while not ended.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await ended.wait()
        return run.record(FinishReason.CANCELLED)

    monkeypatch.setattr(AgentRun, "run", stubborn)
    monkeypatch.setattr(solver_module, "_END_S", 0.2)
    solver = desk.solver(lambda index: desk.thinks_on())
    result = await asyncio.wait_for(solver.solve(PROBLEM, Allotment(0.5)), 60)
    ended.set()
    assert (result.answer, result.attempts) == (FALLBACK_ANSWER, 8)
