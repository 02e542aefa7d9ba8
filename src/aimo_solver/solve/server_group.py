"""Several servers of one model: each problem is solved on one of them, and moves to another if its server fails.

An attempt holds its tokens itself, so a move loses nothing but the prefix cache of the server that failed. Not part of the
notebook, which has one server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace

from aimo_solver.errors import EngineUnavailable
from aimo_solver.log.writer import RunLog
from aimo_solver.policy.budget import Allotment
from aimo_solver.problems import Problem, ProblemResult
from aimo_solver.server.client import VllmEngine
from aimo_solver.server.engine import Chunk, CompletionRequest
from aimo_solver.solve.attempt import Resources
from aimo_solver.solve.observer import Observer
from aimo_solver.solve.solver import Solver

_PROBE_S = 5.0  # between two health checks of all servers
_MISSES = 3  # failed health checks in a row after which a server's requests are abandoned
_WAIT_S = 0.25


@dataclass(slots=True, eq=False)
class _Member:
    """One server. `problems` are those placed on it; `misses` counts failed health checks in a row.

    `streams` are the time limits of its running requests, which have none until the server is abandoned.
    """

    engine: VllmEngine
    streams: set[asyncio.Timeout] = field(default_factory=set)
    problems: int = 0
    misses: int = 0
    up: bool = True


class ServerGroup:
    """The servers, with what is placed on each. `on_event` is called as `on_event(kind, **values)`."""

    def __init__(self, engines: Sequence[VllmEngine], on_event: Callable[..., object]) -> None:
        self._members = [_Member(engine) for engine in engines]
        self._on_event = on_event

    @contextmanager
    def place(self) -> Iterator[PlacedEngine]:
        """Yields an engine for one problem, on a server that answered last time and has the fewest problems."""
        engine = PlacedEngine(self, min(self._members, key=_load))
        try:
            yield engine
        finally:
            engine.leave()

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Excludes servers that do not answer, and readmits those that answer again, while the block runs."""
        task = asyncio.create_task(self._watch(), name="endpoint-watcher")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def find_ready(self, failed: _Member) -> _Member | None:
        """Returns a server that answers, preferably `failed`; None if none does."""
        for member in dict.fromkeys((failed, *sorted(self._members, key=_load))):
            if await member.engine.ready():
                return member
        return None

    def leave_out(self, member: _Member) -> None:
        if member.up:
            member.up = False
            self._on_event("endpoint_fault", url=member.engine.base_url, error="does not answer; its problems move to others")

    async def _watch(self) -> None:
        while True:
            await asyncio.gather(*map(self._look, self._members))
            await asyncio.sleep(_PROBE_S)

    async def _look(self, member: _Member) -> None:
        if await member.engine.healthy():
            member.misses = 0
            if not member.up:
                member.up = True
                self._on_event("endpoint_recovered", url=member.engine.base_url)
            return
        member.misses += 1
        if member.misses == _MISSES:
            self.leave_out(member)
            for stream in member.streams:  # they would never end if the server hangs
                stream.reschedule(0.0)


class PlacedEngine:
    """The engine of one problem: all its attempts stay on one server of the group until it fails. See `engine.Engine`.

    Attributes:
        faults: how often the problem had to move.
    """

    def __init__(self, group: ServerGroup, member: _Member) -> None:
        self.faults = 0
        self._group = group
        self._member = member
        member.problems += 1

    @property
    def context_tokens(self) -> int:
        """The context length of the server that the problem is on."""
        return self._member.engine.context_tokens

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[Chunk, None]:
        """Samples one turn on the problem's server; see `engine.Engine.stream`."""
        member = self._member
        try:
            # A limit around a yield is safe only because attempts await nothing between two chunks.
            async with asyncio.timeout(None) as limit, aclosing(member.engine.stream(request)) as chunks:
                member.streams.add(limit)
                async for chunk in chunks:
                    yield chunk
        except TimeoutError:
            raise EngineUnavailable(f"{member.engine.base_url} does not answer") from None
        finally:
            member.streams.discard(limit)

    async def wait_ready(self) -> None:
        """Returns when the problem's server answers, or when the problem has moved to another one that does."""
        while True:
            failed = self._member
            found = await self._group.find_ready(failed)
            if self._member is failed and found not in (failed, None):
                self._group.leave_out(failed)
                self._move(found)
            if found is not None:
                return
            await asyncio.sleep(_WAIT_S)

    def leave(self) -> None:
        """Ends the placement."""
        self._member.problems -= 1

    def _move(self, member: _Member) -> None:
        self.leave()
        self._member = member
        member.problems += 1
        self.faults += 1


class GroupSolver(Solver):
    """Solves each problem on one server of a group."""

    def __init__(self, group: ServerGroup, resources: Resources, log: RunLog, observers: Sequence[Observer] = ()) -> None:
        super().__init__(resources, log, observers)
        self._group = group
        self._parts: tuple[Resources, RunLog, Sequence[Observer]] = (resources, log, observers)

    async def solve(self, problem: Problem, allotment: Allotment) -> ProblemResult:
        """Solves one problem; see `Solver.solve`."""
        resources, log, observers = self._parts
        with self._group.place() as engine:
            return await Solver(replace(resources, engine=engine), log, observers).solve(problem, allotment)


def _load(member: _Member) -> tuple[bool, int]:
    return not member.up, member.problems
