"""One kernel's process: the socket of its monitor, the pipe for its output, and the socket for calls.

Code in the kernel can send anything on all three. Reads are bounded and never raise: a kernel whose messages cannot be read is
killed.
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
from aimo_solver.kernels.channel import CallChannel, Reply
from aimo_solver.kernels.limits import Ending, Isolation, KernelLimits, KillReason

_END_TIMEOUT_S = 10.0  # only a process stuck in the operating system takes longer to die
_KILL_TIMEOUT_S = 5.0  # the same, for a call that waits for it
_EXIT_TIMEOUT_S = 2.0  # from the end of a process's connection to its monitor's message
_TICK_S = 0.05  # between two reads of a running call's output
_PIPE_BYTES = 1 << 20
_READS = 4  # of _PIPE_BYTES at a time
_DATAGRAM_BYTES = 65_536
_REMOVE_TIMEOUT_S = 60.0
_REMOVE = 'rm -rf -- "$1" || { chmod -R u+rwx -- "$1"; rm -rf -- "$1"; }'  # shutil.rmtree is slow and recursive


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of one call.

    Attributes:
        reply: None if the process ended before it replied.
        interrupted: HANG at the time limit, OUTPUT for too much output, None if the call was not interrupted.
        ending: set if the process has ended.
    """

    stdout: str
    truncated: bool
    reply: Reply | None
    interrupted: KillReason | None
    ending: Ending | None
    seconds: float


class _Output:
    """Head and tail of what was read from a pipe during one call."""

    def __init__(self, pipe: io.FileIO, keep: int) -> None:
        self._pipe = pipe
        self._half = keep // 2
        self._head = bytearray()
        self._tail = bytearray()
        self.total = 0

    def read(self, limit: int = sys.maxsize) -> None:
        """Reads what is available, at most a few MB, until `limit` bytes were read in all."""
        for _ in range(_READS):
            if self.total >= limit or self._pipe.closed:
                return
            data = self._pipe.read(_PIPE_BYTES)
            if not data:  # nothing at the moment, or the end
                return
            self.total += len(data)
            room = self._half - len(self._head)
            self._head += data[:room]
            self._tail += data[room:]
            del self._tail[: -self._half]

    @property
    def missing(self) -> int:
        """Bytes that were read and not kept."""
        return self.total - len(self._head) - len(self._tail)

    def text(self) -> str:
        note = f"\n[... {self.missing:,} bytes left out ...]\n".encode() if self.missing else b""
        return (self._head + note + self._tail).decode("utf-8", "replace")


