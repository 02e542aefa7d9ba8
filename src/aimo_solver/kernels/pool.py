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
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self

from aimo_solver.errors import KernelError, KernelStartError, PoolClosedError
from aimo_solver.kernels.limits import Guard, KernelLimits, KillReason
from aimo_solver.kernels.process import KernelProcess
from aimo_solver.kernels.session import ExecutionResult, Kernel, within
from aimo_solver.kernels.spawner import Failures, Nursery
from aimo_solver.options import MOST_KERNELS, KernelConfig

__all__ = ["ExecutionResult", "Guard", "Kernel", "KernelLimits", "KernelPool", "KillReason"]

_FAILURES = 3  # in a row, after which the process that forks kernels is replaced


class KernelPool:
    """Keeps `size` + `spares` kernels alive, of which at most `size` are leased at a time.

    A start that fails is tried again after a pause, for as long as the pool is open. When starts have failed for a while,
    whoever waits for a kernel gets the reason, and so does, at once, whoever asks for one until a start succeeds.

    Everything happens in the event loop that `start` was called in, which may run in any thread; the pool has none of its own.

    Args:
        size: leases at a time; more wait.
        spares: kernels kept warm beyond that, so that whoever loses a process gets another at once.
        preload: modules imported before kernels are forked, besides the usual ones; missing ones are passed over.
        starts: kernels that start side by side.
        on_event: called with ``kernels_fail`` and ``error=...`` when those who wait are told, then with ``kernels_recovered``.
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
        if size < 1 or spares < 0 or size + spares > MOST_KERNELS:
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
        self._failures = Failures()
        self._nursery: Nursery | None = None
        self._closed = False

    @classmethod
    def from_config(
        cls, config: KernelConfig, on_event: Callable[..., object] = lambda kind, **values: None, *, leases: int = 1
    ) -> Self:
        """A pool as the configuration wants it, for `leases` at a time where it does not say how many."""
        half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**21
        limits = KernelLimits(memory_mb=config.memory_mb, pool_memory_mb=config.pool_memory_mb or half)
        return cls(config.size or leases, config.spares, limits, preload=config.preload, on_event=on_event)

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    @property
    def warm(self) -> int:
        """Kernels that wait to be leased."""
        return len(self._warm)

    @property
    def zygote_pid(self) -> int | None:
        """The process that forks kernels, if there is one."""
        return None if self._nursery is None else self._nursery.pid

    @property
    def directory(self) -> Path | None:
        """Holds a directory per kernel; None while there is no process that forks them."""
        return None if self._nursery is None else self._nursery.directory

    async def start(self) -> None:
        """Returns when the first kernel is ready; the others follow in the background.

        Raises:
            KernelStartError: kernels do not come up. The pool goes on trying; it is to be closed all the same.
        """
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
        if self._starting:
            await asyncio.wait(self._starting)
        self._leased.update(self._warm)
        self._warm.clear()
        while self._leased:
            self._end(self._leased.pop().close())
        self._retire()
        while self._ending:
            await asyncio.wait(self._ending)

    @asynccontextmanager
    async def lease(self, timeout_s: float | None = None) -> AsyncIterator[Kernel]:
        """A fresh session; waits while `size` are out. It is over, and all it started killed, however the block ends.

        Raises:
            LeaseTimeoutError: none was free within `timeout_s`; None waits for as long as kernels come up.
            KernelStartError: kernels do not come up.
            PoolClosedError: the pool is closed, or was closed while this waited.
        """
        async with AsyncExitStack() as stack:
            async with within(timeout_s):
                await stack.enter_async_context(self._leases)
                process = await self._take()
            kernel = Kernel(process, self._exchange, self.limits)
            try:
                yield kernel
            finally:
                held, kernel.process = kernel.process, None
                if held is not None:
                    self._discard(held)

    async def _exchange(self, process: KernelProcess, timeout_s: float) -> KernelProcess:
        async with within(timeout_s):
            self._discard(process)
            return await self._take()

    async def _take(self) -> KernelProcess:
        if self._closed:
            raise PoolClosedError("the kernel pool is closed")
        if self._warm:
            process = self._warm.popleft()
        elif self._failures.fault is not None:
            raise KernelStartError(self._failures.fault)
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
        elif process in self._warm:
            self._warm.remove(process)
        else:
            return
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
        try:
            if self._nursery is not None and not self._nursery.alive:
                self._retire()
            if self._nursery is None:
                self._nursery = Nursery(self.limits, self._preload)
            process = await self._nursery.spawn()
        except Exception as error:  # noqa: BLE001 - whatever it was, those who wait are told, and it is tried again
            self._failed(error, began)
            await asyncio.sleep(self._failures.pause_s)
            return
        if self._failures.fault is not None:
            self._on_event("kernels_recovered")
        self._failures = Failures()
        self.guards = process.guards
        process.ended.add_done_callback(lambda _: self._discard(process) if process in self._warm else None)
        process.heavier = self._weigh
        self._give(process)

    def _failed(self, error: Exception, began: float) -> None:
        known = self._failures.fault
        self._failures.add(error, began, asyncio.get_running_loop().time())
        if self._failures.count % _FAILURES == 0 and isinstance(error, KernelStartError):  # others are not its doing
            self._retire()
        if self._failures.fault is not None:
            if known is None:
                self._on_event("kernels_fail", error=self._failures.fault)
            self._disappoint(KernelStartError, self._failures.fault)

    def _retire(self) -> None:
        """The next kernel is forked from a new process; those that the old one forked live on."""
        if self._nursery is not None:
            self._end(self._nursery.close())
            self._nursery = None

    def _weigh(self) -> None:
        limit = self.limits.pool_memory_mb
        living = [process for process in (*self._warm, *self._leased) if process.alive]
        if limit is not None and sum(process.memory_mb for process in living) > limit:
            max(living, key=lambda process: process.memory_mb).kill(KillReason.POOL_MEMORY)
