"""One attempt: the model writes, its Python runs, the results go back, until it gives its answer.

This module decides what comes next; `conversation.Conversation` holds and samples the tokens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from aimo_solver.answers import Reading, read_answer, read_symbolic
from aimo_solver.chat import prompts
from aimo_solver.chat.turns import ChatFormat, FinalText, Malformed, ToolCalls, Turn
from aimo_solver.chat.variants import PromptVariant, fill_in
from aimo_solver.config import Config
from aimo_solver.log.trajectory import TrajectoryWriter
from aimo_solver.problems import Answer, Problem
from aimo_solver.results import Attempt, FinishReason
from aimo_solver.server.engine import Engine
from aimo_solver.solve.conversation import Conversation, Guard, SampledTurn
from aimo_solver.solve.guards import TurnGuard, last_closed_box
from aimo_solver.solve.python import LeasedPython, PythonPool

_LEAST_ANSWER_TOKENS = 32  # room for the answer itself when it is asked for
_KINDS: dict[type, str] = {ToolCalls: "tool_call", FinalText: "final", Malformed: "malformed"}  # in the trajectory
_MOST_UNANSWERED = 2  # an attempt continues after this many final texts without an answer
_REASONS = {
    FinishReason.DEADLINE: prompts.TIME_UP,
    FinishReason.TOKEN_LIMIT: prompts.TOKENS_UP,
    FinishReason.TURN_LIMIT: prompts.TURNS_UP,
    FinishReason.LOOP: prompts.LOOPING,
    FinishReason.NO_ANSWER: prompts.ANSWER_MISSING,
    FinishReason.ENGINE_ERROR: prompts.SERVER_FAULT,
}
"""The reason given to the model when it is asked for its answer."""

Unify = Callable[[Problem, Attempt], Awaitable[Attempt]]


async def keep_answer(problem: Problem, attempt: Attempt) -> Attempt:
    """Returns the attempt unchanged."""
    return attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What all attempts of a run share.

    Attributes:
        clock: monotonic, in seconds.
        unify: returns a finished attempt, its answer rewritten to match an equal one from the problem's other attempts.
    """

    engine: Engine
    chat: ChatFormat
    pool: PythonPool
    config: Config
    clock: Callable[[], float] = time.monotonic
    unify: Unify = keep_answer


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
        """`deadline` and `problem_started` are clock times. `on_change` is called before every turn and its calls."""
        self.problem = problem
        self.index = index
        self.turns = 0
        self.final = ""
        self.state = "waiting"
        self._chat = resources.chat
        self._clock = resources.clock
        self._config = resources.config
        self._options = resources.config.attempt
        self._prompt = prompt
        self._trajectory = trajectory
        self._on_change = on_change
        self._problem_started = problem_started
        self._started = self._clock()
        deadline = min(deadline, self._started + (self._options.time_limit_s or math.inf))
        # A third of a short budget is enough for asking; more would leave too little for thinking.
        self._answer_s = min(self._options.answer_s, max(0.0, deadline - self._started) / 3)
        self._deadline = deadline
        self._soft_deadline = deadline - self._answer_s
        self._opening = prompt.fill(problem.text, resources.config)
        sampling = prompt.sampling(resources.config.sampling)
        self._conversation = Conversation(resources.engine, resources.chat, resources.clock, trajectory, sampling)
        self._python = LeasedPython(resources.pool, resources.config.kernels, resources.clock, trajectory)
        self._guard = TurnGuard(self._options, resources.chat, self._read)
        self._loops = 0
        self._malformed = 0
        self._unanswered = 0  # final texts without an answer
        self._answer: Answer | None = None
        self._unconfirmed: Answer | None = None  # an early answer, or one in a final text that was cut off
        self._error: str | None = None

    @property
    def tool_calls(self) -> int:
        """Calls to Python so far."""
        return self._python.calls

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
            stack.callback(self._trajectory.close)
            stack.push_async_callback(self._python.release)
            finish = await self._run_turns()
            if self._answer is None:
                finish = await self._ask_answer(finish)
            if self._answer is None and self._unconfirmed is not None:
                self._answer, finish = self._unconfirmed, FinishReason.ANSWERED
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
            lost_turns=self._conversation.lost_turns,
            lost_tokens=self._conversation.lost_tokens,
            lost_s=round(self._conversation.lost_s, 3),
            turns=self.turns,
            tool_calls=self._python.calls,
            tool_errors=self._python.errors,
            malformed=self._malformed,
            entropy=self._conversation.entropy,
            tail_entropy=self._conversation.tail_entropy,
            seen_in_tool=self._python.has_printed(self._answer),
            started_s=self._started - self._problem_started,
            seconds=self._clock() - self._started,
            tool_seconds=self._python.seconds,
            prompt=self._prompt.name,
            error=self._error if error is None else error,
        )

    def _read(self, text: str) -> Reading:
        """Returns the answer that a final text states."""
        answers = self._config.answers
        return read_symbolic(text) if answers.kind == "symbolic" else read_answer(text, answers.possible, answers.modulus)

    async def _run_turns(self) -> FinishReason:
        """Runs model turns and their calls until there is an answer, or a reason to ask for one; returns the finish reason."""
        self._conversation.begin(self._chat.prompt(self._opening))
        while self.turns < self._options.max_turns:
            sampled = await self._sample()
            turn = self._chat.parse(sampled.tokens)
            if sampled.cut_by is None and not isinstance(turn, FinalText):
                sampled.cut_by = self._guard.add((), ended=True)
            if sampled.cut_by is not None:
                self._conversation.log(sampled, "cut")
                if sampled.cut_by is FinishReason.LOOP and self._report_loop(sampled.tokens):
                    continue
                self._answer = self._guard.boxed
                if isinstance(turn, FinalText) and (box := last_closed_box(turn.text)) is not None:
                    answer = self._read(box).answer
                    self._unconfirmed = self._unconfirmed if answer is None else answer
                return sampled.cut_by
            self._conversation.log(sampled, _KINDS[type(turn)])
            self._malformed += isinstance(turn, Malformed) or turn.salvaged is not None
            finish = await self._reply(sampled.tokens, turn)
            if finish is not None:
                return finish
        return FinishReason.TURN_LIMIT

    async def _reply(self, sampled: Sequence[int], turn: Turn) -> FinishReason | None:
        """Appends the reply to a turn: tool results or a complaint. Returns a finish reason if the attempt cannot continue."""
        match turn:
            case ToolCalls():
                fits = await self._run_calls(sampled, turn)
            case Malformed(reason):
                fits = self._complain(sampled, f"{reason} {prompts.NOTHING_RUN}")
            case FinalText(text):
                self.final, reading = text, self._read(text)
                if reading.answer is not None:
                    if self._question(sampled, reading.answer):
                        return None
                    self._answer = reading.answer
                    return FinishReason.ANSWERED
                self._unanswered += 1
                if self._unanswered > _MOST_UNANSWERED:
                    return FinishReason.NO_ANSWER
                reason = prompts.OUT_OF_RANGE if reading.out_of_range else prompts.NO_ANSWER
                fits = self._complain(sampled, fill_in(reason, self._config))
        return None if fits else FinishReason.TOKEN_LIMIT

    def _report_loop(self, sampled: Sequence[int]) -> bool:
        """Tells the model that it repeats itself; returns False if it was told before."""
        self._loops += 1
        self._guard.forget_loop()
        return self._loops == 1 and self._complain(sampled, prompts.LOOPED)

    def _question(self, sampled: Sequence[int], answer: Answer) -> bool:
        """Asks the model to check an early answer; returns False if that is unnecessary or does not fit."""
        if self._unconfirmed is not None or self.tokens >= self._options.least_thinking:
            return False
        self._unconfirmed = answer
        return self._complain(sampled, prompts.WAIT)

    def _complain(self, sampled: Sequence[int], reason: str) -> bool:
        keep = self._options.answer_tokens
        return self._conversation.insert(lambda texts: self._chat.complaint(sampled, texts[0]), [reason], "complaint", keep=keep)

    async def _run_calls(self, sampled: Sequence[int], turn: ToolCalls) -> bool:
        self._change("tool")
        outputs = []
        for code in turn.codes:
            # A call that ends slowly after its interrupt may use part of the time reserved for the answer.
            outputs.append(await self._python.run(code, until=self._soft_deadline, grace_s=self._answer_s / 3))
            self._error = self._python.fault or self._error
        if turn.left_out:
            outputs[-1] = f"{outputs[-1].rstrip()}\n{prompts.LEFT_OUT.format(count=turn.left_out)}"
        keep = self._options.answer_tokens
        return self._conversation.insert(lambda texts: self._chat.tool_results(sampled, texts), outputs, "tool_result", keep=keep)

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
        return await self._draw(room, self._soft_deadline, self._guard.add)

    async def _ask_answer(self, finish: FinishReason) -> FinishReason:
        """Asks for the answer with the reserved tokens and time; returns `finish` if there is still none."""
        await self._python.release()  # other attempts may wait for it
        tokens = self._options.answer_tokens
        if self._clock() >= self._deadline or not self._conversation.ask_answer(
            min(tokens, _LEAST_ANSWER_TOKENS), _REASONS[finish]
        ):
            return finish
        self._change("answering")
        sampled = await self._draw(min(self._conversation.room, tokens), self._deadline)
        self._conversation.log(sampled, "final")
        self._answer = self._read(self._chat.answer_text(sampled.tokens)).answer
        if self._answer is not None:
            return FinishReason.FORCED
        return FinishReason.ENGINE_ERROR if sampled.cut_by is FinishReason.ENGINE_ERROR else finish

    async def _draw(self, room: int, deadline: float, guard: Guard | None = None) -> SampledTurn:
        label = f"{self.problem.id}-{self.index}-{self.turns}"
        sampled = await self._conversation.sample(room, deadline, label, guard)
        self._error = sampled.error or self._error
        return sampled

    def _change(self, state: str) -> None:
        self.state = state
        self._on_change(self)