class KernelProcess:
    """A kernel's process, from the moment it is requested from the forkserver.

    Attributes:
        isolation: empty until it is ready.
        memory_mb: what its monitor reported last; `on_memory` is called when that changes.
        forked, ready, ended: futures. `ready` raises KernelStartError.
    """

    def __init__(self, directory: Path, control: socket.socket, pipe: int, calls: socket.socket, limits: KernelLimits) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(control.fileno(), self._receive)
        self.directory = directory
        self.memory_mb = 0.0
        self.on_memory: Callable[[], None] = lambda: None
        self.isolation: tuple[Isolation, ...] = ()
        self.forked: asyncio.Future[None] = loop.create_future()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[Ending] = loop.create_future()
        self._channel = CallChannel(calls)
        self._limits = limits
        self._control = control
        self._pipe = io.FileIO(pipe)
        self._killed = Ending(None, "")  # reason and detail given to `kill`
        with suppress(OSError):  # the system limits the memory of a user's pipes
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    @property
    def alive(self) -> bool:
        return not self.ended.done()

    def lease(self) -> None:
        """Raises the priority from that of a spare."""
        self._command(b"l")

    def kill(self, reason: KillReason | None, detail: str = "") -> None:
        """Requests that all processes of the kernel be killed; `ended` is set when that is done."""
        self._killed = Ending(self._killed.reason or reason, self._killed.detail or detail)
        self._command(b"k")

    def _command(self, command: bytes) -> None:
        with suppress(OSError):
            self._control.send(command)

    def _receive(self) -> None:
        try:
            message = self._control.recv(_DATAGRAM_BYTES)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not self.forked.done():
            self.forked.set_result(None)
        try:
            self._handle(json.loads(message) if message else {"reason": KillReason.CRASH, "detail": "with its monitor"})
        except Exception as error:  # noqa: BLE001 - the message may hold anything
            problem = f"its monitor's message cannot be read: {type(error).__name__}"
            self.kill(KillReason.PROTOCOL, problem)
            self._fail(problem)

    def _handle(self, message: Mapping[str, Any]) -> None:
        if "memory_mb" in message:
            self.memory_mb = float(message["memory_mb"])
            self.on_memory()
        elif "isolation" in message:
            self.isolation = tuple(map(Isolation, message["isolation"]))
            if not self.ready.done():
                self.ready.set_result(None)
        elif "failed" in message:
            self._fail(str(message["failed"]))
        elif "reason" in message:
            reason, detail = message["reason"], str(message["detail"])
            self._end(KillReason(reason) if reason else self._killed.reason, detail if reason else self._killed.detail or detail)

    def _end(self, reason: KillReason | None, detail: str) -> None:
        asyncio.get_running_loop().remove_reader(self._control.fileno())
        if not self.ended.done():
            self.ended.set_result(Ending(reason, detail))
        self._fail(f"a kernel ended while it started: {detail}")

    def _fail(self, reason: str) -> None:
        if not self.ready.done():
            self.ready.set_exception(KernelStartError(reason))
            self.ready.exception()  # marks it as retrieved

    async def call(self, code: str, timeout_s: float) -> Outcome:
        """Runs `code`. Takes at most `timeout_s` plus the grace period and the time to kill the process."""
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
            reply.cancel()
            await asyncio.wait({reply})
            if not reply.cancelled():
                reply.exception()  # marks it as retrieved: a killed kernel's connection ends with one
        return Outcome(
            stdout=output.text(),
            truncated=output.missing > 0,
            reply=None if ending else reply.result(),
            interrupted=interrupted,
            ending=ending,
            seconds=time.monotonic() - started,
        )

    async def _conclude(self, reply: asyncio.Future[Reply], interrupted: KillReason | None) -> Ending | None:
        """Returns None if there is a reply; otherwise kills the rest of the process and returns how it ended."""
        error = reply.exception() if reply.done() else None
        if isinstance(error, EOFError):
            await asyncio.wait({self.ended}, timeout=_EXIT_TIMEOUT_S)
            self.kill(interrupted or KillReason.PROTOCOL, "it closed its connection")
        elif error is not None:
            self.kill(interrupted or KillReason.PROTOCOL, str(error))
        elif reply.done():
            return None
        else:
            self.kill(interrupted)
        await asyncio.wait({self.ended}, timeout=_KILL_TIMEOUT_S)
        return self.ended.result() if self.ended.done() else Ending(interrupted or self._killed.reason, "it cannot be killed")

    async def _wait(self, reply: asyncio.Future[Any], output: _Output, until: float, limit: int = sys.maxsize) -> None:
        """Waits for a reply, the end of the process, `limit` bytes of output, or the time `until`."""
        while not reply.done() and self.alive and output.total < limit and (left := until - time.monotonic()) > 0:
            done, _ = await asyncio.wait({reply, self.ended}, timeout=min(left, _TICK_S), return_when=asyncio.FIRST_COMPLETED)
            if not done:
                output.read(limit)

    def read_output(self) -> str:
        """Returns the end of what the kernel printed outside of calls."""
        output = _Output(self._pipe, 4_000)
        output.read()
        return output.text().strip()

    async def close(self) -> None:
        """Kills the process, waits for its end, and frees its resources, including the directory. Never raises."""
        if self.alive:
            self.kill(None)
            await asyncio.wait({self.ended}, timeout=_END_TIMEOUT_S)
        self.release()
        await remove_tree(self.directory)

    def release(self) -> None:
        """Closes the descriptors. When its socket closes, the monitor kills what is still alive."""
        if self._control.fileno() >= 0:
            self._end(self._killed.reason, "it was given up")
            self._control.close()
            self._pipe.close()
            self._channel.close()


async def remove_tree(directory: Path) -> None:
    """Removes a directory of any size and depth in a separate process. What cannot be removed stays. Never raises."""
    remover = _start_removal(directory)
    if remover is not None and not await wait_for_exit(remover, _REMOVE_TIMEOUT_S):
        remover.kill()
        await wait_for_exit(remover, _END_TIMEOUT_S)


def _start_removal(directory: Path) -> Popen[bytes] | None:
    with suppress(OSError):
        directory.rmdir()  # a monitor has usually emptied it
    with suppress(OSError):
        if directory.exists():
            return Popen(["sh", "-c", _REMOVE, "sh", str(directory)], stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL)
    return None


async def wait_for_exit(process: Popen[bytes], timeout_s: float) -> bool:
    """Returns whether `process` ended within that time."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while process.poll() is None:
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(0.005)  # cheaper than a waiting thread
    return True
