"""One attempt: the model writes, its Python runs, the results go back, until it gives its answer.

The attempt decides what comes next; `conversation.Conversation` holds the tokens and draws them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from aimo_solver.answers import extract_answer
from aimo_solver.attempt import Attempt, FinishReason
from aimo_solver.chat import ChatFormat, FinalText, Malformed, ToolCall, ToolCalls
from aimo_solver.config import AttemptConfig, KernelConfig
from aimo_solver.conversation import Conversation, Sampled
from aimo_solver.engine import Engine
from aimo_solver.errors import EngineError, KernelError
from aimo_solver.kernels import Kernel, KernelPool
from aimo_solver.problems import Problem
from aimo_solver.prompts import LEFT_OUT, PromptVariant
from aimo_solver.trajectory import Trajectory

_KINDS: dict[type, str] = {ToolCalls: "tool_call", FinalText: "final", Malformed: "malformed"}  # as the run directory says


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptTools:
    """What all attempts of a run share. `clock` gives seconds that only grow, like `time.monotonic`."""

    engine: Engine
    chat: ChatFormat
    pool: KernelPool
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
        self._tool_text: list[str] = []
        self._answer: int | None = None

    @property
    def tokens(self) -> int:
        """Sampled so far."""
        return self._conversation.sampled

    async def run(self) -> Attempt:
        """Runs the attempt to its end.

        Limits, a lost server and kernel faults end it with a record; only cancellation and defects raise.
        """
        error: str | None = None
        async with AsyncExitStack() as stack:
            stack.enter_context(self._trajectory)
            try:
                finish = await self._loop(_LazyKernel(self._tools.pool, stack))
            except EngineError as fault:
                finish, error = FinishReason.ENGINE_ERROR, str(fault)
            except KernelError as fault:
                finish, error = FinishReason.NO_ANSWER, str(fault)
        return self.record(finish, error=error)

    def record(self, finish: FinishReason, *, error: str | None = None) -> Attempt:
        """The attempt as far as it has come."""
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
            seen_in_tool=answer is not None and any(_holds_integer(text, answer) for text in self._tool_text),
            started_s=self._started - self._problem_started,
            seconds=self._tools.clock() - self._started,
            tool_seconds=self._tool_seconds,
            prompt=self._prompt.name,
            error=error,
        )

    async def _loop(self, kernel: _LazyKernel) -> FinishReason:
        chat = self._tools.chat
        user = self._prompt.user(self.problem.text)
        self._conversation.begin(chat.prompt(self._prompt.system, user, tools=self._prompt.tool))
        while self.turns < self._tools.limits.max_turns:
            sampled = await self._sample()
            if sampled.limit is not None:
                self._conversation.log(sampled, "cut")
                return await self._force(sampled, sampled.limit)
            turn = chat.parse(sampled.tokens, cut=False)
            self._conversation.log(sampled, _KINDS[type(turn)])
            if isinstance(turn, FinalText):
                self._malformed += turn.salvaged is not None
                self.final = turn.text
                self._answer = extract_answer(turn.text)
                if self._answer is not None:
                    return FinishReason.ANSWERED
                return await self._force(sampled, FinishReason.NO_ANSWER)
            if isinstance(turn, Malformed):
                self._malformed += 1
                self._conversation.insert(chat.complaint(sampled.tokens, turn.reason), "complaint")
            else:
                self._malformed += turn.salvaged is not None
                outputs = await self._call(turn, kernel)
                if self._tools.clock() >= self._soft_deadline:
                    return await self._force(sampled, FinishReason.DEADLINE)
                self._conversation.insert(chat.tool_results(sampled.tokens, outputs), "tool_result")
        return await self._force(Sampled(), FinishReason.TURN_LIMIT)

    @property
    def _soft_deadline(self) -> float:
        # A third of a short budget is enough for asking; more would eat the thinking.
        left_at_start = max(0.0, self._deadline - self._started)
        return self._deadline - min(self._tools.limits.answer_s, left_at_start / 3)

    async def _call(self, turn: ToolCalls, kernel: _LazyKernel) -> list[str]:
        self._change("tool")
        outputs = [await self._execute(call, kernel) for call in turn.calls]
        if turn.left_out:
            outputs[-1] = f"{outputs[-1].rstrip()}\n{LEFT_OUT.format(count=turn.left_out)}"
        return outputs

    async def _execute(self, call: ToolCall, kernel: _LazyKernel) -> str:
        limits = self._tools.kernels
        started = self._tools.clock()
        left = self._soft_deadline - started
        self.tool_calls += 1
        if left <= 0:
            return "[not run: the time for this problem is over]"
        result = await (await kernel.get()).execute(call.code, timeout_s=min(limits.timeout_s, left))
        seconds = self._tools.clock() - started
        output = result.as_text(limits.output_chars)
        self._tool_seconds += seconds
        self._tool_errors += result.failed
        self._tool_text.append(output)
        self._trajectory.tool(call.code, output, seconds=seconds, error_name=result.error_name, timed_out=result.timed_out)
        return output

    async def _sample(self) -> Sampled:
        """Samples one turn, with room and time kept back for asking for the answer."""
        limits = self._tools.limits
        room = self._conversation.room - limits.answer_tokens
        if limits.max_tokens is not None:
            room = min(room, limits.max_tokens - self.tokens)
        if room <= 0:
            return Sampled(limit=FinishReason.TOKEN_LIMIT)
        self.turns += 1
        self._change("thinking")
        return await self._draw(room, self._soft_deadline)

    async def _force(self, sampled: Sampled, limit: FinishReason) -> FinishReason:
        """Asks for the answer now, with what was kept back of tokens and time."""
        chat, limits = self._tools.chat, self._tools.limits
        request = chat.ask_answer(sampled.tokens)
        room = self._conversation.room - len(request)
        if room <= 0 or self._tools.clock() >= self._deadline:
            return limit
        self._conversation.insert(request, "ask_answer")
        self._change("answering")
        final = await self._draw(min(room, limits.answer_tokens), self._deadline)
        self._conversation.log(final, "final")
        self._answer = extract_answer(chat.answer_text(final.tokens))
        return FinishReason.FORCED if self._answer is not None else limit

    async def _draw(self, room: int, deadline: float) -> Sampled:
        return await self._conversation.sample(room, deadline, f"{self.problem.id}-{self.index}-{self.turns}")

    def _change(self, state: str) -> None:
        self.state = state
        self._on_change(self)


class _LazyKernel:
    """The attempt's Python session, leased at the first call and given back when `stack` closes."""

    def __init__(self, pool: KernelPool, stack: AsyncExitStack) -> None:
        self._pool = pool
        self._stack = stack
        self._kernel: Kernel | None = None

    async def get(self) -> Kernel:
        if self._kernel is None:
            self._kernel = await self._stack.enter_async_context(self._pool.lease())
        return self._kernel


def _holds_integer(text: str, number: int) -> bool:
    return re.search(rf"(?<![\d.]){number}(?![\d]|\.\d)", text) is not None
