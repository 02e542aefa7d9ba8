"""A pool of warm Jupyter kernels for code that nobody has read: hot, clean, contained."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import zmq.asyncio

from aimo_solver.config import KernelConfig
from aimo_solver.errors import KernelStartError, PoolClosedError
from aimo_solver.kernel_limits import Guard, KernelLimits, KillReason
from aimo_solver.kernel_process import KernelProcess, Nursery, Outcome

__all__ = ["ExecutionResult", "Guard", "Kernel", "KernelLimits", "KernelPool", "KillReason"]

_START_ATTEMPTS = 3  # kernels that fail to start in a row until those who wait for one are told
_PAUSE_S = 0.2  # before a start is tried again


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionResult:
    """What one call did.

    Attributes:
        stdout: what was printed, standard error included, in the order it was written.
        value: the last expression's value as a notebook shows it; None if there was none.
        error_name: class of the exception that ended the call; None if none did, or if the process was lost.
        traceback: the trimmed traceback, ending in ``ErrorName: message``.
        timed_out: the time limit was reached.
        killed_for: why the process is gone; None if it lives on.
        truncated: `stdout` is not all that was printed.
        seconds: from the call to its reply.
        notes: remarks for the model, one line each.
    """

    stdout: str
    value: str | None
    error_name: str | None
    traceback: str | None
    timed_out: bool
    killed_for: KillReason | None
    truncated: bool
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """The code did not run to its end."""
        return self.error_name is not None or self.timed_out or self.killed_for is not None

    def as_text(self, limit: int = 8_000) -> str:
        """What the model is shown, cut in the middle to about `limit` characters: output, value, notes, traceback."""
        body = "\n".join(part.rstrip("\n") for part in (self.stdout, self.value) if part)
        tail = "\n".join([*(f"[{note}]" for note in self.notes), *([self.traceback] if self.traceback else [])])
        tail = _cut(tail, max(limit // 2, limit - len(body)))
        body = _cut(body, max(limit - len(tail), 0))
        return "\n".join(part for part in (body, tail) if part) or "[no output]"


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half:,} characters left out ...]\n{text[len(text) - half :]}"


class Kernel:
    """A leased Python session. It outlives its process: a process that had to be killed is replaced within the lease."""

    def __init__(self, pool: KernelPool, process: KernelProcess) -> None:
        self._pool = pool
        self._process = process
        self._cells: list[tuple[str, float]] = []  # that succeeded in this session, with their seconds
        self._lock = asyncio.Lock()
        self._dirty = False  # a call was abandoned and may still run

    @property
    def pid(self) -> int:
        """Process id as the kernel's own pid namespace counts."""
        return self._process.pid

    async def execute(self, code: str, timeout_s: float = 6.0) -> ExecutionResult:
        """Runs a cell. Calls of one lease queue up.

        Raises:
            PoolClosedError: the pool was closed meanwhile.
            KernelStartError: a successor for a lost process did not come up.
        """
        async with self._lock:
            notes: list[str] = []
            if self._dirty or not self._process.alive:
                notes.append(await self._replace())
            self._dirty = True
            outcome = await self._process.call(code, timeout_s)
            self._dirty = False
            if outcome.interrupted is not None:
                notes.append(_interruption(outcome, timeout_s, self._pool.limits))
            if outcome.ending is not None:
                if outcome.ending.reason is not outcome.interrupted:
                    notes.append(f"the Python process ended: {outcome.ending.reason or 'killed'} ({outcome.ending.detail})")
                notes.append(await self._replace())
            result = _result(outcome, tuple(notes))
            if not result.failed:
                self._cells.append((code, result.seconds))
            return result

    async def _replace(self) -> str:
        """A fresh process, with the session rebuilt if that is cheap. Returns the note that says so."""
        self._pool._discard(self._process)
        self._process = await self._pool._take()
        self._dirty = False
        cells, self._cells = self._cells, []
        limits = self._pool.limits
        lost = "the session was restarted: all variables and imports are gone"
        if not cells:
            return "the session was restarted"
        if sum(seconds for _, seconds in cells) > limits.replay_s:
            return lost
        for code, seconds in cells:
            outcome = await self._process.call(code, limits.replay_s + 2 * seconds)
            if outcome.ending is not None or outcome.interrupted is not None:
                self._pool._discard(self._process)
                self._process = await self._pool._take()
                self._cells = []
                return lost
            self._cells.append((code, seconds))
        return "the session was restarted and the earlier cells that had succeeded were run again"


def _interruption(outcome: Outcome, timeout_s: float, limits: KernelLimits) -> str:
    if outcome.interrupted is KillReason.OUTPUT:
        return f"stopped: it printed more than {limits.flood_bytes:,} bytes"
    return f"stopped at the time limit of {timeout_s:g} s" + ("" if outcome.stdout else "; nothing was printed")


def _result(outcome: Outcome, notes: tuple[str, ...]) -> ExecutionResult:
    reply = outcome.reply or {}
    return ExecutionResult(
        stdout=outcome.stdout,
        value=reply.get("value"),
        error_name=reply.get("ename") if reply.get("status") == "error" else None,
        traceback="\n".join(reply.get("traceback") or ()) or None,
        timed_out=outcome.interrupted is KillReason.HANG,
        killed_for=outcome.ending.reason if outcome.ending else None,
        truncated=outcome.truncated,
        seconds=outcome.seconds,
        notes=notes,
    )


