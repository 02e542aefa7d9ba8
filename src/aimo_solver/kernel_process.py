"""One kernel's process as the solver sees it, and the nursery that has it forked."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio
from jupyter_client import AsyncKernelClient
from jupyter_client.connect import write_connection_file

from aimo_solver.errors import KernelStartError
from aimo_solver.kernel_limits import Guard, KernelLimits, KillReason

START_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 12.0  # a warden gives up killing after 10 s
_TICK_S = 0.05  # how often a running call's output is looked at
_CHUNK_BYTES = 1 << 20
_UNIX_PATH_CHARS = 107
_FIRST_UID = 100_000
_UIDS_PER_PROCESS = 256

# what a kernel inherits of the solver's environment
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "CONDA_PREFIX")
_SINGLE_THREAD = ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB", "BLIS")

# the package's __init__ is passed over: it imports what only the solver needs
_BOOTSTRAP = (
    "import sys, types; p = types.ModuleType('aimo_solver'); p.__path__ = [sys.argv.pop(1)]; sys.modules['aimo_solver'] = p; "
    "sys.path += [x for x in sys.argv.pop(1).split('\\n') if x not in sys.path]; "
    "from aimo_solver.kernel_zygote import main; del p; main()"
)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a kernel's process ended; `reason` is None if the solver ended it."""

    reason: KillReason | None
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one call.

    Attributes:
        reply: content of the execute_reply; None if the process ended before it came.
        interrupted: why the call was interrupted: HANG at its time limit, OUTPUT for a flood, None if it was not.
        ending: set when the process is gone.
    """

    stdout: str
    truncated: bool
    reply: Mapping[str, Any] | None
    interrupted: KillReason | None
    ending: Ending | None
    seconds: float


class _Output:
    """The head and the tail of what is read from the pipe during one call."""

    def __init__(self, fd: int, keep: int) -> None:
        self._fd = fd
        self._half = keep // 2
        self._head = bytearray()
        self._tail = bytearray()
        self.total = 0

    def read(self, limit: int) -> None:
        """Takes what is there, but stops once `limit` bytes have been seen in all."""
        while self.total < limit:
            try:
                data = os.read(self._fd, _CHUNK_BYTES)
            except BlockingIOError:
                return
            if not data:
                return
            self.total += len(data)
            room = self._half - len(self._head)
            self._head += data[:room]
            self._tail += data[room:] if room > 0 else data
            del self._tail[: -self._half]

    @property
    def truncated(self) -> bool:
        return self.total > len(self._head) + len(self._tail)

    def text(self) -> str:
        head, tail = self._head.decode("utf-8", "replace"), self._tail.decode("utf-8", "replace")
        if not self.truncated:
            return (self._head + self._tail).decode("utf-8", "replace")
        return f"{head}\n[... {self.total - len(self._head) - len(self._tail):,} bytes left out ...]\n{tail}"


class KernelProcess:
    """A running kernel. Made by `Nursery.spawn`."""

    def __init__(self, directory: Path, slot: int, control: socket.socket, output: int, limits: KernelLimits) -> None:
        self.directory = directory
        self.slot = slot
        self.pid = 0
        self.memory_mb = 0.0
        self.guards: tuple[Guard, ...] = ()
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[Ending] = loop.create_future()
        self._limits = limits
        self._control = control
        self._output = output
        self._kill_reason: KillReason | None = None
        self._client: Any = None
        loop.add_reader(control.fileno(), self._on_control)

    def connect(self, context: zmq.asyncio.Context, connection: Mapping[str, Any]) -> None:
        """Opens the shell channel; nothing else of the Jupyter protocol is needed."""
        self._client = AsyncKernelClient(context=context)
        self._client.load_connection_info(dict(connection))
        self._client.start_channels(shell=True, iopub=False, stdin=False, hb=False, control=False)

    @property
    def alive(self) -> bool:
        return not self.ended.done()

    def leased(self) -> None:
        """Raises the process's priority from that of a spare."""
        self._command(b"l")

    def kill(self, reason: KillReason | None) -> None:
        """Has the warden kill everything; `ended` tells when it is done."""
        if self._kill_reason is None:
            self._kill_reason = reason
        self._command(b"k")

    def _command(self, command: bytes) -> None:
        with suppress(OSError):
            self._control.send(command)

    def _on_control(self) -> None:
        try:
            message = self._control.recv(65_536)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        values = json.loads(message) if message else {"reason": KillReason.CRASH, "detail": "the warden is gone"}
        if "memory_mb" in values:
            self.memory_mb = values["memory_mb"]
        elif "ready" in values:
            self.pid = values["pid"]
            self.guards = tuple(Guard(g) for g in values["ready"])
            if not self.ready.done():
                self.ready.set_result(None)
        elif "failed" in values:
            if not self.ready.done():
                self.ready.set_exception(KernelStartError(values["failed"]))
        else:
            self._end(values["reason"], values["detail"])

    def _end(self, reason: str | None, detail: str) -> None:
        asyncio.get_running_loop().remove_reader(self._control.fileno())
        if not self.ended.done():
            known = KillReason(reason) if reason else self._kill_reason
            self.ended.set_result(Ending(known, detail))
        if not self.ready.done():
            self.ready.set_exception(KernelStartError(f"a kernel ended while it started: {detail}"))

    async def call(self, code: str, timeout_s: float) -> Outcome:
        """Runs `code`. Returns at the latest `timeout_s` plus the grace period later, plus the time that killing takes."""
        started = time.monotonic()
        output = _Output(self._output, self._limits.output_bytes)
        message_id = self._client.execute(code, allow_stdin=False, stop_on_error=False)
        reply = asyncio.ensure_future(self._reply(message_id))
        interrupted = None
        try:
            flood = self._limits.flood_bytes
            await self._wait(reply, output, started + timeout_s, flood)
            if not reply.done() and self.alive:
                interrupted = KillReason.OUTPUT if output.total >= flood else KillReason.HANG
                self._command(b"i")
                await self._wait(reply, output, time.monotonic() + self._limits.grace_s, sys.maxsize)
            if not reply.done():
                self.kill(interrupted)
                await asyncio.wait({self.ended}, timeout=_END_TIMEOUT_S)
            output.read(sys.maxsize)
        finally:
            reply.cancel()
        answered = reply.done() and not reply.cancelled()
        return Outcome(
            stdout=output.text(),
            truncated=output.truncated,
            reply=reply.result() if answered else None,
            interrupted=interrupted,
            ending=None if answered else self.ended.result() if self.ended.done() else Ending(interrupted, "cannot be killed"),
            seconds=time.monotonic() - started,
        )

    async def _wait(self, reply: asyncio.Future[Any], output: _Output, until: float, limit: int) -> None:
        """Until there is a reply or an end of the process, `limit` bytes were printed, or the time is up."""
        while (left := until - time.monotonic()) > 0:
            await asyncio.wait({reply, self.ended}, timeout=min(left, _TICK_S), return_when=asyncio.FIRST_COMPLETED)
            if reply.done() or not self.alive:
                return
            output.read(limit)
            if output.total >= limit:
                return

    async def _reply(self, message_id: str) -> Mapping[str, Any]:
        while True:
            message = await self._client.shell_channel.get_msg()
            if message["parent_header"].get("msg_id") == message_id:
                content: Mapping[str, Any] = message["content"]
                return content

    def last_words(self) -> str:
        """The end of what it printed outside of any call."""
        output = _Output(self._output, 4_000)
        output.read(sys.maxsize)
        return output.text()

    async def close(self) -> None:
        """Kills it if it lives, waits for that, and frees everything it held here."""
        try:
            if self.alive:
                self.kill(None)
                await asyncio.wait({self.ended}, timeout=_END_TIMEOUT_S)
        finally:
            self.release()

    def release(self) -> None:
        """Frees descriptors and the directory. The warden kills the kernel, if it still lives, when its socket closes."""
        if self._control.fileno() < 0:
            return
        asyncio.get_running_loop().remove_reader(self._control.fileno())
        self._control.close()
        os.close(self._output)
        if self._client is not None:
            self._client.stop_channels()
        shutil.rmtree(self.directory, ignore_errors=True)


