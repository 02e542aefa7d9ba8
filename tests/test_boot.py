"""The run behind the gateway, with a scripted solver in place of kernels, server and model."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import polars as pl
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aimo_solver.attempt import Attempt, FinishReason
from aimo_solver.boot import GRACE_S, BringUp, Narrator, Run, notebook_run
from aimo_solver.budget import RULES, Allotment
from aimo_solver.clock import RunClock, process_age_s
from aimo_solver.config import BudgetConfig
from aimo_solver.errors import ConfigError, ServerStartError
from aimo_solver.gateway import FALLBACK_ANSWER, make_predict
from aimo_solver.local_gateway import LocalInferenceServer
from aimo_solver.problems import Problem
from aimo_solver.runlog import ProblemResult
from aimo_solver.wheels import NOTHING_TO_INSTALL


def result(problem: Problem, answer: int, seconds: float = 0.0) -> ProblemResult:
    return ProblemResult(
        problem_id=problem.id,
        answer=answer,
        truth=None,
        reason="scripted",
        votes=1,
        attempts=1,
        tool_calls=0,
        tokens=0,
        seconds=seconds,
        allotted_s=0.0,
        candidates=(),
    )


class Script:
    """A solver that does what `play` says."""

    def __init__(self, play: Callable[[Problem, Allotment], int]) -> None:
        self.play = play
        self.leader = FALLBACK_ANSWER

    async def solve(self, problem: Problem, allotment: Allotment) -> ProblemResult:
        return result(problem, self.play(problem, allotment))

    def best(self, problem_id: str) -> int:
        return self.leader


class Harness:
    """Runs that are closed at the end of a test."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.brought_down = threading.Event()

    def __call__(self, bring_up: BringUp, budget: BudgetConfig | None = None, *, limit_s: float = 100.0) -> Run:
        budget = budget or BudgetConfig(time_limit_s=limit_s, margin_s=0.0, problems=2)
        run = Run(bring_up, budget, RunClock.begin(budget, time.monotonic, time.monotonic()))
        self.runs.append(run)
        run.start()
        return run

    def with_solver(self, solver: Script, **limits: float) -> Run:
        @asynccontextmanager
        async def bring_up(narrator: Narrator) -> AsyncIterator[Script]:
            try:
                yield solver
            finally:
                self.brought_down.set()

        return self(bring_up, **limits)


@pytest.fixture
def harness() -> Iterator[Harness]:
    harness = Harness()
    yield harness
    for run in harness.runs:
        run.close()


def ask(run: Run, id_: str = "aa0001") -> int:
    answer: int = make_predict(run)(id_, f"problem {id_}")["answer"][0]
    return answer


def test_the_first_problem_waits_for_the_boot(harness: Harness) -> None:
    ready = threading.Event()

    @asynccontextmanager
    async def bring_up(narrator: Narrator) -> AsyncIterator[Script]:
        await asyncio.sleep(0.3)
        ready.set()
        yield Script(lambda problem, allotment: 41)

    run = harness(bring_up)
    assert not ready.is_set()
    assert ask(run) == 41
    assert ready.is_set()


