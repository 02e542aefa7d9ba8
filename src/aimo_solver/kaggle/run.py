"""A run behind the gateway: boots in the background, then solves the problems that arrive, until time runs out.

One asyncio loop in a thread of its own holds the kernels, the vLLM server and the solver. A boot that fails is repeated as
long as the clock allows, and so is one whose server was lost for good. A problem waits for a session no longer than its own
budget; then it gets the fallback answer, and the boot continues for the next problem.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from aimo_solver.clock import RunClock
from aimo_solver.errors import AimoError, BootError
from aimo_solver.kaggle.gateway import PendingAnswer, make_predict
from aimo_solver.kaggle.observer import LoggingObserver, ProgressFile
from aimo_solver.policy.budget import Allotment, allot
from aimo_solver.policy.options import BudgetConfig
from aimo_solver.problems import Answer, Problem, ProblemResult

GRACE_S = 5.0  # predict waits this long past a problem's budget
PAUSES_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)  # before the next boot: after a lost session, a failed boot, a second one ...
TEARDOWN_S = 30.0  # for a session to close; then its task is cancelled
_POLL_S = 0.25  # how often a session is checked for being lost
_WIND_DOWN_S = 5.0  # for unfinished problems when their session is lost or the run is closed

log = logging.getLogger(__name__)


class ProblemSolver(Protocol):
    """What a run uses of a solver."""

    async def solve(self, problem: Problem, allotment: Allotment) -> ProblemResult: ...

    def best(self, problem_id: str) -> Answer: ...


class OpenSession(Protocol):
    """What a run uses of a session."""

    @property
    def solver(self) -> ProblemSolver: ...

    @property
    def lost(self) -> str | None:
        """Why the session can solve nothing more, None while it can."""
        ...


SessionFactory = Callable[[LoggingObserver], AbstractAsyncContextManager[OpenSession]]


class Run:
    """The `Backend` of `predict`. Budgets are allotted so that everything ends within the clock's limit.

    Attributes:
        truths: true answers by problem id, for the log; empty in the competition.
    """

    def __init__(
        self,
        open_session: SessionFactory,
        budget: BudgetConfig,
        clock: RunClock,
        on_close: Callable[[], None] = lambda: None,
        progress: Path | None = None,
    ) -> None:
        """`open_session(observer)` is entered in the run's loop, and again after a failure; `on_close` is called at the very end.

        Every minute a line is appended to the file `progress`.
        """
        self.truths: Mapping[str, Answer] = {}
        self._open_session = open_session
        self._on_close = on_close
        self._progress_path = progress
        self._progress: ProgressFile | None = None
        self._reset(budget, clock)

    def _reset(self, budget: BudgetConfig, clock: RunClock) -> None:
        self._budget = budget
        self._clock = clock
        self._observer = LoggingObserver(clock)
        self._submitted = 0
        self._problems: set[asyncio.Task[Answer]] = set()
        self._thread = threading.Thread(target=self._run_loop, name="aimo-solver", daemon=True)
        self._session: OpenSession | None = None
        self._timeouts: set[asyncio.Timeout] = set()  # one for each problem that the session works on
        self._failures: list[str] = []  # failed boots since the last session, one line each
        self._logged: set[str] = set()
        self._closing = False

    def start(self) -> None:
        """Boots in the background; returns at once. A run that was closed starts again, with a new clock."""
        if self._thread.is_alive():
            return
        if self._closing:
            self._reset(self._budget, RunClock.begin(self._budget, self._clock.now, self._clock.now()))
        self._loop = asyncio.new_event_loop()
        self._ready = asyncio.Event()  # set while there is a session
        self._boots = self._loop.create_task(self._boot_until_closed(), name="boot")
        self._thread.start()
        if self._progress_path is not None:
            self._progress = ProgressFile(self._progress_path, self.describe_progress)

    def wait_for_boot(self, failures: int) -> str | None:
        """Waits for a session; returns why there is none after `failures` failed boots in a row."""
        while (session := self._session) is None or session.lost is not None:
            if self._clock.left_s <= 0:
                return "no time is left"
            if len(self._failures) >= failures:
                return self._failures[-1]
            time.sleep(_POLL_S)
        return None

    def expect(self, problems: int) -> None:
        """Divides the time among at least this many problems."""
        self._budget = replace(self._budget, problems=max(problems, self._budget.problems))

    def ask(self, text: str) -> int:
        """Returns the answer to one problem, in a live session; the first one waits for the boot."""
        self.start()
        predict = make_predict(self, interruptible=True)
        return int(predict(f"asked-{self._submitted + 1}", text).item(0, "answer"))

    @property
    def answered(self) -> frozenset[str]:
        """The ids of the problems to which an attempt gave an answer."""
        return frozenset(id_ for id_, answers in self._observer.answers.items() if answers)

    def describe_progress(self) -> str:
        """Returns the state of the run in one line."""
        failures = f"no session, {len(self._failures)} failed boots" + "".join(f": {why}" for why in self._failures[-1:])
        solved = f"{self._submitted} problems asked, {self._observer.finished} solved"
        left = f"{time.strftime('%H:%M:%S')} {self._clock.left_s:.0f} s left"
        return f"{left}; {solved}; {'ready' if self._session is not None else failures}"

    def submit(self, problem_id: str, text: str) -> PendingAnswer:
        """See `Backend.submit`."""
        if not self._thread.is_alive():
            raise BootError("the run is not started, or closed")
        self._submitted += 1
        pending = PendingAnswer(self._clock.end, best=lambda: self._best(problem_id))
        problem = Problem(problem_id, text, self.truths.get(problem_id))
        solving = self._solve(problem, self._submitted, pending)
        pending.future = asyncio.run_coroutine_threadsafe(solving, self._loop)
        return pending

    def close(self) -> None:
        """Ends unfinished problems, the server and the kernels. A second call does nothing.

        Parts that do not end in time are left behind; the server and the kernels end with this process at the latest.
        """
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop has just closed
                self._loop.call_soon_threadsafe(self._begin_to_close)
            self._thread.join(2 * TEARDOWN_S + 2 * _WIND_DOWN_S)
            if self._thread.is_alive():
                log.error("the run did not end in time and is left behind")
        if self._progress is not None:
            self._progress.end()
            self._progress = None

    async def _solve(self, problem: Problem, number: int, pending: PendingAnswer) -> Answer:
        task = asyncio.current_task()
        assert task is not None
        self._problems.add(task)
        task.add_done_callback(self._problems.discard)
        await self._wait_for_session(self._allot(number, pending).seconds)
        allotment = self._allot(number, pending)  # again, as the boot has taken time
        log.info("problem %s, number %d of %d, gets %.0f s", problem.id, number, self._budget.problems, allotment.seconds)
        deadline = self._clock.now() + allotment.seconds
        while True:
            session = await self._wait_for_session(deadline - self._clock.now())
            left = max(0.0, deadline - self._clock.now())
            result = await self._solve_in(session, problem, replace(allotment, seconds=left))
            if result is not None:
                return result.answer

    def _allot(self, number: int, pending: PendingAnswer) -> Allotment:
        allotment = allot(self._clock.left_s, max(0, self._budget.problems - number), self._budget)
        pending.deadline = min(self._clock.now() + allotment.seconds + GRACE_S, self._clock.limit)
        if allotment.seconds <= 0:
            raise BootError("no time is left for it")
        return allotment

    async def _wait_for_session(self, seconds: float) -> OpenSession:
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                while (session := self._session) is None or session.lost is not None:
                    self._ready.clear()
                    await self._ready.wait()
                return session
        except TimeoutError:
            why = f"; the last boot failed: {self._failures[-1]}" if self._failures else ""
            raise BootError(f"no session within the {seconds:.0f} s that it could wait{why}") from None

    async def _solve_in(self, session: OpenSession, problem: Problem, allotment: Allotment) -> ProblemResult | None:
        """Returns None if the session was lost before any attempt answered: the next session may use the time that is left."""
        try:
            async with asyncio.timeout(None) as timeout:
                self._timeouts.add(timeout)
                try:
                    result = await session.solver.solve(problem, allotment)
                finally:
                    self._timeouts.discard(timeout)
        except TimeoutError:
            if not timeout.expired():
                raise
            return None
        return None if session.lost is not None and not result.votes else result

    def _best(self, problem_id: str) -> Answer | None:
        """Returns the leader of the vote, or the most frequent answer if the vote failed."""
        answers = self._observer.answers.get(problem_id, Counter())
        session = self._session
        voted = None if session is None else session.solver.best(problem_id)
        return voted if voted in answers else max(answers, key=lambda answer: answers[answer], default=None)

    async def _boot_until_closed(self) -> None:
        """Keeps a session open until `close` or the end of the clock, replacing it if necessary."""
        while self._clock.left_s > 0 and not self._closing:
            try:
                await self._keep_session()
            except BaseException as error:  # noqa: BLE001 (a cancellation from elsewhere and SystemExit are failures too)
                if self._closing:
                    return
                self._log_failure(error)
            await asyncio.sleep(min(PAUSES_S[min(len(self._failures), len(PAUSES_S) - 1)], self._clock.left_s))
        log.error("no time is left for another boot")
        await asyncio.Event().wait()  # until close() cancels it

    async def _keep_session(self) -> None:
        """Opens a session, and closes it once it is lost or the run is closed. A teardown that hangs is cancelled."""
        started = time.monotonic()
        async with asyncio.timeout(None) as teardown, self._open_session(self._observer) as session:
            log.info("booted in %.1f s; %.0f s are left", time.monotonic() - started, self._clock.left_s)
            self._failures.clear()
            self._session = session
            self._ready.set()
            try:
                while session.lost is None:  # noqa: ASYNC110 - a lost session sets no event
                    await asyncio.sleep(_POLL_S)
                log.error("the session is lost, and another is opened: %s", session.lost)
            finally:
                self._session = None
                self._ready.clear()
                teardown.reschedule(self._loop.time() + TEARDOWN_S)
            for timeout in self._timeouts:
                timeout.reschedule(self._loop.time() + _WIND_DOWN_S)
            while self._timeouts:  # noqa: ASYNC110 - bounded by the line above
                await asyncio.sleep(_POLL_S / 10)

    def _log_failure(self, error: BaseException) -> None:
        """Logs why a boot failed: in full the first time, in one line from then on."""
        line = "".join(traceback.format_exception_only(error)).partition("\n")[0].rpartition("aimo_solver.errors.")[2]
        tail = getattr(error, "log_tail", ())  # the server's or pip's last line says more
        self._failures.append(f"{line} ({tail[-1].strip()})" if tail else line)
        if line in self._logged:
            log.warning("the boot failed, %d times in a row now: %s", len(self._failures), line)
        else:
            self._logged.add(line)
            text = str(error) if isinstance(error, AimoError) else "".join(traceback.format_exception(error))
            log.error("the boot failed, and is repeated while time is left: %s", text)

    def _run_loop(self) -> None:
        asyncio.set_event_loop(self._loop)
        while not self._boots.done():
            try:
                self._loop.run_until_complete(self._boots)
            except (SystemExit, KeyboardInterrupt):
                # asyncio lets these out of the loop wherever they are raised; nothing else in it has ended.
                log.error("a task tried to end the process\n%s", traceback.format_exc())
            except (asyncio.CancelledError, RuntimeError):  # closed; RuntimeError: the loop was stopped, as a teardown hangs
                break
        if self._boots.done():
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()
        try:
            self._on_close()
        except Exception:  # noqa: BLE001 (a log that cannot be closed changes nothing)
            log.error("the log cannot be closed\n%s", traceback.format_exc())

    def _begin_to_close(self) -> None:
        if not self._closing:
            self._closing = True
            self._ending = self._loop.create_task(self._end(), name="end")

    async def _end(self) -> None:
        for task in self._problems:
            task.cancel()
        if self._problems:
            await asyncio.wait(self._problems, timeout=_WIND_DOWN_S)
        for timeout_s in (TEARDOWN_S, TEARDOWN_S / 2):  # the second time for a task that swallowed the first cancellation
            self._boots.cancel()
            if (await asyncio.wait({self._boots}, timeout=timeout_s))[0]:
                return
        log.error("the session cannot be closed and is left behind")
        self._loop.stop()
