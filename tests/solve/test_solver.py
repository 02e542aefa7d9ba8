"""One problem, on scripted models: parallel attempts, early stop, new attempts in freed slots, deadlines, contained faults."""

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
from aimo_solver.log.reader import read_run
from aimo_solver.log.writer import NullLog, RunLog
from aimo_solver.policy.budget import Allotment
from aimo_solver.policy.options import BudgetConfig, VotingConfig
from aimo_solver.policy.voting import rank
from aimo_solver.problems import Problem, ProblemResult
from aimo_solver.results import Attempt, FinishReason
from aimo_solver.solve.attempt import Resources, RunningAttempt
from aimo_solver.solve.evaluate import evaluate
from aimo_solver.solve.observer import Observer
from aimo_solver.solve.solver import Solver
from tests.fakes import ScriptedEngine, ScriptedTurn
from tests.tiny_tokenizers import gemma_folder

pytestmark = [pytest.mark.kernels, pytest.mark.asyncio(loop_scope="module")]
PROBLEM = Problem("p", "What is 1 + 1?", 2)


class Collector(Observer):
    def __init__(self) -> None:
        self.attempts: list[Attempt] = []
        self.results: list[ProblemResult] = []

    def attempt_finished(self, attempt: Attempt) -> None:
        self.attempts.append(attempt)

    def problem_finished(self, result: ProblemResult) -> None:
        self.results.append(result)


class Harness:
    """Solves problems with a scripted engine; a script maps the index of an attempt to its turns."""

    def __init__(self, folder: Path, pool: KernelPool) -> None:
        self._tokenizer = ModelFolder.read(folder).tokenizer
        self._chat = load_chat_format(folder, "gemma")
        self._pool = pool
        self.seen = Collector()
        self.engine = ScriptedEngine(lambda index: ())

    def answers(self, answer: int | None, after_s: float = 0.02) -> Sequence[ScriptedTurn]:
        text = "I give up.<turn|>" if answer is None else f"\\boxed{{{answer}}}<turn|>"
        tokens = self._tokenizer.encode_template(text)
        return [
            ScriptedTurn(tokens, delay_s=after_s, chunk=len(tokens)),
            ScriptedTurn(self._tokenizer.encode_template("?}<turn|>")),
        ]

    def endless_turns(self) -> Sequence[ScriptedTurn]:
        endless = ScriptedTurn(self._tokenizer.encode_template("so "), endless=True, delay_s=0.05)
        return [endless, endless]

    def solver(
        self,
        script: Callable[[int], Sequence[ScriptedTurn]],
        *settings: str,
        log: RunLog | None = None,
        observers: Sequence[Observer] = (),
    ) -> Solver:
        config: Config = load_config(settings=["voting.voter=majority", *settings])
        self.engine = ScriptedEngine(script)
        resources = Resources(engine=self.engine, chat=self._chat, pool=self._pool, config=config)
        return Solver(resources, log or NullLog(), observers or [self.seen])

    async def solve(
        self, script: Callable[[int], Sequence[ScriptedTurn]], *settings: str, seconds: float = 30.0
    ) -> ProblemResult:
        return await self.solver(script, *settings).solve(PROBLEM, Allotment(seconds))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[KernelPool]:
    async with KernelPool(size=2) as pool:
        yield pool


@pytest.fixture
def harness(tmp_path: Path, pool: KernelPool) -> Harness:
    return Harness(gemma_folder(tmp_path / "model"), pool)


async def test_the_answer_with_most_votes_wins(harness: Harness) -> None:
    result = await harness.solve(lambda index: harness.answers(2 if index < 5 else 7), "voting.stop=never")
    assert (result.answer, result.votes, result.attempts, result.right) == (2, 5, 8, True)


async def test_a_run_with_time_left_grows_and_says_so(harness: Harness, tmp_path: Path) -> None:
    config = load_config(settings=["solver.grow=true"])
    results: list[ProblemResult] = []
    with RunLog.create(tmp_path / "run", config=config, environment={}) as log:
        script = lambda index: harness.answers(2) if index < 8 else harness.endless_turns()  # noqa: E731
        solver = harness.solver(script, "solver.grow=true", log=log)
        for left_s in (9_000.0, 9_000.0, 0.1):  # the first problem is the measurement
            problem = Problem(str(len(results)), PROBLEM.text, 2)
            results.append(await solver.solve(problem, Allotment(30.0, left_s=left_s, later=2)))
    assert [(one.slots, one.attempts, one.reason) for one in results] == [(8, 8, "equal"), (16, 16, "equal"), (8, 8, "equal")]
    assert [one.votes >= votes for one, votes in zip(results, (4, 8, 4), strict=True)] == [True] * 3
    plans = [event.values for event in read_run(tmp_path / "run").events if event.kind == "plan"]
    assert [(plan["problem_id"], plan["slots"], plan["max_attempts"], plan["equal"]) for plan in plans] == [
        ("0", 8, 8, 4), ("1", 16, 16, 8), ("2", 8, 8, 4),
    ]  # fmt: skip
    assert plans[0]["tokens_per_s"] == {}
    assert plans[2]["tokens_per_s"].keys() == {"8", "16"}
    assert plans[1]["tokens_per_s"]["8"] == pytest.approx(results[0].tokens_per_s, abs=0.1)


