"""One problem: attempts side by side, a vote after each that ends, an early stop, backfill of freed slots.

A `Solver` is re-entrant: problems can be solved side by side on one engine and one kernel pool.

No defect costs an answer that is there: whatever is not an attempt itself (the vote, a second look, log, observer, hook) runs
inside `Solver.contained`, and attempts inside `_ProblemWork._guarded`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import itertools
import logging
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from aimo_solver.answers import FALLBACK_ANSWER
from aimo_solver.chat.prompts import VARIANTS, PromptVariant
from aimo_solver.config import Config
from aimo_solver.log.writer import ProblemResult, RunLog
from aimo_solver.options import VotingConfig
from aimo_solver.policy.budget import Allotment
from aimo_solver.policy.selection import Method, Question, count_picks, is_contested, settle, shortlist, write_questions
from aimo_solver.policy.stopping import Decision, decide
from aimo_solver.policy.voting import Candidate, rank
from aimo_solver.problems import Problem
from aimo_solver.results import Attempt, FinishReason
from aimo_solver.solve.attempt import AgentRun, AttemptTools

_LAST_VOTE_S = 0.5  # attempts end that long before their problem, so that their last answers still count
_SERVER_LOSSES = 2  # so often may the server be lost during a problem before its attempts are ended
_LOOK_S = 1.0  # how often that is looked at
_END_S = 5.0  # what cancelled attempts may take to end
_PLAIN_VOTE = VotingConfig(voter="majority")

_log = logging.getLogger(__name__)


class Observer(Protocol):
    """Whoever shows progress."""

    def problem_started(self, problem: Problem, allotment: Allotment) -> None: ...
    def attempt_changed(self, run: AgentRun) -> None: ...
    def attempt_finished(self, attempt: Attempt) -> None: ...
    def problem_finished(self, result: ProblemResult) -> None: ...


class SilentObserver:
    """Shows nothing."""

    def problem_started(self, problem: Problem, allotment: Allotment) -> None: ...
    def attempt_changed(self, run: AgentRun) -> None: ...
    def attempt_finished(self, attempt: Attempt) -> None: ...
    def problem_finished(self, result: ProblemResult) -> None: ...


class Solver:
    """Solves problems with one engine and one kernel pool."""

    def __init__(
        self,
        tools: AttemptTools,
        config: Config,
        log: RunLog,
        observer: Observer | None = None,
        *,
        on_problem_end: Callable[[ProblemResult], None] = lambda result: None,
    ) -> None:
        """`on_problem_end` is called after each problem, when it is logged and shown."""
        self._tools = tools
        self._config = config
        self._log = log
        self._observer = observer or SilentObserver()
        self._on_problem_end = on_problem_end
        self._prompts = [VARIANTS[name] for name in config.prompt.mix]
        self._best: dict[str, int] = {}

    def best(self, problem_id: str) -> int:
        """The best answer so far, from any thread; the fallback answer before there is one."""
        return self._best.get(problem_id, FALLBACK_ANSWER)

    async def solve(self, problem: Problem, allotment: Allotment) -> ProblemResult:
        """The answer to one problem, after at most `allotment.seconds` and what its attempts take to end.

        Nothing is raised but for cancellation, which ends the attempts and frees their GPU slots and kernels. The result's
        `reason` is the stop rule that decided, "attempts" or "time" when they were used up, "server" when the server was lost
        twice, "fault" after a defect.
        """
        work = _ProblemWork(self, problem, allotment)
        with self.contained(problem.id):
            self._log.problem_started(problem.id, problem.text, problem.answer, allotment.seconds)
        with self.contained(problem.id):
            self._observer.problem_started(problem, allotment)
        reason = "fault"
        try:
            with self.contained(problem.id):
                reason = await work.run_attempts()
            await work.cancel_rest()
            with self.contained(problem.id):
                await work.look_again(reason)
        finally:
            await work.cancel_rest()
        result = work.result(reason)
        for tell in (self._log.problem_finished, self._observer.problem_finished, self._on_problem_end):
            with self.contained(problem.id):
                tell(result)
        return result

    @contextlib.contextmanager
    def contained(self, problem_id: str) -> Iterator[None]:
        """A defect inside ends the block only, and is recorded with its traceback."""
        try:
            yield
        except Exception as fault:  # noqa: BLE001 (of whatever kind; it becomes no answer)
            self.record_fault("problem_fault", fault, problem_id=problem_id)

    def record_fault(self, kind: str, fault: BaseException, **values: Any) -> None:
        """Writes a defect into the run's log, or to standard error if that is broken too."""
        text = "".join(traceback.format_exception(fault))
        try:
            self._log.event(kind, **values, traceback=text)
        except Exception:  # noqa: BLE001 (the same)
            _log.error("%s %s\n%s", kind, values, text)


