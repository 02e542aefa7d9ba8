"""One attempt's conversation: token ids that only grow, sampled by the engine or put in between by us.

What the model sampled stays exactly as it was sampled, and everything else is appended behind it, so the server's prefix
cache holds all that came before.
"""

from __future__ import annotations

import asyncio
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from aimo_solver.chat.turns import ChatFormat
from aimo_solver.errors import ContextExceeded, EngineError, EngineUnavailable
from aimo_solver.kernels.session import cut_middle
from aimo_solver.log.trajectory import Trajectory
from aimo_solver.results import FinishReason
from aimo_solver.server.client import CompletionRequest, Engine

TAIL_TOKENS = 256  # window of `tail_entropy`, as the second-placed public solver of AIMO3 used it
_CHARS_PER_TOKEN = 8  # about twice what is usual; what is longer is not tokenised as a whole
_SHORTEST_CHARS = 100  # a text that has to be shorter is left out
_CLOSING_TOKENS = 64  # a turn cut in the middle may need more words to close it
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0  # before a request that failed is sent again


@dataclass(frozen=True, slots=True)
class Sampled:
    """One model turn.

    Attributes:
        entropies: nats, one per token; empty if not measured.
        limit: what cut it, None if it ended by itself.
        error: what was wrong with the server when the turn was cut, None if nothing.
        seconds: how long it took; waited_s: the part of that before its first token.
    """

    tokens: list[int] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    limit: FinishReason | None = None
    error: str | None = None
    seconds: float = 0.0
    waited_s: float = 0.0


@dataclass(slots=True)
class _Turn:
    """A turn while it is sampled."""

    label: str
    tokens: list[int] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    first_token: float | None = None
    error: str | None = None  # of the last request, if it failed


