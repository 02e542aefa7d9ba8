"""The process of a local vLLM server: started, and stopped with its whole process tree."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from aimo_solver.errors import ServerError, ServerSpawnError, ServerStartError
from aimo_solver.server import keeper

_TAIL_BYTES = _READ_BYTES = 1 << 16
_LINE_CHARS = 1_000
_POLL_S = 0.25
_KILL_S = 12.0  # the keeper itself takes up to 10 s
_SOCKETS = "VLLM_RPC_BASE_PATH"  # folder of vLLM's sockets, by default the temporary one; not part of its compile cache's key
_SOCKET_BYTES = 107 - len("/00000000-0000-0000-0000-000000000000")  # a folder's longest path, as Linux limits a socket's
# vLLM 0.32 makes a file for torch's rendezvous, which only TMPDIR moves, and logs its name. vLLM 0.26 uses a port instead.
_RENDEZVOUS = re.compile(rb"file://(/\S+/vllm_dist_[0-9a-f]{32})\b")
_RENDEZVOUS_BYTES = 1_000  # its longest URL


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """A command line, and variables to add to the environment."""

    args: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


def free_port() -> int:
    """Returns a TCP port of the loopback interface that no process listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ServerProcess:
    """A server and its process tree, below a `keeper` that ends the tree when the solver ends."""

    def __init__(self, command: ServerCommand, log_path: Path | None) -> None:
        """The server's output is appended to `log_path`, if that can be written."""
        self.command = command
        self._log_path = log_path
        self._keeper: subprocess.Popen[bytes] | None = None
        self._lifeline: socket.socket | None = None
        self._output: ServerOutput | None = None
        self._folder = ""  # of the server's sockets
        self._pid: int | None = None

    @property
    def alive(self) -> bool:
        return self._keeper is not None and self._keeper.poll() is None

    @property
    def pid(self) -> int | None:
        """The server's process id, which is also its session id; None until it is started."""
        if self._pid is None and self._lifeline is not None:
            try:
                self._pid = int(self._lifeline.recv(32) or 0) or None
            except OSError:
                return None
        return self._pid

    async def start(self, healthy: Callable[[], Awaitable[bool]], timeout_s: float) -> None:
        """Starts the process and waits until `await healthy()` is true.

        Raises:
            ServerStartError: it ended, or was not ready in time; its process tree is gone.
            ServerSpawnError: the system started no process.
        """
        try:
            self._spawn()
        except (OSError, RuntimeError) as error:  # no process, descriptor or thread is left
            shutil.rmtree(self._folder, ignore_errors=True)
            raise self.error(ServerSpawnError, f"the vLLM server could not be started: {error}") from error
        end = time.monotonic() + timeout_s
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self.stop, grace_s=0.0)
            while self.pid is None or not await healthy():
                if not self.alive:
                    await self.stop()
                    problem = f"the vLLM server ended with exit code {self._exit_code} while starting"
                    raise self.error(ServerStartError, problem)
                if time.monotonic() > end:
                    raise self.error(ServerStartError, f"the vLLM server was not ready after {timeout_s:.0f} s")
                await asyncio.sleep(_POLL_S)
            stack.pop_all()  # it is ready, and stays

    async def stop(self, grace_s: float = 5.0) -> None:
        """Ends the process and all its descendants; returns when they and their files are gone, and their output is read.

        It takes at most `grace_s` and about 20 s more; a process that the system cannot end by then is left.
        """
        if self._keeper is None:
            return
        server = self.pid
        try:
            if grace_s > 0 and self.alive:
                self._keeper.send_signal(signal.SIGTERM)  # the keeper passes it on
                await _wait_until(lambda: not self.alive, grace_s)
        finally:
            if self._lifeline is not None:
                self._lifeline.close()
                self._lifeline = None
        self._keeper.send_signal(signal.SIGCONT)
        if not await _wait_until(lambda: not self.alive, _KILL_S):
            self._keeper.kill()
        keeper_killed = self._exit_code in (None, -signal.SIGKILL)
        shared = _kill_session(server) if server is not None and keeper_killed else set()
        await _wait_until(lambda: self._output is None or self._output.ended, 5.0)
        keeper.remove_files(shared | (self._output.rendezvous if self._output is not None else set()))
        shutil.rmtree(self._folder, ignore_errors=True)  # the keeper may have been killed

    def error(self, kind: type[ServerError], problem: str) -> ServerError:
        """Returns an error of that kind with the command line and the end of the output."""
        tail = self._output.tail() if self._output is not None else []
        return kind(problem, self.command.args, self._exit_code, tail)

    @property
    def _exit_code(self) -> int | None:
        return self._keeper.poll() if self._keeper is not None else None

    def _spawn(self) -> None:
        self._lifeline, theirs = socket.socketpair()
        self._lifeline.setblocking(False)
        environment = {**os.environ, **self.command.env}
        self._folder = make_socket_folder(environment.get(_SOCKETS) or None, "/tmp")
        if self._folder:
            environment[_SOCKETS] = self._folder
        reader, writer = os.pipe()
        with theirs, open(writer, "wb") as pipe:
            self._output = ServerOutput(reader, self._log_path)
            self._keeper = subprocess.Popen(
                [sys.executable, "-P", keeper.__file__, self._folder, *self.command.args],
                stdin=theirs.fileno(),
                stdout=pipe,
                stderr=pipe,
                env=environment,
                start_new_session=True,
            )


