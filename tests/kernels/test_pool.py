"""The kernel pool, with real kernels, signals and crashes. Takes about three minutes on two cores."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from aimo_solver.config import load_config
from aimo_solver.errors import KernelError, KernelStartError, PoolClosedError
from aimo_solver.kernels.limits import Isolation, KernelLimits, KillReason
from aimo_solver.kernels.pool import KernelPool
from aimo_solver.kernels.session import Kernel
from tests.conftest import ROOT
from tests.faults.kernel_cases import CASES, ENDS, FILES, ISOLATION_CASES, LIMITS, PROCESSES, Case
from tests.kernels.pools import PATIENCE_S, directory, forkserver, warm
from tests.kernels.soak import soak
from tests.processes import runs

pytestmark = [pytest.mark.kernels]

FULL_S = 20.0  # for a pool to be full again, on a busy machine too
HANG = "sum(range(10**13))"  # never checks for signals

# as root in a container without CAP_SYS_ADMIN, and on a system that allows nothing
LESS = {"no namespaces": frozenset({Isolation.USER, Isolation.SECCOMP, Isolation.LANDLOCK}), "none": frozenset[Isolation]()}
LESS_ISOLATED = [
    *(pytest.param("no namespaces", case, id=f"no namespaces-{case.name}") for case in [*FILES, *PROCESSES, *ENDS]),
    *(pytest.param("none", case, id=f"none-{case.name}") for case in ISOLATION_CASES),
]
"""Without namespaces, test_isolation runs the other cases, with the rights of a container."""


@pytest.fixture(scope="module", autouse=True)
def _surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Sets a secret and a virtual environment, and a temporary directory in which no pool may leave anything."""
    tmp_path_factory.getbasetemp()  # created before the temporary directory changes
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="kt-") as place:
        os.chmod(place, 0o711)
        patch.setenv("KERNEL_TEST_SECRET", "KERNEL_TEST_SECRET")
        patch.setenv("VIRTUAL_ENV", "/another/environment")
        patch.setenv("TMPDIR", place)
        patch.setattr(tempfile, "tempdir", place)
        yield
        assert list(Path(place).glob("aimo-*")) == []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def isolated() -> AsyncIterator[KernelPool]:
    async with KernelPool(size=2, spares=1, limits=LIMITS) as pool:
        yield pool


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def less_isolated(request: pytest.FixtureRequest) -> AsyncIterator[KernelPool]:
    async with KernelPool(size=2, spares=1, limits=replace(LIMITS, isolation=LESS[request.param])) as pool:
        yield pool


def escaped(pool: KernelPool) -> list[int]:
    """Returns processes with a user id of this pool's kernels that are not below its forkserver."""
    known = {process.pid for process in forkserver(pool).children(recursive=True)}
    first = 100_000 + forkserver(pool).pid % (1 << 22) * 256
    assert Isolation.USER not in pool.isolation or any(first <= _uid(pid) < first + 256 for pid in known)
    return [pid for pid in psutil.pids() if pid not in known and first <= _uid(pid) < first + 256]


def _uid(pid: int) -> int:
    try:
        return int(psutil.Process(pid).uids().real)
    except psutil.Error:
        return -1


def is_full(pool: KernelPool) -> bool:
    """Whether there are a monitor, a process and a directory for each kernel, and nothing else."""
    if warm(pool) < pool.size + pool.spares:
        return False
    below = forkserver(pool).children(recursive=True)
    return len(below) == 2 * warm(pool) and len(os.listdir(directory(pool))) == warm(pool) and not escaped(pool)


async def becomes_full(pool: KernelPool) -> bool:
    waited_s = 0.0
    while waited_s < FULL_S:
        if is_full(pool):
            return True
        began = time.monotonic()
        await asyncio.sleep(0.02)
        waited_s += min(time.monotonic() - began, 0.1)  # a pause of the whole machine does not count
    return False


