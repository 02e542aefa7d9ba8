"""The run behind the gateway, with a scripted solver instead of kernels, server and model."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimo_solver.answers import ANSWER_RANGE, FALLBACK_ANSWER
from aimo_solver.clock import RunClock, process_age_s
from aimo_solver.errors import ConfigError, ServerStartError
from aimo_solver.kaggle.gateway import LocalInferenceServer, make_predict
from aimo_solver.kaggle.notebook import notebook_run
from aimo_solver.kaggle.observer import LoggingObserver
from aimo_solver.kaggle.run import GRACE_S, Run, SessionFactory
from aimo_solver.policy.budget import BUDGET_RULES, Allotment
from aimo_solver.policy.options import BudgetConfig
from aimo_solver.problems import Problem, ProblemResult
from aimo_solver.results import Attempt, FinishReason
from aimo_solver.server.wheels import NOTHING_TO_INSTALL


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


class ScriptedSolver:
    """A solver that answers with what `play` returns."""

    def __init__(self, play: Callable[[Problem, Allotment], int]) -> None:
        self.play = play
        self.leader = FALLBACK_ANSWER

    async def solve(self, problem: Problem, allotment: Allotment) -> ProblemResult:
        return result(problem, self.play(problem, allotment))

    def best(self, problem_id: str) -> int:
        return self.leader


@dataclass
class FakeSession:
    """A session with a scripted solver."""

    solver: ScriptedSolver
    lost: str | None = None


def answering(answer: int) -> FakeSession:
    """A session whose solver answers every problem with `answer`."""
    return FakeSession(ScriptedSolver(lambda problem, allotment: answer))


class Harness:
    """Runs that are closed at the end of a test."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.closed = threading.Event()

    def __call__(self, open_session: SessionFactory, budget: BudgetConfig | None = None, *, limit_s: float = 100.0) -> Run:
        budget = budget or BudgetConfig(time_limit_s=limit_s, margin_s=0.0, problems=2)
        run = Run(open_session, budget, RunClock.begin(budget, time.monotonic, time.monotonic()))
        self.runs.append(run)
        run.start()
        return run

    def with_solver(self, solver: ScriptedSolver, budget: BudgetConfig | None = None, *, limit_s: float = 100.0) -> Run:
        @asynccontextmanager
        async def open_session(observer: LoggingObserver) -> AsyncIterator[FakeSession]:
            try:
                yield FakeSession(solver)
            finally:
                self.closed.set()

        return self(open_session, budget, limit_s=limit_s)


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
    async def open_session(observer: LoggingObserver) -> AsyncIterator[FakeSession]:
        await asyncio.sleep(0.3)
        ready.set()
        yield answering(41)

    run = harness(open_session)
    assert not ready.is_set()
    assert ask(run) == 41
    assert ready.is_set()


START_ERROR = ServerStartError("the vLLM server ended", ["vllm", "--model"], 1, ["CUDA out of memory"])
FAILURES = [
    START_ERROR,
    TypeError("a defect"),
    ImportError("no zmq"),
    SystemExit(3),
    KeyboardInterrupt(),
    asyncio.CancelledError(),
]


