"""What the system does to a kernel pool: no room, no processes, a stopped forkserver. Real kernels throughout."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from aimo_solver.errors import KernelStartError, LeaseTimeoutError
from aimo_solver.kernels import KernelPool
from tests.faults.kernel_cases import LIMITS

pytestmark = [pytest.mark.kernels]

PATIENCE_S = 30.0  # for what ends by itself, on however busy a machine


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary directory with no inode left."""
    with tempfile.TemporaryDirectory(prefix="kt-") as place:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=16,mode=711", "tmpfs", place], check=False).returncode:
            pytest.skip("needs the right to mount")
        try:
            monkeypatch.setattr(tempfile, "tempdir", place)
            number = 0
            while True:
                try:
                    Path(place, f"full-{number}").touch()
                except OSError:
                    break
                number += 1
            yield Path(place)
        finally:
            subprocess.run(["umount", "-l", place], check=True)


def make_room(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,nr_inodes=10000", str(disk)], check=True)
    for path in disk.glob("full-*"):
        path.unlink()


async def works(pool: KernelPool) -> bool:
    async with pool.lease(PATIENCE_S) as kernel:
        return (await kernel.execute("2**10", PATIENCE_S)).value == "1024"


async def test_a_lease_has_a_deadline() -> None:
    async with KernelPool(size=1, spares=0, limits=LIMITS) as pool:
        async with pool.lease():
            with pytest.raises(LeaseTimeoutError):
                await pool.lease(0.2).__aenter__()
        assert await works(pool)


async def test_a_pool_without_room_for_files_says_so_and_works_when_there_is_room(
    full_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aimo_solver.kernels._PATIENCE_S", 0.5)
    events: list[str] = []
    pool = KernelPool(size=4, spares=1, limits=LIMITS, on_event=lambda kind, **values: events.append(kind))
    with pytest.raises(KernelStartError, match="No space left"):
        await asyncio.wait_for(pool.start(), PATIENCE_S)
    with pytest.raises(KernelStartError, match="No space left"):
        await asyncio.wait_for(pool.lease().__aenter__(), PATIENCE_S)
    make_room(full_disk)
    await asyncio.wait_for(pool.full(), PATIENCE_S)
    assert all(await asyncio.gather(*(works(pool) for _ in range(4))))
    await pool.close()
    assert events == ["kernels_fail", "kernels_recovered"]
    assert os.listdir(full_disk) == []


async def test_those_who_wait_while_the_disk_is_full_get_their_kernels_when_it_is_not(full_disk: Path) -> None:
    pool = KernelPool(size=4, spares=0, limits=LIMITS)
    starting = asyncio.ensure_future(pool.start())
    waiting = [asyncio.ensure_future(works(pool)) for _ in range(4)]
    await asyncio.sleep(1.0)
    assert not any(task.done() for task in waiting)
    make_room(full_disk)
    assert all(await asyncio.wait_for(asyncio.gather(*waiting), PATIENCE_S))
    await starting
    await pool.close()