async def hold(pool: KernelPool) -> None:
    async with pool.lease():
        await asyncio.sleep(1_000)


async def run_case(pool: KernelPool, case: Case) -> None:
    async with pool.lease() as kernel:
        for cell in case.cells:
            await kernel.execute(cell, PATIENCE_S)
        result = await kernel.execute(case.code, case.timeout_s)
        assert case.problems(result) == [], result.as_text()
        if case.after:
            after = await kernel.execute(case.after, PATIENCE_S)
            assert after.value == case.after_value, after.as_text()
    if Isolation.NAMESPACES not in pool.isolation:
        assert await becomes_full(pool)  # in a shared file system, files exist until their kernel has ended
    if case.next:
        async with pool.lease() as kernel:
            result = await kernel.execute(case.next, PATIENCE_S)
            assert result.value == case.next_value, result.as_text()
    assert await becomes_full(pool)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_hard_case(isolated: KernelPool, case: Case) -> None:
    if not case.applies(isolated.isolation):
        pytest.skip(f"needs one of {', '.join(sorted(case.needs))}")
    await run_case(isolated, case)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("less_isolated", "case"), LESS_ISOLATED, indirect=["less_isolated"])
async def test_hard_case_with_less_isolation(less_isolated: KernelPool, case: Case) -> None:
    if not case.applies(less_isolated.isolation):
        pytest.skip(f"needs one of {', '.join(sorted(case.needs))}")
    await run_case(less_isolated, case)


@pytest_asyncio.fixture
async def pool() -> AsyncIterator[KernelPool]:
    async with KernelPool(size=2, spares=1, limits=LIMITS) as pool:
        yield pool


async def test_a_lease_waits_while_all_kernels_are_leased(pool: KernelPool) -> None:
    async def attempt() -> str | None:
        async with pool.lease() as kernel:
            return (await kernel.execute("1 + 1", PATIENCE_S)).value

    async with pool.lease(), pool.lease():
        third = asyncio.ensure_future(attempt())
        await asyncio.sleep(0.3)
        assert not third.done()
    assert await third == "2"