class Conversation:
    """Grows by `begin`, `sample`, `insert` and `ask_answer`; each step is written to the trajectory.

    Attributes:
        tokens: the whole conversation, what a turn under way has sampled excepted.
        sampled: tokens drawn by the model so far, those of a turn under way included.
        prompt_tokens: the longest prompt sent.
        cached_tokens: tokens that the server found in its prefix cache, of all prompts together.
    """

    def __init__(self, engine: Engine, chat: ChatFormat, clock: Callable[[], float], trajectory: Trajectory) -> None:
        self.tokens: list[int] = []
        self.sampled = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self._engine = engine
        self._chat = chat
        self._clock = clock
        self._trajectory = trajectory
        self._begins: list[int] = []  # where turns of the model begin: behind the prompt, behind what was inserted
        self._entropy_sum = 0.0
        self._entropy_count = 0
        self._tail: deque[float] = deque(maxlen=TAIL_TOKENS)

    @property
    def room(self) -> int:
        """Tokens that the model's context still holds."""
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
        self._begins = [len(self.tokens)]
        self._trajectory.prompt(self.tokens, self._chat.decode(self.tokens))

    def insert(self, render: Callable[[Sequence[str]], list[int]], texts: Sequence[str], why: str, *, keep: int) -> bool:
        """Appends what `render` makes of `texts`, and keeps `keep` tokens of the context free.

        Texts that are too long for that are cut in the middle, all to the same length, with a note that says so. False, with
        nothing appended, if there is no room even for the notes.

        Args:
            render: of the chat format: texts to tokens, linear in their length.
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

    def ask_answer(self, least: int) -> bool:
        """Asks for the answer, with at least `least` tokens of the context left for it.

        Where the conversation is too long for that (a turn of very many calls, a server that came back with a smaller
        context), its end is given up: of the last turn as much as needed, or else whole turns. False if even the prompt is
        too long.
        """
        ask, last = self._chat.ask_answer, self._begins[-1]
        lacking = len(ask(self.tokens[last:])) + least - self.room
        most = len(self.tokens) - (lacking + _CLOSING_TOKENS if lacking > 0 else 0)
        for end in [*([most] if most >= last else []), *reversed(self._begins)]:
            request = ask(self.tokens[max(begin for begin in self._begins if begin <= end) : end])
            if end + len(request) + least <= self._engine.context_tokens:
                self._give_up(end)
                self._append(request, "ask_answer")
                return True
        return False

    def _append(self, tokens: Sequence[int], why: str) -> None:
        self.tokens += tokens
        self._begins.append(len(self.tokens))
        self._trajectory.inserted(tokens, self._chat.decode(tokens), why)

    def _give_up(self, end: int) -> None:
        if end < len(self.tokens):
            self._trajectory.inserted((), f"[the last {len(self.tokens) - end:,} tokens are given up]", "given_up")
            del self.tokens[end:]
            self._begins = [begin for begin in self._begins if begin <= end]

    async def sample(self, room: int, deadline: float, label: str) -> Sampled:
        """Samples and appends at most `room` tokens until `deadline`; a server that breaks off is waited for, nothing is lost.

        A server that is gone for good or refuses cuts the turn like any other limit.
        """
        started = self._clock()
        turn = _Turn(label)
        try:
            async with asyncio.timeout(max(0.0, deadline - started)):
                limit = None if await self._to_end(turn, room) == "stop" else FinishReason.TOKEN_LIMIT
        except TimeoutError:
            limit = FinishReason.DEADLINE
        except EngineError as fault:
            limit, turn.error = FinishReason.ENGINE_ERROR, str(fault)
        finally:
            self.tokens += turn.tokens
            self._entropy_sum += sum(turn.entropies)
            self._entropy_count += len(turn.entropies)
            self._tail.extend(turn.entropies)
        now = self._clock()
        return Sampled(turn.tokens, turn.entropies, limit, turn.error, now - started, (turn.first_token or now) - started)

    def log(self, sampled: Sampled, kind: str) -> None:
        """Writes down a turn that was sampled, now that it is known what it was."""
        finish = {None: "stop", FinishReason.TOKEN_LIMIT: "length"}.get(sampled.limit, "")
        self._trajectory.turn(
            sampled.tokens,
            self._chat.decode(sampled.tokens),
            sampled.entropies,
            seconds=sampled.seconds,
            waited_s=sampled.waited_s,
            kind=kind,
            finish=finish,
        )

    async def _to_end(self, turn: _Turn, room: int) -> str:
        """Samples until the model stops ("stop") or `room`, or the context, is full ("length").

        A request that fails is sent again with what came so far, with a growing pause and without end: the caller's
        deadline bounds it. One that is too long for the server is sent again for less.
        """
        most, pause_s = room, _FIRST_PAUSE_S
        while (left := min(room, self.room) - len(turn.tokens)) > 0:
            before, wanted = len(turn.tokens), min(left, most)
            request = CompletionRequest(
                tokens=[*self.tokens, *turn.tokens],
                max_tokens=wanted,
                stop_token_ids=self._chat.stop_token_ids,
                stop_strings=self._chat.stop_strings,
                label=turn.label,
            )
            self.prompt_tokens = max(self.prompt_tokens, len(request.tokens))
            try:
                finish = await self._stream(request, turn)
            except ContextExceeded:
                # The engine's context is what the server says by now. If that is no news, it cannot hold that much.
                if wanted <= min(room, self.room) - before:
                    most = wanted // 2
                if most == 0:
                    raise
                continue
            sampled = len(turn.tokens) - before
            if finish is None:
                pause_s = _FIRST_PAUSE_S if sampled else pause_s
                await asyncio.sleep(pause_s)
                pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)
                await self._engine.wait_ready()
            elif finish == "stop" or wanted == left or sampled < wanted:
                return finish
        return "length"

    async def _stream(self, request: CompletionRequest, turn: _Turn) -> str | None:
        """Adds what one request brings to the turn; returns why it ended, None if the server failed before its end."""
        finish = turn.error = None
        try:
            async with aclosing(self._engine.stream(request)) as chunks:
                async for chunk in chunks:
                    turn.first_token = turn.first_token or self._clock()
                    turn.tokens += chunk.token_ids
                    turn.entropies += chunk.entropies
                    self.sampled += len(chunk.token_ids)
                    self.cached_tokens += chunk.cached_tokens or 0
                    self._trajectory.sampled(chunk.token_ids, chunk.entropies)
                    finish = chunk.finish or finish
        except EngineUnavailable as error:
            turn.error = None if finish else str(error)  # what came before is valid
        return finish
