"""A soak test of the kernel pool: many leases with hard cases, and what the pool holds in between and at the end.

    python -m tests.kernels.soak 2000

Prints one line of `Usage` after each tenth of the leases; exit code 1 if a case or the usage was not as expected.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from dataclasses import dataclass

import psutil

from aimo_solver.kernels.pool import KernelPool
from tests.faults.kernel_cases import CASES, LIMITS, Case
from tests.kernels.pools import directory, forkserver, warm

_SETTLE_TIMEOUT_S = 10.0


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
class SoakResult:
    """The result of a soak test.

    Attributes:
        surprises: results that differ from the table of cases.
        samples: usage of the full pool after each tenth of the leases.
    """

    surprises: tuple[str, ...]
    samples: tuple[Usage, ...]

    @property
    def flat(self) -> bool:
        """The first and the last sample have the same counts, and memory grew by less than a tenth and 8 MB."""
        before, after = self.samples[0], self.samples[-1]
        counts = [(usage.descriptors, usage.processes, usage.directories) for usage in (before, after)]
        grew = after.memory_mb > 1.1 * before.memory_mb + 8 or after.kernels_mb > 1.1 * before.kernels_mb + 8
        return counts[0] == counts[1] and not grew


async def soak(leases: int, seed: int = 0, parallel: int = 4) -> SoakResult:
    """Leases kernels, `parallel` at a time, for a random choice from the table of hard cases."""
    choice = random.Random(seed)
    surprises: list[str] = []
    samples: list[Usage] = []
    async with KernelPool(size=parallel, spares=2, limits=LIMITS) as pool:

        async def run(cases: list[Case]) -> None:
            while cases:
                case = cases.pop()
                async with pool.lease() as kernel:
                    for cell in case.cells:
                        await kernel.execute(cell, 20.0)
                    result = await kernel.execute(case.code, case.timeout_s)
                surprises.extend(f"{case.name}: {problem}" for problem in case.problems(result))

        fitting = [case for case in CASES if case.applies(pool.isolation)]
        done, step = 0, max(leases // 10, parallel)
        while done < leases:
            cases = [choice.choice(fitting) for _ in range(min(step, leases - done))]
            done += len(cases)
            await asyncio.gather(*(run(cases) for _ in range(parallel)))
            await pool.wait_until_warm()
            samples.append(await _settled_usage(pool, done))
    return SoakResult(surprises=tuple(surprises), samples=tuple(samples))


async def _settled_usage(pool: KernelPool, leases: int) -> Usage:
    """Waits until killed processes are gone, up to `_SETTLE_TIMEOUT_S`: a soak test has to show what stays."""
    loop = asyncio.get_running_loop()
    latest = loop.time() + _SETTLE_TIMEOUT_S
    await asyncio.sleep(1.0)
    while True:
        usage = _usage(pool, leases)
        if (usage.processes, usage.directories) == (1 + 2 * warm(pool), warm(pool)) or loop.time() > latest:
            return usage
        await asyncio.sleep(0.1)


def _usage(pool: KernelPool, leases: int) -> Usage:
    own = psutil.Process()
    below = [forkserver(pool), *forkserver(pool).children(recursive=True)]
    return Usage(
        leases=leases,
        memory_mb=own.memory_info().rss / 2**20,
        kernels_mb=sum(map(_memory, below)) / 2**20,
        descriptors=own.num_fds(),
        processes=len(below),
        directories=len(os.listdir(directory(pool))),
    )


def _memory(process: psutil.Process) -> int:
    """Returns the proportional share of a process's memory; where the system does not report it, all of it."""
    try:
        return int(process.memory_full_info().pss)
    except psutil.AccessDenied:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def main() -> int:
    result = asyncio.run(soak(int(sys.argv[1])))
    print(*result.samples, *result.surprises, f"flat: {result.flat}", sep="\n")
    return 0 if result.flat and not result.surprises else 1


if __name__ == "__main__":
    sys.exit(main())
