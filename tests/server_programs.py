"""Programs that stand in for vLLM's server, and helpers that wait for them."""

from __future__ import annotations

import asyncio
import re
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from aimo_solver.server.process import ServerCommand, ServerProcess

# Healthy at once, with two workers, one of which has its own session and a child. While the file argv[2] exists, every
# response has the status written in it.
SERVING = """
    import http.server, pathlib, subprocess, sys
    sleep = "import time; time.sleep(600)"
    nested = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {sleep!r}]); {sleep}"
    workers = [subprocess.Popen([sys.executable, "-c", sleep]),
               subprocess.Popen([sys.executable, "-c", nested], start_new_session=True)]
    print("workers", *(worker.pid for worker in workers), "end", flush=True)
    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            fault = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else None
            self.send_response(int(fault.read_text()) if fault and fault.exists() else 200)
            self.end_headers()
        do_POST = do_GET
        def log_message(self, *_): pass
    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Health).serve_forever()
"""


def python(program: str, *args: str) -> ServerCommand:
    """Returns a command that runs the program."""
    return ServerCommand((sys.executable, "-c", textwrap.dedent(program), *args))


async def ready() -> bool:
    return True


def keeper_of(server: ServerProcess) -> psutil.Process:
    assert server._keeper is not None
    return psutil.Process(server._keeper.pid)


async def eventually(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not true in time"
        await asyncio.sleep(0.02)


async def worker_pids(log: Path) -> list[int]:
    """Returns the workers of the last `SERVING` started with this log."""

    def found() -> list[str]:
        return re.findall(r"^workers (.*) end$", log.read_text(), re.MULTILINE) if log.exists() else []

    await eventually(lambda: bool(found()))
    return [int(pid) for pid in found()[-1].split()]
