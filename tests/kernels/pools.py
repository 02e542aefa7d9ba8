"""Access to the processes and the directory of a kernel pool."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil

from aimo_solver.kernels.pool import KernelPool

PATIENCE_S = 30.0  # for what ends by itself, on a busy machine too


def forkserver(pool: KernelPool) -> psutil.Process:
    assert pool._spawner is not None
    return psutil.Process(pool._spawner.forkserver.pid)


def directory(pool: KernelPool) -> Path:
    assert pool._spawner is not None
    return pool._spawner.directory


async def until_warm(pool: KernelPool) -> None:
    """Waits until every kernel that is not leased is ready."""
    while len(pool._warm) + len(pool._leased) < pool.size + pool.spares:  # noqa: ASYNC110 - the pool has no event for it
        await asyncio.sleep(0.002)
