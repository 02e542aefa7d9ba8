"""Stand-ins for a model and a clock, and for kernels in tests that need both.

Servers and processes are never faked, and kernels only together with the clock.
"""

from __future__ import annotations

import asyncio
import itertools
import selectors
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from aimo_solver.errors import EngineError, EngineUnavailable, LeaseTimeoutError
from aimo_solver.kernels.session import ExecutionResult
from aimo_solver.server.engine import Chunk, CompletionRequest

_Result = TypeVar("_Result")


@dataclass
class ScriptedTurn:
    """One model turn of a script.

    Attributes:
        tokens: sampled tokens, including the stop token unless the turn is cut.
        delay_s: before every chunk.
        chunk: tokens per chunk.
        breaks_after: number of tokens after which the stream fails, once, or every time if `for_good`.
        cut: the turn ends by length.
        endless: the tokens are repeated without end.
        refused: raised instead of the turn.
        cached: prompt tokens reported as cached; None means all of them.
    """

    tokens: Sequence[int]
    delay_s: float = 0.0
    chunk: int = 4
    breaks_after: int | None = None
    for_good: bool = False
    cut: bool = False
    endless: bool = False
    refused: EngineError | None = None
    cached: int | None = None


class ScriptedEngine:
    """An engine that plays scripted turns and asserts, like a server, that each request fits the context.

    `script` returns the turns of the attempt with an index; requests belong to attempts by their labels.
    """

    def __init__(self, script: Callable[[int], Sequence[ScriptedTurn]], context_tokens: int = 4096) -> None:
        self.context_tokens = context_tokens
        self.faults = 0
        self.requests: list[CompletionRequest] = []
        self.on_request: Callable[[ScriptedEngine], object] = lambda engine: None
        self.running = 0
        self.most_running = 0
        self._script = script
        self._attempts: dict[tuple[str, str], _Attempt] = {}

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[Chunk, None]:
        assert len(request.tokens) + request.max_tokens <= self.context_tokens
        who, index, _ = request.label.rsplit("-", 2)
        attempt = self._attempts.setdefault((who, index), _Attempt(list(self._script(int(index)))))
        self.requests.append(request)
        self.on_request(self)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        turn, done = attempt.turns[0], attempt.sent
        if not done:
            attempt.turns = attempt.turns[1:] if turn.breaks_after is None else attempt.turns
        if turn.refused is not None:
            self.running -= 1
            raise turn.refused
        left = itertools.cycle(turn.tokens) if turn.endless else iter(turn.tokens[done : turn.breaks_after])
        sent = 0
        try:
            while True:
                await asyncio.sleep(turn.delay_s)
                piece = tuple(itertools.islice(left, min(turn.chunk, request.max_tokens - sent)))
                sent += len(piece)
                full = sent == request.max_tokens
                over = not turn.endless and done + sent == len(turn.tokens)
                if turn.breaks_after is not None and done + sent == turn.breaks_after:
                    attempt.sent = turn.breaks_after
                    turn.breaks_after = turn.breaks_after if turn.for_good else None
                    yield Chunk(piece, (0.5,) * len(piece))
                    raise EngineUnavailable("scripted break")
                finish: Literal["stop", "length"] | None = "stop" if over and not turn.cut else "length" if over or full else None
                cached = len(request.tokens) if turn.cached is None else turn.cached
                yield Chunk(piece, (0.5,) * len(piece), finish, cached if finish else None)
                if finish is not None:
                    attempt.turns = attempt.turns[1:] if done else attempt.turns
                    attempt.sent = 0
                    return
        finally:
            self.running -= 1

    async def wait_ready(self) -> None:
        await asyncio.sleep(0)


@dataclass
class _Attempt:
    turns: list[ScriptedTurn]
    sent: int = 0  # of the first turn, before its stream broke off


@dataclass(frozen=True)
class ScriptedCall:
    """One call of a scripted session: takes `seconds`, then raises `fault` or prints `output`."""

    output: str = ""
    seconds: float = 0.0
    fault: Exception | None = None


@dataclass(frozen=True)
class ScriptedLease:
    """One lease of a scripted pool: takes `seconds`, then raises `fault` or gives a session."""

    seconds: float = 0.0
    fault: Exception | None = None


class ScriptedPool:
    """A pool that plays scripted calls and leases in their order; the last of each is repeated.

    Attributes:
        leased, calls: current number of leases, and number of calls so far.
    """

    def __init__(
        self, calls: Iterable[ScriptedCall] = (ScriptedCall(),), leases: Iterable[ScriptedLease] = (ScriptedLease(),)
    ) -> None:
        self.leased = 0
        self.calls = 0
        self._calls = list(calls)
        self._leases = list(leases)

    @asynccontextmanager
    async def lease(self, timeout_s: float | None = None) -> AsyncIterator[ScriptedPool]:
        lease = _next(self._leases)
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.sleep(lease.seconds)
        except TimeoutError:
            raise LeaseTimeoutError(timeout_s or 0.0) from None
        if lease.fault is not None:
            raise lease.fault
        self.leased += 1
        try:
            yield self
        finally:
            self.leased -= 1

    async def execute(self, code: str, timeout_s: float) -> ExecutionResult:
        self.calls += 1
        call = _next(self._calls)
        await asyncio.sleep(call.seconds)  # past `timeout_s` too: a call that ignores its interrupt
        if call.fault is not None:
            raise call.fault
        timed_out = call.seconds > timeout_s
        return ExecutionResult(
            stdout=call.output,
            value=None,
            error_name=None,
            traceback=None,
            timed_out=timed_out,
            killed_for=None,
            truncated=False,
            seconds=call.seconds,
        )


class _Skipping(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "all tasks wait for something that never happens"
        self.now += timeout
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock stops while anything can run and otherwise jumps to the next timer."""

    def __init__(self) -> None:
        self._skipping = _Skipping()
        super().__init__(self._skipping)

    def time(self) -> float:
        return self._skipping.now


def run_virtually(work: Callable[[Callable[[], float]], Coroutine[Any, Any, _Result]]) -> _Result:
    """Runs `work(clock)` in a `VirtualLoop`, with the loop's clock."""

    async def main() -> _Result:
        return await work(asyncio.get_running_loop().time)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main())


def _next(script: list[_Result]) -> _Result:
    return script.pop(0) if len(script) > 1 else script[0]
