"""The tokens of one attempt: sampled by the engine or inserted, and only ever appended.

Sampled tokens are never rendered again, so the server's prefix cache holds all earlier turns.
"""

from __future__ import annotations

import asyncio
import functools
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from aimo_solver.chat.turns import ChatFormat
from aimo_solver.errors import ContextExceeded, EngineError, EngineUnavailable
from aimo_solver.kernels.text import cut_middle
from aimo_solver.log.trajectory import TrajectoryWriter
from aimo_solver.options import SamplingConfig
from aimo_solver.results import FinishReason
from aimo_solver.server.engine import CompletionRequest, Engine

TAIL_TOKENS = 256  # window of `tail_entropy`, as in the second-placed public solver of AIMO3
_CHARS_PER_TOKEN = 8  # about twice the usual number; longer texts are cut before they are tokenised
_SHORTEST_CHARS = 100  # texts that would have to be shorter are left out
_CLOSING_TOKENS = 64  # closing a turn that was cut in the middle may take up to this many more
LOST_TOKENS = 256  # fewer missing tokens are no loss: only whole blocks are cached, and not even all of those with drafted tokens
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0  # before a failed request is sent again

Guard = Callable[[Sequence[int]], FinishReason | None]
"""Gets sampled tokens as they arrive; returns a reason to cut the turn there, or None."""


@dataclass(slots=True)
class SampledTurn:
    """One model turn, filled while it is sampled.

    Attributes:
        entropies: nats, one per token; empty if not measured.
        cut_by: the limit that cut the turn; None if it ended by itself.
        error: the fault of the last request, None if it succeeded.
        seconds, waited_s: duration, and the part of it before the first token.
        cached: prompt tokens found in the server's prefix cache, over its requests; None if the server did not report any.
        lost: tokens that the server had computed for this conversation before and computed again, if more than `LOST_TOKENS`.
        lost_s: estimated seconds that cost: their share of the wait for the first token, not counting the wait of other attempts.
    """

    tokens: list[int] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    cut_by: FinishReason | None = None
    error: str | None = None
    seconds: float = 0.0
    waited_s: float = 0.0
    cached: int | None = None
    lost: int = 0
    lost_s: float = 0.0


