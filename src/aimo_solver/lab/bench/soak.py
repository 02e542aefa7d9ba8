"""A soak of the kernel pool: many leases in which kernels are maltreated, and what the pool holds in between and at the end."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.table import Table

from aimo_solver.errors import UserError
from aimo_solver.kernels.pool import KernelPool

_SETTLED_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What the pool holds after `leases` leases. `memory_mb` is the solver's own, `kernels_mb` that of all processes below it."""

    leases: int
    memory_mb: float
    kernels_mb: float
    descriptors: int
    processes: int
    directories: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSoak:
    """A soak.

    Attributes:
        surprises: what was not as the table of cases says.
        before, after: the full pool after a tenth of the leases, and at the end.
        samples: the full pool at regular intervals in between.
    """

    leases: int
    seconds: float
    surprises: tuple[str, ...]
    before: Usage
    after: Usage
    samples: tuple[Usage, ...]

    @property
    def flat(self) -> bool:
        """Nothing was left behind: the same counts before and after, and memory within a tenth and 8 MB."""
        counts = [(u.descriptors, u.processes, u.directories) for u in (self.before, self.after)]
        heavier = [
            self.after.memory_mb > 1.1 * self.before.memory_mb + 8,
            self.after.kernels_mb > 1.1 * self.before.kernels_mb + 8,
        ]
        return counts[0] == counts[1] and not any(heavier)


async def soak(leases: int, seed: int = 0, parallel: int = 4, tick: Callable[[int], None] = lambda _: None) -> KernelSoak:
    """Leases with a random choice from the table of hard cases, `parallel` at a time.

    Raises:
        UserError: the table is not there.
    """
    cases = _load_cases()
    choice = random.Random(seed)
    surprises: list[str] = []
    samples: list[Usage] = []
    began = time.monotonic()
    async with KernelPool(size=parallel, spares=2, limits=cases.LIMITS) as pool:

        async def one(case: Any) -> None:
            async with pool.lease() as kernel:
                for cell in case.cells:
                    await kernel.execute(cell, 20.0)
                result = await kernel.execute(case.code, case.timeout_s)
            surprises.extend(f"{case.name}: {problem}" for problem in case.problems(result))

        fitting = [case for case in cases.CASES if case.holds(pool.guards)]
        step = max(leases // 10, parallel)
        done = 0
        while done < leases:
            todo = [choice.choice(fitting) for _ in range(min(step, leases - done))]

            async def work(todo: list[Any] = todo) -> None:
                nonlocal done
                while todo:
                    await one(todo.pop())
                    done += 1
                    tick(done)

            await asyncio.gather(*(work() for _ in range(parallel)))
            await pool.full()
            samples.append(await _settled(pool, done))
    return KernelSoak(
        leases=leases,
        seconds=time.monotonic() - began,
        surprises=tuple(surprises),
        before=samples[0],
        after=samples[-1],
        samples=tuple(samples),
    )


def _load_cases() -> Any:
    path = Path(__file__).resolve().parents[2] / "tests" / "faults" / "kernel_cases.py"
    if not path.is_file():
        raise UserError(f"the soak takes its cases from {path}, which is part of a checkout of the source")
    spec = importlib.util.spec_from_file_location("kernel_cases", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kernel_cases"] = module
    spec.loader.exec_module(module)
    return module


async def _settled(pool: KernelPool, leases: int) -> Usage:
    """When what was killed is gone; after `_SETTLED_S` at the latest, as what stays is what a soak is to show."""
    latest = time.monotonic() + _SETTLED_S
    await asyncio.sleep(1.0)
    while True:
        usage = _usage(pool, leases)
        if (usage.processes, usage.directories) == (1 + 2 * pool.warm, pool.warm) or time.monotonic() > latest:
            return usage
        await asyncio.sleep(0.1)


def _usage(pool: KernelPool, leases: int) -> Usage:
    own = psutil.Process()
    zygote = psutil.Process(pool.zygote_pid)
    below = [zygote, *zygote.children(recursive=True)]
    return Usage(
        leases=leases,
        memory_mb=own.memory_info().rss / 2**20,
        kernels_mb=sum(map(_memory, below)) / 2**20,
        descriptors=own.num_fds(),
        processes=len(below),
        directories=len(os.listdir(pool.directory or "")),
    )


def _memory(process: psutil.Process) -> int:
    """Its share of what it holds together with others; where the system does not tell that, all of it."""
    try:
        return int(process.memory_full_info().pss)
    except psutil.AccessDenied:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def soak_table(result: KernelSoak) -> Table:
    """For the terminal."""
    shown = Table(*Usage.__dataclass_fields__, title=f"{result.leases:,} leases in {result.seconds:.0f} s")
    for usage in result.samples:
        shown.add_row(*(f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" for value in asdict(usage).values()))
    return shown
