"""One kernel's process as the solver sees it: its warden's socket, the pipe of its output, its Jupyter shell channel."""

from __future__ import annotations

import asyncio
import fcntl
import io
import json
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, Popen
from typing import Any

import zmq.asyncio
from jupyter_client import AsyncKernelClient

from aimo_solver.errors import KernelStartError
from aimo_solver.kernel_limits import Guard, KernelLimits, KillReason

_END_TIMEOUT_S = 10.0  # only a process stuck in the operating system takes longer to be killed
_TICK_S = 0.05  # how often a running call's output is looked at
_PIPE_BYTES = 1 << 20
_REMOVE_TIMEOUT_S = 60.0
_REMOVE = 'rm -rf -- "$1" || { chmod -R u+rwx -- "$1"; rm -rf -- "$1"; }'  # not in Python, which is slow and recursive


@dataclass(frozen=True, slots=True)
class Ending:
    """How a kernel's process ended; `reason` is None if the solver wanted it."""

    reason: KillReason | None
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one call.

    Attributes:
        reply: content of the execute_reply; None if the process ended before it came.
        interrupted: HANG at the time limit, OUTPUT for too much output, None if the call was let run.
        ending: set if the process is gone.
    """

    stdout: str
    truncated: bool
    reply: Mapping[str, Any] | None
    interrupted: KillReason | None
    ending: Ending | None
    seconds: float


class _Output:
    """Head and tail of what is read from a pipe during one call."""

    def __init__(self, pipe: io.FileIO, keep: int) -> None:
        self._pipe = pipe
        self._half = keep // 2
        self._head = bytearray()
        self._tail = bytearray()
        self.total = 0

    def read(self, limit: int = sys.maxsize) -> None:
        """Takes what is there, until `limit` bytes were read in all."""
        while self.total < limit and not self._pipe.closed:
            data = self._pipe.read(_PIPE_BYTES)
            if not data:  # nothing now, or never again
                return
            self.total += len(data)
            room = self._half - len(self._head)
            self._head += data[:room]
            self._tail += data[room:]
            del self._tail[: -self._half]

    @property
    def truncated(self) -> bool:
        return self.total > len(self._head) + len(self._tail)

    def text(self) -> str:
        missing = self.total - len(self._head) - len(self._tail)
        note = f"\n[... {missing:,} bytes left out ...]\n".encode() if missing else b""
        return (self._head + note + self._tail).decode("utf-8", "replace")


class KernelProcess:
    """A kernel's process, from the moment it is asked for."""

    def __init__(
        self, directory: Path, control: socket.socket, pipe: int, connection: Mapping[str, Any], limits: KernelLimits
    ) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(control.fileno(), self._hear)
        self.directory = directory
        self.pid = 0
        self.memory_mb = 0.0
        self.heavier: Callable[[], None] = lambda: None  # called when memory_mb has changed
        self.guards: tuple[Guard, ...] = ()
        self.forked: asyncio.Future[None] = loop.create_future()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[Ending] = loop.create_future()
        self._connection = connection
        self._limits = limits
        self._control = control
        self._pipe = io.FileIO(pipe)
        self._killed_for: KillReason | None = None
        self._client: Any = None
        with suppress(OSError):  # a user may hold only so much in pipes
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def connect(self, context: zmq.asyncio.Context) -> None:
        """Opens the shell channel; the rest of the Jupyter protocol is not needed."""
        self._client = AsyncKernelClient(context=context)
        self._client.load_connection_info(dict(self._connection))
        self._client.start_channels(shell=True, iopub=False, stdin=False, hb=False, control=False)

    @property
    def alive(self) -> bool:
        return not self.ended.done()

    def lease(self) -> None:
        """Raises its priority from that of a spare."""
        self._command(b"l")

    def kill(self, reason: KillReason | None) -> None:
        """Has everything killed; `ended` tells when that is done."""
        self._killed_for = self._killed_for or reason
        self._command(b"k")

    def _command(self, command: bytes) -> None:
        with suppress(OSError):
            self._control.send(command)

    def _hear(self) -> None:
        try:
            message = self._control.recv(65_536)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not self.forked.done():
            self.forked.set_result(None)
        values: dict[str, Any] = json.loads(message) if message else {"reason": KillReason.CRASH, "detail": "with its warden"}
        if "memory_mb" in values:
            self.memory_mb = values["memory_mb"]
            self.heavier()
        elif "pid" in values:
            self.pid = values["pid"]
            self.guards = tuple(map(Guard, values["guards"]))
            if not self.ready.done():
                self.ready.set_result(None)
        elif "failed" in values:
            self._fail(values["failed"])
        elif "reason" in values:
            reason = KillReason(values["reason"]) if values["reason"] else self._killed_for
            self._end(Ending(reason, values["detail"]))

    def _end(self, ending: Ending) -> None:
        asyncio.get_running_loop().remove_reader(self._control.fileno())
        if not self.ended.done():
            self.ended.set_result(ending)
        self._fail(f"a kernel ended while it started: {ending.detail}")

    def _fail(self, reason: str) -> None:
        if not self.ready.done():
            self.ready.set_exception(KernelStartError(reason))
            self.ready.exception()  # nobody may be waiting

    async def call(self, code: str, timeout_s: float) -> Outcome:
        """Runs `code`. Takes `timeout_s` plus the grace period at most, plus what killing takes."""
        started = time.monotonic()
        limits = self._limits
        output = _Output(self._pipe, limits.output_bytes)
        reply = asyncio.ensure_future(self._reply(self._client.execute(code, allow_stdin=False, stop_on_error=False)))
        interrupted = None
        try:
            await self._wait(reply, output, started + timeout_s, limits.flood_bytes)
            if not reply.done() and self.alive:
                interrupted = KillReason.OUTPUT if output.total >= limits.flood_bytes else KillReason.HANG
                self._command(b"i")
                await self._wait(reply, output, time.monotonic() + limits.grace_s)
            if not reply.done():
                self.kill(interrupted)
                await asyncio.wait({self.ended}, timeout=_END_TIMEOUT_S)
            output.read()
        finally:
            if not reply.done():
                reply.cancel()
                with suppress(asyncio.CancelledError):
                    await reply
        ending = None
        if reply.cancelled():
            ending = self.ended.result() if self.ended.done() else Ending(interrupted, "it cannot be killed")
        return Outcome(
            stdout=output.text(),
            truncated=output.truncated,
            reply=None if ending else reply.result(),
            interrupted=interrupted,
            ending=ending,
            seconds=time.monotonic() - started,
        )

    async def _wait(self, reply: asyncio.Future[Any], output: _Output, until: float, limit: int = sys.maxsize) -> None:
        """Until there is a reply, the process ended, `limit` bytes were printed, or the time is up."""
        while not reply.done() and self.alive and output.total < limit and (left := until - time.monotonic()) > 0:
            done, _ = await asyncio.wait({reply, self.ended}, timeout=min(left, _TICK_S), return_when=asyncio.FIRST_COMPLETED)
            if not done:
                output.read(limit)

    async def _reply(self, message_id: str) -> Mapping[str, Any]:
        while True:
            message = await self._client.shell_channel.get_msg()
            if message["parent_header"].get("msg_id") == message_id:
                content: Mapping[str, Any] = message["content"]
                return content

    def last_words(self) -> str:
        """The end of what it printed outside of calls."""
        output = _Output(self._pipe, 4_000)
        output.read()
        return output.text().strip()

    async def close(self) -> None:
        """Has it killed if it lives, waits for that, and frees what it held here."""
        if self.alive:
            self.kill(None)
            await asyncio.wait({self.ended}, timeout=_END_TIMEOUT_S)
        await self.free()

    async def free(self) -> None:
        """Frees descriptors and the directory. The end of its socket has the warden kill whatever still lives."""
        if self._control.fileno() >= 0:
            self._end(Ending(self._killed_for, "it was given up"))
            self._control.close()
            self._pipe.close()
            if self._client is not None:
                self._client.stop_channels()
            await remove_tree(self.directory)


async def remove_tree(directory: Path) -> None:
    """Removes a directory, however deep and full it is, in a process of its own. What cannot be removed stays; never raises."""
    remover = _remover(directory)
    if remover is not None and not await ends(remover, _REMOVE_TIMEOUT_S):
        remover.kill()
        await ends(remover, _END_TIMEOUT_S)


def _remover(directory: Path) -> Popen[bytes] | None:
    with suppress(OSError):
        directory.rmdir()  # as a rule its warden has emptied it
    with suppress(OSError):
        if directory.exists():
            return Popen(["sh", "-c", _REMOVE, "sh", str(directory)], stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL)
    return None


async def ends(process: Popen[bytes], timeout_s: float) -> bool:
    """Whether `process` ends in that time."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while process.poll() is None:
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(0.005)  # waiting by a thread costs more
    return True
