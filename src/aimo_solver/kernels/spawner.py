"""Where kernels come from: the solver's side of the process that forks them, and the directory they live in."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from jupyter_client.connect import write_connection_file

from aimo_solver.errors import KernelStartError
from aimo_solver.kernels.limits import UIDS_PER_POOL, KernelLimits, ZygoteSpec
from aimo_solver.kernels.process import KernelProcess, ends, remove_tree

_IMPORT_TIMEOUT_S = 60.0  # for a zygote's first fork, before which it imports
_FORK_TIMEOUT_S = 10.0  # for every other: it takes milliseconds, and a zygote that does not fork is stopped or stuck
_START_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 15.0
PATIENCE_S = 5.0
_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
_LONGEST_SOCKET_PATH = 107
_LOG_BYTES = 2_000
_OTHER_PLACES = ("/tmp", "/var/tmp", "/dev/shm")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_PROBE_BYTES = 16_384  # what a kernel's connection file and its neighbours need

# what a kernel inherits of the solver's environment, and nothing else
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "CONDA_PREFIX")
_THREADS = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB", "BLIS")}
_SETTINGS = {
    "CUDA_VISIBLE_DEVICES": "",  # the GPU is the model's
    "MPLBACKEND": "Agg",
    "NO_COLOR": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "TERM": "dumb",
}

# passes over the package's __init__, which imports what only the solver needs
_BOOTSTRAP = """
import sys, types
package = types.ModuleType('aimo_solver')
package.__path__ = [sys.argv.pop(1)]
sys.modules['aimo_solver'] = package
sys.path += [path for path in sys.argv.pop(1).split('\\n') if path not in sys.path]
del package
from aimo_solver.kernels.inside.forkserver import main
main()
"""


@dataclass(slots=True)
class Failures:
    """Starts that failed in a row, on a clock of the caller's.

    Attributes:
        since: when the first of them began.
        pause_s: before the next; doubled with every failure.
        fault: what those who wait are told, once starts have failed for `PATIENCE_S`.
    """

    count: int = 0
    since: float = math.inf
    pause_s: float = _PAUSE_S / 2
    fault: str | None = None

    def add(self, error: Exception, began: float, now: float) -> None:
        self.count += 1
        self.since = min(self.since, began)
        self.pause_s = min(2 * self.pause_s, _LONGEST_PAUSE_S)
        if now - self.since >= PATIENCE_S:
            self.fault = str(error) if isinstance(error, KernelStartError) else f"{type(error).__name__}: {error}"


class Nursery:
    """A zygote and the kernels it forks.

    Raises:
        KernelStartError: the temporary directory is no place for sockets.
        OSError: there is no room for a directory, a descriptor or a process.
    """

    def __init__(self, limits: KernelLimits, preload: tuple[str, ...]) -> None:
        self._limits = limits
        self._numbers = itertools.count()
        self._slots = deque(range(UIDS_PER_POOL))  # user ids; the one that was given back first is used first
        self._kernels: set[KernelProcess] = set()
        self._forked = False
        self._broken = False
        self._without_room = False
        with ExitStack() as undo:
            self.directory = _make_directory()
            undo.callback(self.directory.rmdir)
            if len(str(self.directory / "k1234567" / "s-5")) > _LONGEST_SOCKET_PATH:
                raise KernelStartError(f"{self.directory} is too long a path for Unix sockets; set TMPDIR to a shorter one")
            self.directory.chmod(0o711)  # a kernel may reach its own directory, and list none
            self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(self._requests.close)
            self._requests.setblocking(False)
            with theirs:
                self._log = undo.enter_context(tempfile.TemporaryFile())
                self._process = self._start_zygote(preload, theirs.fileno())
            undo.pop_all()

    def _start_zygote(self, preload: tuple[str, ...], requests: int) -> subprocess.Popen[bytes]:
        package = Path(__file__).resolve().parent
        spec = ZygoteSpec(
            directory=str(self.directory), solver_pid=os.getpid(), package=str(package), preload=preload, limits=self._limits
        )
        paths = "\n".join(p for p in sys.path if p and Path(p).resolve() not in (package, package.parent))
        return subprocess.Popen(
            [sys.executable, "-c", _BOOTSTRAP, str(package), paths, str(requests), spec.to_json()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            env=_environment(os.environ) | {"HOME": str(self.directory)},
            cwd="/",
            pass_fds=[requests],
            start_new_session=True,  # a Ctrl-C is for the solver, which ends its kernels itself
        )

    @property
    def alive(self) -> bool:
        """The zygote runs and forks, and its directory has room."""
        return not (self._broken or self._without_room) and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The zygote's."""
        return self._process.pid

    async def spawn(self) -> KernelProcess:
        """A kernel that is ready for its first call.

        Raises:
            KernelStartError: it did not come up.
            OSError: there is no room for its directory or its descriptors.
        """
        process = self._request()
        try:
            await self._come_up(process)
        except BaseException as error:
            words = process.last_words()
            process.release()
            shutil.rmtree(process.directory, ignore_errors=True)  # small, as no code has run there
            if isinstance(error, KernelStartError):
                raise KernelStartError("\n".join(filter(None, [str(error), words, self._complaint()]))) from None
            raise
        return process

    async def _come_up(self, process: KernelProcess) -> None:
        limit = _FORK_TIMEOUT_S if self._forked else _IMPORT_TIMEOUT_S
        if not (await asyncio.wait({process.forked}, timeout=limit))[0]:
            self._broken = True
            raise KernelStartError(f"the process that forks kernels did not answer within {limit:g} s")
        self._forked = True
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await process.ready
                await process.connect()
        except TimeoutError:
            raise KernelStartError(f"a kernel was not ready after {_START_TIMEOUT_S:g} s") from None

    def _request(self) -> KernelProcess:
        """Asks the zygote for a kernel, with a directory and a user id of its own."""
        if not self._slots:
            raise KernelStartError(f"all {UIDS_PER_POOL} user ids are held by kernels that do not end")
        with ExitStack() as undo:
            directory = self.directory / f"k{next(self._numbers)}"
            try:
                directory.mkdir(mode=0o700)
                undo.callback(shutil.rmtree, directory, ignore_errors=True)
                _, connection = write_connection_file(
                    str(directory / "connection.json"),
                    transport="ipc",
                    ip=str(directory / "s"),
                    key=os.urandom(16).hex().encode(),
                )
            except OSError as error:
                self._broken |= isinstance(error, FileNotFoundError)  # somebody removed all of it
                self._without_room = error.errno in _NO_ROOM
                raise
            control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(control.close)
            with theirs:
                control.setblocking(False)
                read, write = os.pipe2(os.O_CLOEXEC)
                undo.callback(os.close, read)
                try:
                    os.set_blocking(read, False)
                    request = json.dumps({"directory": str(directory), "slot": self._slots[0]}).encode()
                    socket.send_fds(self._requests, [request], [theirs.fileno(), write])
                except OSError as error:
                    self._broken = True
                    raise KernelStartError(f"the process that forks kernels takes no requests: {error}") from None
                finally:
                    os.close(write)
            process = KernelProcess(directory, control, read, connection, self._limits)
            undo.pop_all()
        self._hold(process, self._slots.popleft())
        return process

    def _hold(self, process: KernelProcess, slot: int) -> None:
        def ended(_: object) -> None:
            self._kernels.discard(process)
            self._slots.append(slot)

        self._kernels.add(process)
        process.ended.add_done_callback(ended)

    def _complaint(self) -> str:
        """The end of what the zygote wrote to its standard error."""
        end = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, end - _LOG_BYTES))
        return self._log.read(_LOG_BYTES).decode("utf-8", "replace").strip()

    async def close(self) -> None:
        """Ends the zygote, when all kernels that it forked have ended, and removes the directory. Never raises."""
        self._requests.close()
        if self._broken:
            self._process.kill()
        if self._kernels:
            await asyncio.wait([process.ended for process in self._kernels])
        if not await ends(self._process, _END_TIMEOUT_S):
            _kill_tree(self._process.pid)
            await ends(self._process, _END_TIMEOUT_S)
        self._log.close()
        await remove_tree(self.directory)


def _kill_tree(pid: int) -> None:
    with suppress(psutil.Error, OSError):
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            with suppress(psutil.Error):
                process.kill()


def _make_directory() -> Path:
    """A directory in the first place with room: the temporary directory, then those that every machine has.

    Raises:
        OSError: none has; what the temporary directory said.
    """
    faults = []
    for place in (tempfile.gettempdir(), *_OTHER_PLACES):
        try:
            Path(place).mkdir(parents=True, exist_ok=True)  # somebody may have removed it
            directory = Path(tempfile.mkdtemp(prefix="aimo-kernels-", dir=place)).resolve()
            try:
                (directory / "probe").write_bytes(bytes(_PROBE_BYTES))
            except OSError:
                _remove_probed(directory)
                raise
            (directory / "probe").unlink()
            return directory
        except OSError as fault:
            faults.append(fault)
    raise faults[0]


def _remove_probed(directory: Path) -> None:
    # By the two calls that take no descriptor: what is short may be those.
    with suppress(OSError):
        (directory / "probe").unlink()
    with suppress(OSError):
        directory.rmdir()


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    return {name: ours[name] for name in _ENVIRONMENT if name in ours} | _THREADS | _SETTINGS
