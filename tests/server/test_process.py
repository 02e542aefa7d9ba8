"""Starting and stopping a server, on real processes, with a small HTTP program instead of vLLM."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from aimo_solver.errors import ServerError, ServerStartError
from aimo_solver.server.process import ServerCommand, ServerProcess
from tests.processes import pid_runs
from tests.server_programs import SERVING, eventually, keeper_of, python, ready, worker_pids


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "server.log"


async def test_stop_leaves_no_descendant(log: Path) -> None:
    server = ServerProcess(python(SERVING, "0"), log)
    await server.start(ready, 120)
    workers = await worker_pids(log)
    assert all(map(pid_runs, workers))
    await server.stop()
    assert not server.alive
    assert not any(map(pid_runs, workers))


async def test_a_server_that_ignores_signals_is_stopped_too(log: Path) -> None:
    server = ServerProcess(python(SERVING, "0"), log)
    await server.start(ready, 120)
    workers = await worker_pids(log)
    stop_tree(keeper_of(server))
    await asyncio.wait_for(server.stop(grace_s=0.5), 60)
    assert not any(map(pid_runs, workers))


async def test_a_killed_keeper_leaves_nothing_once_the_server_is_stopped(log: Path) -> None:
    """Only processes of the server's own session can be found then; vLLM stays in one."""
    server = ServerProcess(
        python("import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"), log
    )
    await server.start(ready, 120)
    keeper = keeper_of(server)
    await eventually(lambda: len(keeper.children(recursive=True)) == 2)
    tree = [process.pid for process in keeper.children(recursive=True)]
    keeper.kill()
    await eventually(lambda: not server.alive)
    await server.stop()
    await eventually(lambda: not any(map(pid_runs, tree)))


async def test_the_error_of_a_failed_start_has_command_and_output(log: Path) -> None:
    server = ServerProcess(python("import sys; print('no memory left'); sys.exit(3)"), log)
    with pytest.raises(ServerStartError) as error:
        await server.start(never_ready, 120)
    assert error.value.exit_code == 3
    assert "no memory left" in str(error.value)
    assert sys.executable in str(error.value)


async def test_the_signal_that_ended_the_server_is_reported(log: Path) -> None:
    server = ServerProcess(python("import os; os.abort()"), log)
    with pytest.raises(ServerStartError) as error:
        await server.start(never_ready, 120)
    assert error.value.exit_code == -signal.SIGABRT


async def test_a_missing_program_fails_to_start(log: Path) -> None:
    with pytest.raises(ServerStartError, match=r"/no/python: .*No such file"):
        await ServerProcess(ServerCommand(("/no/python",)), log).start(never_ready, 120)


async def test_a_start_that_takes_too_long_is_ended(log: Path) -> None:
    server = ServerProcess(python("import time; time.sleep(600)"), log)
    with pytest.raises(ServerStartError, match="not ready after 1 s"):
        await server.start(never_ready, 1)
    assert not server.alive


@pytest.mark.parametrize("stopped", [False, True])
async def test_no_process_or_folder_of_a_server_outlives_a_killed_solver(log: Path, stopped: bool) -> None:
    """Including workers in sessions of their own, and processes stopped by SIGSTOP."""
    program = textwrap.dedent(f"""
        import asyncio
        from pathlib import Path
        from aimo_solver.server.process import ServerProcess
        from tests.server_programs import SERVING, python
        async def ready(): return True
        async def main():
            server = ServerProcess(python(SERVING, "0"), Path({str(log)!r}))
            await server.start(ready, 120)
            print(server._keeper.pid, server._folder, flush=True)
            await asyncio.sleep(600)
        asyncio.run(main())
    """)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as solver:  # noqa: ASYNC220
        assert solver.stdout is not None
        pid, folder = solver.stdout.readline().split()
        keeper = psutil.Process(int(pid))
        workers = await worker_pids(log)
        everything = [keeper.pid, *(process.pid for process in keeper.children(recursive=True))]
        assert {*workers} < {*everything}
        if stopped:
            stop_tree(keeper)
        solver.kill()
    await eventually(lambda: not any(map(pid_runs, everything)))
    await eventually(lambda: not os.path.lexists(folder))


@pytest.mark.parametrize("path", [None, Path("/dev/full"), Path("/proc/no/such/folder/server.log")])
async def test_output_that_cannot_be_written_does_not_harm_the_server(path: Path | None) -> None:
    """It writes 20 MB to both streams: a full pipe would block it, a failed write end it."""
    server = ServerProcess(
        python("""
            import sys, time
            for stream in (sys.stdout, sys.stderr):
                for number in range(100_000):
                    stream.write(f"line {number} {'x' * 90}\\n")
                stream.flush()
            print("done", flush=True)
            time.sleep(600)
        """),
        path,
    )
    await server.start(ready, 120)
    await eventually(lambda: output(server)[-1:] == ("done",))
    assert server.alive
    assert 500 < len(output(server)) < 1_000  # 64 KiB
    await server.stop()


@pytest.fixture
def full(log: Path) -> Path:
    """A log on a full disk, until it is unlinked."""
    log.parent.mkdir()
    log.symlink_to("/dev/full")
    return log


async def test_the_log_is_written_again_when_the_disk_has_room(full: Path) -> None:
    server = ServerProcess(
        python(
            """
            import pathlib, sys, time
            print("first " + "x" * 1_000, flush=True)
            while not pathlib.Path(sys.argv[1]).exists():
                time.sleep(0.01)
            print("second", flush=True)
            time.sleep(600)
        """,
            str(full.parent / "go"),
        ),
        full,
    )
    await server.start(ready, 120)
    await eventually(lambda: bool(output(server)))
    full.unlink()  # noqa: ASYNC240
    (full.parent / "go").touch()
    await eventually(lambda: full.exists() and full.read_text().endswith("second\n"))
    assert "1007 bytes are missing here" in full.read_text()  # noqa: ASYNC240
    await server.stop()


async def never_ready() -> bool:
    return False


def output(server: ServerProcess) -> tuple[str, ...]:
    return server.error(ServerError, "").log_tail


def stop_tree(keeper: psutil.Process) -> None:
    for process in (keeper, *keeper.children(recursive=True)):
        process.suspend()