class _ProblemWork:
    """The attempts of one problem while it is being solved."""

    def __init__(self, solver: Solver, problem: Problem, allotment: Allotment) -> None:
        self._solver = solver
        self._problem = problem
        self._allotment = allotment
        self._clock = solver._tools.clock
        self._contained = functools.partial(solver.contained, problem.id)
        self._faults_before = solver._tools.engine.faults
        self._started = self._clock()
        self._deadline = self._started + allotment.seconds
        self._attempt_deadline = self._deadline - min(_LAST_VOTE_S, allotment.seconds / 10)
        config = solver._config.solver
        self._max_attempts = min(config.max_attempts, allotment.max_attempts or config.max_attempts)
        self._slots = min(config.slots, self._max_attempts)
        self._indices = iter(range(self._max_attempts))
        self._finals: dict[int, str] = {}  # final texts by attempt index
        self._settled: int | None = None  # what a second look chose
        self._runs: dict[asyncio.Task[Attempt], AgentRun] = {}
        self._finished: list[Attempt] = []  # by themselves, in order of finishing
        self._cancelled: list[Attempt] = []

    async def run_attempts(self) -> str:
        """Runs attempts until there is a reason to end the problem; says which."""
        self._fill_slots()
        while self._runs:
            wait_s = min(_LOOK_S, max(0.0, self._deadline - self._clock()))
            done, _ = await asyncio.wait(self._runs, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=lambda task: self._runs[task].index):
                self._finish(task)
            decision = self._decided() if done else None
            if decision is not None:
                return decision.reason
            # Its next attempts, or those that wait for a restart, would only kill the server again, and with it all problems.
            if self._solver._tools.engine.faults - self._faults_before >= _SERVER_LOSSES:
                return "server"
            if (now := self._clock()) >= self._deadline:
                return "time"
            if now < self._attempt_deadline:
                self._fill_slots()
        return "attempts" if self._clock() < self._attempt_deadline else "time"

    async def cancel_rest(self) -> None:
        """Cancels what still runs and keeps a record of it."""
        if not self._runs:
            return
        for task in self._runs:
            task.cancel()
        await asyncio.wait(self._runs, timeout=_END_S)
        for task, run in self._runs.items():
            reason = FinishReason.DEADLINE if self._clock() >= self._attempt_deadline else FinishReason.CANCELLED
            self._cancelled.append(task.result() if _has_result(task) else run.record(reason))
            self._keep(self._cancelled[-1])
        self._runs.clear()

    async def look_again(self, reason: str) -> None:
        """Asks the model about a contested vote with the time that is left, as far as the configuration wants it."""
        selection = self._solver._config.selection
        candidates = self._rank()
        if reason != "attempts" or not is_contested(candidates, selection):
            return
        wanted = {Method.SELECT: selection.select, Method.VERIFY: selection.verify}
        shown = shortlist(candidates, self._finished, self._finals, selection)
        decisive = []
        for method, mode in wanted.items():
            if mode == "off" or self._attempt_deadline - self._clock() < selection.least_s:
                continue
            choice = count_picks(method, shown, await self._ask(write_questions(method, self._problem, shown, selection)))
            self._solver._log.event("selection", problem_id=self._problem.id, **dataclasses.asdict(choice))
            decisive += [choice] if mode == "use" else []
        if decisive:
            self._settled = settle(candidates, decisive)

    async def _ask(self, questions: Sequence[Question]) -> list[int | None]:
        used = len(self._finished) + len(self._cancelled)
        for number, ask in enumerate(questions):
            self._launch(self._new_run(used + number, ask.problem, ask.prompt))
        await asyncio.wait(self._runs, timeout=max(0.0, self._deadline - self._clock()))
        before = len(self._cancelled)
        await self.cancel_rest()
        return [attempt.answer for attempt in self._cancelled[before:]]

    def result(self, reason: str) -> ProblemResult:
        candidates = self._rank()
        attempts = [*self._finished, *self._cancelled]
        voted = candidates[0].answer if candidates else FALLBACK_ANSWER
        answer = voted if self._settled is None else self._settled
        return ProblemResult(
            problem_id=self._problem.id,
            answer=answer,
            truth=self._problem.answer,
            reason=reason,
            votes=next((candidate.votes for candidate in candidates if candidate.answer == answer), 0),
            attempts=len(attempts),
            tool_calls=sum(attempt.tool_calls for attempt in attempts),
            tokens=sum(attempt.tokens for attempt in attempts),
            seconds=self._clock() - self._started,
            allotted_s=self._allotment.seconds,
            candidates=candidates,
        )

    def _rank(self) -> tuple[Candidate, ...]:
        with self._contained():
            return rank(self._finished, self._solver._config.voting)
        return rank(self._finished, _PLAIN_VOTE)

    def _decided(self) -> Decision | None:
        voting, confidence = self._solver._config.voting, self._allotment.confidence
        with self._contained():
            return decide(self._finished, voting, max_attempts=self._max_attempts, confidence=confidence)
        return None

    def _fill_slots(self) -> None:
        prompts = self._solver._prompts
        for index in itertools.islice(self._indices, self._slots - len(self._runs)):
            self._launch(self._new_run(index, self._problem, prompts[index % len(prompts)]))

    def _launch(self, run: AgentRun) -> None:
        task = asyncio.create_task(self._guarded(run), name=f"attempt-{self._problem.id}-{run.index}")
        self._runs[task] = run

    def _new_run(self, index: int, problem: Problem, prompt: PromptVariant) -> AgentRun:
        solver = self._solver
        return AgentRun(
            solver._tools,
            problem,
            index,
            prompt,
            deadline=self._attempt_deadline,
            problem_started=self._started,
            trajectory=solver._log.trajectory(self._problem.id, index, decode=solver._tools.chat.decode),
            on_change=self._changed,
        )

    def _changed(self, run: AgentRun) -> None:
        with self._contained():
            self._solver._observer.attempt_changed(run)

    async def _guarded(self, run: AgentRun) -> Attempt:
        try:
            return await run.run()
        except BaseException as fault:
            # A defect in one attempt must not cost the problem, and a SystemExit would end the whole event loop. It is
            # recorded with its traceback and never becomes an answer.
            task = asyncio.current_task()
            if isinstance(fault, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            self._solver.record_fault("attempt_fault", fault, problem_id=self._problem.id, index=run.index)
            return run.record(FinishReason.ENGINE_ERROR, error=f"{type(fault).__name__}: {fault}")

    def _finish(self, task: asyncio.Task[Attempt]) -> None:
        run = self._runs.pop(task)
        self._finals[run.index] = run.final
        attempt = dataclasses.replace(task.result(), finish_order=len(self._finished) + 1)
        self._finished.append(attempt)
        self._keep(attempt)
        candidates = self._rank()
        if candidates:
            self._solver._best[self._problem.id] = candidates[0].answer
        with self._contained():
            self._solver._log.votes(self._problem.id, candidates)

    def _keep(self, attempt: Attempt) -> None:
        for tell in (self._solver._log.attempt_finished, self._solver._observer.attempt_finished):
            with self._contained():
                tell(attempt)


def _has_result(task: asyncio.Task[Attempt]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None
