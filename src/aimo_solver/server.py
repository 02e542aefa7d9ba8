"""A local vLLM server: started, watched, restarted, and stopped with its whole process tree."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import psutil

from aimo_solver.errors import ServerDiedError, ServerError, ServerStartError

# The child asks the kernel to end it when the thread that started it is gone, so not even a SIGKILL of the solver
# leaves a server behind; the parent may be gone already by the time it asks. 1 is PR_SET_PDEATHSIG.
_DIE_WITH_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); "
    "os.getppid() == int(sys.argv[1]) or sys.exit('the solver is gone'); os.execvp(sys.argv[2], sys.argv[2:])"
)
_TAIL_LINES = 15
_POLL_S = 0.25
_KILL_S = 10.0  # a process in an uninterruptible call of the GPU driver can take seconds to die


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """How a server is started: arguments, and what is added to the environment."""

    args: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


class Progress(Protocol):
    """What tells a hung server from a busy or an idle one."""

    tokens_streamed: int
    running: int
    faults: int  # how often the server was lost; the supervisor counts
    lost: ServerError | None  # set when no server will come any more

    async def ready(self) -> bool: ...


def free_port() -> int:
    """A TCP port on the loopback interface that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """One server process."""

    def __init__(self, command: ServerCommand, log_path: Path) -> None:
        """The server's output is appended to `log_path`."""
        self.command = command
        self.log_path = log_path
        self._process: asyncio.subprocess.Process | None = None
        self._children: set[psutil.Process] = set()

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def start(self, healthy: Callable[[], Awaitable[bool]], timeout_s: float) -> None:
        """Starts the process and waits until `await healthy()` is true.

        Raises:
            ServerStartError: it ended, or was not ready in time; the process tree is gone then.
        """
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                _DIE_WITH_PARENT,
                str(os.getpid()),
                *self.command.args,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.command.env},
                start_new_session=True,
            )
        end = time.monotonic() + timeout_s
        try:
            while not await healthy():
                if not self.alive:
                    raise self.error(
                        ServerStartError, f"the vLLM server ended with exit code {self._process.returncode} while starting"
                    )
                if time.monotonic() > end:
                    raise self.error(ServerStartError, f"the vLLM server was not ready after {timeout_s:.0f} s")
                self._remember_children()
                await asyncio.sleep(_POLL_S)
            self._remember_children()
        except BaseException:
            await self.stop(grace_s=0.0)
            raise

    async def stop(self, grace_s: float = 5.0) -> None:
        """Ends the process and all its descendants; returns when they are gone."""
        if self._process is None:
            return
        self._remember_children()
        if self.alive and grace_s > 0:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), grace_s)
        for process in self._children:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if self.alive:
            self._process.kill()
        await self._process.wait()
        end = time.monotonic() + _KILL_S
        while any(map(_runs, self._children)) and time.monotonic() < end:  # noqa: ASYNC110 - processes set no event
            await asyncio.sleep(0.01)

    def error(self, kind: type[ServerError], problem: str) -> ServerError:
        """An error of that kind that carries the command line and the end of the log."""
        code = self._process.returncode if self._process is not None else None
        return kind(problem, self.command.args, code, self.log_tail())

    def log_tail(self, lines: int = _TAIL_LINES) -> list[str]:
        """The last lines of the server's output."""
        try:
            with self.log_path.open(encoding="utf-8", errors="replace") as log:
                return [line.rstrip()[:500] for line in deque(log, maxlen=lines)]
        except FileNotFoundError:
            return []

    def _remember_children(self) -> None:
        # Workers outlive a killed parent and are re-parented, so they are written down while the tree is whole.
        if self._process is None:
            return
        try:
            self._children |= set(psutil.Process(self._process.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return


def _runs(process: psutil.Process) -> bool:
    # A zombie holds nothing any more; in some containers nobody reaps those whose parent died.
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class Supervisor:
    """Keeps one server up: a dead or hung one is replaced, a bounded number of times.

    Attempts wait meanwhile (`Engine.wait_ready`).
    """

    def __init__(
        self,
        commands: Sequence[ServerCommand],
        log_path: Path,
        progress: Progress,
        *,
        start_timeout_s: float,
        stall_s: float,
        restarts: int,
        on_event: Callable[..., None],
    ) -> None:
        """`on_event(kind, **values)` gets every start, fault and restart.

        `commands` go from the fastest to the safest: a server that died is restarted with the next one, one that did
        not even start with the last one.
        """
        self._commands = list(commands)
        self._log_path = log_path
        self._progress = progress
        self._start_timeout_s = start_timeout_s
        self._stall_s = stall_s
        self._restarts = restarts
        self._restarts_left = restarts
        self._on_event = on_event
        self._watcher: asyncio.Task[None] | None = None
        self.server = Server(self._commands[0], log_path)

    async def start(self) -> None:
        """Returns when the server is ready, and watches it from then on.

        Raises:
            ServerStartError: neither the first command nor the safest came up.
        """
        await self._bring_up()
        self._watcher = asyncio.create_task(self._watch(), name="server-watcher")

    def refill(self) -> None:
        """Gives all restarts back; for a run to call after every problem that ended well."""
        self._restarts_left = self._restarts

    async def stop(self) -> None:
        """Ends the watching and the server."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
            self._watcher = None
        await self.server.stop()

    async def _bring_up(self) -> None:
        while True:
            command = self._commands[0]
            self.server = Server(command, self._log_path)
            self._on_event("server_starting", command=" ".join(command.args))
            started = time.monotonic()
            try:
                await self.server.start(self._progress.ready, self._start_timeout_s)
            except ServerStartError as error:
                self._on_event("server_start_failed", error=str(error), seconds=time.monotonic() - started)
                if self._restarts_left == 0 or len(self._commands) == 1:
                    raise
                self._restarts_left -= 1
                self._commands = self._commands[-1:]
            else:
                self._on_event("server_ready", pid=self.server.pid, seconds=time.monotonic() - started)
                return

    async def _watch(self) -> None:
        seen, since = -1, time.monotonic()
        while True:
            await asyncio.sleep(_POLL_S)
            self.server._remember_children()
            if not self.server.alive:
                problem = "the vLLM server died"
            else:
                now = time.monotonic()
                if self._progress.running == 0 or self._progress.tokens_streamed != seen:
                    seen, since = self._progress.tokens_streamed, now
                if now - since < self._stall_s:
                    continue
                problem = f"the vLLM server gave no token for {self._stall_s:.0f} s while requests ran"
            error = self.server.error(ServerDiedError, problem)
            self._progress.faults += 1
            self._on_event("server_fault", error=str(error), restarts_left=self._restarts_left)
            await self.server.stop(grace_s=0.0)
            if self._restarts_left == 0:
                self._progress.lost = error
                return
            self._restarts_left -= 1
            self._commands = self._commands[1:] or self._commands
            try:
                await self._bring_up()
            except ServerStartError as start_error:
                self._progress.lost = start_error
                return
            seen, since = -1, time.monotonic()
