"""Starts kernels: the solver's side of the forkserver, and the directory of a pool."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import deque
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil

from aimo_solver.errors import KernelStartError
from aimo_solver.kernels.limits import UIDS_PER_POOL, ForkserverSpec, KernelLimits
from aimo_solver.kernels.process import KernelProcess, remove_tree, wait_for_exit

_IMPORT_TIMEOUT_S = 60.0  # for the first fork, which has to wait for the forkserver's imports
_FORK_TIMEOUT_S = 10.0  # for every later fork, which takes milliseconds unless the forkserver is stopped or stuck
_START_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 15.0
_LOG_BYTES = 2_000
_FALLBACK_PLACES = ("/tmp", "/var/tmp", "/dev/shm")  # for the pool's directory, after the temporary directory
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
_PROBE_BYTES = 16_384

# all that a kernel inherits from the solver's environment
_INHERITED = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "CONDA_PREFIX")
_THREADS = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB", "BLIS")}
_SETTINGS = {
    "CUDA_VISIBLE_DEVICES": "",  # the GPU is for the model
    "MPLBACKEND": "Agg",
    "NO_COLOR": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "TERM": "dumb",
}

# skips the package's __init__, which imports modules that only the solver needs
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


class Spawner:
    """A forkserver and the kernels that it forks.

    Attributes:
        directory: holds a directory for each kernel.
        forkserver: the process.

    Raises:
        OSError: no room for a directory, a descriptor or a process.
    """

    def __init__(self, limits: KernelLimits, preload: tuple[str, ...]) -> None:
        self._limits = limits
        self._numbers = itertools.count()
        self._slots = deque(range(UIDS_PER_POOL))  # free user ids, in the order in which they became free
        self._kernels: set[KernelProcess] = set()
        self._forked = False
        self._broken = False
        self._without_room = False
        with ExitStack() as undo:
            self.directory = _make_directory()
            undo.callback(self.directory.rmdir)
            self.directory.chmod(0o711)  # a kernel may enter its own directory, and list none
            self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(self._requests.close)
            self._requests.setblocking(False)
            with theirs:
                package = Path(__file__).resolve().parents[1]
                spec = ForkserverSpec(
                    directory=self.directory, solver_pid=os.getpid(), package=package, preload=preload, limits=limits
                )
                self._requests.send(pickle.dumps(spec))
                self._log = undo.enter_context(tempfile.TemporaryFile())
                self.forkserver = self._start_forkserver(package, theirs.fileno())
            undo.pop_all()

    def _start_forkserver(self, package: Path, requests: int) -> subprocess.Popen[bytes]:
        paths = "\n".join(p for p in sys.path if p and Path(p).resolve() not in (package, package.parent))
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        return subprocess.Popen(
            [sys.executable, "-c", _BOOTSTRAP, str(package), paths, str(requests)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            env=inherited | _THREADS | _SETTINGS | {"HOME": str(self.directory)},
            cwd="/",
            pass_fds=[requests],
            start_new_session=True,  # Ctrl-C goes to the solver only, which ends its kernels itself
        )

    @property
    def alive(self) -> bool:
        """Whether the forkserver runs and forks, and its directory has room."""
        return not (self._broken or self._without_room) and self.forkserver.poll() is None

    async def spawn(self) -> KernelProcess:
        """Starts a kernel and returns it when it is ready for its first call.

        Raises:
            KernelStartError: it did not start.
            OSError: no room for its directory or its descriptors.
        """
        process = self._request()
        with ExitStack() as undo:
            undo.callback(shutil.rmtree, process.directory, ignore_errors=True)  # small, as no code has run there
            undo.callback(process.release)
            try:
                await self._wait_until_ready(process)
            except KernelStartError as error:
                parts = [str(error), process.read_output(), self._read_log()]
                raise KernelStartError("\n".join(filter(None, parts))) from None
            undo.pop_all()
        return process

    async def _wait_until_ready(self, process: KernelProcess) -> None:
        limit = _FORK_TIMEOUT_S if self._forked else _IMPORT_TIMEOUT_S
        if not (await asyncio.wait({process.forked}, timeout=limit))[0]:
            self._broken = True
            raise KernelStartError(f"the forkserver did not answer within {limit:g} s")
        self._forked = True
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await process.ready
        except TimeoutError:
            raise KernelStartError(f"a kernel was not ready after {_START_TIMEOUT_S:g} s") from None

    def _request(self) -> KernelProcess:
        """Requests a kernel from the forkserver, with a directory and a user id of its own."""
        if not self._slots:
            raise KernelStartError(f"all {UIDS_PER_POOL} user ids are in use by kernels that have not ended")
        with ExitStack() as undo:
            directory = self.directory / f"k{next(self._numbers)}"
            undo.callback(shutil.rmtree, directory, ignore_errors=True)
            self._make_kernel_directory(directory)
            with ExitStack() as theirs:
                control, their_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                undo.callback(control.close)
                theirs.callback(their_control.close)
                calls, their_calls = socket.socketpair()
                undo.callback(calls.close)
                theirs.callback(their_calls.close)
                read, write = os.pipe2(os.O_CLOEXEC)
                undo.callback(os.close, read)
                theirs.callback(os.close, write)
                control.setblocking(False)
                os.set_blocking(read, False)
                request = json.dumps({"directory": str(directory), "slot": self._slots[0]}).encode()
                try:
                    socket.send_fds(self._requests, [request], [their_control.fileno(), write, their_calls.fileno()])
                except OSError as error:
                    self._broken = True
                    raise KernelStartError(f"the forkserver accepts no requests: {error}") from None
            process = KernelProcess(directory, control, read, calls, self._limits)
            undo.pop_all()
        self._track(process, self._slots.popleft())
        return process

    def _make_kernel_directory(self, directory: Path) -> None:
        try:
            directory.mkdir(mode=0o700)
            _check_room(directory)
        except OSError as error:
            self._broken |= isinstance(error, FileNotFoundError)  # the pool's directory was removed
            self._without_room = error.errno in _NO_ROOM
            raise

    def _track(self, process: KernelProcess, slot: int) -> None:
        def release_slot(_: object) -> None:
            self._kernels.discard(process)
            self._slots.append(slot)

        self._kernels.add(process)
        process.ended.add_done_callback(release_slot)

    def _read_log(self) -> str:
        """Returns the end of the forkserver's standard error."""
        end = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, end - _LOG_BYTES))
        return self._log.read(_LOG_BYTES).decode("utf-8", "replace").strip()

    async def close(self) -> None:
        """Ends the forkserver, after all its kernels have ended, and removes the directory. Never raises."""
        self._requests.close()
        if self._broken:
            self.forkserver.kill()
        if self._kernels:
            await asyncio.wait([process.ended for process in self._kernels])
        if not await wait_for_exit(self.forkserver, _END_TIMEOUT_S):
            _kill_tree(self.forkserver.pid)
            await wait_for_exit(self.forkserver, _END_TIMEOUT_S)
        self._log.close()
        await remove_tree(self.directory)


def _kill_tree(pid: int) -> None:
    with suppress(psutil.Error, OSError):
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            with suppress(psutil.Error):
                process.kill()


def _make_directory() -> Path:
    """Creates a directory in the first place that has room.

    Raises:
        OSError: none has; the error is that of the temporary directory.
    """
    errors = []
    for place in (tempfile.gettempdir(), *_FALLBACK_PLACES):
        try:
            Path(place).mkdir(parents=True, exist_ok=True)  # it may have been removed
            directory = Path(tempfile.mkdtemp(prefix="aimo-kernels-", dir=place)).resolve()
            try:
                _check_room(directory)
            except OSError:
                with suppress(OSError):
                    directory.rmdir()
                raise
            return directory
        except OSError as error:
            errors.append(error)
    raise errors[0]


def _check_room(directory: Path) -> None:
    """Raises OSError if a small file does not fit."""
    probe = directory / "probe"
    try:
        probe.write_bytes(bytes(_PROBE_BYTES))
    finally:
        probe.unlink(missing_ok=True)
