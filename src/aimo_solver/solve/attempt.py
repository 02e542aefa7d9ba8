"""One attempt: the model writes, its Python runs, the results go back, until it gives its answer.

This module decides what comes next; `conversation.Conversation` holds and samples the tokens.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import Protocol

from aimo_solver.answers import extract_answer
from aimo_solver.chat.prompts import LEFT_OUT, NO_SESSION, NOT_RUN, SESSION_LOST, PromptVariant
from aimo_solver.chat.turns import ChatFormat, FinalText, Malformed, ToolCall, ToolCalls
from aimo_solver.config import Config
from aimo_solver.errors import KernelError
from aimo_solver.kernels.session import ExecutionResult
from aimo_solver.log.trajectory import TrajectoryWriter
from aimo_solver.problems import Problem
from aimo_solver.results import Attempt, FinishReason
from aimo_solver.server.client import Engine
from aimo_solver.solve.conversation import Conversation, SampledTurn

_PATIENCE_S = 20.0  # longest wait for a Python session; a kernel starts in less than a second
_OVERRUN_S = 20.0  # a call past its limit: 11 s until it is killed, and the time to replace its session
_LEAST_ANSWER_TOKENS = 32  # room for the answer itself when it is asked for
_INTEGER = re.compile(r"(?<![\d.])\d{1,5}(?!\d|\.\d)")
_KINDS: dict[type, str] = {ToolCalls: "tool_call", FinalText: "final", Malformed: "malformed"}  # in the trajectory


class PythonSession(Protocol):
    """The part of `kernels.session.Kernel` that an attempt uses."""

    async def execute(self, code: str, timeout_s: float) -> ExecutionResult: ...


class PythonPool(Protocol):
    """The part of `kernels.pool.KernelPool` that an attempt uses."""

    def lease(self, timeout_s: float | None) -> AbstractAsyncContextManager[PythonSession]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What all attempts of a run share. `clock` is monotonic, in seconds."""

    engine: Engine
    chat: ChatFormat
    pool: PythonPool
    config: Config
    clock: Callable[[], float] = time.monotonic