def make_socket_folder(*places: str | None) -> str:
    """Returns a new folder for a server's sockets, which vLLM leaves behind even if it ends in order; "" if none can be made.

    It is in the first of `places` (None is the temporary folder) that exists and whose path is short enough.
    """
    for place in places:
        with contextlib.suppress(OSError):
            folder = os.path.abspath(tempfile.mkdtemp(prefix="aimo-server-", dir=place))
            if len(os.fsencode(folder)) <= _SOCKET_BYTES:
                return folder
            os.rmdir(folder)
    return ""


class ServerOutput:
    """Reads a server's output from a pipe, in a thread: its end into memory, all of it into a file while there is room.

    The server itself must not write to the file, because a failed write ends a worker of vLLM. A full pipe would block it.

    Attributes:
        rendezvous: files that the server's processes made in the temporary folder, by its output.
    """

    def __init__(self, pipe: int, path: Path | None) -> None:
        """Takes over the descriptor `pipe`. The output is appended to the file `path`, if given.

        Raises:
            RuntimeError: the system has no thread left.
        """
        self._pipe = pipe
        self._path = path
        self._lost = 0  # bytes missing from the file
        self._tail = b""
        self.rendezvous: set[str] = set()
        self._thread = threading.Thread(target=self._read, name="server-output", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            os.close(pipe)
            raise

    @property
    def ended(self) -> bool:
        """Whether every process that could write has ended, and all output is read."""
        return not self._thread.is_alive()

    def tail(self) -> list[str]:
        """Returns the last lines, 64 KiB at most, each cut to 1,000 characters."""
        text = self._tail.decode("utf-8", errors="replace")
        return [line[:_LINE_CHARS] for line in text.splitlines()]

    def _read(self) -> None:
        while data := os.read(self._pipe, _READ_BYTES):
            self._tail = (self._tail + data)[-_TAIL_BYTES:]
            unseen = len(data) + _RENDEZVOUS_BYTES
            self.rendezvous.update(map(os.fsdecode, _RENDEZVOUS.findall(self._tail[-unseen:])))
            if self._path is not None:
                self._write(data, self._path)
        os.close(self._pipe)

    def _write(self, data: bytes, path: Path) -> None:
        note = b"\n[%d bytes are missing here: the file could not be written]\n" % self._lost if self._lost else b""
        written = 0
        # Opened each time: the disk may have room again, or the folder may be back.
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab", buffering=0) as file:
                if file.write(note) == len(note):
                    self._lost = 0
                    written = file.write(data)
        self._lost += len(data) - written


async def _wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Waits for the condition; returns whether it holds."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.01)
    return True


def _kill_session(session: int) -> set[str]:
    """Kills the processes of a session; returns the paths of the shared memory that they had mapped."""
    shared: set[str] = set()
    with contextlib.suppress(OSError):
        for pid in psutil.pids():
            with contextlib.suppress(OSError, psutil.Error):
                if os.getsid(pid) == session and not keeper.is_resource_tracker(process := psutil.Process(pid)):
                    shared |= keeper.shared_memory([process])
                    os.kill(pid, signal.SIGKILL)
    return shared
