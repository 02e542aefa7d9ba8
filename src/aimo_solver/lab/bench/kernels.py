"""Speed of the kernel pool beside plain jupyter_client in the same run.

Figures count on a quiet machine only. What is compared takes turns, and medians are told.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

from jupyter_client import AsyncKernelManager, KernelManager
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from aimo_solver.kernels.pool import Kernel, KernelPool
from aimo_solver.lab.bench.soak import soak, soak_table

_SPARES = 4
_CALL = "2**10"
_IMPORTS = "import collections, fractions, functools, itertools, math, mpmath, numpy, sympy"
_WORK = "sum(i * i for i in range(100_000))"
_HANG = "sum(range(10**13))"  # never looks for signals


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelBench:
    """Medians.

    Attributes:
        kernels: how many started, and then worked, side by side.
        call_ms, plain_call_ms: a trivial call on a leased kernel, and by `execute_interactive` of a blocking client.
        call_latency_ratio: of the two.
        lease_ms: from asking for a lease to having a kernel, while kernels are warm.
        start_s, plain_start_s: all kernels ready with everything imported; the pool, and as many bare concurrent starts.
        start_ratio: of the two.
        calls_per_s, plain_calls_per_s: over all kernels, all busy; the pool's, and bare kernels in the same loop.
        throughput_ratio: of the two.
        hang_wait_s: what the next lease waits while a kernel that hangs in C code is got rid of.
    """

    kernels: int
    call_ms: float
    plain_call_ms: float
    call_latency_ratio: float
    lease_ms: float
    start_s: float
    plain_start_s: float
    start_ratio: float
    calls_per_s: float
    plain_calls_per_s: float
    throughput_ratio: float
    hang_wait_s: float


async def bench(kernels: int = 16, rounds: int = 3, report: Callable[[str], None] = lambda _: None) -> KernelBench:
    """Measures everything. Takes about a minute on two cores.

    Args:
        kernels: how many start, and then work, side by side.
        rounds: times that the starts and the work are measured.
    """
    starts: list[float] = []
    plain_starts: list[float] = []
    rates: list[float] = []
    plain_rates: list[float] = []
    for number in range(rounds):
        report(f"{kernels} kernels, plain, {number + 1} of {rounds}")
        began = time.perf_counter()
        async with _plain_kernels(kernels) as clients:
            plain_starts.append(time.perf_counter() - began)
            plain_rates.append(await _rate([_plain_call(client) for client in clients]))
        report(f"{kernels} kernels, the pool's, {number + 1} of {rounds}")
        began = time.perf_counter()
        async with KernelPool(size=kernels, spares=0) as pool:
            await pool.full()
            starts.append(time.perf_counter() - began)
            async with AsyncExitStack() as leases:
                leased = [await leases.enter_async_context(pool.lease()) for _ in range(kernels)]
                rates.append(await _rate([_pool_call(kernel) for kernel in leased]))
    async with KernelPool(size=kernels, spares=_SPARES) as pool:
        await pool.full()
        report("calls")
        call, plain_call = await _latencies(pool)
        report("leases")
        lease = await _lease_time(pool)
        report("hangs")
        hang = await _hang_wait(pool)
    start, plain_start = statistics.median(starts), statistics.median(plain_starts)
    rate, plain_rate = statistics.median(rates), statistics.median(plain_rates)
    return KernelBench(
        kernels=kernels,
        call_ms=call * 1e3,
        plain_call_ms=plain_call * 1e3,
        call_latency_ratio=call / plain_call,
        lease_ms=lease * 1e3,
        start_s=start,
        plain_start_s=plain_start,
        start_ratio=start / plain_start,
        calls_per_s=rate,
        plain_calls_per_s=plain_rate,
        throughput_ratio=rate / plain_rate,
        hang_wait_s=hang,
    )


@asynccontextmanager
async def _plain_kernels(count: int) -> AsyncIterator[list[Any]]:
    """Bare kernels, started side by side, with the usual imports done."""
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


async def _rate(calls: list[Callable[[], Awaitable[object]]], seconds: float = 4.0) -> float:
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


async def _latencies(pool: KernelPool, rounds: int = 10, calls: int = 50) -> tuple[float, float]:
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


async def _lease_time(pool: KernelPool, leases: int = 100) -> float:
    times = []
    for _ in range(leases):
        await pool.full()
        began = time.perf_counter()
        async with pool.lease():
            times.append(time.perf_counter() - began)
    return statistics.median(times)


async def _hang_wait(pool: KernelPool, hangs: int = 5) -> float:
    waits = []
    for _ in range(hangs):
        await pool.full()
        async with pool.lease() as kernel:
            await kernel.execute(_HANG, timeout_s=0.2)
        began = time.perf_counter()
        async with pool.lease():
            waits.append(time.perf_counter() - began)
    return max(waits)


def table(result: KernelBench) -> Table:
    """For the terminal."""
    shown = Table("", "pool", "plain jupyter_client", "ratio", title="Kernel pool")
    shown.add_row("call, ms", f"{result.call_ms:.2f}", f"{result.plain_call_ms:.2f}", f"{result.call_latency_ratio:.2f}")
    shown.add_row(
        f"{result.kernels} kernels ready, s", f"{result.start_s:.2f}", f"{result.plain_start_s:.2f}", f"{result.start_ratio:.2f}"
    )
    rates = f"{result.calls_per_s:.0f}", f"{result.plain_calls_per_s:.0f}", f"{result.throughput_ratio:.2f}"
    shown.add_row(f"calls per second, {result.kernels} busy kernels", *rates)
    shown.add_row("lease of a warm kernel, ms", f"{result.lease_ms:.3f}", "", "")
    shown.add_row("lease after a hang in C code, s", f"{result.hang_wait_s:.4f}", "", "")
    return shown


def run(soak_leases: int | None = None, as_json: bool = False, *, kernels: int = 16, rounds: int = 3) -> int:
    """What the command does; returns its exit code, 1 if a soak met surprises or is not flat."""
    console = Console(stderr=True)
    if soak_leases is None:
        with console.status("kernels") as status:
            result = asyncio.run(bench(kernels, rounds, status.update))
        if as_json:
            print(json.dumps(asdict(result)))
        else:
            Console().print(table(result))
        return 0
    with Progress(console=console) as progress:
        task = progress.add_task("leases", total=soak_leases)
        soaked = asyncio.run(soak(soak_leases, tick=lambda done: progress.update(task, completed=done)))
    if as_json:
        print(json.dumps(asdict(soaked)))
    else:
        Console().print(soak_table(soaked), *soaked.surprises, sep="\n")
    return 0 if soaked.flat and not soaked.surprises else 1
