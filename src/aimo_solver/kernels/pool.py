"""A pool of IPython kernels for untrusted code: warm, clean and isolated.

    async with KernelPool(size=16) as pool, pool.lease() as kernel:
        result = await kernel.execute("2**10", timeout_s=6.0)

**Warm.** Kernels are forked from a process that has imported numpy, sympy and mpmath, and wait to be leased.

**Clean.** A kernel is leased once. At the end of its lease it is killed with all processes that it started, and its files are
removed. A process that hangs, dies or prints too much is replaced within the lease, and the session is rebuilt if that is cheap.

**Isolated.** docs/isolation.md lists the limits, what is isolated on which system, and what is not.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

from aimo_solver.errors import KernelError, KernelStartError, LeaseTimeoutError, PoolClosedError
from aimo_solver.kernels.limits import Isolation, KernelLimits, KillReason
from aimo_solver.kernels.options import MOST_KERNELS, KernelConfig
from aimo_solver.kernels.process import KernelProcess
from aimo_solver.kernels.session import Kernel
from aimo_solver.kernels.spawner import Spawner

PATIENCE_S = 5.0  # waiting leases fail once starts have failed for this long
_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0  # between failed starts, doubled each time
_STARTS = 2  # at the same time
_FAILURES = 3  # in a row, after which the forkserver is replaced


@dataclass(slots=True)
class _Failures:
    """Starts that failed in a row.

    Attributes:
        since: start of the first one, by the event loop's clock.
        pause_s: pause before the next one.
        error: the error that leases get, once starts have failed for `PATIENCE_S`.
    """

    count: int = 0
    since: float = math.inf
    pause_s: float = _PAUSE_S / 2
    error: str | None = None

    def add(self, error: Exception, began: float) -> None:
        self.count += 1
        self.since = min(self.since, began)
        self.pause_s = min(2 * self.pause_s, _LONGEST_PAUSE_S)
        if asyncio.get_running_loop().time() - self.since >= PATIENCE_S:
            self.error = str(error) if isinstance(error, KernelStartError) else f"{type(error).__name__}: {error}"


class KernelPool:
    """Keeps `size` + `spares` kernels alive, of which at most `size` are leased at a time.

    A failed start is repeated after a pause for as long as the pool is open. After `PATIENCE_S` of failures, waiting leases
    raise the error, and so do new ones immediately, until a start succeeds.

    All work happens in the event loop that called `start`, which may run in any thread; the pool starts no threads.

    Args:
        size: concurrent leases; further ones wait.
        spares: kernels kept warm in addition, so that a lost process is replaced at once.
        preload: modules to import before kernels are forked, besides the usual ones; missing ones are ignored.
        on_event: called with ``kernels_fail`` and ``error=...`` when leases start to fail, then with ``kernels_recovered``.
    """

    def __init__(
        self,
        size: int = 16,
        spares: int = 4,
        limits: KernelLimits | None = None,
        *,
        preload: tuple[str, ...] = (),
        on_event: Callable[..., object] = lambda kind, **values: None,
    ) -> None:
        if size < 1 or spares < 0 or size + spares > MOST_KERNELS:
            raise ValueError(f"a pool of {size} kernels and {spares} spares")
        self.size = size
        self.spares = spares
        self.limits = limits or KernelLimits()
        self.isolation: tuple[Isolation, ...] = ()
        self._preload = preload
        self._leases = asyncio.Semaphore(size)
        self._warm: deque[KernelProcess] = deque()
        self._leased: set[KernelProcess] = set()
        self._waiting: deque[asyncio.Future[KernelProcess]] = deque()
        self._starting: set[asyncio.Task[None]] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._on_event = on_event
        self._failures = _Failures()
        self._spawner: Spawner | None = None
        self._closed = False

    @classmethod
    def from_config(
        cls, config: KernelConfig, on_event: Callable[..., object] = lambda kind, **values: None, *, leases: int = 1
    ) -> Self:
        """The configured pool; `leases` is its size if the configuration gives none."""
        half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**21
        limits = KernelLimits(memory_mb=config.memory_mb, pool_memory_mb=config.pool_memory_mb or half)
        return cls(config.size or leases, config.spares, limits, preload=config.preload, on_event=on_event)

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.close)
            await self.start()
            stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Returns when the first kernel is ready; the others follow in the background.

        Raises:
            KernelStartError: kernels do not start. The pool keeps trying, and still has to be closed.
        """
        self._give(await self._take())

    async def wait_until_warm(self) -> None:
        """Returns when every kernel that is not leased is ready."""
        while not self._closed and len(self._warm) + len(self._leased) < self.size + self.spares:  # noqa: ASYNC110 - for benchmarks and tests
            await asyncio.sleep(0.002)

    async def close(self) -> None:
        """Kills all kernels, leased ones included, and returns when nothing is left of them. Never raises."""
        self._closed = True
        for task in self._starting:
            task.cancel()
        self._fail_waiting(PoolClosedError, "the kernel pool is closed")
        if self._starting:
            await asyncio.wait(self._starting)
        self._leased.update(self._warm)
        self._warm.clear()
        while self._leased:
            self._end(self._leased.pop().close())
        self._retire_spawner()
        while self._ending:
            await asyncio.wait(self._ending)

    @asynccontextmanager
    async def lease(self, timeout_s: float | None = None) -> AsyncIterator[Kernel]:
        """Leases a fresh session; waits while `size` are leased. The end of the block kills everything that it started.

        Raises:
            LeaseTimeoutError: none was free within `timeout_s`; None sets no limit.
            KernelStartError: kernels do not start.
            PoolClosedError: the pool is closed, or was closed during the wait.
        """
        async with AsyncExitStack() as stack:
            async with _bound_wait(timeout_s):
                await stack.enter_async_context(self._leases)
                process = await self._take()
            kernel = Kernel(process, self._exchange, self.limits)
            try:
                yield kernel
            finally:
                current, kernel.process = kernel.process, None
                if current is not None:
                    self._discard(current)

    async def _exchange(self, process: KernelProcess, timeout_s: float) -> KernelProcess:
        async with _bound_wait(timeout_s):
            self._discard(process)
            return await self._take()

    async def _take(self) -> KernelProcess:
        if self._closed:
            raise PoolClosedError("the kernel pool is closed")
        if self._warm:
            process = self._warm.popleft()
        elif self._failures.error is not None:
            raise KernelStartError(self._failures.error)
        else:
            waiter: asyncio.Future[KernelProcess] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            self._refill()
            try:
                process = await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                    self._give(waiter.result())  # it was assigned at the same moment
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

    def _fail_waiting(self, error: type[KernelError], message: str) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(error(message))

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
        for _ in range(0 if self._closed else min(missing, _STARTS - len(self._starting))):
            task = asyncio.ensure_future(self._start_one())
            self._starting.add(task)
            task.add_done_callback(self._start_done)

    def _start_done(self, task: asyncio.Task[None]) -> None:
        self._starting.discard(task)
        if not task.cancelled():
            self._refill()

    async def _start_one(self) -> None:
        began = asyncio.get_running_loop().time()
        try:
            if self._spawner is not None and not self._spawner.alive:
                self._retire_spawner()
            if self._spawner is None:
                self._spawner = Spawner(self.limits, self._preload)
            process = await self._spawner.spawn()
        except Exception as error:  # noqa: BLE001 - the start is repeated, and leases get the error after PATIENCE_S
            self._start_failed(error, began)
            await asyncio.sleep(self._failures.pause_s)
            return
        if self._failures.error is not None:
            self._on_event("kernels_recovered")
        self._failures = _Failures()
        self.isolation = process.isolation
        process.ended.add_done_callback(lambda _: self._discard(process) if process in self._warm else None)
        process.on_memory = self._check_memory
        self._give(process)

    def _start_failed(self, error: Exception, began: float) -> None:
        known = self._failures.error
        self._failures.add(error, began)
        if self._failures.count % _FAILURES == 0 and isinstance(error, KernelStartError):  # other errors arise in the solver
            self._retire_spawner()
        if self._failures.error is not None:
            if known is None:
                self._on_event("kernels_fail", error=self._failures.error)
            self._fail_waiting(KernelStartError, self._failures.error)

    def _retire_spawner(self) -> None:
        """Closes the spawner, so that the next kernel comes from a new forkserver; existing kernels stay."""
        if self._spawner is not None:
            self._end(self._spawner.close())
            self._spawner = None

    def _check_memory(self) -> None:
        limit = self.limits.pool_memory_mb
        living = [process for process in (*self._warm, *self._leased) if process.alive]
        if limit is not None and sum(process.memory_mb for process in living) > limit:
            max(living, key=lambda process: process.memory_mb).kill(KillReason.POOL_MEMORY)


@asynccontextmanager
async def _bound_wait(timeout_s: float | None) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise LeaseTimeoutError(timeout_s or 0.0) from None