class RunningAttempt:
    """One attempt while it runs.

    Attributes:
        final: the final text, once there is one.
        state: "waiting", "thinking", "tool" or "answering".
    """

    def __init__(
        self,
        resources: Resources,
        problem: Problem,
        index: int,
        prompt: PromptVariant,
        *,
        deadline: float,
        problem_started: float,
        trajectory: TrajectoryWriter,
        on_change: Callable[[RunningAttempt], None] = lambda attempt: None,
    ) -> None:
        """`deadline` and `problem_started` are times of the clock. `on_change` is called before every turn and its calls."""
        self.problem = problem
        self.index = index
        self.turns = 0
        self.tool_calls = 0
        self.final = ""
        self.state = "waiting"
        self._chat = resources.chat
        self._clock = resources.clock
        self._options = resources.config.attempt
        self._kernels = resources.config.kernels
        self._prompt = prompt
        self._deadline = deadline
        self._trajectory = trajectory
        self._on_change = on_change
        self._problem_started = problem_started
        self._started = self._clock()
        # A third of a short budget is enough for asking; more would leave too little for thinking.
        self._answer_s = min(self._options.answer_s, max(0.0, deadline - self._started) / 3)
        self._soft_deadline = deadline - self._answer_s
        self._conversation = Conversation(resources.engine, resources.chat, resources.clock, trajectory)
        self._python = _PythonLease(resources.pool)
        self._tool_errors = 0
        self._malformed = 0
        self._tool_seconds = 0.0
        self._seen: set[str] = set()  # integers in the outputs of calls
        self._answer: int | None = None
        self._error: str | None = None

    @property
    def tokens(self) -> int:
        """Tokens sampled so far."""
        return self._conversation.sampled

    async def run(self) -> Attempt:
        """Runs the attempt to its end.

        If a limit or a lost server ends its turns before an answer, the answer is asked for if time and context are left.
        Only cancellation and defects raise.
        """
        async with AsyncExitStack() as stack:
            stack.enter_context(self._trajectory)
            stack.push_async_callback(self._python.release)
            finish = await self._run_turns()
            if self._answer is None:
                finish = await self._ask_answer(finish)
        return self.record(finish)

    def record(self, finish: FinishReason, *, error: str | None = None) -> Attempt:
        """Returns the attempt's record so far. `error` defaults to the last fault of the server or of Python."""
        return Attempt(
            problem_id=self.problem.id,
            index=self.index,
            answer=self._answer,
            finish_reason=finish,
            tokens=self.tokens,
            prompt_tokens=self._conversation.prompt_tokens,
            cached_tokens=self._conversation.cached_tokens,
            turns=self.turns,
            tool_calls=self.tool_calls,
            tool_errors=self._tool_errors,
            malformed=self._malformed,
            entropy=self._conversation.entropy,
            tail_entropy=self._conversation.tail_entropy,
            seen_in_tool=str(self._answer) in self._seen,
            started_s=self._started - self._problem_started,
            seconds=self._clock() - self._started,
            tool_seconds=self._tool_seconds,
            prompt=self._prompt.name,
            error=self._error if error is None else error,
        )

    async def _run_turns(self) -> FinishReason:
        """Runs model turns and their calls until there is an answer or a reason to ask for one; returns which."""
        user = self._prompt.user(self.problem.text)
        self._conversation.begin(self._chat.prompt(self._prompt.system, user, tools=self._prompt.tool))
        while self.turns < self._options.max_turns:
            sampled = await self._sample()
            if sampled.cut_by is not None:
                self._conversation.log(sampled, "cut")
                return sampled.cut_by
            turn = self._chat.parse(sampled.tokens)
            self._conversation.log(sampled, _KINDS[type(turn)])
            self._malformed += isinstance(turn, Malformed) or turn.salvaged is not None
            if isinstance(turn, FinalText):
                self.final = turn.text
                self._answer = extract_answer(turn.text)
                return FinishReason.NO_ANSWER if self._answer is None else FinishReason.ANSWERED
            if not await self._reply(sampled.tokens, turn):
                return FinishReason.TOKEN_LIMIT
        return FinishReason.TURN_LIMIT

    async def _reply(self, sampled: Sequence[int], turn: ToolCalls | Malformed) -> bool:
        """Appends the results of a turn's calls, or a complaint; returns False if the context has no room for them."""
        chat, keep = self._chat, self._options.answer_tokens
        if isinstance(turn, Malformed):
            return self._conversation.insert(
                lambda texts: chat.complaint(sampled, texts[0]), [turn.reason], "complaint", keep=keep
            )
        self._change("tool")
        outputs = [await self._execute(call) for call in turn.calls]
        if turn.left_out:
            outputs[-1] = f"{outputs[-1].rstrip()}\n{LEFT_OUT.format(count=turn.left_out)}"
        return self._conversation.insert(lambda texts: chat.tool_results(sampled, texts), outputs, "tool_result", keep=keep)

    async def _execute(self, call: ToolCall) -> str:
        """Runs one call; returns its output for the model."""
        started = self._clock()
        left = self._soft_deadline - started
        if left <= 0:
            return NOT_RUN
        self.tool_calls += 1
        error_name, timed_out = None, False
        try:
            # A call that ends slowly after its interrupt may use a part of the answer's time.
            most = _PATIENCE_S + self._kernels.timeout_s + _OVERRUN_S
            async with asyncio.timeout(min(left, most) + self._answer_s / 3):
                result = await self._run_code(call.code)
            output, error_name, timed_out = result.as_text(self._kernels.output_chars), result.error_name, result.timed_out
            self._tool_errors += result.failed
            self._seen.update(_INTEGER.findall(output))
        except (KernelError, TimeoutError) as fault:
            output, error_name = SESSION_LOST if self._python.leased else NO_SESSION, type(fault).__name__
            self._error = f"{error_name}: {fault}"
            await self._python.release()
        seconds = self._clock() - started
        self._tool_seconds += seconds
        self._trajectory.write_tool_call(call.code, output, seconds=seconds, error_name=error_name, timed_out=timed_out)
        return output

    async def _run_code(self, code: str) -> ExecutionResult:
        session = await self._python.acquire(self._soft_deadline - self._clock())
        left = max(0.0, self._soft_deadline - self._clock())
        return await session.execute(code, timeout_s=min(self._kernels.timeout_s, left))

    async def _sample(self) -> SampledTurn:
        """Samples one turn, with tokens and time reserved for asking for the answer."""
        room = self._conversation.room - self._options.answer_tokens
        if self._options.max_tokens is not None:
            room = min(room, self._options.max_tokens - self.tokens)
        if room <= 0:
            return SampledTurn(cut_by=FinishReason.TOKEN_LIMIT)
        if self._clock() >= self._soft_deadline:
            return SampledTurn(cut_by=FinishReason.DEADLINE)
        self.turns += 1
        self._change("thinking")
        return await self._draw(room, self._soft_deadline)

    async def _ask_answer(self, finish: FinishReason) -> FinishReason:
        """Asks for the answer with the reserved tokens and time; returns `finish` if that brings none."""
        await self._python.release()  # other attempts may wait for it
        tokens = self._options.answer_tokens
        if self._clock() >= self._deadline or not self._conversation.ask_answer(min(tokens, _LEAST_ANSWER_TOKENS)):
            return finish
        self._change("answering")
        sampled = await self._draw(min(self._conversation.room, tokens), self._deadline)
        self._conversation.log(sampled, "final")
        self._answer = extract_answer(self._chat.answer_text(sampled.tokens))
        if self._answer is not None:
            return FinishReason.FORCED
        return FinishReason.ENGINE_ERROR if sampled.cut_by is FinishReason.ENGINE_ERROR else finish

    async def _draw(self, room: int, deadline: float) -> SampledTurn:
        sampled = await self._conversation.sample(room, deadline, f"{self.problem.id}-{self.index}-{self.turns}")
        self._error = sampled.error or self._error
        return sampled

    def _change(self, state: str) -> None:
        self.state = state
        self._on_change(self)


class _PythonLease:
    """The attempt's Python session: leased on first use, and again after it was lost."""

    def __init__(self, pool: PythonPool) -> None:
        self._pool = pool
        self._patience_s = _PATIENCE_S
        self._lease = AsyncExitStack()
        self._session: PythonSession | None = None

    @property
    def leased(self) -> bool:
        return self._session is not None

    async def acquire(self, left_s: float) -> PythonSession:
        """Returns the session with the definitions of earlier calls, or leases a new one within `left_s`.

        A wait in vain halves the next one, so an attempt that gets no session loses at most twice `_PATIENCE_S`.

        Raises:
            KernelError: kernels do not start, or none was free in time.
        """
        if self._session is None:
            patience_s, self._patience_s = self._patience_s, self._patience_s / 2
            self._session = await self._lease.enter_async_context(self._pool.lease(min(patience_s, left_s)))
            self._patience_s = patience_s
        return self._session

    async def release(self) -> None:
        """Returns the session to the pool. Does nothing if there is none."""
        self._session = None
        await self._lease.aclose()
