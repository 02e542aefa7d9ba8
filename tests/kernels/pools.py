"""Access to the processes and the directory of a kernel pool."""

from __future__ import annotations

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


def warm(pool: KernelPool) -> int:
    """Returns the number of kernels that wait to be leased."""
    return len(pool._warm)