async def test_a_cancelled_wait_for_a_lease_loses_no_kernel(pool: KernelPool) -> None:
    async with pool.lease(), pool.lease():
        waiting = [asyncio.ensure_future(hold(pool)) for _ in range(3)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    assert await becomes_full(pool)


async def test_a_cancelled_wait_for_a_start_loses_no_kernel() -> None:
    async with KernelPool(size=2, spares=0, limits=LIMITS) as pool, pool.lease() as kernel:
        for delay in (0, 0, 0.01, 0.05, 0.1):  # the pool has one more kernel, which can become ready at any moment
            task = asyncio.ensure_future(hold(pool))
            await asyncio.sleep(delay)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await kernel.execute("import os\nos._exit(0)", PATIENCE_S)
        async with pool.lease() as other:
            assert (await other.execute("2**10", PATIENCE_S)).value == "1024"


async def test_a_cancelled_call_returns_the_lease(pool: KernelPool) -> None:
    async def attempt() -> None:
        async with pool.lease() as kernel:
            await kernel.execute("while True: pass", 1_000.0)

    task = asyncio.ensure_future(attempt())
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await becomes_full(pool)


async def test_a_cancelled_call_does_not_continue_during_the_next(pool: KernelPool) -> None:
    async with pool.lease() as kernel:
        await kernel.execute("x = 5", PATIENCE_S)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(kernel.execute("x = 6\nimport time\nwhile True: time.sleep(0.01)", 1_000.0), 0.5)
        result = await kernel.execute("x", PATIENCE_S)
        assert (result.value, result.stdout) == ("5", "")


async def test_calls_of_one_lease_run_one_after_another(pool: KernelPool) -> None:
    async with pool.lease() as kernel:
        cells = ["import time\nx = 0"] + ["y = x; time.sleep(0.05); x = y + 1; x"] * 4
        results = await asyncio.gather(*(kernel.execute(cell, PATIENCE_S) for cell in cells))
    assert [result.value for result in results] == [None, "1", "2", "3", "4"]


async def test_a_kernel_cannot_be_used_after_its_lease(pool: KernelPool) -> None:
    async with pool.lease() as kernel:
        pass
    with pytest.raises(KernelError):
        await kernel.execute("1")


async def test_the_next_lease_does_not_wait_for_a_hang() -> None:
    async with KernelPool(size=2, spares=1, limits=replace(LIMITS, cpu_s=60)) as pool:
        await pool.wait_until_warm()
        async with pool.lease() as kernel:
            hanging = asyncio.ensure_future(kernel.execute(HANG, 3.0))
            await asyncio.sleep(0.1)
            assert warm(pool) == 2
            async with pool.lease() as other:
                assert not hanging.done()
                assert (await other.execute("2**10", PATIENCE_S)).value == "1024"
            result = await hanging
    assert result.killed_for is KillReason.HANG


async def test_the_error_of_a_killed_kernels_connection_is_retrieved() -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    async with KernelPool(size=1, spares=0, limits=replace(LIMITS, cpu_s=60)) as pool, pool.lease() as kernel:
        assert (await kernel.execute(HANG, 0.5)).killed_for is KillReason.HANG
    gc.collect()
    assert reported == []


async def test_closing_ends_leased_kernels_and_leaves_nothing() -> None:
    pool = KernelPool(size=2, spares=1, limits=LIMITS)
    gc.collect()  # leftovers of other tests must not disappear during this one
    threads = set(threading.enumerate())
    descriptors = psutil.Process().num_fds()
    await pool.start()
    processes = [forkserver(pool)]
    place = directory(pool)
    async with pool.lease() as kernel:
        await kernel.execute("import subprocess\nsubprocess.Popen(['sleep', '1000'])", PATIENCE_S)
        running = asyncio.ensure_future(kernel.execute(HANG, 1_000.0))
        await asyncio.sleep(0.2)
        processes += processes[0].children(recursive=True)
        assert len(processes) >= 4
        await pool.close()
        with pytest.raises(PoolClosedError):
            await running
    assert [process for process in processes if runs(process)] == []
    assert not place.exists()
    assert set(threading.enumerate()) <= threads
    assert psutil.Process().num_fds() <= descriptors
    with pytest.raises(PoolClosedError):
        await pool.lease().__aenter__()


async def test_closing_fails_waiting_leases() -> None:
    pool = KernelPool(size=1, spares=0, limits=LIMITS)
    starting = asyncio.ensure_future(pool.start())
    await asyncio.sleep(0)
    await pool.close()
    with pytest.raises(PoolClosedError):
        await starting


_SOLVER = """
import asyncio, sys
from aimo_solver.kernels.limits import Isolation, KernelLimits
from aimo_solver.kernels.pool import KernelPool
from tests.kernels.pools import directory, forkserver
async def main():
    async with KernelPool(size=2, spares=1, limits=KernelLimits(isolation=frozenset(map(Isolation, sys.argv[1:])))) as pool:
        async with pool.lease() as kernel:
            cell = "import subprocess\\nfor _ in range(3): subprocess.Popen(['sleep', '1000'], start_new_session=True)"
            await kernel.execute(cell)
            print(forkserver(pool).pid, directory(pool), flush=True)
            await kernel.execute("while True: pass", 1000.0)
asyncio.run(main())
"""


@pytest.mark.parametrize("isolation", [frozenset(Isolation), *LESS.values()], ids=["all", *LESS])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "SIGINT"])
def test_no_kernel_outlives_a_killed_solver(isolation: frozenset[Isolation], number: int) -> None:
    command = [sys.executable, "-c", _SOLVER, *isolation]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT) as solver:
        assert solver.stdout is not None
        pid, place = solver.stdout.readline().split()
        below = [psutil.Process(int(pid)), *psutil.Process(int(pid)).children(recursive=True)]
        assert len(below) >= 6  # a forkserver, a monitor, a kernel, its three children
        solver.send_signal(number)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and (any(map(runs, below)) or Path(place).exists()):
        time.sleep(0.02)
    assert [p for p in below if runs(p)] == []
    assert not Path(place).exists()