async def test_without_growth_every_problem_gets_the_configured_attempts(harness: Harness, tmp_path: Path) -> None:
    with RunLog.create(tmp_path / "run", config=Config(), environment={}) as log:
        solver = harness.solver(lambda index: harness.answers(2), log=log)
        results = [await solver.solve(Problem(name, PROBLEM.text, 2), Allotment(30.0, left_s=9_000.0)) for name in "ab"]
    assert [one.slots for one in results] == [8, 8]
    assert not any(event.kind == "plan" for event in read_run(tmp_path / "run").events)


async def test_four_equal_answers_cancel_the_rest(harness: Harness) -> None:
    result = await harness.solve(lambda index: harness.answers(2) if index < 4 else harness.endless_turns())
    assert (result.answer, result.votes, result.attempts, result.reason) == (2, 4, 8, "equal")
    assert harness.engine.running == 0
    cancelled = [attempt for attempt in harness.seen.attempts if attempt.finish_reason is FinishReason.CANCELLED]
    assert len(cancelled) == 4
    assert all(attempt.finish_order is None for attempt in cancelled)


async def test_a_freed_slot_starts_the_next_attempt(harness: Harness) -> None:
    settings = ("solver.slots=3", "solver.max_attempts=9", "voting.stop=never")
    result = await harness.solve(lambda index: harness.answers(index), *settings)
    assert result.attempts == 9
    assert harness.engine.most_running == 3


async def test_no_attempt_starts_after_the_decision(harness: Harness) -> None:
    result = await harness.solve(lambda index: harness.answers(5), "solver.slots=2", "solver.max_attempts=8")
    assert result.attempts <= 5  # four equal, and the one parallel to the fourth


async def test_the_deadline_ends_the_problem_with_the_best_answer_so_far(harness: Harness) -> None:
    started = time.monotonic()
    result = await harness.solve(lambda index: harness.answers(2) if index == 0 else harness.endless_turns(), seconds=6.0)
    assert (result.answer, result.reason) == (2, "time")
    assert time.monotonic() - started < 30


async def test_answers_forced_at_the_deadline_count(harness: Harness) -> None:
    def script(index: int) -> Sequence[ScriptedTurn]:
        return [harness.endless_turns()[0], ScriptedTurn(harness._tokenizer.encode_template("2}<turn|>"))]

    result = await harness.solve(script, seconds=12.0)
    assert result.answer == 2
    assert result.votes >= 4  # equal answers that end the problem


async def test_without_any_answer_the_result_is_the_fallback(harness: Harness) -> None:
    result = await harness.solve(lambda index: harness.answers(None))
    assert (result.answer, result.votes, result.candidates) == (FALLBACK_ANSWER, 0, ())


async def test_a_problem_without_time_gets_the_fallback_at_once(harness: Harness) -> None:
    started = time.monotonic()
    result = await harness.solve(lambda index: harness.endless_turns(), seconds=0.0)
    assert result.answer == FALLBACK_ANSWER
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("fault", [RuntimeError("defect"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()])
async def test_a_defect_in_an_attempt_ends_only_that_attempt(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    whole = RunningAttempt.run

    async def faulty(run: RunningAttempt) -> Attempt:
        if run.index == 0:
            raise fault
        return await whole(run)

    monkeypatch.setattr(RunningAttempt, "run", faulty)
    result = await harness.solve(lambda index: harness.answers(2), "voting.stop=never")
    assert (result.answer, result.votes, result.attempts) == (2, 7, 8)


async def test_cancelling_a_problem_aborts_all_its_requests(harness: Harness) -> None:
    task = asyncio.create_task(harness.solve(lambda index: harness.endless_turns()))
    while harness.engine.running < 8:  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert harness.engine.running == 0


@pytest.mark.parametrize(("mode", "answer"), [("use", 7), ("log", 2), ("off", 2)])
async def test_a_contested_vote_gets_a_second_look(harness: Harness, mode: str, answer: int) -> None:
    """Five votes for 2, three for 7; asked again, the model always picks 7."""
    settings = (f"selection.select={mode}", "selection.clear_share=0.7", "voting.stop=never", "selection.least_s=1")
    result = await harness.solve(lambda index: harness.answers(2 if index < 5 else 7), *settings)
    assert result.answer == answer
    assert result.attempts == (8 if mode == "off" else 12)
    prompts = [attempt.prompt for attempt in harness.seen.attempts]
    assert prompts.count("select") == (0 if mode == "off" else 4)


async def test_concurrent_problems_do_not_mix(harness: Harness) -> None:
    solver = harness.solver(lambda index: harness.answers(2), "voting.stop=never")
    problems = [Problem(str(number), "x", 2) for number in range(4)]
    results = await asyncio.gather(*(solver.solve(problem, Allotment(30.0)) for problem in problems))
    assert [(result.problem_id, result.attempts) for result in results] == [(str(number), 8) for number in range(4)]


async def test_the_best_answer_so_far_is_available_at_any_time(harness: Harness) -> None:
    solver = harness.solver(lambda index: harness.answers(2) if index == 0 else harness.endless_turns())
    assert solver.best("p") == FALLBACK_ANSWER
    task = asyncio.create_task(solver.solve(PROBLEM, Allotment(30.0)))
    while not harness.seen.attempts:  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0.01)
    assert solver.best("p") == 2
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class Broken(Observer):
    """An observer with a defect in every method."""

    def problem_started(self, *values: object) -> None:
        raise RuntimeError("observer")

    attempt_changed = attempt_finished = problem_finished = problem_started  # type: ignore[assignment]


class BrokenLog(NullLog):
    """A run log with a defect in every method that the solver calls, except `trajectory`."""

    def write_votes(self, *values: object, **named: object) -> None:
        raise RuntimeError("log")

    event = problem_started = attempt_finished = problem_finished = write_votes


class Events(NullLog):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, Any]]] = []

    def event(self, kind: str, **values: Any) -> None:
        self.seen.append((kind, values))