class Nursery:
    """A zygote, and the directory of all kernels it forks."""

    def __init__(self, limits: KernelLimits, preload: tuple[str, ...], context: zmq.asyncio.Context) -> None:
        self._limits = limits
        self._context = context
        self._numbers = itertools.count()
        self._free_slots = set(range(_UIDS_PER_PROCESS))
        self.directory = Path(tempfile.mkdtemp(prefix="aimo-kernels-"))
        if len(str(self.directory / "k1234567" / "s-5")) > _UNIX_PATH_CHARS:
            raise KernelStartError(f"temporary directory {self.directory}: its path is too long for Unix sockets")
        self.directory.chmod(0o711)  # kernels may reach their own directory, and list none
        package = Path(__file__).resolve().parent
        spec = {
            "directory": str(self.directory),
            "solver_pid": os.getpid(),
            "package": str(package),
            "preload": preload,
            "limits": asdict(limits),
        }
        paths = [p for p in sys.path if p and Path(p).resolve() not in (package, package.parent)]
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOTSTRAP, str(package), "\n".join(paths), str(theirs.fileno()), json.dumps(spec)],
                stdin=subprocess.DEVNULL,
                env=_environment(self.directory),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._requests.setblocking(False)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """Process id of the zygote."""
        return self._process.pid

    async def spawn(self) -> KernelProcess:
        """A kernel that is ready for its first call.

        Raises:
            KernelStartError: it did not come up.
        """
        slot = min(self._free_slots)
        self._free_slots.remove(slot)
        directory = self.directory / f"k{next(self._numbers)}"
        directory.mkdir(mode=0o700)
        _, connection = write_connection_file(
            str(directory / "connection.json"), transport="ipc", ip=str(directory / "s"), key=os.urandom(16).hex().encode()
        )
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        read, write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(read, False)
        process = KernelProcess(directory, slot, ours, read, self._limits)
        process.ended.add_done_callback(lambda _: self._free_slots.add(slot))
        uid = _FIRST_UID + (self._process.pid % (1 << 22)) * _UIDS_PER_PROCESS + slot
        request = json.dumps({"directory": str(directory), "uid": uid}).encode()
        try:
            try:
                socket.send_fds(self._requests, [request], [theirs.fileno(), write])
            except OSError as error:
                raise KernelStartError(f"the process that forks kernels does not take requests: {error}") from None
            finally:
                theirs.close()
                os.close(write)
            async with asyncio.timeout(START_TIMEOUT_S):
                await process.ready
            process.connect(self._context, connection)
        except TimeoutError:
            process.release()
            raise KernelStartError(f"a kernel was not ready after {START_TIMEOUT_S:g} s") from None
        except KernelStartError as error:
            said = process.last_words()
            process.release()
            raise KernelStartError(f"{error}\n{said}" if said else str(error)) from None
        except BaseException:
            process.release()
            raise
        return process

    async def close(self) -> None:
        """Ends the zygote, which ends what it forked."""
        self._requests.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_TIMEOUT_S):
                while self.alive:
                    await asyncio.sleep(0.005)
        if self.alive:
            self._process.kill()
        self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def _environment(directory: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    threads = {f"{name}_NUM_THREADS": "1" for name in _SINGLE_THREAD}
    return (
        kept
        | threads
        | {"HOME": str(directory), "MPLBACKEND": "Agg", "NO_COLOR": "1", "PYTHONDONTWRITEBYTECODE": "1", "TERM": "dumb"}
    )
