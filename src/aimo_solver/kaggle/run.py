"""A run behind the gateway: boots in the background, then solves what the gateway brings, until the clock is over.

One asyncio loop in a thread of its own holds everything: kernels, the vLLM server, the solver. A boot that fails is repeated
as long as the clock allows, and so is one whose server was lost for good. A problem waits for a session as long as it may
take itself; after that it gets the fallback answer, and the boot goes on for those behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Protocol

from aimo_solver.clock import RunClock
from aimo_solver.errors import AimoError, BootError
from aimo_solver.kaggle.gateway import Work
from aimo_solver.kaggle.narrator import Narrator
from aimo_solver.log.reader import ProblemResult
from aimo_solver.options import BudgetConfig
from aimo_solver.policy.budget import Allotment, Clock, allot
from aimo_solver.problems import Problem

GRACE_S = 5.0  # a solver that is that late is not waited for any longer
PAUSES_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)  # before the next boot: after a lost session, a first failed boot, a second ...
_LOOK_S = 0.25  # how often a session is asked whether it is lost
_LAST_WORDS_S = 5.0  # for problems under way when their session is lost, or the run is closed
TEARDOWN_S = 30.0  # for a session to go down; then whatever hangs in it is cancelled

log = logging.getLogger(__name__)


class Solves(Protocol):
    """What a run needs of a solver."""

    async def solve(self, problem: Problem, allotment: Allotment) -> ProblemResult: ...

    def best(self, problem_id: str) -> int: ...


class Ready(Protocol):
    """A session that is up."""

    @property
    def solver(self) -> Solves: ...

    @property
    def lost(self) -> str | None:
        """Why it can solve nothing any more, None while it can."""
        ...


BringUp = Callable[[Narrator], AbstractAsyncContextManager[Ready]]


class Run:
    """The `Solving` of a gateway. Seconds are handed out so that everything ends inside the clock's limit."""

    def __init__(
        self, bring_up: BringUp, budget: BudgetConfig, clock: RunClock, closed: Callable[[], None] = lambda: None
    ) -> None:
        """`bring_up(narrator)` yields a session, in the run's loop, and takes it down behind it; `closed` ends the run's log."""
        self._bring_up = bring_up
        self._budget = budget
        self._clock = clock
        self._closed = closed
        self._narrator = Narrator(clock)
        self._begun = 0
        self._solving: set[asyncio.Task[int]] = set()
        self._thread = threading.Thread(target=self._live, name="aimo-solver", daemon=True)
        self._loop: asyncio.AbstractEventLoop
        self._life: asyncio.Task[None]
        self._ending: asyncio.Task[None]
        self._session: Ready | None = None
        self._up: asyncio.Event  # set while there is a session
        self._scopes: set[asyncio.Timeout] = set()  # one for each problem that the session works on
        self._failures: list[str] = []  # what the boots in a row that failed said, in one line each
        self._told: set[str] = set()
        self._closing = False

    def start(self) -> None:
        """Boots in the background; returns at once."""
        self._loop = asyncio.new_event_loop()
        self._up = asyncio.Event()
        self._life = self._loop.create_task(self._keep_up(), name="boot")
        self._thread.start()

    def begin(self, problem_id: str, text: str) -> Work:
        """See `Solving.begin`."""
        if not self._thread.is_alive():
            raise BootError("the run is not started, or closed")
        self._begun += 1
        work = Work(self._clock.end, best=lambda: self._best(problem_id))
        solving = self._solve(Problem(problem_id, text), self._begun, work)
        work.answer = asyncio.run_coroutine_threadsafe(solving, self._loop)
        return work

    def close(self) -> None:
        """Takes everything down: problems under way, the server, the kernels. Does nothing the second time.

        What cannot be taken down in time is left behind; the server and the kernels end with this process at the latest.
        """
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop has just closed
                self._loop.call_soon_threadsafe(self._end_soon)
            self._thread.join(2 * TEARDOWN_S + 2 * _LAST_WORDS_S)
            if self._thread.is_alive():
                log.error("the run did not end by itself and is left behind")

    async def _solve(self, problem: Problem, number: int, work: Work) -> int:
        task = asyncio.current_task()
        assert task is not None
        self._solving.add(task)
        task.add_done_callback(self._solving.discard)
        waiting = self._allot(number, work)
        await self._session_within(waiting.seconds)
        allotment = self._allot(number, work)  # a fresh one: what the boot took is gone
        log.info("problem %s, number %d of %d, gets %.0f s", problem.id, number, self._budget.problems, allotment.seconds)
        deadline = self._clock.now() + allotment.seconds
        while True:
            session = await self._session_within(deadline - self._clock.now())
            left = max(0.0, deadline - self._clock.now())
            result = await self._solve_in(session, problem, replace(allotment, seconds=left))
            if result is not None:
                return result.answer

    def _allot(self, number: int, work: Work) -> Allotment:
        allotment = allot(Clock(self._clock.left_s, max(0, self._budget.problems - number)), self._budget)
        work.ends_at = min(self._clock.now() + allotment.seconds + GRACE_S, self._clock.limit)
        if allotment.seconds <= 0:
            raise BootError("no time is left for it")
        return allotment

    async def _session_within(self, seconds: float) -> Ready:
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                while (session := self._session) is None or session.lost is not None:
                    self._up.clear()
                    await self._up.wait()
                return session
        except TimeoutError:
            why = f"; the last boot failed: {self._failures[-1]}" if self._failures else ""
            raise BootError(f"nothing was up in the {seconds:.0f} s that it could wait{why}") from None

    async def _solve_in(self, session: Ready, problem: Problem, allotment: Allotment) -> ProblemResult | None:
        """None if the session was lost before anything was answered: the next one may do better with what time is left."""
        try:
            async with asyncio.timeout(None) as scope:
                self._scopes.add(scope)
                try:
                    result = await session.solver.solve(problem, allotment)
                finally:
                    self._scopes.discard(scope)
        except TimeoutError:
            if not scope.expired():
                raise
            return None
        return None if session.lost is not None and not result.votes else result

    def _best(self, problem_id: str) -> int | None:
        """The leader of the vote; what most attempts answered if voting itself broke down."""
        answers = self._narrator.answers.get(problem_id, Counter())
        session = self._session
        voted = None if session is None else session.solver.best(problem_id)
        return voted if voted in answers else max(answers, key=lambda answer: answers[answer], default=None)

    async def _keep_up(self) -> None:
        """Has a session up until `close` or the end of the clock, one after the other if need be."""
        while self._clock.left_s > 0 and not self._closing:
            try:
                await self._one_session()
            except BaseException as error:  # noqa: BLE001 (a cancellation that is not ours and a SystemExit are failures too)
                if self._closing:
                    return
                self._tell(error)
            await asyncio.sleep(min(PAUSES_S[min(len(self._failures), len(PAUSES_S) - 1)], self._clock.left_s))
        log.error("no time is left for another boot")
        await asyncio.Event().wait()  # until close() cancels it

    async def _one_session(self) -> None:
        """From the boot until the session is lost or the run closed, and down again. A teardown that hangs is cancelled."""
        started = time.monotonic()
        async with asyncio.timeout(None) as teardown, self._bring_up(self._narrator) as session:
            log.info("booted in %.1f s; %.0f s are left", time.monotonic() - started, self._clock.left_s)
            self._failures.clear()
            self._session = session
            self._up.set()
            try:
                while session.lost is None:  # noqa: ASYNC110 - whoever gives a server up sets no event
                    await asyncio.sleep(_LOOK_S)
                log.error("what was up is lost, and is brought up again: %s", session.lost)
            finally:
                self._session = None
                self._up.clear()
                teardown.reschedule(self._loop.time() + TEARDOWN_S)
            for scope in self._scopes:
                scope.reschedule(self._loop.time() + _LAST_WORDS_S)
            while self._scopes:  # noqa: ASYNC110 - bounded by the line above
                await asyncio.sleep(_LOOK_S / 10)

    def _tell(self, error: BaseException) -> None:
        """Says why a boot failed: in full the first time, in a line from then on."""
        line = "".join(traceback.format_exception_only(error)).partition("\n")[0].rpartition("aimo_solver.errors.")[2]
        self._failures.append(line)
        if line in self._told:
            log.warning("the boot failed for the %d. time in a row: %s", len(self._failures), line)
        else:
            self._told.add(line)
            told = str(error) if isinstance(error, AimoError) else "".join(traceback.format_exception(error))
            log.error("the boot failed, and is repeated while there is time: %s", told)

    def _live(self) -> None:
        asyncio.set_event_loop(self._loop)
        while not self._life.done():
            try:
                self._loop.run_until_complete(self._life)
            except (SystemExit, KeyboardInterrupt):
                # asyncio lets these out of the loop wherever they are raised; nothing else in it has ended.
                log.error("a task tried to end the process\n%s", traceback.format_exc())
            except (asyncio.CancelledError, RuntimeError):  # closed; the loop was stopped because a teardown hangs
                break
        if self._life.done():
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()
        try:
            self._closed()
        except Exception:  # noqa: BLE001 (a log that cannot be closed changes nothing)
            log.error("the log could not be closed\n%s", traceback.format_exc())

    def _end_soon(self) -> None:
        if not self._closing:
            self._closing = True
            self._ending = self._loop.create_task(self._end(), name="end")

    async def _end(self) -> None:
        for task in self._solving:
            task.cancel()
        if self._solving:
            await asyncio.wait(self._solving, timeout=_LAST_WORDS_S)
        for patience_s in (TEARDOWN_S, TEARDOWN_S / 2):  # the second time whatever swallowed the first
            self._life.cancel()
            if (await asyncio.wait({self._life}, timeout=patience_s))[0]:
                return
        log.error("what is up cannot be taken down and is left behind")
        self._loop.stop()