class Conversation:
    """Grows by `begin`, `sample`, `insert` and `ask_answer`; each step is written to the trajectory.

    Attributes:
        tokens: the whole conversation, except for a turn in progress.
        sampled: tokens sampled by the model so far, including a turn in progress.
        prompt_tokens: length of the longest prompt.
        cached_tokens: tokens found in the server's prefix cache, summed over all prompts.
        lost_turns, lost_tokens, lost_s: turns that lost their prefix, and the sums of `SampledTurn.lost` and `lost_s`.
    """

    def __init__(
        self,
        engine: Engine,
        chat: ChatFormat,
        clock: Callable[[], float],
        trajectory: TrajectoryWriter,
        sampling: SamplingConfig | None = None,
    ) -> None:
        """`sampling` defaults to the engine's."""
        self.tokens: list[int] = []
        self.sampled = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.lost_turns = 0
        self.lost_tokens = 0
        self.lost_s = 0.0
        self._computed = 0  # tokens, from the first on, that the server has computed at least once
        self._engine = engine
        self._chat = chat
        self._clock = clock
        self._trajectory = trajectory
        self._sampling = sampling
        self._turn_starts: list[int] = []  # after the prompt and after each insertion
        self._entropy_sum = 0.0
        self._entropy_count = 0
        self._tail: deque[float] = deque(maxlen=TAIL_TOKENS)

    @property
    def room(self) -> int:
        """Free tokens of the model's context."""
        return self._engine.context_tokens - len(self.tokens)

    @property
    def entropy(self) -> float | None:
        """Mean over the sampled tokens, nats; None if not measured."""
        return self._entropy_sum / self._entropy_count if self._entropy_count else None

    @property
    def tail_entropy(self) -> float | None:
        """Median over the last `TAIL_TOKENS` sampled tokens, nats; None if not measured."""
        return statistics.median(self._tail) if self._tail else None

    def begin(self, tokens: Sequence[int]) -> None:
        self.tokens = list(tokens)
        self._turn_starts = [len(self.tokens)]
        self._trajectory.write_prompt(self.tokens, self._chat.decode(self.tokens))

    def insert(self, render: Callable[[Sequence[str]], list[int]], texts: Sequence[str], why: str, *, keep: int) -> bool:
        """Appends the rendered texts and keeps `keep` tokens of the context free.

        Texts that are too long are cut in the middle, all to the same length, with a note. Returns False, with nothing
        appended, if there is no room even for the notes.

        Args:
            render: turns texts into tokens of the chat format, in linear time.
            why: "tool_result" or "complaint".
        """
        room = self.room - keep
        longest = min(max(map(len, texts), default=0), max(0, _CHARS_PER_TOKEN * room) // max(1, len(texts)))
        while True:
            tokens = render([cut_middle(text, longest) for text in texts])
            if len(tokens) <= room:
                self._append(tokens, why)
                return True
            if not longest:
                return False
            longest = longest * 3 * max(0, room) // (4 * len(tokens)) if longest > _SHORTEST_CHARS else 0

    def ask_answer(self, least: int, why: str) -> bool:
        """Asks for the answer and leaves at least `least` tokens of the context for it. `why` is the reason given to the model.

        A conversation that is too long for that (a turn of very many calls, a server that restarted with a smaller context) is
        truncated: by as much of the last turn as necessary, or else by whole turns. Returns False if even the prompt is too long.
        """
        ask, last = functools.partial(self._chat.ask_answer, why=why), self._turn_starts[-1]
        lacking = len(ask(self.tokens[last:])) + least - self.room
        most = len(self.tokens) - (lacking + _CLOSING_TOKENS if lacking > 0 else 0)
        for end in [*([most] if most >= last else []), *reversed(self._turn_starts)]:
            request = ask(self.tokens[max(start for start in self._turn_starts if start <= end) : end])
            if end + len(request) + least <= self._engine.context_tokens:
                self._truncate(end)
                self._append(request, "ask_answer")
                return True
        return False

    async def sample(self, room: int, deadline: float, label: str, guard: Guard | None = None) -> SampledTurn:
        """Samples and appends at most `room` tokens until `deadline`, across failures and restarts of the server.

        A server that is lost for good, or refuses the request, cuts the turn like any other limit.
        """
        started = self._clock()
        turn = SampledTurn()
        try:
            async with asyncio.timeout(max(0.0, deadline - started)):
                await self._sample_to_end(turn, room, label, started, guard)
        except TimeoutError:
            turn.cut_by = FinishReason.DEADLINE
        except EngineError as fault:
            turn.cut_by, turn.error = FinishReason.ENGINE_ERROR, str(fault)
        finally:
            self.tokens += turn.tokens
            self._entropy_sum += sum(turn.entropies)
            self._entropy_count += len(turn.entropies)
            self._tail.extend(turn.entropies)
        turn.seconds = self._clock() - started
        if not turn.tokens:
            turn.waited_s = turn.seconds
        return turn

    def log(self, turn: SampledTurn, kind: str) -> None:
        """Writes a sampled turn to the trajectory. `kind` is "tool_call", "final", "malformed" or "cut"."""
        self._trajectory.write_turn(
            turn.tokens,
            self._chat.decode(turn.tokens),
            turn.entropies,
            seconds=turn.seconds,
            waited_s=turn.waited_s,
            kind=kind,
            finish={None: "stop", FinishReason.TOKEN_LIMIT: "length"}.get(turn.cut_by, ""),
            cached=turn.cached,
            lost=(turn.lost, turn.lost_s),
        )

    def _append(self, tokens: Sequence[int], why: str) -> None:
        self.tokens += tokens
        self._turn_starts.append(len(self.tokens))
        self._trajectory.write_insertion(tokens, self._chat.decode(tokens), why)

    def _truncate(self, end: int) -> None:
        if end < len(self.tokens):
            self._trajectory.write_insertion((), f"[the last {len(self.tokens) - end:,} tokens are given up]", "given_up")
            del self.tokens[end:]
            self._computed = min(self._computed, end)
            self._turn_starts = [start for start in self._turn_starts if start <= end]

    async def _sample_to_end(self, turn: SampledTurn, room: int, label: str, started: float, guard: Guard | None) -> None:
        """Samples until the model stops, `guard` cuts the turn, or `room` or the context is full.

        A failed request is sent again with the tokens sampled so far, after growing pauses and without limit: the caller's
        deadline bounds it. A request that is too long for the server is sent again for fewer tokens.
        """
        most, pause_s = room, _FIRST_PAUSE_S
        while (left := min(room, self.room) - len(turn.tokens)) > 0:
            before, wanted = len(turn.tokens), min(left, most)
            request = CompletionRequest(
                tokens=[*self.tokens, *turn.tokens],
                max_tokens=wanted,
                stop_token_ids=self._chat.stop_token_ids,
                stop_strings=self._chat.stop_strings,
                sampling=self._sampling,
                label=label,
            )
            self.prompt_tokens = max(self.prompt_tokens, len(request.tokens))
            try:
                finish = await self._stream(request, turn, started, guard)
            except ContextExceeded:
                # The engine has updated its context from the server's reply. If that changes nothing, ask for half.
                if wanted <= min(room, self.room) - before:
                    most = wanted // 2
                if most == 0:
                    raise
                continue
            sampled = len(turn.tokens) - before
            if finish == "stop" or turn.cut_by is not None:
                return
            if finish is None:
                pause_s = _FIRST_PAUSE_S if sampled else pause_s
                await asyncio.sleep(pause_s)
                pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)
                await self._engine.wait_ready()
            elif wanted == left or sampled < wanted:
                break
        turn.cut_by = FinishReason.TOKEN_LIMIT

    async def _stream(self, request: CompletionRequest, turn: SampledTurn, started: float, guard: Guard | None) -> str | None:
        """Appends the tokens of one request to the turn; returns why it ended, None if the server failed before that."""
        finish = turn.error = None
        before, asked, waited_s = len(turn.tokens), self._clock(), 0.0
        try:
            async with aclosing(self._engine.stream(request)) as chunks:
                async for chunk in chunks:
                    if not turn.tokens:
                        turn.waited_s = self._clock() - started
                    if len(turn.tokens) == before:
                        waited_s = self._clock() - asked
                    turn.tokens += chunk.token_ids
                    turn.entropies += chunk.entropies
                    self.sampled += len(chunk.token_ids)
                    if chunk.cached_tokens is not None:
                        self._count_cached(turn, len(request.tokens), chunk.cached_tokens, waited_s)
                    self._trajectory.add_sampled(chunk.token_ids, chunk.entropies)
                    finish = chunk.finish or finish
                    reason = guard(chunk.token_ids) if guard else None
                    if reason is not None and finish != "stop":
                        turn.cut_by = reason
                        break
        except EngineUnavailable as error:
            turn.error = None if finish else str(error)  # tokens before the end are valid
        finally:
            if len(turn.tokens) > before:
                self._computed = max(self._computed, len(self.tokens) + len(turn.tokens))
        return finish

    def _count_cached(self, turn: SampledTurn, prompt: int, cached: int, waited_s: float) -> None:
        """Counts the cached tokens of one request with `prompt` tokens, whose first token took `waited_s`."""
        self.cached_tokens += cached
        turn.cached = (turn.cached or 0) + cached
        lost = self._computed - cached
        if lost > LOST_TOKENS:
            seconds = waited_s * min(1.0, lost / (prompt - cached))
            self.lost_turns += not turn.lost
            turn.lost, turn.lost_s = turn.lost + lost, turn.lost_s + seconds
            self.lost_tokens, self.lost_s = self.lost_tokens + lost, self.lost_s + seconds
