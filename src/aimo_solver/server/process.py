"""A local vLLM server: one process with workers of its own, started, and stopped with its whole process tree."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from aimo_solver.errors import ServerError, ServerStartError
from aimo_solver.server import keeper as server_keeper
from aimo_solver.server.output import ServerOutput

_TAIL_LINES = 15
_POLL_S = 0.25
_KILL_S = 12.0  # the keeper's own 10 s and some


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """How a server is started: arguments, and what is added to the environment."""

    args: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


def free_port() -> int:
    """A TCP port on the loopback interface that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """One server and its process tree, below a keeper (`server_keeper`) that does not let it outlive the solver."""

    def __init__(self, command: ServerCommand, log_path: Path | None) -> None:
        """The server's output is appended to `log_path`, as far as that can be written."""
        self.command = command
        self._log_path = log_path
        self._keeper: subprocess.Popen[bytes] | None = None
        self._lifeline: socket.socket | None = None
        self._output: ServerOutput | None = None
        self._pid: int | None = None

    @property
    def alive(self) -> bool:
        return self._keeper is not None and self._keeper.poll() is None

    @property
    def pid(self) -> int | None:
        """Of the server itself, which leads the session of its tree; None until it is started."""
        if self._pid is None and self._lifeline is not None:
            try:
                self._pid = int(self._lifeline.recv(32) or 0) or None
            except OSError:
                return None
        return self._pid

    async def start(self, healthy: Callable[[], Awaitable[bool]], timeout_s: float) -> None:
        """Starts the process and waits until `await healthy()` is true.

        Raises:
            ServerStartError: it ended, or was not ready in time; the process tree is gone then.
        """
        try:
            self._spawn()
        except (OSError, RuntimeError) as error:  # no process, descriptor or thread is left
            raise self.error(ServerStartError, f"the vLLM server could not be started: {error}") from error
        end = time.monotonic() + timeout_s
        try:
            while self.pid is None or not await healthy():
                if not self.alive:
                    await self.stop()
                    problem = f"the vLLM server ended with exit code {self._exit_code} while starting"
                    raise self.error(ServerStartError, problem)
                if time.monotonic() > end:
                    raise self.error(ServerStartError, f"the vLLM server was not ready after {timeout_s:.0f} s")
                await asyncio.sleep(_POLL_S)
        except BaseException:
            await self.stop(grace_s=0.0)
            raise

    async def stop(self, grace_s: float = 5.0) -> None:
        """Ends the process and all its descendants; returns when they are gone and their output is read.

        It waits at most `grace_s` and some 20 s more: a process that the system cannot end is left alone then.
        """
        if self._keeper is None:
            return
        server = self.pid
        try:
            if grace_s > 0 and self.alive:
                self._keeper.send_signal(signal.SIGTERM)  # the keeper passes it on
                await _until(lambda: not self.alive, grace_s)
        finally:
            if self._lifeline is not None:
                self._lifeline.close()
                self._lifeline = None
        self._keeper.send_signal(signal.SIGCONT)
        if not await _until(lambda: not self.alive, _KILL_S):
            self._keeper.kill()
        keeper_killed = self._exit_code in (None, -signal.SIGKILL)
        shared = _kill_session(server) if server is not None and keeper_killed else set()  # what it has left
        await _until(lambda: self._output is None or self._output.ended, 5.0)
        server_keeper.remove(shared)

    def error(self, kind: type[ServerError], problem: str) -> ServerError:
        """An error of that kind that carries the command line and the end of the output."""
        tail = self._output.tail(_TAIL_LINES) if self._output is not None else []
        return kind(problem, self.command.args, self._exit_code, tail)

    @property
    def _exit_code(self) -> int | None:
        return self._keeper.poll() if self._keeper is not None else None

    def _spawn(self) -> None:
        self._lifeline, theirs = socket.socketpair()
        self._lifeline.setblocking(False)
        reader, writer = os.pipe()
        with theirs, open(writer, "wb") as pipe:
            self._output = ServerOutput(reader, self._log_path)
            self._keeper = subprocess.Popen(
                [sys.executable, "-P", server_keeper.__file__, *self.command.args],
                stdin=theirs.fileno(),
                stdout=pipe,
                stderr=pipe,
                env={**os.environ, **self.command.env},
                start_new_session=True,
            )


async def _until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Waits for the condition; returns whether it holds."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.01)
    return True


def _kill_session(session: int) -> set[str]:
    """Kills the processes of a session; returns the shared memory that they held."""
    shared: set[str] = set()
    with contextlib.suppress(OSError):
        for pid in psutil.pids():
            with contextlib.suppress(OSError, psutil.Error):
                if os.getsid(pid) == session and not server_keeper.is_tracker(process := psutil.Process(pid)):
                    shared |= server_keeper.shared_memory([process])
                    os.kill(pid, signal.SIGKILL)
    return shared