class Boots:
    """Opens the given sessions or raises the given errors in turn, the last one again and again."""

    def __init__(self, *results: BaseException | FakeSession) -> None:
        self.results = list(results)
        self.tries = 0

    @asynccontextmanager
    async def __call__(self, observer: LoggingObserver) -> AsyncIterator[FakeSession]:
        self.tries += 1
        result = self.results.pop(0) if len(self.results) > 1 else self.results[0]
        if isinstance(result, BaseException):
            raise result
        yield result


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses and time limits."""
    monkeypatch.setattr("aimo_solver.kaggle.run.PAUSES_S", (0.0, 0.01, 0.02))
    monkeypatch.setattr("aimo_solver.kaggle.run._POLL_S", 0.01)
    monkeypatch.setattr("aimo_solver.kaggle.run._WIND_DOWN_S", 0.2)
    monkeypatch.setattr("aimo_solver.kaggle.run.TEARDOWN_S", 0.4)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("times", [1, 20])
@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_a_boot_that_failed_is_repeated_until_one_succeeds(harness: Harness, error: BaseException, times: int) -> None:
    boots = Boots(*[error] * times, answering(41))
    assert ask(harness(boots)) == 41
    assert boots.tries == times + 1


@pytest.mark.usefixtures("quick")
def test_a_failure_is_logged_in_full_once(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    boots = Boots(START_ERROR, TypeError("a defect"), START_ERROR, START_ERROR, answering(41))
    assert ask(harness(boots)) == 41
    assert caplog.text.count("CUDA out of memory") == 1
    assert caplog.text.count("Traceback") == 1
    assert "the boot failed, 4 times in a row now: ServerStartError: the vLLM server ended" in caplog.text


def test_pauses_grow_between_boots_that_fail(harness: Harness) -> None:
    boots = Boots(START_ERROR)
    harness(boots)
    time.sleep(2.0)
    assert boots.tries == 2  # 1 s after the first, 2 s after the second


@pytest.mark.usefixtures("quick")
def test_a_problem_waits_for_its_budget_and_a_late_boot_serves_the_next(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    boots = Boots(START_ERROR)
    run = harness(boots, BudgetConfig(time_limit_s=100, margin_s=0.0, cap_s=0.3, least_s=0.3, problems=50))
    assert [ask(run, f"id{number}") for number in range(2)] == [FALLBACK_ANSWER] * 2
    assert "could wait; the last boot failed: ServerStartError: the vLLM server ended" in caplog.text
    boots.results = [answering(41)]
    assert ask(run, "late") == 41


@pytest.mark.usefixtures("quick")
def test_no_boot_starts_after_the_end_of_the_clock(harness: Harness) -> None:
    boots = Boots(START_ERROR)
    run = harness(boots, limit_s=0.2)
    time.sleep(0.4)
    tries = boots.tries
    assert ask(run) == FALLBACK_ANSWER
    time.sleep(0.1)
    assert boots.tries == tries


class Losing(ScriptedSolver):
    """A solver whose session is lost during its first problem, which gets the given number of votes."""

    def __init__(self, answer: int, votes: int, hangs: bool = False) -> None:
        super().__init__(lambda problem, allotment: answer)
        self.votes = votes
        self.hangs = hangs
        self.session = FakeSession(self)

    async def solve(self, problem: Problem, allotment: Allotment) -> ProblemResult:
        self.session.lost = "no restarts are left"
        if self.hangs:
            await asyncio.Event().wait()
        return replace(await super().solve(problem, allotment), votes=self.votes)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("hangs", [False, True])
def test_a_problem_whose_session_is_lost_is_solved_in_the_next(harness: Harness, hangs: bool, times: int) -> None:
    given_s = []

    def play(problem: Problem, allotment: Allotment) -> int:
        given_s.append(allotment.seconds)
        return 41

    boots = Boots(*[Losing(0, 0, hangs).session for _ in range(times)], START_ERROR, FakeSession(ScriptedSolver(play)))
    run = harness(boots, BudgetConfig(time_limit_s=100, margin_s=0.0, cap_s=10, problems=1))
    assert ask(run) == 41
    assert boots.tries == times + 2
    assert 0 < given_s[0] < 10  # what is left of its seconds


@pytest.mark.usefixtures("quick")
def test_the_answer_of_a_lost_session_is_kept_and_the_next_problem_gets_another_session(harness: Harness) -> None:
    boots = Boots(Losing(33, 2).session, answering(41))
    run = harness(boots)
    assert [ask(run, "a"), ask(run, "b")] == [33, 41]


@pytest.mark.usefixtures("quick")
def test_a_problem_that_loses_every_session_ends_with_its_budget(harness: Harness) -> None:
    boots = Boots(*[Losing(0, 0).session for _ in range(2_000)])
    run = harness(boots, BudgetConfig(time_limit_s=100, margin_s=0.0, cap_s=0.5, least_s=0.5, problems=50))
    assert ask(run) == FALLBACK_ANSWER
    boots.results = [answering(41)]
    assert ask(run, "next") == 41


def test_a_boot_that_never_ends_costs_no_more_than_the_clock(harness: Harness) -> None:
    @asynccontextmanager
    async def open_session(observer: LoggingObserver) -> AsyncIterator[FakeSession]:
        await asyncio.Event().wait()
        yield FakeSession(ScriptedSolver(lambda problem, allotment: 0))

    assert ask(harness(open_session, limit_s=0.5)) == FALLBACK_ANSWER


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=["SystemExit", "KeyboardInterrupt"])
def test_an_exception_that_would_end_the_process_ends_only_its_problem(
    harness: Harness, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def play(problem: Problem, allotment: Allotment) -> int:
        if problem.id == "bad":
            raise error
        return 7

    run = harness.with_solver(ScriptedSolver(play))
    assert [ask(run, id_) for id_ in ("good", "bad", "better")] == [7, FALLBACK_ANSWER, 7]
    assert type(error).__name__ in caplog.text


def test_a_background_task_that_raises_systemexit_disturbs_nothing(harness: Harness) -> None:
    class LeakySolver(ScriptedSolver):
        async def solve(self, problem: Problem, allotment: Allotment) -> ProblemResult:
            async def leave() -> None:
                raise SystemExit

            task = asyncio.create_task(leave())
            await asyncio.sleep(0.05)
            task.exception()
            return result(problem, 12)

    run = harness.with_solver(LeakySolver(lambda problem, allotment: 0))
    assert [ask(run, "a"), ask(run, "b")] == [12, 12]


def attempt(problem: Problem, answer: int, index: int) -> Attempt:
    return Attempt(problem_id=problem.id, index=index, answer=answer, finish_reason=FinishReason.ANSWERED)


@pytest.mark.parametrize(("leader", "expected"), [(FALLBACK_ANSWER, 33), (44, 44)], ids=["voting broke", "voting worked"])
def test_a_failure_of_the_vote_gives_the_most_frequent_answer(harness: Harness, leader: int, expected: int) -> None:
    @asynccontextmanager
    async def open_session(observer: LoggingObserver) -> AsyncIterator[FakeSession]:
        def play(problem: Problem, allotment: Allotment) -> int:
            observer.problem_started(problem, allotment.seconds)
            for index, answer in enumerate([44, 33, 33]):
                observer.attempt_finished(attempt(problem, answer, index))
            raise ZeroDivisionError("in the vote")

        script = ScriptedSolver(play)
        script.leader = leader
        yield FakeSession(script)

    assert ask(harness(open_session)) == expected


@pytest.mark.slow
def test_a_solver_that_overruns_its_budget_is_cancelled(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aimo_solver.kaggle.run.GRACE_S", 0.2)
    cancelled = threading.Event()

    class Slow(ScriptedSolver):
        async def solve(self, problem: Problem, allotment: Allotment) -> ProblemResult:
            try:
                await asyncio.sleep(3_600)
            except asyncio.CancelledError:
                cancelled.set()
                raise
            raise AssertionError

    budget = BudgetConfig(time_limit_s=100, margin_s=0.0, cap_s=4.0, problems=50)
    started = time.monotonic()
    assert ask(harness.with_solver(Slow(lambda problem, allotment: 0), budget)) == FALLBACK_ANSWER
    assert time.monotonic() - started < 60
    assert cancelled.wait(10)


def test_a_blocked_event_loop_does_not_block_predict(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aimo_solver.kaggle.run.GRACE_S", 0.2)
    release = threading.Event()

    def play(problem: Problem, allotment: Allotment) -> int:
        release.wait(60)
        return 5

    run = harness.with_solver(ScriptedSolver(play), limit_s=2.2)
    try:
        assert ask(run) == FALLBACK_ANSWER
    finally:
        release.set()


def test_close_ends_problems_under_way_and_the_session(harness: Harness) -> None:
    class Slow(ScriptedSolver):
        async def solve(self, problem: Problem, allotment: Allotment) -> ProblemResult:
            await asyncio.sleep(3_600)
            raise AssertionError

    run = harness.with_solver(Slow(lambda problem, allotment: 0))
    pending = run.submit("aa0001", "x")
    threading.Timer(0.2, run.close).start()
    assert make_predict(run)("bb0002", "y")["answer"][0] == FALLBACK_ANSWER
    run.close()
    assert pending.future.cancelled()
    assert harness.closed.is_set()


def test_close_during_the_boot_ends_it(harness: Harness) -> None:
    down = threading.Event()

    @asynccontextmanager
    async def open_session(observer: LoggingObserver) -> AsyncIterator[FakeSession]:
        try:
            await asyncio.sleep(3_600)
        finally:
            down.set()
        yield FakeSession(ScriptedSolver(lambda problem, allotment: 0))

    run = harness(open_session)
    time.sleep(0.1)
    run.close()
    assert down.is_set()
    assert ask(run) == FALLBACK_ANSWER


def raising() -> None:
    raise RuntimeError("cannot go down")


def exiting() -> None:
    raise SystemExit(3)


@asynccontextmanager
async def hanging(times: int) -> AsyncIterator[None]:
    """Hangs at its end, until it has been cancelled so many times."""
    try:
        yield
    finally:
        for _ in range(times):
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()


class BadTeardown:
    """Sessions whose teardown calls `harm`, or hangs that many times. The first is lost if `loses`."""

    def __init__(self, harm: Callable[[], None] | int, *, loses: bool = False) -> None:
        self.harm = harm
        self.loses = loses
        self.tries = 0

    @asynccontextmanager
    async def __call__(self, observer: LoggingObserver) -> AsyncIterator[FakeSession]:
        self.tries += 1
        harm = self.harm
        lost = self.loses and self.tries == 1
        async with hanging(harm) if isinstance(harm, int) else nullcontext():
            try:
                yield Losing(0, 0).session if lost else answering(41)
            finally:
                if not isinstance(harm, int):
                    harm()


HARMS = pytest.mark.parametrize(
    "harm", [raising, exiting, 1, 2, 1_000], ids=["raises", "exits", "hangs", "hangs twice", "hangs on"]
)


@pytest.mark.usefixtures("quick")
@HARMS
def test_close_ends_even_if_the_teardown_fails_or_hangs(harness: Harness, harm: Callable[[], None] | int) -> None:
    run = harness(BadTeardown(harm))
    assert ask(run) == 41
    run.close()
    assert not run._thread.is_alive()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("harm", [raising, exiting, 1], ids=["raises", "exits", "hangs"])
def test_a_lost_session_whose_teardown_fails_is_followed_by_the_next(harness: Harness, harm: Callable[[], None] | int) -> None:
    boots = BadTeardown(harm, loses=True)
    assert ask(harness(boots)) == 41
    assert boots.tries == 2


@pytest.mark.usefixtures("quick")
def test_a_loop_that_stays_blocked_is_left_behind(monkeypatch: pytest.MonkeyPatch, harness: Harness) -> None:
    release = threading.Event()
    run = harness(BadTeardown(lambda: (release.wait(60), None)[1]))
    assert ask(run) == 41
    try:
        run.close()
        assert run._thread.is_alive()
    finally:
        release.set()


@pytest.mark.usefixtures("quick")
def test_close_between_two_boots_starts_no_other(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aimo_solver.kaggle.run.PAUSES_S", (60.0,))
    boots = Boots(START_ERROR)
    run = harness(boots)
    while not run._failures:
        time.sleep(0.01)
    run.close()
    assert not run._thread.is_alive()
    assert boots.tries == 1


@pytest.mark.usefixtures("quick")
def test_on_close_is_called_once_at_the_end(harness: Harness) -> None:
    closed: list[bool] = []
    budget = BudgetConfig(time_limit_s=100, problems=2)
    boots = Boots(START_ERROR, answering(41))
    run = Run(boots, budget, RunClock.begin(budget, time.monotonic, time.monotonic()), lambda: closed.append(True))
    run.start()
    assert ask(run) == 41
    assert closed == []
    run.close()
    run.close()
    assert closed == [True]


def test_shortly_before_the_end_as_many_problems_as_fit_get_seconds_enough_to_be_solved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    budget = BudgetConfig(time_limit_s=18_000, margin_s=300, problems=50)
    now = [17_675.0]
    given_s = []

    def play(problem: Problem, allotment: Allotment) -> int:
        given_s.append(allotment.seconds)
        now[0] += allotment.seconds
        return 1

    @asynccontextmanager
    async def open_session(observer: LoggingObserver) -> AsyncIterator[FakeSession]:
        yield FakeSession(ScriptedSolver(play))

    run = Run(open_session, budget, RunClock.begin(budget, lambda: now[0], 0.0))
    run._submitted = 45
    run.start()
    try:
        # Two problems more than expected: there is no time for them, but an answer.
        (tmp_path / "test.csv").write_text("id,problem\n" + "".join(f"a{number},x\n" for number in range(7)))
        LocalInferenceServer(make_predict(run, lambda: now[0])).run_local_gateway(("test.csv",))
    finally:
        run.close()
    assert pl.read_parquet("submission.parquet")["answer"].to_list() == [1] * 3 + [FALLBACK_ANSWER] * 4
    assert given_s == [10.0, 10.0, 5.0]
    assert now[0] <= 17_700


budgets = st.builds(
    BudgetConfig,
    rule=st.sampled_from(sorted(BUDGET_RULES)),
    time_limit_s=st.floats(10, 20_000),
    margin_s=st.floats(0, 600),
    reserve_s=st.floats(0, 600),
    cap_s=st.floats(1, 2_000),
    problems=st.integers(1, 60),
)


@given(
    budget=budgets,
    boot_s=st.floats(0, 25_000) | st.floats(0, 300),
    shares=st.lists(st.floats(0, 1.5), min_size=1, max_size=70),
    pauses=st.lists(st.floats(0, 100) | st.sampled_from([0.0, 0.0, 5_000.0]), min_size=1, max_size=5),
    restart=st.tuples(st.integers(0, 70), st.floats(0, 900)),
)
def test_the_budgets_never_add_up_to_more_than_the_time_limit(
    budget: BudgetConfig, boot_s: float, shares: list[float], pauses: list[float], restart: tuple[int, float]
) -> None:
    """Late starts (`boot_s`), problems that use a share of their budget or exceed it, restarts that take time, and clocks
    that jump between problems. Every problem is asked twice and counts once."""
    now = [0.0]
    clock = RunClock.begin(budget, lambda: now[0], 0.0)
    ends = []

    def play(problem: Problem, allotment: Allotment) -> int:
        ends.append(now[0] + allotment.seconds)
        number = int(problem.id)
        used = shares[number] * allotment.seconds + (restart[1] if number == restart[0] else 0.0)
        # Predict stops waiting GRACE_S after the budget.
        used = min(used, allotment.seconds + GRACE_S, clock.limit - now[0])
        now[0] += used
        return 1

    @asynccontextmanager
    async def open_session(observer: LoggingObserver) -> AsyncIterator[FakeSession]:
        now[0] += boot_s
        yield FakeSession(ScriptedSolver(play))

    run = Run(open_session, budget, clock)
    run.start()
    try:
        predict = make_predict(run, lambda: now[0])
        spent = 0.0
        for number in range(len(shares)):
            before = now[0]
            for _ in range(2):
                assert predict(str(number), "x")["answer"][0] in ANSWER_RANGE
            if number > 0:  # the first one waits for the boot
                spent += now[0] - before
                assert now[0] <= max(clock.limit, before)
            now[0] += pauses[number % len(pauses)]
        assert spent <= budget.time_limit_s
        assert all(end <= clock.end for end in ends)
        assert ends or clock.end - boot_s <= budget.least_s / 10
    finally:
        run.close()


def test_the_process_age_is_zero_where_the_start_time_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    age = process_age_s()
    assert 0 < age < 24 * 3_600
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: 0.0)
    assert process_age_s() == 0.0


def test_the_clock_starts_with_the_process_only_in_a_rerun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aimo_solver.kaggle.notebook.process_age_s", lambda: 40.0)
    ends = {}
    for rerun in (False, True):
        if rerun:
            monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "")
        ends[rerun] = notebook_run("m", {}, NOTHING_TO_INSTALL)._clock.limit - time.monotonic()
    assert ends[False] == pytest.approx(18_000, abs=5)
    assert ends[True] == pytest.approx(18_000 - 40, abs=5)


@pytest.mark.parametrize(("age_s", "counted_s"), [(899.0, 899.0), (901.0, 0.0), (2e9, 0.0)])
def test_an_age_of_the_process_that_cannot_be_is_not_taken_from_the_clock(
    monkeypatch: pytest.MonkeyPatch, age_s: float, counted_s: float
) -> None:
    monkeypatch.setattr("aimo_solver.kaggle.notebook.process_age_s", lambda: age_s)
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    left = notebook_run("m", {}, NOTHING_TO_INSTALL)._clock.limit - time.monotonic()
    assert left == pytest.approx(18_000 - counted_s, abs=5)


def test_a_wrong_setting_is_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match=r"solver\.slotz"):
        notebook_run("m", {"solver": {"slotz": 8}}, NOTHING_TO_INSTALL)
    with pytest.raises(ConfigError, match=r"answers\.kind: Kaggle's gateway takes integers only"):
        notebook_run("m", {"answers": {"kind": "symbolic"}}, NOTHING_TO_INSTALL)
    for outside in ({"range": [0, 100_000]}, {"range": [-1, 999]}, {"modulus": 1_000_000}):
        with pytest.raises(ConfigError, match=r"answers\.range: .*; the notebook answers with 0 to 99999 only"):
            notebook_run("m", {"answers": outside}, NOTHING_TO_INSTALL)
    notebook_run("m", {"answers": {"range": [0, 999], "modulus": 1_000}}, NOTHING_TO_INSTALL)


def test_a_missing_model_is_a_failed_boot_that_lists_the_folders_tried(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    short = {"budget": {"cap_s": 0.5, "least_s": 0.5}}
    run = notebook_run("me/no-model/transformers/default", short, NOTHING_TO_INSTALL)
    run.start()
    try:
        with caplog.at_level(logging.ERROR):
            assert ask(run) == FALLBACK_ANSWER
    finally:
        run.close()
    assert "/kaggle/input/models/me/no-model/transformers/default" in caplog.text