async def test_losing_the_server_twice_ends_the_attempts_of_a_problem(harness: Harness) -> None:
    """Its attempts would kill the server again, and leave no restarts for the problems that follow."""
    solver = harness.solver(lambda index: harness.answers(2) if index == 0 else harness.endless_turns())
    solving = asyncio.create_task(solver.solve(PROBLEM, Allotment(60.0)))
    while not harness.seen.attempts:  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0.01)
    harness.engine.faults += 1
    await asyncio.sleep(1.5)
    assert not solving.done()
    harness.engine.faults += 1
    result = await asyncio.wait_for(solving, 10)
    assert (result.answer, result.reason, result.votes) == (2, "server", 1)
    assert harness.engine.running == 0


async def test_server_losses_during_earlier_problems_do_not_count(harness: Harness) -> None:
    solver = harness.solver(lambda index: harness.answers(2))
    harness.engine.faults = 7
    assert (await solver.solve(PROBLEM, Allotment(30.0))).reason == "equal"


async def test_defects_in_log_and_observers_do_not_change_the_result(harness: Harness) -> None:
    solver = harness.solver(lambda index: harness.answers(2), log=BrokenLog(), observers=[Broken(), harness.seen])
    result = await solver.solve(PROBLEM, Allotment(30.0))
    assert harness.seen.results == [result]
    assert (result.answer, result.reason) == (2, "equal")
    assert result.votes >= 4


@pytest.mark.parametrize("part", ["rank", "decide", "is_contested"])
async def test_a_defect_in_voting_or_the_second_look_falls_back_to_the_majority(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def defect(*values: object, **options: object) -> NoReturn:
        raise RuntimeError("defect")

    def broken_rank(attempts: Sequence[Attempt], voting: VotingConfig) -> object:
        return rank(attempts, voting) if voting.voter == "majority" else defect()

    monkeypatch.setattr(solver_module, part, broken_rank if part == "rank" else defect)
    events = Events()
    settings = ("voting.stop=never", "voting.voter=entropy", "selection.select=use", "selection.least_s=1")
    solver = harness.solver(lambda index: harness.answers(2 if index < 5 else 7), *settings, log=events)
    result = await solver.solve(PROBLEM, Allotment(30.0))
    assert (result.answer, result.attempts) == (2, 8)
    faults = [values for kind, values in events.seen if kind == "problem_fault"]
    assert faults
    assert "RuntimeError: defect" in faults[0]["traceback"]


async def test_a_defect_in_one_problem_ends_only_that_problem(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = solver_module._ProblemWork._run_attempts

    async def faulty(work: solver_module._ProblemWork) -> str:
        if work._problem.id == "1":
            raise RuntimeError("defect")
        return await whole(work)

    monkeypatch.setattr(solver_module._ProblemWork, "_run_attempts", faulty)
    events = Events()
    solver = harness.solver(lambda index: harness.answers(2), log=events)
    problems = [Problem(str(number), "x", 2) for number in range(4)]
    budget = BudgetConfig(time_limit_s=400)
    clock = RunClock.begin(budget, time.monotonic, time.monotonic())
    results = await evaluate(solver.solve, problems, budget, clock, parallel=4)
    assert [(result.problem_id, result.answer) for result in results] == [("0", 2), ("1", FALLBACK_ANSWER), ("2", 2), ("3", 2)]
    assert [(kind, values["problem_id"]) for kind, values in events.seen if kind == "problem_fault"] == [("problem_fault", "1")]


async def test_an_attempt_that_ignores_cancellation_does_not_delay_its_problem(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = asyncio.Event()

    async def stubborn(run: RunningAttempt) -> Attempt:
        while not ended.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await ended.wait()
        return run.record(FinishReason.CANCELLED)

    monkeypatch.setattr(RunningAttempt, "run", stubborn)
    monkeypatch.setattr(solver_module, "_END_S", 0.2)
    solver = harness.solver(lambda index: harness.endless_turns())
    result = await asyncio.wait_for(solver.solve(PROBLEM, Allotment(0.5)), 60)
    ended.set()
    assert (result.answer, result.attempts) == (FALLBACK_ANSWER, 8)
