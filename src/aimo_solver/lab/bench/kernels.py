"""Measures the kernel pool against plain jupyter_client in the same run. Results are valid only on an idle machine."""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from jupyter_client import AsyncKernelManager, KernelManager

from aimo_solver.kernels.pool import KernelPool
from aimo_solver.kernels.session import Kernel
from aimo_solver.lab.bench.table import BenchResult

_SPARES = 4
_CALL = "2**10"
_IMPORTS = "import collections, fractions, functools, itertools, math, mpmath, numpy, sympy"
_WORK = "sum(i * i for i in range(100_000))"
_HANG = "sum(range(10**13))"  # C code that never checks for signals


async def bench_kernels(kernels: int = 16, rounds: int = 3, report: Callable[[str], None] = lambda _: None) -> BenchResult:
    """Measures start, throughput, call latency and leases; about a minute on two cores.

    Args:
        kernels: how many start, and then work, at the same time.
        rounds: how often everything is measured, the pool and plain kernels in turn.
        report: called with the name of each measurement.
    """
    plain: list[tuple[float, float]] = []
    pooled: list[tuple[float, float]] = []
    for number in range(rounds):
        report(f"{kernels} kernels, plain, {number + 1} of {rounds}")
        plain.append(await _start_and_rate_plain(kernels))
        report(f"{kernels} kernels, pool, {number + 1} of {rounds}")
        pooled.append(await _start_and_rate(kernels))
    start, rate = map(statistics.median, zip(*pooled, strict=True))
    plain_start, plain_rate = map(statistics.median, zip(*plain, strict=True))
    async with KernelPool(size=kernels, spares=_SPARES) as pool:
        await pool.wait_until_warm()
        report("calls")
        call, plain_call = await _latencies(pool, 3 * rounds)
        report("leases")
        lease = await _lease_time(pool, 30 * rounds)
        report("hangs")
        hang = await _hang_wait(pool, 2 * rounds)
    compared = (
        ("call, ms", 1e3 * call, 1e3 * plain_call),
        (f"{kernels} kernels ready, s", start, plain_start),
        (f"calls per second, {kernels} busy kernels", rate, plain_rate),
    )
    return BenchResult(
        name="kernels",
        columns=("", "pool", "plain jupyter_client", "ratio"),
        rows=(
            *((what, ours, plain, ours / plain) for what, ours, plain in compared),
            ("lease of a warm kernel, ms", 1e3 * lease, None, None),
            ("lease after a hang in C code, s", hang, None, None),
        ),
        notes=(f"medians of {rounds} rounds; ready: everything imported; the slowest of {2 * rounds} leases after a hang",),
    )


async def _start_and_rate(kernels: int) -> tuple[float, float]:
    """Measures the seconds until the pool's kernels are ready, and their calls per second."""
    began = time.perf_counter()
    async with KernelPool(size=kernels, spares=0) as pool:
        await pool.wait_until_warm()
        seconds = time.perf_counter() - began
        async with AsyncExitStack() as leases:
            leased = [await leases.enter_async_context(pool.lease()) for _ in range(kernels)]
            return seconds, await _rate([_pool_call(kernel) for kernel in leased])


async def _start_and_rate_plain(kernels: int) -> tuple[float, float]:
    began = time.perf_counter()
    async with _plain_kernels(kernels) as clients:
        seconds = time.perf_counter() - began
        return seconds, await _rate([_plain_call(client) for client in clients])


@asynccontextmanager
async def _plain_kernels(count: int) -> AsyncIterator[list[Any]]:
    """Bare kernels, started concurrently, with the usual imports done."""
    directory = tempfile.TemporaryDirectory(prefix="aimo-plain-")
    managers = [
        AsyncKernelManager(transport="ipc", connection_file=os.path.join(directory.name, f"{number}.json"))
        for number in range(count)
    ]
    clients: list[Any] = []

    async def start(manager: Any) -> Any:
        await manager.start_kernel()
        client = manager.client()
        client.start_channels()
        await client.wait_for_ready(timeout=120)
        await client.execute_interactive(_IMPORTS)
        return client

    try:
        clients += await asyncio.gather(*map(start, managers))
        yield clients
    finally:
        for client in clients:
            client.stop_channels()
        await asyncio.gather(*(manager.shutdown_kernel(now=True) for manager in managers))
        directory.cleanup()


def _plain_call(client: Any) -> Callable[[], Awaitable[object]]:
    return lambda: client.execute_interactive(_WORK, output_hook=lambda _: None)


def _pool_call(kernel: Kernel) -> Callable[[], Awaitable[object]]:
    return lambda: kernel.execute(_WORK, timeout_s=60.0)


async def _rate(calls: list[Callable[[], Awaitable[object]]], seconds: float = 2.0) -> float:
    """Calls per second, all kernels calling without a pause."""
    done = 0
    until = time.perf_counter() + seconds

    async def keep_calling(call: Callable[[], Awaitable[object]]) -> None:
        nonlocal done
        while time.perf_counter() < until:
            await call()
            done += 1

    began = time.perf_counter()
    await asyncio.gather(*map(keep_calling, calls))
    return done / (time.perf_counter() - began)


async def _latencies(pool: KernelPool, rounds: int, calls: int = 50) -> tuple[float, float]:
    ours: list[float] = []
    plain: list[float] = []
    directory = tempfile.TemporaryDirectory(prefix="aimo-plain-")
    manager = KernelManager(transport="ipc", connection_file=os.path.join(directory.name, "kernel.json"))
    manager.start_kernel()
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=120)
        client.execute_interactive(_IMPORTS)
        async with pool.lease() as kernel:
            for _ in range(rounds):
                for _ in range(calls):
                    began = time.perf_counter()
                    await kernel.execute(_CALL)
                    ours.append(time.perf_counter() - began)
                for _ in range(calls):
                    began = time.perf_counter()
                    client.execute_interactive(_CALL, output_hook=lambda _: None)
                    plain.append(time.perf_counter() - began)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        directory.cleanup()
    return statistics.median(ours), statistics.median(plain)


async def _lease_time(pool: KernelPool, leases: int) -> float:
    times = []
    for _ in range(leases):
        await pool.wait_until_warm()
        began = time.perf_counter()
        async with pool.lease():
            times.append(time.perf_counter() - began)
    return statistics.median(times)


async def _hang_wait(pool: KernelPool, hangs: int) -> float:
    waits = []
    for _ in range(hangs):
        await pool.wait_until_warm()
        async with pool.lease() as kernel:
            await kernel.execute(_HANG, timeout_s=0.2)
        began = time.perf_counter()
        async with pool.lease():
            waits.append(time.perf_counter() - began)
    return max(waits)
