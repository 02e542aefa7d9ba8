"""Faults of the system and hostile code: no room, a stopped forkserver, unreadable messages. With real kernels."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from aimo_solver.errors import KernelError, KernelStartError, LeaseTimeoutError
from aimo_solver.kernels.limits import UIDS_PER_POOL, Isolation, KillReason
from aimo_solver.kernels.pool import KernelPool
from aimo_solver.kernels.spawner import Spawner
from tests.faults.kernel_cases import LIMITS
from tests.kernels.pools import PATIENCE_S, directory, forkserver
from tests.processes import runs

pytestmark = [pytest.mark.kernels]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary directory with no inode left."""
    with tempfile.TemporaryDirectory(prefix="kt-") as place:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=16,mode=711", "tmpfs", place], check=False).returncode:
            pytest.skip("needs the right to mount")
        try:
            monkeypatch.setattr(tempfile, "tempdir", place)
            monkeypatch.setattr("aimo_solver.kernels.spawner._FALLBACK_PLACES", ())
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


def fill(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while file.write(bytes(4_096)):
            pass


async def works(pool: KernelPool) -> bool:
    async with pool.lease(PATIENCE_S) as kernel:
        return (await kernel.execute("2**10", PATIENCE_S)).value == "1024"


async def test_a_lease_has_a_deadline() -> None:
    async with KernelPool(size=1, spares=0, limits=LIMITS) as pool:
        async with pool.lease():
            with pytest.raises(LeaseTimeoutError):
                await pool.lease(0.2).__aenter__()
        assert await works(pool)


async def test_a_pool_on_a_full_disk_raises_the_reason_and_recovers(full_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aimo_solver.kernels.pool.PATIENCE_S", 0.5)
    events: list[str] = []
    pool = KernelPool(size=4, spares=1, limits=LIMITS, on_event=lambda kind, **values: events.append(kind))
    with pytest.raises(KernelStartError, match="No space left"):
        await asyncio.wait_for(pool.start(), PATIENCE_S)
    with pytest.raises(KernelStartError, match="No space left"):
        await asyncio.wait_for(pool.lease().__aenter__(), PATIENCE_S)
    make_room(full_disk)
    await asyncio.wait_for(pool.wait_until_warm(), PATIENCE_S)
    assert all(await asyncio.gather(*(works(pool) for _ in range(4))))
    await pool.close()
    assert events == ["kernels_fail", "kernels_recovered"]
    assert os.listdir(full_disk) == []


async def test_kernels_use_another_place_while_the_temporary_directory_is_full(
    full_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_room(full_disk)
    with tempfile.TemporaryDirectory(prefix="kt-", dir="/tmp") as place:
        os.chmod(place, 0o711)
        async with KernelPool(size=1, spares=0, limits=LIMITS) as pool:
            assert directory(pool).parent == full_disk
            monkeypatch.setattr("aimo_solver.kernels.spawner._FALLBACK_PLACES", (place,))
            fill(full_disk)
            for _ in range(3):
                assert await works(pool)
            assert directory(pool).parent == Path(place)
        assert os.listdir(place) == []


async def test_leases_that_wait_for_a_full_disk_get_kernels_when_it_has_room(full_disk: Path) -> None:
    pool = KernelPool(size=4, spares=0, limits=LIMITS)
    starting = asyncio.ensure_future(pool.start())
    waiting = [asyncio.ensure_future(works(pool)) for _ in range(4)]
    await asyncio.sleep(1.0)
    assert not any(task.done() for task in waiting)
    make_room(full_disk)
    assert all(await asyncio.wait_for(asyncio.gather(*waiting), PATIENCE_S))
    await starting
    await pool.close()


async def test_kernels_start_again_once_there_are_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aimo_solver.kernels.pool.PATIENCE_S", 0.3)
    pool = KernelPool(size=1, spares=0, limits=LIMITS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(set(range(1_000)) - set(map(int, os.listdir("/proc/self/fd")))), hard))
    try:
        with pytest.raises(KernelStartError, match="Too many open files"):
            await pool.start()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    await asyncio.wait_for(pool.wait_until_warm(), PATIENCE_S)
    assert await works(pool)
    await pool.close()


async def test_a_stopped_forkserver_is_replaced_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aimo_solver.kernels.spawner._FORK_TIMEOUT_S", 1.0)
    gc.collect()
    descriptors = psutil.Process().num_fds()
    async with KernelPool(size=2, spares=0, limits=LIMITS) as pool, pool.lease() as kernel:
        await kernel.execute("x = 5", PATIENCE_S)
        stopped, place = forkserver(pool), directory(pool)
        stopped.suspend()
        for _ in range(2):
            assert await works(pool)
        assert (await kernel.execute("x", PATIENCE_S)).value == "5"
        assert forkserver(pool) != stopped
    assert not runs(stopped)
    assert not place.exists()
    assert psutil.Process().num_fds() <= descriptors


_FORK = """
import errno, os
calls, real, forkserver = [], os.fork, os.getpid()
def fork():
    calls.append(0)
    if os.getpid() == forkserver and {failing}:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return real()
os.fork = fork
"""


@pytest.fixture
def failing_fork(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[str]:
    """Returns the name of a module that makes forks of the forkserver fail."""
    (tmp_path / "failing_fork.py").write_text(_FORK.format(failing=request.param))
    monkeypatch.setattr("aimo_solver.kernels.spawner._SETTINGS", {"PYTHONPATH": str(tmp_path)})
    return ("failing_fork",)


@pytest.mark.parametrize("failing_fork", ["len(calls) in (2, 3)"], indirect=True)
async def test_a_failed_fork_is_repeated_by_the_same_forkserver(failing_fork: tuple[str]) -> None:
    async with KernelPool(size=3, spares=0, limits=LIMITS, preload=failing_fork) as pool:
        first = forkserver(pool)
        await asyncio.wait_for(pool.wait_until_warm(), PATIENCE_S)
        assert forkserver(pool) == first


@pytest.mark.parametrize("failing_fork", ["True"], indirect=True)
async def test_failed_starts_release_their_user_ids(failing_fork: tuple[str]) -> None:
    spawner = Spawner(LIMITS, failing_fork)
    for _ in range(UIDS_PER_POOL + 10):
        with pytest.raises(KernelStartError, match="fork"):
            await spawner.spawn()
    assert os.listdir(spawner.directory) == []
    await spawner.close()


async def test_a_removed_directory_is_replaced() -> None:
    async with KernelPool(size=1, spares=0, limits=LIMITS) as pool:
        shutil.rmtree(directory(pool))
        for _ in range(2):
            assert await works(pool)


async def test_a_call_that_loses_its_process_returns_its_output_even_if_no_other_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aimo_solver.kernels.pool.PATIENCE_S", 0.3)

    async def fail(self: Spawner) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with KernelPool(size=1, spares=0, limits=LIMITS) as pool, pool.lease() as kernel:
        await kernel.execute("x = 5", PATIENCE_S)
        with monkeypatch.context() as patch:
            patch.setattr(Spawner, "spawn", fail)
            result = await kernel.execute("print('kept')\nimport os\nos._exit(1)", PATIENCE_S)
            assert (result.stdout, result.killed_for) == ("kept\n", KillReason.EXIT)
            assert "not available" in result.notes[-1]
            with pytest.raises(KernelError):
                await kernel.execute("x", 0.1)
        await asyncio.wait_for(pool.wait_until_warm(), PATIENCE_S)
        assert (await kernel.execute("x", PATIENCE_S)).value == "5"


@pytest.mark.parametrize("isolation", [frozenset(Isolation), frozenset({Isolation.USER})], ids=["all", "no namespaces"])
async def test_closing_removes_a_tree_of_any_depth(isolation: frozenset[Isolation]) -> None:
    cell = "import os\nfor _ in range(1_500):\n    os.mkdir('d')\n    os.chdir('d')"
    pool = KernelPool(size=1, spares=0, limits=replace(LIMITS, isolation=isolation))
    await pool.start()
    place = directory(pool)
    async with pool.lease() as kernel:
        result = await kernel.execute(cell, PATIENCE_S)
        assert not result.failed or result.killed_for is KillReason.DISK, result.as_text()  # on a slow machine
        await pool.close()
    assert not place.exists()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[KernelPool]:
    async with KernelPool(size=1, spares=1, limits=LIMITS) as pool:
        yield pool


_SOCKET = """
import asyncio, gc, os, socket
loop = asyncio.get_running_loop()
known = loop._ssock, loop._csock
calls = [o for o in gc.get_objects() if isinstance(o, socket.socket) and o.fileno() >= 0 and o not in known]
raw = socket.socket(fileno=os.dup(calls[0].fileno()))
raw.setblocking(True)
"""

_HOSTILE = {
    "no JSON": "raw.sendall(b'x\\n')",
    "nested too deep": "raw.sendall(b'[' * 100_000 + b'\\n')",
    "no object": "raw.sendall(b'[]\\n')",
    "a value that is no text": 'raw.sendall(b\'{"call": 1, "value": [1], "error": null, "traceback": null}\\n\')',
    "a traceback that is no text": 'raw.sendall(b\'{"call": 1, "value": null, "error": "E", "traceback": [1]}\\n\')',
    "the reply to another call": 'raw.sendall(b\'{"call": 7, "value": null, "error": null, "traceback": null}\\n\')',
    "a value of 20 MB": "raw.sendall(b'{\"value\": \"' + b'x' * 20_000_000 + b'\"}\\n')",
    "a message without end": "while True: raw.sendall(b'x' * 100_000)",
    "messages without end": "while True: raw.sendall(b'{}\\n' * 10_000)",
    "silence": "for fd in range(3, 200):\n    try: os.close(fd)\n    except OSError: pass",
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("cell", _HOSTILE.values(), ids=_HOSTILE)
async def test_a_kernel_with_unreadable_messages_is_replaced(shared: KernelPool, cell: str) -> None:
    async with shared.lease() as kernel:
        assert not (await kernel.execute(_SOCKET, PATIENCE_S)).failed
        result = await kernel.execute(cell, PATIENCE_S)
        assert result.killed_for in (KillReason.PROTOCOL, KillReason.EXIT, KillReason.CRASH), result.as_text()
        assert (await kernel.execute("2**10", PATIENCE_S)).value == "1024"


@pytest.mark.asyncio(loop_scope="module")
async def test_cells_after_which_the_session_is_lost_again_are_dropped(shared: KernelPool) -> None:
    poison = "x = 5\nimport asyncio\nasync def endless():\n    while True: sum(range(10**6))\nasyncio.create_task(endless());"
    async with shared.lease() as kernel:
        await kernel.execute(poison, PATIENCE_S)
        results = [await kernel.execute("2**10", 0.3) for _ in range(2)]
        assert all(result.timed_out for result in results)
        assert "were not run again" in results[1].notes[-1]
        assert (await kernel.execute("2**10, 'x' in globals()", PATIENCE_S)).value == "(1024, False)"


@pytest.mark.asyncio(loop_scope="module")
async def test_output_is_rendered_as_by_a_terminal(shared: KernelPool) -> None:
    cell = "for i in range(101): print(f'\\r\\x1b[32m{i:3} %\\x1b[0m', end='')\nprint('\\0')\nprint('done')"
    async with shared.lease() as kernel:
        assert (await kernel.execute(cell, PATIENCE_S)).as_text() == "100 %\ndone"
