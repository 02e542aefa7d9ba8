"""One problem: attempts side by side, a vote after each that ends, an early stop, backfill of freed slots.

A `Solver` is re-entrant: problems can be solved side by side on one engine and one kernel pool.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import traceback
from collections.abc import Callable, Sequence
from typing import Protocol

from aimo_solver.agent import AgentRun, AttemptTools
from aimo_solver.answers import ANSWER_RANGE
from aimo_solver.attempt import Attempt, FinishReason
from aimo_solver.budget import Allotment
from aimo_solver.config import Config
from aimo_solver.problems import Problem
from aimo_solver.prompts import PromptVariant, prompt_variants
from aimo_solver.runlog import ProblemResult, RunLog
from aimo_solver.selection import Ask, Method, asks, choose, contenders, contested, settle
from aimo_solver.stopping import decided
from aimo_solver.voting import Candidate, rank

FALLBACK_ANSWER = ANSWER_RANGE[0]  # what is answered when no attempt gave anything
_LAST_VOTE_S = 0.5  # attempts end that long before their problem, so that their last answers still count


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
        self._prompts = prompt_variants(config.prompt.mix)
        self._best: dict[str, int] = {}

    def best(self, problem_id: str) -> int:
        """The best answer so far, from any thread; the fallback answer before there is one."""
        return self._best.get(problem_id, FALLBACK_ANSWER)

    async def solve(self, problem: Problem, allotment: Allotment) -> ProblemResult:
        """The answer to one problem, after at most `allotment.seconds`.

        Cancelling it ends its attempts and frees their GPU slots and kernels.
        """
        work = _ProblemWork(self, problem, allotment)
        self._log.problem_started(problem.id, problem.text, problem.answer, allotment.seconds)
        self._observer.problem_started(problem, allotment)
        try:
            reason = await work.run_attempts()
            await work.cancel_rest()
            await work.look_again(reason)
        finally:
            await work.cancel_rest()
        result = work.result(reason)
        self._log.problem_finished(result)
        self._observer.problem_finished(result)
        self._on_problem_end(result)
        return result


class _ProblemWork:
    """The attempts of one problem while it is being solved."""

    def __init__(self, solver: Solver, problem: Problem, allotment: Allotment) -> None:
        self._solver = solver
        self._problem = problem
        self._allotment = allotment
        self._clock = solver._tools.clock
        self._started = self._clock()
        self._deadline = self._started + allotment.seconds
        self._attempt_deadline = self._deadline - min(_LAST_VOTE_S, allotment.seconds / 10)
        config = solver._config.solver
        self._max_attempts = min(config.max_attempts, allotment.max_attempts or config.max_attempts)
        self._slots = min(config.slots, allotment.slots or config.slots, self._max_attempts)
        self._indices = iter(range(self._max_attempts))
        self._finals: dict[int, str] = {}  # final texts by attempt index
        self._settled: int | None = None  # what a second look chose
        self._runs: dict[asyncio.Task[Attempt], AgentRun] = {}
        self._finished: list[Attempt] = []  # by themselves, in order of finishing
        self._cancelled: list[Attempt] = []

    async def run_attempts(self) -> str:
        """Runs attempts until the problem is decided, the attempts are used up or the time is over; says which."""
        voting = self._solver._config.voting
        self._fill_slots()
        while self._runs:
            left = self._deadline - self._clock()
            done, _ = await asyncio.wait(self._runs, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED)
            if not done:
                return "time"
            for task in sorted(done, key=lambda task: self._runs[task].index):
                self._finish(task)
            decision = decided(self._finished, voting, max_attempts=self._max_attempts, confidence=self._allotment.confidence)
            if decision is not None:
                return decision.reason
            if self._clock() < self._attempt_deadline:
                self._fill_slots()
        return "attempts" if self._clock() < self._attempt_deadline else "time"

    async def cancel_rest(self) -> None:
        """Cancels what still runs and keeps a record of it."""
        for task in self._runs:
            task.cancel()
        await asyncio.gather(*self._runs, return_exceptions=True)
        for task, run in self._runs.items():
            late = self._clock() >= self._attempt_deadline
            reason = FinishReason.DEADLINE if late else FinishReason.CANCELLED
            self._cancelled.append(task.result() if _has_result(task) else run.record(reason))
            self._keep(self._cancelled[-1])
        self._runs.clear()

    async def look_again(self, reason: str) -> None:
        """Asks the model about a contested vote with the time that is left, as far as the configuration wants it."""
        selection = self._solver._config.selection
        candidates = self._rank()
        if reason != "attempts" or not contested(candidates, selection):
            return
        wanted = {Method.SELECT: selection.select, Method.VERIFY: selection.verify}
        shown = contenders(candidates, self._finished, self._finals, selection)
        decisive = []
        for method, mode in wanted.items():
            if mode == "off" or self._attempt_deadline - self._clock() < selection.least_s:
                continue
            choice = choose(method, shown, await self._ask(asks(method, self._problem, shown, selection)))
            self._solver._log.event("selection", problem_id=self._problem.id, **dataclasses.asdict(choice))
            decisive += [choice] if mode == "use" else []
        if decisive:
            self._settled = settle(candidates, decisive)

    async def _ask(self, questions: Sequence[Ask]) -> list[int | None]:
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
        answer = candidates[0].answer if candidates else FALLBACK_ANSWER
        answer = answer if self._settled is None else self._settled
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
        return rank(self._finished, self._solver._config.voting)

    def _fill_slots(self) -> None:
        for index in itertools.islice(self._indices, self._slots - len(self._runs)):
            prompts = self._solver._prompts
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
            on_change=solver._observer.attempt_changed,
        )

    async def _guarded(self, run: AgentRun) -> Attempt:
        task = asyncio.current_task()
        assert task is not None
        try:
            return await run.run()
        except BaseException as fault:
            # A defect in one attempt must not cost the problem, and a SystemExit would end the whole event loop. It is
            # recorded with its traceback and never becomes an answer.
            if isinstance(fault, asyncio.CancelledError) and task.cancelling():
                raise
            text = "".join(traceback.format_exception(fault))
            self._solver._log.event("attempt_fault", problem_id=self._problem.id, index=run.index, traceback=text)
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
        self._solver._log.votes(self._problem.id, candidates)

    def _keep(self, attempt: Attempt) -> None:
        self._solver._log.attempt_finished(attempt)
        self._solver._observer.attempt_finished(attempt)


def _has_result(task: asyncio.Task[Attempt]) -> bool:
    return not task.cancelled() and task.exception() is None
