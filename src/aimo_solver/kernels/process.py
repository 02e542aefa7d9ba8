"""One kernel's process as the solver sees it: its warden's socket, the pipe of its output, its Jupyter shell channel.

All three may carry whatever code in the kernel likes. What is read of each at a time is bounded, and none of it raises: a
kernel whose messages cannot be read is killed.
"""

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

from aimo_solver.errors import KernelStartError
from aimo_solver.kernels.channel import Reply, ShellChannel
from aimo_solver.kernels.limits import Guard, KernelLimits, KillReason

_END_TIMEOUT_S = 10.0  # only a process stuck in the operating system takes longer to be killed
_KILL_S = 5.0  # how long a call waits for that
_DYING_S = 2.0  # from the end of a process's connection to its warden's word
_TICK_S = 0.05  # how often a running call's output is looked at
_PIPE_BYTES = 1 << 20
_READS = 4  # of so many bytes at a time
_DATAGRAM_BYTES = 65_536
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
        reply: None if the process ended before it came.
        interrupted: HANG at the time limit, OUTPUT for too much output, None if the call was let run.
        ending: set if the process is gone.
    """

    stdout: str
    truncated: bool
    reply: Reply | None
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
        """Takes what is there, a few MB at most, until `limit` bytes were read in all."""
        for _ in range(_READS):
            if self.total >= limit or self._pipe.closed:
                return
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
        self._killed_because = ""
        self._channel: ShellChannel | None = None
        with suppress(OSError):  # a user may hold only so much in pipes
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    async def connect(self) -> None:
        """Opens the shell channel; the rest of the Jupyter protocol is not needed. Raises what `ShellChannel.open` does."""
        self._channel = await ShellChannel.open(self._connection)

    @property
    def alive(self) -> bool:
        return not self.ended.done()

    def lease(self) -> None:
        """Raises its priority from that of a spare."""
        self._command(b"l")

    def kill(self, reason: KillReason | None, because: str = "") -> None:
        """Has everything killed; `ended` tells when that is done."""
        self._killed_for = self._killed_for or reason
        self._killed_because = self._killed_because or because
        self._command(b"k")

    def _command(self, command: bytes) -> None:
        with suppress(OSError):
            self._control.send(command)

    def _hear(self) -> None:
        try:
            message = self._control.recv(_DATAGRAM_BYTES)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not self.forked.done():
            self.forked.set_result(None)
        try:
            self._heed(json.loads(message) if message else {"reason": KillReason.CRASH, "detail": "with its warden"})
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the message
            problem = f"its warden's message cannot be read: {type(error).__name__}"
            self.kill(KillReason.PROTOCOL, problem)
            self._fail(problem)

    def _heed(self, values: Mapping[str, Any]) -> None:
        if "memory_mb" in values:
            self.memory_mb = float(values["memory_mb"])
            self.heavier()
        elif "pid" in values:
            self.pid = int(values["pid"])
            self.guards = tuple(map(Guard, values["guards"]))
            if not self.ready.done():
                self.ready.set_result(None)
        elif "failed" in values:
            self._fail(str(values["failed"]))
        elif "reason" in values:
            reason, detail = values["reason"], str(values["detail"])
            own = Ending(self._killed_for, self._killed_because or detail)
            self._end(Ending(KillReason(reason), detail) if reason else own)

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
        assert self._channel is not None
        started = time.monotonic()
        limits = self._limits
        output = _Output(self._pipe, limits.output_bytes)
        reply = asyncio.ensure_future(self._channel.execute(code))
        interrupted = None
        try:
            await self._wait(reply, output, started + timeout_s, limits.flood_bytes)
            if not reply.done() and self.alive:
                interrupted = KillReason.OUTPUT if output.total >= limits.flood_bytes else KillReason.HANG
                self._command(b"i")
                await self._wait(reply, output, time.monotonic() + limits.grace_s)
            ending = await self._conclude(reply, interrupted)
            output.read()
        finally:
            if not reply.done():
                reply.cancel()
                with suppress(asyncio.CancelledError):
                    await reply
        return Outcome(
            stdout=output.text(),
            truncated=output.truncated,
            reply=None if ending else reply.result(),
            interrupted=interrupted,
            ending=ending,
            seconds=time.monotonic() - started,
        )

    async def _conclude(self, reply: asyncio.Future[Reply], interrupted: KillReason | None) -> Ending | None:
        """How the process ended; None if there is a reply. Without one, what is left of the process is killed."""
        error = reply.exception() if reply.done() else None
        if isinstance(error, EOFError):
            await asyncio.wait({self.ended}, timeout=_DYING_S)
            self.kill(interrupted or KillReason.PROTOCOL, "it closed its connection")
        elif error is not None:
            self.kill(interrupted or KillReason.PROTOCOL, str(error))
        elif reply.done():
            return None
        else:
            self.kill(interrupted)
        await asyncio.wait({self.ended}, timeout=_KILL_S)
        return self.ended.result() if self.ended.done() else Ending(interrupted or self._killed_for, "it cannot be killed")

    async def _wait(self, reply: asyncio.Future[Any], output: _Output, until: float, limit: int = sys.maxsize) -> None:
        """Until there is a reply, the process ended, `limit` bytes were printed, or the time is up."""
        while not reply.done() and self.alive and output.total < limit and (left := until - time.monotonic()) > 0:
            done, _ = await asyncio.wait({reply, self.ended}, timeout=min(left, _TICK_S), return_when=asyncio.FIRST_COMPLETED)
            if not done:
                output.read(limit)

    def last_words(self) -> str:
        """The end of what it printed outside of calls."""
        output = _Output(self._pipe, 4_000)
        output.read()
        return output.text().strip()

    async def close(self) -> None:
        """Has it killed if it lives, waits for that, and frees what it held here, the directory too. Never raises."""
        if self.alive:
            self.kill(None)
            await asyncio.wait({self.ended}, timeout=_END_TIMEOUT_S)
        self.release()
        await remove_tree(self.directory)

    def release(self) -> None:
        """Frees descriptors. The end of its socket has the warden kill whatever still lives."""
        if self._control.fileno() >= 0:
            self._end(Ending(self._killed_for, "it was given up"))
            self._control.close()
            self._pipe.close()
            if self._channel is not None:
                self._channel.close()


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
