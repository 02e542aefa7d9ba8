"""What a server that was killed leaves behind: shared memory, semaphores, sockets and files."""

from __future__ import annotations

import errno
import functools
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from aimo_solver.server.keeper import is_resource_tracker
from aimo_solver.server.process import ServerProcess
from tests.processes import runs
from tests.server_programs import eventually, keeper_of, python, ready


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "server.log"


@pytest.fixture(autouse=True)
def _default_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_RPC_BASE_PATH", raising=False)


HOLDING = """
import multiprocessing, os, time
from multiprocessing import shared_memory
memory = shared_memory.SharedMemory(create=True, size=4096)
lock = multiprocessing.get_context("spawn").Lock()  # as tqdm has in a process of vLLM that was spawned
if os.fork():  # a worker maps both too, and outlives a killed parent for a while
    print(memory.name, "sem." + lock._semlock.name[1:], flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("killed", [(), ("server",), ("keeper",), ("tracker",), ("tracker", "keeper")])
async def test_shared_memory_does_not_outlive_a_killed_server(log: Path, killed: tuple[str, ...]) -> None:
    """Python's resource tracker removes what killed processes leave; if it was killed too, keeper and solver do."""
    server = ServerProcess(python(HOLDING), log)
    await server.start(ready, 120)
    await eventually(lambda: has_line(log))
    assert len(memory_of(log)) == 2
    [tracker] = filter(is_resource_tracker, psutil.Process(server.pid).children())
    victims = {"server": psutil.Process(server.pid), "keeper": keeper_of(server), "tracker": tracker}
    for name in killed:
        victims[name].kill()
        await eventually(functools.partial(ended, victims[name]))
    await server.stop(grace_s=0.0)
    await eventually(lambda: not memory_of(log))


def has_line(log: Path) -> bool:
    return log.exists() and log.read_text().endswith("\n")


def ended(process: psutil.Process) -> bool:
    return not runs(process)


def words(log: Path) -> list[str]:
    return log.read_text().split()


def memory_of(log: Path) -> list[str]:
    """Returns which of the shared memory and semaphores named in the log exist."""
    return [name for name in words(log) if Path("/dev/shm", name).exists()]


async def test_shared_memory_of_other_processes_stays(log: Path) -> None:
    """Mapped by the server, but with another name than Python's; or with Python's name, but not mapped."""
    server = ServerProcess(
        python("""
            import mmap, tempfile, time
            file = tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="other_", delete=False)
            other = tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="psm_", delete=False)
            file.truncate(4096)
            mapped = mmap.mmap(file.fileno(), 4096)
            print(file.name, other.name, flush=True)
            time.sleep(600)
        """),
        log,
    )
    await server.start(ready, 120)
    await eventually(lambda: has_line(log))
    await server.stop(grace_s=0.0)
    left = memory_of(log)
    for name in left:
        os.unlink(name)
    assert len(left) == 2


BINDING = """
    import os, socket, time, uuid
    path = os.path.join(os.environ["VLLM_RPC_BASE_PATH"], str(uuid.uuid4()))
    socket.socket(socket.AF_UNIX).bind(path)
    print(path, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("killed", ["server", "keeper", "none"])
async def test_sockets_do_not_outlive_the_server(log: Path, killed: str) -> None:
    server = ServerProcess(python(BINDING), log)
    path = await socket_of(server, log)
    if killed != "none":
        victim = psutil.Process(server.pid) if killed == "server" else keeper_of(server)
        victim.kill()
        await eventually(functools.partial(ended, victim))
    await server.stop(grace_s=0.0)
    assert not path.parent.exists()


@pytest.mark.parametrize("place", ["x" * 60, "no/such/folder"])
async def test_sockets_are_elsewhere_if_the_temporary_folder_is_too_long_or_missing(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / ("x" * 60)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / place))
    server = ServerProcess(python(BINDING), log)
    path = await socket_of(server, log)
    await server.stop(grace_s=0.0)
    assert path.parent.parent == Path("/tmp")
    assert not path.parent.exists()
    assert not os.listdir(tmp_path / ("x" * 60))


async def test_sockets_are_in_the_folder_that_the_user_chose(log: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="st-") as place:
        server = ServerProcess(replace(python(BINDING), env={"VLLM_RPC_BASE_PATH": place}), log)
        path = await socket_of(server, log)
        await server.stop(grace_s=0.0)
        assert path.parent.parent == Path(place)
        assert not os.listdir(place)


async def test_a_server_starts_even_if_no_folder_can_be_made(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has vLLM's own default then."""
    monkeypatch.setattr(tempfile, "mkdtemp", no_room)
    server = ServerProcess(
        python("import os, time; print(os.environ.get('VLLM_RPC_BASE_PATH'), flush=True); time.sleep(600)"), log
    )
    await server.start(ready, 120)
    await eventually(lambda: log.exists() and log.read_text() == "None\n")
    await server.stop()


def no_room(*arguments: object, **named: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def socket_of(server: ServerProcess, log: Path) -> Path:
    """Starts a server with the program `BINDING`, and returns the path of its socket."""
    await server.start(ready, 120)
    await eventually(lambda: has_line(log))
    [path] = words(log)
    return Path(path)


async def test_the_rendezvous_file_that_the_server_logged_is_removed(log: Path, tmp_path: Path) -> None:
    """vLLM 0.32 logs it while it starts, long before the end. A file that it did not log stays."""
    logged, other = (tmp_path / f"vllm_dist_{digit * 32}" for digit in "ab")
    for file in (logged, other):
        file.touch()
    server = ServerProcess(
        python(
            """
            import sys, time
            print(f"world_size=1 rank=0 distributed_init_method=file://{sys.argv[1]} backend=gloo")
            print("x\\n" * 100_000, "done", flush=True)
            time.sleep(600)
        """,
            str(logged),
        ),
        log,
    )
    await server.start(ready, 120)
    await eventually(lambda: log.exists() and log.read_text().endswith("done\n"))
    await server.stop(grace_s=0.0)
    assert [file.exists() for file in (logged, other)] == [False, True]
