"""Starting, watching and stopping a server, on real processes: a small HTTP program stands in for vLLM's command line."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from aimo_solver.config import SamplingConfig
from aimo_solver.engine import VllmEngine
from aimo_solver.errors import EngineLost, ServerStartError
from aimo_solver.server import Server, ServerCommand, Supervisor, free_port
from tests.processes import pid_runs

_PROGRAM = """
import http.server, subprocess, sys
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("worker", worker.pid, flush=True)
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Health).serve_forever()
"""


@dataclass
class Bench:
    """A port, an engine on it and the commands that serve, or fail to."""

    folder: Path
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.port = free_port()
        self.engine = VllmEngine(f"http://127.0.0.1:{self.port}", "m", SamplingConfig(), context_tokens=100)
        self.good = ServerCommand((sys.executable, "-c", _PROGRAM, str(self.port)))
        self.bad = ServerCommand((sys.executable, "-c", "import sys; print('no memory left'); sys.exit(3)"))
        self.log = self.folder / "server.log"

    def note(self, kind: str, **values: Any) -> None:
        self.events.append((kind, values))

    def supervisor(self, *commands: ServerCommand, restarts: int = 3, stall_s: float = 60.0) -> Supervisor:
        return Supervisor(
            commands, self.log, self.engine, start_timeout_s=60, stall_s=stall_s, restarts=restarts, on_event=self.note
        )


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        await asyncio.sleep(0.05)


def worker_pid(bench: Bench) -> int:
    return int(bench.log.read_text().split("worker")[-1].split()[0])


async def test_stop_leaves_no_descendant(bench: Bench) -> None:
    server = Server(bench.good, bench.log)
    await server.start(bench.engine.healthy, 120)
    worker = worker_pid(bench)
    assert pid_runs(worker)
    await server.stop()
    assert not server.alive
    assert not pid_runs(worker)
    await bench.engine.close()


async def test_start_that_fails_carries_command_and_log(bench: Bench) -> None:
    server = Server(bench.bad, bench.log)
    with pytest.raises(ServerStartError) as error:
        await server.start(bench.engine.healthy, 120)
    assert error.value.exit_code == 3
    assert "no memory left" in str(error.value)
    assert sys.executable in str(error.value)
    await bench.engine.close()


async def test_start_that_takes_too_long_is_ended(bench: Bench) -> None:
    server = Server(ServerCommand((sys.executable, "-c", "import time; time.sleep(600)")), bench.log)
    with pytest.raises(ServerStartError, match="not ready after 1 s"):
        await server.start(bench.engine.healthy, 1)
    assert not server.alive
    await bench.engine.close()


async def test_a_killed_server_is_replaced(bench: Bench) -> None:
    supervisor = bench.supervisor(bench.good)
    await supervisor.start()
    first = supervisor.server.pid
    assert first is not None
    orphan = worker_pid(bench)
    os.kill(first, signal.SIGKILL)
    await until(lambda: supervisor.server.pid != first)
    await asyncio.wait_for(bench.engine.wait_ready(), 120)
    assert not pid_runs(orphan)
    await supervisor.stop()
    assert [kind for kind, _ in bench.events].count("server_fault") == 1
    await bench.engine.close()


async def test_a_server_without_progress_is_replaced(bench: Bench) -> None:
    supervisor = bench.supervisor(bench.good, stall_s=1.0)
    await supervisor.start()
    first = supervisor.server.pid
    assert first is not None
    os.kill(first, signal.SIGSTOP)
    bench.engine.running = 1  # a request is under way and gets no token
    await until(lambda: supervisor.server.pid != first)
    bench.engine.running = 0
    await supervisor.stop()
    await bench.engine.close()


async def test_an_idle_server_is_left_alone(bench: Bench) -> None:
    supervisor = bench.supervisor(bench.good, stall_s=0.5)
    await supervisor.start()
    await asyncio.sleep(2)
    assert [kind for kind, _ in bench.events] == ["server_starting", "server_ready"]
    await supervisor.stop()
    await bench.engine.close()


async def test_a_start_that_fails_is_tried_again_with_the_safest_command(bench: Bench) -> None:
    supervisor = bench.supervisor(bench.bad, bench.bad, bench.good)
    await supervisor.start()
    assert [kind for kind, _ in bench.events] == ["server_starting", "server_start_failed", "server_starting", "server_ready"]
    await supervisor.stop()
    await bench.engine.close()


async def test_restarts_are_bounded_and_waiting_then_fails(bench: Bench) -> None:
    supervisor = bench.supervisor(bench.good, restarts=0)
    await supervisor.start()
    assert supervisor.server.pid is not None
    os.kill(supervisor.server.pid, signal.SIGKILL)
    with pytest.raises(EngineLost, match="died"):
        await asyncio.wait_for(bench.engine.wait_ready(), 120)
    await supervisor.stop()
    await bench.engine.close()


async def test_server_dies_with_a_killed_solver(bench: Bench) -> None:
    program = textwrap.dedent(f"""
        import asyncio, sys
        from pathlib import Path
        from aimo_solver.server import Server, ServerCommand
        async def ready(): return True
        async def main():
            server = Server(ServerCommand((sys.executable, "-c", "import time; time.sleep(600)")), Path({str(bench.log)!r}))
            await server.start(ready, 120)
            print(server.pid, flush=True)
            await asyncio.sleep(600)
        asyncio.run(main())
    """)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as solver:  # noqa: ASYNC220
        assert solver.stdout is not None
        server = int(solver.stdout.readline())
        assert pid_runs(server)
        solver.kill()
    await until(lambda: not pid_runs(server))


async def test_refilled_restarts_count_anew_and_every_fault_is_counted(bench: Bench) -> None:
    supervisor = bench.supervisor(bench.good, restarts=1)
    await supervisor.start()
    for fault in (1, 2, 3):
        first = supervisor.server.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda first=first: supervisor.server.pid != first)  # type: ignore[misc]
        await asyncio.wait_for(bench.engine.wait_ready(), 120)
        assert bench.engine.faults == fault
        supervisor.refill()
    assert bench.engine.lost is None
    await supervisor.stop()
    await bench.engine.close()