@pytest.mark.parametrize(
    "error",
    [
        ServerStartError("the vLLM server ended", ["vllm", "--model"], 1, ["CUDA out of memory"]),
        TypeError("a defect"),
        ImportError("no zmq"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_after_a_failed_boot_every_problem_is_answered_at_once_and_the_log_says_why(
    harness: Harness, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    @asynccontextmanager
    async def bring_up(narrator: Narrator) -> AsyncIterator[Script]:
        raise error
        yield

    run = harness(bring_up)
    assert [ask(run, f"id{number}") for number in range(50)] == [FALLBACK_ANSWER] * 50
    assert "the boot failed" in caplog.text
    assert str(error).partition("\n")[0] in caplog.text


def test_a_boot_that_never_ends_is_over_when_the_clock_is(harness: Harness) -> None:
    @asynccontextmanager
    async def bring_up(narrator: Narrator) -> AsyncIterator[Script]:
        await asyncio.Event().wait()
        yield

    assert ask(harness(bring_up, limit_s=0.5)) == FALLBACK_ANSWER


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=["SystemExit", "KeyboardInterrupt"])
def test_an_attempt_that_ends_the_process_ends_only_its_problem(
    harness: Harness, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def play(problem: Problem, allotment: Allotment) -> int:
        if problem.id == "bad":
            raise error
        return 7

    run = harness.with_solver(Script(play))
    assert [ask(run, id_) for id_ in ("good", "bad", "better")] == [7, FALLBACK_ANSWER, 7]
    assert type(error).__name__ in caplog.text


def test_a_background_task_that_ends_the_process_disturbs_nothing(harness: Harness) -> None:
    class Careless(Script):
        async def solve(self, problem: Problem, allotment: Allotment) -> ProblemResult:
            async def leave() -> None:
                raise SystemExit

            task = asyncio.create_task(leave())
            await asyncio.sleep(0.05)
            task.exception()
            return result(problem, 12)

    run = harness.with_solver(Careless(lambda problem, allotment: 0))
    assert [ask(run, "a"), ask(run, "b")] == [12, 12]


def attempt(problem: Problem, answer: int, index: int) -> Attempt:
    return Attempt(problem_id=problem.id, index=index, answer=answer, finish_reason=FinishReason.ANSWERED)


@pytest.mark.parametrize(("leader", "expected"), [(FALLBACK_ANSWER, 33), (44, 44)], ids=["voting broke", "voting worked"])
def test_a_defect_after_attempts_answered_keeps_their_answer(harness: Harness, leader: int, expected: int) -> None:
    @asynccontextmanager
    async def bring_up(narrator: Narrator) -> AsyncIterator[Script]:
        def play(problem: Problem, allotment: Allotment) -> int:
            narrator.problem_started(problem, allotment)
            for index, answer in enumerate([44, 33, 33]):
                narrator.attempt_finished(attempt(problem, answer, index))
            raise ZeroDivisionError("in the vote")

        script = Script(play)
        script.leader = leader
        yield script

    assert ask(harness(bring_up)) == expected


def test_a_solver_that_forgets_the_time_is_left_behind(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aimo_solver.boot.GRACE_S", 0.2)
    cancelled = threading.Event()

    class Slow(Script):
        async def solve(self, problem: Problem, allotment: Allotment) -> ProblemResult:
            try:
                await asyncio.sleep(3_600)
            except asyncio.CancelledError:
                cancelled.set()
                raise
            raise AssertionError

    budget = BudgetConfig(time_limit_s=100, margin_s=0.0, cap_s=4.0, problems=50)

    @asynccontextmanager
    async def bring_up(narrator: Narrator) -> AsyncIterator[Script]:
        yield Slow(lambda problem, allotment: 0)

    started = time.monotonic()
    assert ask(harness(bring_up, budget)) == FALLBACK_ANSWER
    assert time.monotonic() - started < 60
    assert cancelled.wait(10)


def test_a_loop_that_is_blocked_does_not_keep_the_gateway(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aimo_solver.boot.GRACE_S", 0.2)
    release = threading.Event()

    def play(problem: Problem, allotment: Allotment) -> int:
        release.wait(60)
        return 5

    run = harness.with_solver(Script(play), limit_s=2.2)
    try:
        assert ask(run) == FALLBACK_ANSWER
    finally:
        release.set()


def test_closing_ends_problems_under_way_and_takes_everything_down(harness: Harness) -> None:
    class Slow(Script):
        async def solve(self, problem: Problem, allotment: Allotment) -> ProblemResult:
            await asyncio.sleep(3_600)
            raise AssertionError

    run = harness.with_solver(Slow(lambda problem, allotment: 0))
    work = run.begin("aa0001", "x")
    threading.Timer(0.2, run.close).start()
    assert make_predict(run)("bb0002", "y")["answer"][0] == FALLBACK_ANSWER
    run.close()
    assert work.answer.cancelled()
    assert harness.brought_down.is_set()


def test_closing_in_the_middle_of_the_boot_takes_it_down(harness: Harness) -> None:
    down = threading.Event()

    @asynccontextmanager
    async def bring_up(narrator: Narrator) -> AsyncIterator[Script]:
        try:
            await asyncio.sleep(3_600)
        finally:
            down.set()
        yield

    run = harness(bring_up)
    time.sleep(0.1)
    run.close()
    assert down.is_set()
    assert ask(run) == FALLBACK_ANSWER


def test_thirty_seconds_before_the_end_five_problems_share_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    budget = BudgetConfig(time_limit_s=18_000, margin_s=300, problems=50)
    now = [17_670.0]
    given_s = []

    def play(problem: Problem, allotment: Allotment) -> int:
        given_s.append(allotment.seconds)
        now[0] += allotment.seconds
        return 1

    @asynccontextmanager
    async def bring_up(narrator: Narrator) -> AsyncIterator[Script]:
        yield Script(play)

    run = Run(bring_up, budget, RunClock.begin(budget, lambda: now[0], 0.0))
    run._begun = 45
    run.start()
    try:
        # Two more problems come than were expected: no time is left for them, but an answer is.
        (tmp_path / "test.csv").write_text("id,problem\n" + "".join(f"a{number},x\n" for number in range(7)))
        LocalInferenceServer(make_predict(run, lambda: now[0])).run_local_gateway(("test.csv",))
    finally:
        run.close()
    assert pl.read_parquet("submission.parquet")["answer"].to_list() == [1] * 5 + [FALLBACK_ANSWER] * 2
    assert given_s == pytest.approx([6.0] * 5)
    assert now[0] <= 17_700


budgets = st.builds(
    BudgetConfig,
    rule=st.sampled_from(sorted(RULES)),
    time_limit_s=st.floats(10, 20_000),
    margin_s=st.floats(0, 600),
    reserve_s=st.floats(0, 600),
    cap_s=st.floats(1, 2_000),
    problems=st.integers(1, 60),
)


@settings(max_examples=40, deadline=None)
@given(
    budget=budgets,
    boot_s=st.floats(0, 25_000) | st.floats(0, 300),
    wishes=st.lists(st.floats(0, 1.5), min_size=1, max_size=70),
    pauses=st.lists(st.floats(0, 100) | st.sampled_from([0.0, 0.0, 5_000.0]), min_size=1, max_size=5),
    restart=st.tuples(st.integers(0, 70), st.floats(0, 900)),
)
def test_the_sum_of_all_budgets_never_passes_the_time_limit(
    budget: BudgetConfig, boot_s: float, wishes: list[float], pauses: list[float], restart: tuple[int, float]
) -> None:
    """Late starts (`boot_s`), problems that take a share of their budget or overdraw it, restarts that eat time, and
    clocks that jump between problems. Every problem is asked twice, and counts once."""
    now = [0.0]
    clock = RunClock.begin(budget, lambda: now[0], 0.0)
    ends = []

    def play(problem: Problem, allotment: Allotment) -> int:
        ends.append(now[0] + allotment.seconds)
        number = int(problem.id)
        wish = wishes[number] * allotment.seconds + (restart[1] if number == restart[0] else 0.0)
        # Who overdraws is cut off by the gateway, GRACE_S after the budget.
        used = min(wish, allotment.seconds + GRACE_S, clock.limit - now[0])
        now[0] += used
        return 1

    @asynccontextmanager
    async def bring_up(narrator: Narrator) -> AsyncIterator[Script]:
        now[0] += boot_s
        yield Script(play)

    run = Run(bring_up, budget, clock)
    run.start()
    try:
        predict = make_predict(run, lambda: now[0])
        spent = 0.0
        for number in range(len(wishes)):
            before = now[0]
            for _ in range(2):
                assert predict(str(number), "x")["answer"][0] in range(100_000)
            if number > 0:  # the first one waits for the boot
                spent += now[0] - before
                assert now[0] <= max(clock.limit, before)
            now[0] += pauses[number % len(pauses)]
        assert spent <= budget.time_limit_s
        assert all(end <= clock.end for end in ends)
        assert ends or clock.end - boot_s <= budget.problems  # less than a second for each
    finally:
        run.close()


def test_the_process_age_does_not_follow_the_date(monkeypatch: pytest.MonkeyPatch) -> None:
    age = process_age_s()
    assert 0 < age < 24 * 3_600
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: 0.0)
    assert process_age_s() == 0.0


def test_the_clock_starts_with_the_process_in_a_rerun_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aimo_solver.boot.process_age_s", lambda: 40.0)
    ends = {}
    for rerun in (False, True):
        if rerun:
            monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "")
        ends[rerun] = notebook_run("m", {}, NOTHING_TO_INSTALL)._clock.limit - time.monotonic()
    assert ends[False] == pytest.approx(18_000, abs=5)
    assert ends[True] == pytest.approx(18_000 - 40, abs=5)


def test_a_wrong_setting_is_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match=r"solver\.slotz"):
        notebook_run("m", {"solver": {"slotz": 8}}, NOTHING_TO_INSTALL)


def test_a_missing_model_is_a_failed_boot_that_names_the_places(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = notebook_run("me/no-model/transformers/default", {}, NOTHING_TO_INSTALL)
    run.start()
    try:
        with caplog.at_level(logging.ERROR):
            assert ask(run) == FALLBACK_ANSWER
    finally:
        run.close()
    assert "/kaggle/input/models/me/no-model/transformers/default" in caplog.text