async def test_a_killed_forkserver_is_replaced_and_leases_go_on(pool: KernelPool) -> None:
    async with pool.lease() as kernel:
        await kernel.execute("x = 5", PATIENCE_S)
        forkserver(pool).kill()
        assert (await kernel.execute("x", PATIENCE_S)).value == "5"
        for _ in range(4):
            async with pool.lease() as other:
                assert (await other.execute("2**10", PATIENCE_S)).value == "1024"


async def test_a_kernel_ends_with_its_killed_monitor(pool: KernelPool) -> None:
    async with pool.lease() as kernel:
        await kernel.execute("x = 5", PATIENCE_S)
        await pool.wait_until_warm()  # parents of a starting kernel exist for a moment only
        monitors = forkserver(pool).children()
        for monitor in monitors:
            monitor.kill()
        await asyncio.to_thread(psutil.wait_procs, monitors, PATIENCE_S)
        await asyncio.sleep(0.2)
        result = await kernel.execute("x", PATIENCE_S)
        assert result.value == "5"
        assert any("restarted" in note for note in result.notes)
    assert await becomes_full(pool)


_DAEMON = """
import os, time
read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(write, str(os.getpid()).encode())
        time.sleep(1000)
    os._exit(0)
os.wait()
int(os.read(read, 20))
"""


@pytest.mark.parametrize("isolation", LESS.values(), ids=LESS)
async def test_a_killed_monitor_leaves_no_daemon(isolation: frozenset[Isolation]) -> None:
    async with KernelPool(size=1, spares=0, limits=replace(LIMITS, isolation=isolation)) as pool, pool.lease() as kernel:
        daemon = psutil.Process(int((await kernel.execute(_DAEMON, PATIENCE_S)).value or ""))
        forkserver(pool).children()[0].kill()
        await asyncio.to_thread(daemon.wait, PATIENCE_S)
        assert (await kernel.execute("2**10", PATIENCE_S)).value == "1024"


async def test_a_spare_that_dies_is_replaced(pool: KernelPool) -> None:
    assert await becomes_full(pool)
    spare = forkserver(pool).children()[0].children()[0]
    spare.kill()
    await asyncio.to_thread(spare.wait, 10)
    assert await becomes_full(pool)


def test_a_pool_from_a_configuration_leaves_half_of_the_machines_memory_to_others() -> None:
    config = load_config(settings=["solver.slots=3", "kernels.size=3", "kernels.spares=1", "kernels.memory_mb=1000"]).kernels
    pool = KernelPool.from_config(config)
    assert (pool.size, pool.spares, pool.limits.memory_mb) == (3, 1, 1_000)
    assert pool.limits.pool_memory_mb == psutil.virtual_memory().total // 2**21
    assert KernelPool.from_config(replace(config, pool_memory_mb=70)).limits.pool_memory_mb == 70


async def test_the_largest_kernel_is_killed_for_the_pools_memory() -> None:
    limits = replace(LIMITS, pool_memory_mb=260)  # reports can be 64 MB behind
    async with KernelPool(size=2, spares=0, limits=limits) as pool, pool.lease() as small, pool.lease() as large:
        assert (await small.execute("x = b'y' * (100 * 2**20)", PATIENCE_S)).failed is False
        result = await large.execute("x = b'y' * (300 * 2**20)\nimport time\ntime.sleep(20)", PATIENCE_S)
        assert result.killed_for is KillReason.POOL_MEMORY
        assert (await small.execute("len(x)", PATIENCE_S)).value == str(100 * 2**20)


