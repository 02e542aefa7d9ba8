"""One attempt: the model writes, its Python runs, the results go back, until it gives its answer.

The attempt decides what comes next; `conversation.Conversation` holds the tokens and draws them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import Protocol

from aimo_solver.answers import extract_answer
from aimo_solver.chat.prompts import LEFT_OUT, NO_SESSION, NOT_RUN, SESSION_LOST, PromptVariant
from aimo_solver.chat.turns import ChatFormat, FinalText, Malformed, ToolCall, ToolCalls
from aimo_solver.errors import KernelError
from aimo_solver.kernels.pool import ExecutionResult
from aimo_solver.log.trajectory import Trajectory
from aimo_solver.options import AttemptConfig, KernelConfig
from aimo_solver.problems import Problem
from aimo_solver.results import Attempt, FinishReason
from aimo_solver.server.client import Engine
from aimo_solver.solve.conversation import Conversation, Sampled

_PATIENCE_S = 20.0  # longest wait for a Python session; a kernel starts in less than one
_OVERRUN_S = 20.0  # what a call may take beyond its limit: to be killed (11 s), and to have its session replaced
_LEAST_ANSWER_TOKENS = 32  # of room for the answer itself when it is asked for
_INTEGER = re.compile(r"(?<![\d.])\d{1,5}(?!\d|\.\d)")
_KINDS: dict[type, str] = {ToolCalls: "tool_call", FinalText: "final", Malformed: "malformed"}  # as the run directory says


class PythonSession(Protocol):
    """What an attempt needs of a leased session: `kernels.Kernel`."""

    async def execute(self, code: str, timeout_s: float) -> ExecutionResult: ...


class PythonPool(Protocol):
    """What an attempt needs of the kernels: `kernels.KernelPool`."""

    def lease(self, timeout_s: float | None) -> AbstractAsyncContextManager[PythonSession]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptTools:
    """What all attempts of a run share. `clock` gives seconds that only grow, like `time.monotonic`."""

    engine: Engine
    chat: ChatFormat
    pool: PythonPool
    limits: AttemptConfig
    kernels: KernelConfig
    clock: Callable[[], float]


class AgentRun:
    """One attempt while it runs. `record` tells what is known of it at any moment, so a cancelled one is not lost."""

    def __init__(
        self,
        tools: AttemptTools,
        problem: Problem,
        index: int,
        prompt: PromptVariant,
        *,
        deadline: float,
        problem_started: float,
        trajectory: Trajectory,
        on_change: Callable[[AgentRun], None] = lambda run: None,
    ) -> None:
        """`deadline` and `problem_started` are times of `tools.clock`. `on_change` is called after every turn and call."""
        self.problem = problem
        self.index = index
        self.turns = 0
        self.tool_calls = 0
        self.final = ""  # the final text, once there is one
        self.state = "waiting"
        self._tools = tools
        self._prompt = prompt
        self._deadline = deadline
        self._trajectory = trajectory
        self._on_change = on_change
        self._problem_started = problem_started
        self._started = tools.clock()
        self._conversation = Conversation(tools.engine, tools.chat, tools.clock, trajectory)
        self._tool_errors = 0
        self._malformed = 0
        self._tool_seconds = 0.0
        self._seen: set[str] = set()  # integers in the outputs of calls
        self._answer: int | None = None
        self._error: str | None = None
        self._python = _Python(tools.pool)

    @property
    def tokens(self) -> int:
        """Sampled so far."""
        return self._conversation.sampled

    async def run(self) -> Attempt:
        """Runs the attempt to its end.

        Whatever ends its turns (a limit, a lost server), it is asked for its answer if it has none and anything is left of its
        time and of the context. Only cancellation and defects raise.
        """
        async with AsyncExitStack() as stack:
            stack.enter_context(self._trajectory)
            stack.push_async_callback(self._python.close)
            finish = await self._turns()
            if self._answer is None:
                finish = await self._ask_answer(finish)
        return self.record(finish)

    def record(self, finish: FinishReason, *, error: str | None = None) -> Attempt:
        """The attempt as far as it has come. `error` defaults to the last fault of the server or of Python."""
        answer = self._answer
        return Attempt(
            problem_id=self.problem.id,
            index=self.index,
            answer=answer,
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
            seen_in_tool=str(answer) in self._seen,
            started_s=self._started - self._problem_started,
            seconds=self._tools.clock() - self._started,
            tool_seconds=self._tool_seconds,
            prompt=self._prompt.name,
            error=self._error if error is None else error,
        )

    async def _turns(self) -> FinishReason:
        """Model turns and their calls, until there is an answer or a reason to ask for one; says which."""
        chat = self._tools.chat
        user = self._prompt.user(self.problem.text)
        self._conversation.begin(chat.prompt(self._prompt.system, user, tools=self._prompt.tool))
        while self.turns < self._tools.limits.max_turns:
            sampled = await self._sample()
            if sampled.limit is not None:
                self._log(sampled, "cut")
                return sampled.limit
            turn = chat.parse(sampled.tokens)
            self._log(sampled, _KINDS[type(turn)])
            self._malformed += isinstance(turn, Malformed) or turn.salvaged is not None
            if isinstance(turn, FinalText):
                self.final = turn.text
                self._answer = extract_answer(turn.text)
                return FinishReason.NO_ANSWER if self._answer is None else FinishReason.ANSWERED
            if not await self._reply(sampled.tokens, turn):
                return FinishReason.TOKEN_LIMIT
        return FinishReason.TURN_LIMIT

    async def _reply(self, sampled: Sequence[int], turn: ToolCalls | Malformed) -> bool:
        """Lets the model go on after a turn that was not its last. False if the context has no room for that."""
        chat, keep = self._tools.chat, self._tools.limits.answer_tokens
        if isinstance(turn, Malformed):
            return self._conversation.insert(
                lambda texts: chat.complaint(sampled, texts[0]), [turn.reason], "complaint", keep=keep
            )
        self._change("tool")
        outputs = [await self._execute(call) for call in turn.calls]
        if turn.left_out:
            outputs[-1] = f"{outputs[-1].rstrip()}\n{LEFT_OUT.format(count=turn.left_out)}"
        return self._conversation.insert(lambda texts: chat.tool_results(sampled, texts), outputs, "tool_result", keep=keep)

    @property
    def _soft_deadline(self) -> float:
        return self._deadline - self._answer_s

    @property
    def _answer_s(self) -> float:
        # A third of a short budget is enough for asking; more would eat the thinking.
        return min(self._tools.limits.answer_s, max(0.0, self._deadline - self._started) / 3)

    async def _execute(self, call: ToolCall) -> str:
        """Runs one call; what the model is told of it."""
        started = self._tools.clock()
        left = self._soft_deadline - started
        if left <= 0:
            return NOT_RUN
        self.tool_calls += 1
        error_name, timed_out = None, False
        try:
            # An interrupted call that takes its time to end may cost a part of the answer's time.
            most = _PATIENCE_S + self._tools.kernels.timeout_s + _OVERRUN_S
            async with asyncio.timeout(min(left, most) + self._answer_s / 3):
                result = await self._run_code(call.code)
            output, error_name, timed_out = result.as_text(self._tools.kernels.output_chars), result.error_name, result.timed_out
            self._tool_errors += result.failed
            self._seen.update(_INTEGER.findall(output))
        except (KernelError, TimeoutError) as fault:
            output, error_name = SESSION_LOST if self._python.leased else NO_SESSION, type(fault).__name__
            self._error = f"{error_name}: {fault}"
            await self._python.close()
        seconds = self._tools.clock() - started
        self._tool_seconds += seconds
        self._trajectory.tool(call.code, output, seconds=seconds, error_name=error_name, timed_out=timed_out)
        return output

    async def _run_code(self, code: str) -> ExecutionResult:
        clock = self._tools.clock
        session = await self._python.session(self._soft_deadline - clock())
        left = max(0.0, self._soft_deadline - clock())
        return await session.execute(code, timeout_s=min(self._tools.kernels.timeout_s, left))

    async def _sample(self) -> Sampled:
        """Samples one turn, with room and time kept back for asking for the answer."""
        limits = self._tools.limits
        room = self._conversation.room - limits.answer_tokens
        if limits.max_tokens is not None:
            room = min(room, limits.max_tokens - self.tokens)
        if room <= 0:
            return Sampled(limit=FinishReason.TOKEN_LIMIT)
        if self._tools.clock() >= self._soft_deadline:
            return Sampled(limit=FinishReason.DEADLINE)
        self.turns += 1
        self._change("thinking")
        return await self._draw(room, self._soft_deadline)

    async def _ask_answer(self, limit: FinishReason) -> FinishReason:
        """Asks for the answer now, with what was kept back of tokens and time."""
        await self._python.close()  # others may wait for it
        limits = self._tools.limits
        if self._tools.clock() >= self._deadline:
            return limit
        if not self._conversation.ask_answer(min(limits.answer_tokens, _LEAST_ANSWER_TOKENS)):
            return limit
        self._change("answering")
        final = await self._draw(min(self._conversation.room, limits.answer_tokens), self._deadline)
        self._log(final, "final")
        self._answer = extract_answer(self._tools.chat.answer_text(final.tokens))
        if self._answer is not None:
            return FinishReason.FORCED
        return FinishReason.ENGINE_ERROR if final.limit is FinishReason.ENGINE_ERROR else limit

    async def _draw(self, room: int, deadline: float) -> Sampled:
        return await self._conversation.sample(room, deadline, f"{self.problem.id}-{self.index}-{self.turns}")

    def _log(self, sampled: Sampled, kind: str) -> None:
        self._error = sampled.error or self._error
        self._conversation.log(sampled, kind)

    def _change(self, state: str) -> None:
        self.state = state
        self._on_change(self)


class _Python:
    """The attempt's Python session: leased when it is first needed, and again after it was lost."""

    def __init__(self, pool: PythonPool) -> None:
        self._pool = pool
        self._patience_s = _PATIENCE_S
        self._lease = AsyncExitStack()
        self._session: PythonSession | None = None

    @property
    def leased(self) -> bool:
        return self._session is not None

    async def session(self, left_s: float) -> PythonSession:
        """The session, with everything that earlier calls defined.

        Every wait in vain halves the next one, so an attempt that gets no session loses twice `_PATIENCE_S` at most.

        Raises:
            KernelError: kernels do not come up, or none was free in time.
        """
        if self._session is None:
            patience_s, self._patience_s = self._patience_s, self._patience_s / 2
            self._session = await self._lease.enter_async_context(self._pool.lease(min(patience_s, left_s)))
            self._patience_s = patience_s
        return self._session

    async def close(self) -> None:
        """Gives the session back. Does nothing if there is none."""
        self._session = None
        await self._lease.aclose()