class KernelPool:
    """Keeps `size` + `spares` kernels alive, of which at most `size` are leased at a time.

    A kernel is never handed out twice: when its lease ends it is killed, and a new one is forked in the background.

    Args:
        size: leases at a time; more wait.
        spares: kernels kept warm beyond that, so that whoever loses a process gets another at once.
        preload: modules imported before kernels are forked, besides the usual ones; missing ones are passed over.
        starts: kernels that start side by side.
    """

    def __init__(
        self,
        size: int = 16,
        spares: int = 4,
        limits: KernelLimits | None = None,
        *,
        preload: tuple[str, ...] = (),
        starts: int = 2,
    ) -> None:
        self.size = size
        self.spares = spares
        self.limits = limits or KernelLimits()
        self._preload = preload
        self._starts = starts
        self._slots = asyncio.Semaphore(size)
        self._warm: deque[KernelProcess] = deque()
        self._waiters: deque[asyncio.Future[KernelProcess]] = deque()
        self._leased: set[KernelProcess] = set()
        self._starting: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._failures = 0
        self._nursery: Nursery | None = None
        self._context: zmq.asyncio.Context | None = None
        self._closed = False
        self.guards: tuple[Guard, ...] = ()

    @classmethod
    def from_config(cls, config: KernelConfig) -> KernelPool:
        """A pool as the configuration wants it."""
        return cls(config.size, config.spares, KernelLimits(memory_mb=config.memory_mb, pool_memory_mb=config.pool_memory_mb))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        await self.close()

    @property
    def warm(self) -> int:
        """Kernels that could be leased at once."""
        return len(self._warm)

    async def start(self) -> None:
        """Returns when the first kernel is ready; the others follow in the background.

        Raises:
            KernelStartError: kernels do not come up.
        """
        self._context = zmq.asyncio.Context()
        try:
            self._give(await self._take())
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Kills all kernels and whatever they started. Returns when nothing is left."""
        self._closed = True
        for task in self._starting:
            task.cancel()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(PoolClosedError("the kernel pool is closed"))
        for process in (*self._warm, *self._leased):
            self._end(process.close())
        self._warm.clear()
        self._leased.clear()
        while pending := self._starting | self._ending:
            await asyncio.wait(pending)
        if self._nursery is not None:
            await self._nursery.close()
            self._nursery = None
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = None

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[Kernel]:
        """A fresh kernel; waits while `size` are out. Its process is killed at the end, however the block ends.

        Raises:
            PoolClosedError: the pool is closed, or was closed while this waited.
            KernelStartError: kernels do not come up.
        """
        async with self._slots:
            kernel = Kernel(self, await self._take())
            try:
                yield kernel
            finally:
                self._discard(kernel._process)

    async def _take(self) -> KernelProcess:
        if self._closed or self._context is None:
            raise PoolClosedError("the kernel pool is closed" if self._closed else "the kernel pool was not started")
        while self._warm:
            process = self._warm.popleft()
            if process.alive:
                break
        else:
            waiter: asyncio.Future[KernelProcess] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            self._refill()
            try:
                process = await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                    self._give(waiter.result())
                raise
        self._leased.add(process)
        process.leased()
        return process

    def _give(self, process: KernelProcess) -> None:
        self._leased.discard(process)
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(process)
                return
        self._warm.append(process)

    def _discard(self, process: KernelProcess) -> None:
        if process in self._leased:
            self._leased.remove(process)
            self._end(process.close())
            self._refill()

    def _end(self, closing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(closing)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _refill(self) -> None:
        alive = len(self._warm) + len(self._leased)
        while not self._closed and len(self._starting) < self._starts and alive + len(self._starting) < self.size + self.spares:
            task = asyncio.ensure_future(self._start_one())
            self._starting.add(task)
            task.add_done_callback(self._started)

    def _started(self, task: asyncio.Task[None]) -> None:
        self._starting.discard(task)
        if not task.cancelled():
            task.result()
            self._refill()

    async def _start_one(self) -> None:
        assert self._context is not None
        try:
            if self._nursery is not None and not self._nursery.alive:
                nursery, self._nursery = self._nursery, None
                self._end(nursery.close())
            if self._nursery is None:
                self._nursery = Nursery(self.limits, self._preload, self._context)
            process = await self._nursery.spawn()
        except KernelStartError as error:
            self._failures += 1
            if self._failures % _START_ATTEMPTS == 0:
                while self._waiters:
                    waiter = self._waiters.popleft()
                    if not waiter.done():
                        waiter.set_exception(error)
            await asyncio.sleep(_PAUSE_S)
            return
        self._failures = 0
        self.guards = process.guards
        process.ended.add_done_callback(lambda _: self._lost(process))
        self._give(process)

    def _lost(self, process: KernelProcess) -> None:
        """A spare that dies makes room for another; a leased one is its lease's business."""
        if process in self._warm:
            self._warm.remove(process)
            self._end(process.close())
            self._refill()
