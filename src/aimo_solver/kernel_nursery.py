"""Where kernels come from: the solver's side of the process that forks them, and the directory they live in."""

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
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zmq.asyncio
from jupyter_client.connect import write_connection_file

from aimo_solver.errors import KernelStartError
from aimo_solver.kernel_limits import UIDS_PER_POOL, KernelLimits, ZygoteSpec
from aimo_solver.kernel_process import KernelProcess

if TYPE_CHECKING:
    from aimo_solver import kernel_zygote  # noqa: F401 - started by name, below

_START_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 15.0
_LONGEST_SOCKET_PATH = 107
_LOG_BYTES = 2_000

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
from aimo_solver.kernel_zygote import main
main()
"""


class Nursery:
    """A zygote and the kernels it forks.

    Raises:
        KernelStartError: the temporary directory is no place for sockets.
    """

    def __init__(self, limits: KernelLimits, preload: tuple[str, ...], context: zmq.asyncio.Context) -> None:
        self._limits = limits
        self._context = context
        self._numbers = itertools.count()
        self._slots = set(range(UIDS_PER_POOL))
        self.directory = Path(tempfile.mkdtemp(prefix="aimo-kernels-")).resolve()
        if len(str(self.directory / "k1234567" / "s-5")) > _LONGEST_SOCKET_PATH:
            self.directory.rmdir()
            raise KernelStartError(f"{self.directory} is too long a path for Unix sockets; set TMPDIR to a shorter one")
        self.directory.chmod(0o711)  # a kernel may reach its own directory, and list none
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._requests.setblocking(False)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        with theirs:
            self._process = self._start_zygote(preload, theirs.fileno())

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
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """The zygote's."""
        return self._process.pid

    async def spawn(self) -> KernelProcess:
        """A kernel that is ready for its first call.

        Raises:
            KernelStartError: it did not come up.
        """
        slot = min(self._slots)
        directory = self.directory / f"k{next(self._numbers)}"
        directory.mkdir(mode=0o700)
        _, connection = write_connection_file(
            str(directory / "connection.json"), transport="ipc", ip=str(directory / "s"), key=os.urandom(16).hex().encode()
        )
        process = self._request(directory, slot)
        self._slots.remove(slot)
        process.ended.add_done_callback(lambda _: self._slots.add(slot))
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await process.ready
            process.connect(self._context, connection)
        except TimeoutError:
            process.release()
            raise KernelStartError(f"a kernel was not ready after {_START_TIMEOUT_S:g} s") from None
        except KernelStartError as error:
            words = process.last_words()
            process.release()
            raise KernelStartError("\n".join(filter(None, [str(error), words, self._complaint()]))) from None
        except BaseException:
            process.release()
            raise
        return process

    def _request(self, directory: Path, slot: int) -> KernelProcess:
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control.setblocking(False)
        read, write = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(read, False)
        process = KernelProcess(directory, control, read, self._limits)
        request: dict[str, Any] = {"directory": str(directory), "slot": slot}
        try:
            socket.send_fds(self._requests, [json.dumps(request).encode()], [theirs.fileno(), write])
        except OSError as error:
            process.release()
            raise KernelStartError(f"the process that forks kernels takes no requests: {error}") from None
        finally:
            theirs.close()
            os.close(write)
        return process

    def _complaint(self) -> str:
        """The end of what the zygote wrote to its standard error."""
        self._log.seek(0)
        return self._log.read()[-_LOG_BYTES:].decode("utf-8", "replace").strip()

    async def close(self) -> None:
        """Ends the zygote and all that it forked."""
        self._requests.close()
        deadline = asyncio.get_running_loop().time() + _END_TIMEOUT_S
        while self.alive and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - waiting by a thread costs more
            await asyncio.sleep(0.005)
        if self.alive:
            self._process.kill()
        self._process.wait()
        self._log.close()
        shutil.rmtree(self.directory, ignore_errors=True)


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    return {name: ours[name] for name in _ENVIRONMENT if name in ours} | _THREADS | _SETTINGS
