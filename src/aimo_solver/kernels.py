"""A pool of Jupyter kernels for code that nobody has read: hot, clean, contained.

    async with KernelPool(size=16) as pool, pool.lease() as kernel:
        result = await kernel.execute("2**10", timeout_s=6.0)

**Hot.** Kernels are forked from a process that has numpy, sympy and mpmath imported, and wait to be leased.

**Clean.** A kernel is leased once, and killed with all it started when its lease ends; its files are wiped. Within a lease
a process that hangs, dies or floods is replaced, and the session built up again if that is cheap.

**Contained**, on every Linux: address space, CPU time, open files, file size and stack of a process; memory, disk space and
number of files of all processes of a kernel, and memory of the pool; bytes printed by a call; an environment of a few
harmless variables; nothing on standard input. No process of a kernel outlives its lease, or the solver, even one killed
by SIGKILL. A kernel's connection file, with the key to its sockets, is removed before it is leased.

Further guards hold where the system allows them; `KernelPool.guards` says which do.

- As root, every kernel is a user of its own: it cannot write files of others, signal them or look into them, the number
  of its processes is limited, and its files in /dev/shm count as its memory and are wiped. (Otherwise the limit counts all
  processes of the solver's user, and what that user adds to /dev/shm counts for every kernel.)
- With namespaces (root with CAP_SYS_ADMIN, or user namespaces): no network; all files read-only but /tmp and /dev/shm,
  which are private, limited in size and number of files and gone afterwards; no sight of other processes or of other
  kernels' sockets; the library's own source is hidden.
- With seccomp: no sockets but Unix ones, which keeps the network away where there is no network namespace, and those
  connect to nothing unless the kernel is a user of its own (so multiprocessing.Manager fails, while pools, queues and
  shared memory work); no memory files, System V objects, message queues, keyrings, user namespaces, or files by handle.
- With Landlock, used in place of namespaces: no writing outside the scratch directory and /dev/shm.

Not guarded against: a hole in the Linux kernel; reading files that anyone on the machine may read (all files, where
Python itself lies in a directory of root's alone; and writing them, where in that case namespaces, Landlock and the
capability CAP_DAC_READ_SEARCH are all missing; with Landlock, files in /dev/shm only); use of processor time up to the
limits; what is stored between two looks, a quarter of a second apart, where there are no namespaces; use of a GPU by code
that asks for it in spite of an empty CUDA_VISIBLE_DEVICES; what code in a kernel does to its own session, results included.
On a system with none of the guards, as for a user without rights on an old Linux, the network, other processes of the
same user and all its files are open.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import zmq.asyncio

from aimo_solver.config import KernelConfig
from aimo_solver.errors import KernelError, KernelStartError, LeaseTimeoutError, PoolClosedError
from aimo_solver.kernel_limits import UIDS_PER_POOL, Guard, KernelLimits, KillReason
from aimo_solver.kernel_nursery import Nursery
from aimo_solver.kernel_process import KernelProcess
from aimo_solver.kernel_session import ExecutionResult, Kernel

__all__ = ["ExecutionResult", "Guard", "Kernel", "KernelLimits", "KernelPool", "KillReason"]

_PATIENCE_S = 5.0  # how long starts may fail before those who wait are told
_PAUSE_S = 0.2  # before a start is tried again; doubled with every failure in a row
_LONGEST_PAUSE_S = 5.0
_FAILURES = 3  # in a row, after which the process that forks kernels is replaced


class KernelPool:
    """Keeps `size` + `spares` kernels alive, of which at most `size` are leased at a time.

    A start that fails is tried again after a pause, for as long as the pool is open. When starts have failed for a while,
    whoever waits for a kernel gets the reason, and so does, at once, whoever asks for one until a start succeeds.

    Everything happens in the event loop that `start` was called in, which may run in any thread; the pool has no thread
    of its own but that of its ZMQ context, and leaves none behind.

    Args:
        size: leases at a time; more wait.
        spares: kernels kept warm beyond that, so that whoever loses a process gets another at once.
        preload: modules imported before kernels are forked, besides the usual ones; missing ones are passed over.
        starts: kernels that start side by side.
        on_event: called with ``kernels_fail`` and ``error=...`` when those who wait are told that kernels do not come up, and
            with ``kernels_recovered`` when they do again.
    """

    def __init__(
        self,
        size: int = 16,
        spares: int = 4,
        limits: KernelLimits | None = None,
        *,
        preload: tuple[str, ...] = (),
        starts: int = 2,
        on_event: Callable[..., object] = lambda kind, **values: None,
    ) -> None:
        if size < 1 or spares < 0 or size + spares > UIDS_PER_POOL // 2:  # the other half is for kernels that are ending
            raise ValueError(f"a pool of {size} kernels and {spares} spares")
        self.size = size
        self.spares = spares
        self.limits = limits or KernelLimits()
        self.guards: tuple[Guard, ...] = ()
        self._preload = preload
        self._starts = starts
        self._leases = asyncio.Semaphore(size)
        self._warm: deque[KernelProcess] = deque()
        self._leased: set[KernelProcess] = set()
        self._waiting: deque[asyncio.Future[KernelProcess]] = deque()
        self._starting: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._on_event = on_event
        self._failures = 0  # in a row
        self._failing_since = math.inf
        self._fault: str | None = None  # why kernels do not come up
        self._nursery: Nursery | None = None
        self._context: zmq.asyncio.Context | None = None
        self._closed = False

    @classmethod
    def from_config(cls, config: KernelConfig, on_event: Callable[..., object] = lambda kind, **values: None) -> Self:
        """A pool as the configuration wants it."""
        half = int(psutil.virtual_memory().total // 2**21)
        limits = KernelLimits(memory_mb=config.memory_mb, pool_memory_mb=config.pool_memory_mb or half)
        return cls(config.size, config.spares, limits, preload=config.preload, on_event=on_event)

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        await self.close()

    @property
    def warm(self) -> int:
        """Kernels that wait to be leased."""
        return len(self._warm)

    @property
    def zygote_pid(self) -> int | None:
        """The process that all kernels are below; None while no kernel was started."""
        return None if self._nursery is None else self._nursery.pid

    @property
    def directory(self) -> Path | None:
        """Holds a directory per kernel; None while no kernel was started."""
        return None if self._nursery is None else self._nursery.directory

    async def start(self) -> None:
        """Returns when the first kernel is ready; the others follow in the background.

        Raises:
            KernelStartError: kernels do not come up. The pool goes on trying; it is to be closed all the same.
        """
        if self._context is None and not self._closed:
            self._context = zmq.asyncio.Context()
        self._give(await self._take())

    async def full(self) -> None:
        """Returns when every kernel that is not leased is ready."""
        while not self._closed and len(self._warm) + len(self._leased) < self.size + self.spares:  # noqa: ASYNC110 - nobody waits for this in earnest
            await asyncio.sleep(0.002)

    async def close(self) -> None:
        """Kills all kernels, the leased ones too. Returns when nothing of them is left. Never raises."""
        self._closed = True
        for task in self._starting:
            task.cancel()
        self._disappoint(PoolClosedError, "the kernel pool is closed")
        for process in (*self._warm, *self._leased):
            self._end(process.close())
        self._warm.clear()
        self._leased.clear()
        if self._starting:
            await asyncio.wait(self._starting)
        self._retire()
        while self._ending:
            await asyncio.wait(self._ending)
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = None

    @asynccontextmanager
    async def lease(self, timeout_s: float | None = None) -> AsyncIterator[Kernel]:
        """A fresh session; waits while `size` are out. It is over, and all it started killed, however the block ends.

        Raises:
            LeaseTimeoutError: none was free within `timeout_s`; None waits for as long as kernels come up.
            KernelStartError: kernels do not come up.
            PoolClosedError: the pool is closed, or was closed while this waited.
        """
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(timeout_s):
                    await stack.enter_async_context(self._leases)
                    process = await self._take()
            except TimeoutError:
                raise LeaseTimeoutError(timeout_s or 0.0) from None
            kernel = Kernel(process, self._exchange, self.limits)
            try:
                yield kernel
            finally:
                held, kernel.process = kernel.process, None
                if held is not None:
                    self._discard(held)

    async def _exchange(self, process: KernelProcess) -> KernelProcess:
        self._discard(process)
        return await self._take()

    async def _take(self) -> KernelProcess:
        if self._closed or self._context is None:
            raise PoolClosedError("the kernel pool is closed" if self._closed else "the kernel pool was not started")
        if self._warm:
            process = self._warm.popleft()
        elif self._fault is not None:
            raise KernelStartError(self._fault)
        else:
            waiter: asyncio.Future[KernelProcess] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            self._refill()
            try:
                process = await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                    self._give(waiter.result())  # it came at the same moment
                raise
        self._leased.add(process)
        process.lease()
        return process

    def _give(self, process: KernelProcess) -> None:
        self._leased.discard(process)
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                self._leased.add(process)
                waiter.set_result(process)
                return
        self._warm.append(process)

    def _disappoint(self, error: type[KernelError], reason: str) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(error(reason))

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
        missing = self.size + self.spares - len(self._warm) - len(self._leased) - len(self._starting)
        for _ in range(0 if self._closed else min(missing, self._starts - len(self._starting))):
            task = asyncio.ensure_future(self._start_one())
            self._starting.add(task)
            task.add_done_callback(self._started)

    def _started(self, task: asyncio.Task[None]) -> None:
        self._starting.discard(task)
        if not task.cancelled():
            self._refill()

    async def _start_one(self) -> None:
        began = asyncio.get_running_loop().time()
        assert self._context is not None
        try:
            if self._nursery is not None and not self._nursery.alive:
                self._retire()
            if self._nursery is None:
                self._nursery = Nursery(self.limits, self._preload, self._context)
            process = await self._nursery.spawn()
        except Exception as error:  # noqa: BLE001 - whatever it was, those who wait are told, and it is tried again
            await asyncio.sleep(self._failed(error, began))
            return
        if self._fault is not None:
            self._on_event("kernels_recovered")
        self._failures, self._failing_since, self._fault = 0, math.inf, None
        self.guards = process.guards
        process.ended.add_done_callback(lambda _: self._lost(process))
        process.heavier = self._weigh
        self._give(process)

    def _failed(self, error: Exception, began: float) -> float:
        """A start that was `began` then failed; returns the pause before the next."""
        self._failures += 1
        self._failing_since = min(self._failing_since, began)
        if self._failures % _FAILURES == 0:
            self._retire()
        if asyncio.get_running_loop().time() - self._failing_since >= _PATIENCE_S:
            reason = str(error) if isinstance(error, KernelStartError) else f"{type(error).__name__}: {error}"
            if self._fault is None:
                self._on_event("kernels_fail", error=reason)
            self._fault = reason
            self._disappoint(KernelStartError, reason)
        return float(min(_PAUSE_S * 2 ** min(self._failures - 1, 10), _LONGEST_PAUSE_S))

    def _retire(self) -> None:
        """The next kernel is forked from a new process; those that the old one forked live on."""
        if self._nursery is not None:
            self._end(self._nursery.close())
            self._nursery = None

    def _lost(self, process: KernelProcess) -> None:
        """A spare that dies makes room for another; with a leased one its lease will deal."""
        if process in self._warm:
            self._warm.remove(process)
            self._end(process.close())
            self._refill()

    def _weigh(self) -> None:
        limit = self.limits.pool_memory_mb
        living = [process for process in (*self._warm, *self._leased) if process.alive]
        if limit is not None and sum(process.memory_mb for process in living) > limit:
            max(living, key=lambda process: process.memory_mb).kill(KillReason.POOL_MEMORY)
