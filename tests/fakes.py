"""Hand-written stand-ins for a model and a clock. Kernels, servers and processes are never faked."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

from aimo_solver.engine import Chunk, CompletionRequest
from aimo_solver.errors import EngineUnavailable


@dataclass
class Play:
    """One model turn of a script.

    Attributes:
        tokens: what is sampled, the stop token included unless the turn is cut.
        delay_s: before every chunk.
        chunk: tokens per chunk.
        breaks_after: the stream breaks off after so many tokens, once, or every time if `for_good`.
        cut: the turn ends by length.
        endless: the tokens are repeated for ever.
    """

    tokens: Sequence[int]
    delay_s: float = 0.0
    chunk: int = 4
    breaks_after: int | None = None
    for_good: bool = False
    cut: bool = False
    endless: bool = False


class ScriptedEngine:
    """An engine that plays scripted turns, and checks what every server checks: the request fits the context.

    `script` gives the plays of an attempt by its index; attempts are told apart by their labels.
    """

    def __init__(self, script: Callable[[int], Sequence[Play]], context_tokens: int = 4096) -> None:
        self.context_tokens = context_tokens
        self.requests: list[CompletionRequest] = []
        self.running = 0
        self.faults = 0
        self.most_running = 0
        self._script = script
        self._attempts: dict[tuple[str, str], _Attempt] = {}

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[Chunk, None]:
        assert len(request.tokens) + request.max_tokens <= self.context_tokens
        who, index, _ = request.label.rsplit("-", 2)
        attempt = self._attempts.setdefault((who, index), _Attempt(list(self._script(int(index)))))
        self.requests.append(request)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        play, done = attempt.plays[0], attempt.sent
        if not done:
            attempt.plays = attempt.plays[1:] if play.breaks_after is None else attempt.plays
        left = itertools.cycle(play.tokens) if play.endless else iter(play.tokens[done : play.breaks_after])
        sent = 0
        try:
            while True:
                await asyncio.sleep(play.delay_s)
                piece = tuple(itertools.islice(left, min(play.chunk, request.max_tokens - sent)))
                sent += len(piece)
                full = sent == request.max_tokens
                over = not play.endless and done + sent == len(play.tokens)
                if play.breaks_after is not None and done + sent == play.breaks_after:
                    attempt.sent = play.breaks_after
                    play.breaks_after = play.breaks_after if play.for_good else None
                    yield Chunk(piece, (0.5,) * len(piece))
                    raise EngineUnavailable("scripted break")
                finish = "stop" if over and not play.cut else "length" if over or full else None
                yield Chunk(piece, (0.5,) * len(piece), finish, len(request.tokens) if finish else None)
                if finish is not None:
                    attempt.plays = attempt.plays[1:] if done else attempt.plays
                    attempt.sent = 0
                    return
        finally:
            self.running -= 1

    async def wait_ready(self) -> None:
        await asyncio.sleep(0)


@dataclass
class _Attempt:
    plays: list[Play]
    sent: int = 0  # of the first play, before its stream broke off
