"""One problem: concurrent attempts, a vote whenever one ends, an early stop, and new attempts in freed slots.

A `Solver` is re-entrant: several problems can be solved at the same time on one engine and one kernel pool.

No defect loses an answer that an attempt has given. Attempts run inside `_ProblemWork._run_attempt`; everything else (the vote,
a second look, the log, observers) runs inside `_ProblemWork._contained`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from aimo_solver.answers import FALLBACK_ANSWER
from aimo_solver.chat.variants import PromptVariant, prompt_variants, take_turns
from aimo_solver.log.writer import RunLog
from aimo_solver.policy.budget import Allotment
from aimo_solver.policy.options import Plan, VotingConfig
from aimo_solver.policy.pace import PlanTotals, choose_plan
from aimo_solver.policy.selection import PROMPTS, Method, count_picks, is_contested, settle, shortlist, write_questions
from aimo_solver.policy.stopping import decide
from aimo_solver.policy.voting import rank
from aimo_solver.problems import Answer, Candidate, Problem, ProblemResult
from aimo_solver.results import Attempt, FinishReason
from aimo_solver.solve.attempt import Resources, RunningAttempt
from aimo_solver.solve.observer import Observer

_LAST_VOTE_S = 0.5  # attempts end this long before their problem, so that their last answers still count
_SERVER_LOSSES = 2  # how often the server may be lost during one problem until its attempts end
_CHECK_S = 1.0  # how often the losses are counted
_END_S = 5.0  # longest wait for cancelled attempts
_PLAIN_VOTE = VotingConfig(voter="majority")

_log = logging.getLogger(__name__)


class Solver:
    """Solves problems with one engine and one kernel pool."""

    def __init__(self, resources: Resources, log: RunLog, observers: Sequence[Observer] = ()) -> None:
        self._resources = resources
        self._log = log
        self._observers = (log, *observers)
        self._best: dict[str, Answer] = {}

    def with_log(self, log: RunLog) -> Solver:
        """Returns a solver whose problems are written to another log."""
        return Solver(self._resources, log, self._observers[1:])

    def best(self, problem_id: str) -> Answer:
        """Returns the best answer so far, from any thread; the fallback answer before there is one."""
        return self._best.get(problem_id, FALLBACK_ANSWER)

    async def solve(self, problem: Problem, allotment: Allotment) -> ProblemResult:
        """Solves one problem in at most `allotment.seconds` plus the time its attempts take to end.

        Only cancellation is raised; it ends the attempts and frees their GPU slots and kernels. The result's `reason` is the stop
        rule that decided, "attempts" or "time" when they are used up, "server" when the server was lost twice, or "fault"
        after a defect.
        """
        plan = self._choose_plan(problem, allotment)
        return await _ProblemWork(self._resources, self._log, self._observers, problem, allotment, plan, self._best).solve()

    def _choose_plan(self, problem: Problem, allotment: Allotment) -> Plan:
        plans = self._resources.config.plans
        if len(plans) == 1:
            return plans[0]
        totals = PlanTotals.of(plans, self._log.finished.values())
        plan = plans[choose_plan(plans, totals, allotment.left_s, allotment.later)]
        speeds = {plans[number].slots: round(speed, 1) for number, speed in totals.speeds().items()}
        self._log.event("plan", problem_id=problem.id, **dataclasses.asdict(plan), tokens_per_s=speeds)
        return plan


class _ProblemWork:
    """The attempts of one problem while it is being solved."""

    def __init__(
        self,
        resources: Resources,
        log: RunLog,
        observers: Sequence[Observer],
        problem: Problem,
        allotment: Allotment,
        plan: Plan,
        best: dict[str, Answer],
    ) -> None:
        """The leader of every vote is written to `best`, by problem id."""
        self._resources = resources
        self._log = log
        self._observers = observers
        self._problem = problem
        self._allotment = allotment
        self._best = best
        self._clock = resources.clock
        self._config = resources.config
        self._prompts = take_turns(prompt_variants(self._config.prompt), self._config.prompt.mix)
        self._faults_before = resources.engine.faults
        self._started = self._clock()
        self._deadline = self._started + allotment.seconds
        self._attempt_deadline = self._deadline - min(_LAST_VOTE_S, allotment.seconds / 10)
        self._voting = dataclasses.replace(self._config.voting, equal=plan.equal)
        self._max_attempts = min(plan.max_attempts, allotment.max_attempts or plan.max_attempts)
        self._slots = min(plan.slots, self._max_attempts)
        self._indices = iter(range(self._max_attempts))
        self._finals: dict[int, str] = {}  # final texts by attempt index
        self._settled: Answer | None = None  # the answer of a second look
        self._running: dict[asyncio.Task[Attempt], RunningAttempt] = {}
        self._finished: list[Attempt] = []  # those not cancelled, in the order in which they ended
        self._cancelled: list[Attempt] = []

    async def solve(self) -> ProblemResult:
        self._notify(lambda observer: observer.problem_started(self._problem, self._allotment.seconds))
        reason = "fault"
        try:
            with self._contained():
                reason = await self._run_attempts()
            await self._cancel_running()
            with self._contained():
                await self._look_again(reason)
        finally:
            await self._cancel_running()
        result = self._result(reason)
        self._notify(lambda observer: observer.problem_finished(result))
        return result

    async def _run_attempts(self) -> str:
        """Runs attempts until there is a reason to end the problem; returns the reason."""
        self._fill_slots()
        while self._running:
            wait_s = min(_CHECK_S, max(0.0, self._deadline - self._clock()))
            done, _ = await asyncio.wait(self._running, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=lambda task: self._running[task].index):
                self._finish(task)
            reason = self._decide() if done else None
            if reason is not None:
                return reason
            # More attempts would kill the server again, and with it the problems that follow.
            if self._resources.engine.faults - self._faults_before >= _SERVER_LOSSES:
                return "server"
            if (now := self._clock()) >= self._deadline:
                return "time"
            if now < self._attempt_deadline:
                self._fill_slots()
        return "attempts" if self._clock() < self._attempt_deadline else "time"

    async def _cancel_running(self) -> None:
        """Cancels the running attempts and keeps their records."""
        if not self._running:
            return
        for task in self._running:
            task.cancel()
        await asyncio.wait(self._running, timeout=_END_S)
        for task, run in self._running.items():
            has_result = task.done() and not task.cancelled() and task.exception() is None
            reason = FinishReason.DEADLINE if self._clock() >= self._attempt_deadline else FinishReason.CANCELLED
            attempt = task.result() if has_result else run.record(reason)
            self._cancelled.append(attempt)
            self._report(attempt)
        self._running.clear()

    async def _look_again(self, reason: str) -> None:
        """Asks the model about a contested vote if time is left and the configuration allows it."""
        selection = self._config.selection
        candidates = self._rank()
        if reason != "attempts" or not is_contested(candidates, selection):
            return
        modes = {Method.SELECT: selection.select, Method.VERIFY: selection.verify}
        shown = shortlist(candidates, self._finished, self._finals, selection)
        decisive = []
        for method, mode in modes.items():
            if mode == "off" or self._attempt_deadline - self._clock() < selection.least_s:
                continue
            questions = write_questions(method, self._problem, shown, selection)
            choice = count_picks(method, shown, await self._ask(questions, PROMPTS[method]))
            self._log.event("selection", problem_id=self._problem.id, **dataclasses.asdict(choice))
            decisive += [choice] if mode == "use" else []
        self._settled = settle(candidates, decisive)

    async def _ask(self, questions: Sequence[Problem], prompt: PromptVariant) -> list[Answer | None]:
        before = len(self._cancelled)
        for index, question in enumerate(questions, start=len(self._finished) + before):
            self._start(index, question, prompt)
        await asyncio.wait(self._running, timeout=max(0.0, self._deadline - self._clock()))
        await self._cancel_running()
        return [attempt.answer for attempt in self._cancelled[before:]]

    def _result(self, reason: str) -> ProblemResult:
        candidates = self._rank()
        attempts = [*self._finished, *self._cancelled]
        voted = candidates[0].answer if candidates else FALLBACK_ANSWER
        answer = voted if self._settled is None else self._settled
        return ProblemResult(
            problem_id=self._problem.id,
            answer=answer,
            truth=self._problem.truth,
            reason=reason,
            votes=next((candidate.votes for candidate in candidates if candidate.answer == answer), 0),
            attempts=len(attempts),
            slots=self._slots,
            tool_calls=sum(attempt.tool_calls for attempt in attempts),
            tokens=sum(attempt.tokens for attempt in attempts),
            seconds=self._clock() - self._started,
            allotted_s=self._allotment.seconds,
            candidates=candidates,
        )

    def _rank(self) -> tuple[Candidate, ...]:
        with self._contained():
            return rank(self._finished, self._config.voting)
        return rank(self._finished, _PLAIN_VOTE)

    def _decide(self) -> str | None:
        confidence = self._allotment.confidence
        with self._contained():
            return decide(self._finished, self._voting, max_attempts=self._max_attempts, confidence=confidence)
        return None

    def _fill_slots(self) -> None:
        for index in itertools.islice(self._indices, self._slots - len(self._running)):
            self._start(index, self._problem, next(self._prompts))

    def _start(self, index: int, problem: Problem, prompt: PromptVariant) -> None:
        run = RunningAttempt(
            self._resources,
            problem,
            index,
            prompt,
            deadline=self._attempt_deadline,
            problem_started=self._started,
            trajectory=self._log.start_trajectory(problem.id, index, decode=self._resources.chat.decode),
            on_change=lambda run: self._notify(lambda observer: observer.attempt_changed(run)),
        )
        task = asyncio.create_task(self._run_attempt(run), name=f"attempt-{problem.id}-{index}")
        self._running[task] = run

    async def _run_attempt(self, run: RunningAttempt) -> Attempt:
        """Runs one attempt; a defect ends it without an answer."""
        try:
            return await self._resources.unify(self._problem, await run.run())
        except BaseException as fault:  # any defect becomes an attempt without an answer; a SystemExit would end the event loop
            task = asyncio.current_task()
            if isinstance(fault, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            self._record_fault("attempt_fault", fault, index=run.index)
            return run.record(FinishReason.ENGINE_ERROR, error=f"{type(fault).__name__}: {fault}")

    def _finish(self, task: asyncio.Task[Attempt]) -> None:
        run = self._running.pop(task)
        self._finals[run.index] = run.final
        attempt = dataclasses.replace(task.result(), finish_order=len(self._finished) + 1)
        self._finished.append(attempt)
        self._report(attempt)
        candidates = self._rank()
        if candidates:
            self._best[self._problem.id] = candidates[0].answer
        with self._contained():
            self._log.write_votes(self._problem.id, candidates)

    def _report(self, attempt: Attempt) -> None:
        self._notify(lambda observer: observer.attempt_finished(attempt))

    def _notify(self, notify: Callable[[Observer], None]) -> None:
        for observer in self._observers:
            with self._contained():
                notify(observer)

    @contextlib.contextmanager
    def _contained(self) -> Iterator[None]:
        """Records a defect in the block, which ends only the block."""
        try:
            yield
        except Exception as fault:  # noqa: BLE001 (any defect; none becomes an answer)
            self._record_fault("problem_fault", fault)

    def _record_fault(self, kind: str, fault: BaseException, **values: Any) -> None:
        """Writes a defect to the run's log, or to standard error if the log is broken too."""
        text = "".join(traceback.format_exception(fault))
        try:
            self._log.event(kind, problem_id=self._problem.id, **values, traceback=text)
        except Exception:  # noqa: BLE001 (a log that cannot be written must not end the problem)
            _log.error("%s %s %s\n%s", kind, self._problem.id, values, text)