def test_a_pool_works_in_a_loop_of_another_thread() -> None:
    values: list[str | None] = []

    async def main() -> None:
        async with KernelPool(size=1, spares=0, limits=LIMITS) as pool, pool.lease() as kernel:
            values.append((await kernel.execute(HANG, 0.2)).killed_for)
            values.append((await kernel.execute("2**10", PATIENCE_S)).value)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    thread.join()
    assert values == [KillReason.HANG, "1024"]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aimo_solver.kernels.pool.PATIENCE_S", 0.0)


@pytest.mark.usefixtures("impatient")
async def test_a_pool_that_cannot_start_raises_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(KernelStartError):
        await KernelPool(size=1).__aenter__()


@pytest.mark.usefixtures("impatient")
async def test_the_error_of_a_failed_forkserver_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "IPython.py").write_text("raise ImportError('this is no IPython')")
    monkeypatch.setattr("aimo_solver.kernels.spawner._SETTINGS", {"PYTHONPATH": str(tmp_path)})
    with pytest.raises(KernelStartError, match="this is no IPython"):
        await KernelPool(size=1).__aenter__()


@pytest.mark.usefixtures("impatient")
async def test_a_kernel_that_cannot_take_calls_is_not_ready(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "no_loop.py").write_text(
        "import asyncio\ndef new(): raise OSError('no descriptors')\nasyncio.new_event_loop = new"
    )
    monkeypatch.setattr("aimo_solver.kernels.spawner._SETTINGS", {"PYTHONPATH": str(tmp_path)})
    with pytest.raises(KernelStartError, match="no descriptors"):
        await KernelPool(size=1, preload=("no_loop",)).__aenter__()


async def test_modules_are_preloaded_and_missing_ones_ignored() -> None:
    async with KernelPool(size=1, spares=0, preload=("wsgiref.util", "no_such_module")) as pool, pool.lease() as kernel:
        assert (await kernel.execute("import sys\n'wsgiref.util' in sys.modules", PATIENCE_S)).value == "True"


@pytest.mark.parametrize(("size", "spares"), [(0, 1), (1, -1), (100, 100)])
def test_impossible_sizes_are_refused(size: int, spares: int) -> None:
    with pytest.raises(ValueError, match=str(size)):
        KernelPool(size=size, spares=spares)


async def test_output_keeps_the_order_of_writing(pool: KernelPool) -> None:
    code = "import os, sys\nprint(1)\nos.write(1, b'2\\n')\nprint(3, file=sys.stderr)\nos.system('echo 4')\n!echo 5\nprint(6)\n7"
    async with pool.lease() as kernel:
        result = await kernel.execute(code, PATIENCE_S)
    assert (result.stdout, result.value) == ("1\n2\n3\n4\n5\n6\n", "0" if result.value == "0" else "7")


async def test_kernels_of_one_forkserver_draw_different_random_numbers(pool: KernelPool) -> None:
    code = "import random, uuid, tempfile\nrandom.random(), np.random.random(), sympy.core.random.random(), uuid.uuid4()"
    async with pool.lease() as one, pool.lease() as other:
        first, second = await asyncio.gather(one.execute(code, PATIENCE_S), other.execute(code, PATIENCE_S))
    assert first.value is not None
    assert second.value is not None
    assert set(first.value.split(", ")).isdisjoint(second.value.split(", "))


async def test_soak() -> None:
    gc.collect()  # descriptors are counted
    soaked = await soak(12, seed=3, parallel=2)
    assert soaked.surprises == ()
    assert soaked.flat
    assert soaked.samples[0].directories == 4
    assert soaked.samples[0].processes == 9  # a forkserver, four monitors, four kernels


async def test_the_example_of_the_documentation_works() -> None:
    async with KernelPool(size=1, spares=0) as pool, pool.lease() as kernel:
        assert isinstance(kernel, Kernel)
        assert (await kernel.execute("2**10", timeout_s=PATIENCE_S)).value == "1024"
        assert pool.limits == KernelLimits()
