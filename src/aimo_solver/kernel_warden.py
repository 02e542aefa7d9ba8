"""One small process per kernel that puts up its guards, starts it, passes interrupts on and lets nothing outlive it.

With `Guard.NAMESPACES` the warden is process 1 of a pid namespace, where all that the kernel started dies at one stroke.
Otherwise it is the subreaper of its descendants and kills them until none is left.

Datagrams to the warden: ``i`` interrupt the kernel, ``l`` it is leased now, ``k`` kill it; the end of the stream means
kill, too. Datagrams from it, in JSON: ``{"guards", "pid"}`` when the kernel is ready, ``{"memory_mb"}`` when that
changed much, ``{"failed"}`` with a traceback if the start failed, and last ``{"reason", "detail"}``.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from aimo_solver.kernel_limits import Guard, KillReason
from aimo_solver.kernel_nest import PAGE_BYTES, Nest, become_kernel, enter_namespaces, tell

_TICK_S = 0.25  # how often a leased kernel's memory is looked at
_CHILDREN = Path("/proc/thread-self/children")  # not every Linux is built with it
_MEMORY_STEP_MB = 64  # smaller changes are not reported


@dataclass(frozen=True, slots=True)
class End:
    """Why the warden stops; `reason` is None if that was asked for."""

    reason: KillReason | None
    detail: str


def run_warden(nest: Nest, control: socket.socket, output: int, solver: int | None) -> NoReturn:
    """Becomes a warden with a kernel below it. `output` is for the kernel; `solver` polls readable when the solver is gone."""
    try:
        uid = nest.uid if Guard.USER in nest.limits.guards else os.geteuid()
        work = enter_namespaces(nest, uid, share_network=os.geteuid() == 0)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        kernel = os.fork()
        if kernel == 0:
            if solver is not None:
                os.close(solver)
            become_kernel(nest, uid, work, control, output)
        os.close(output)
        _Warden(nest, uid, control, kernel, solver).watch()
    except BaseException:  # noqa: BLE001 - told to the solver, which has nothing else to go by
        tell(control, failed=traceback.format_exc()[-4_000:])
    os._exit(0)


class _Warden:
    def __init__(self, nest: Nest, uid: int, control: socket.socket, kernel: int, solver: int | None) -> None:
        self._nest = nest
        self._uid = uid
        self._control = control
        self._kernel = kernel
        self._solver = solver
        self._own_pids = Guard.NAMESPACES in nest.limits.guards
        self._fresh_mb = _resident_mb(os.getpid())  # most of which all kernels share
        self._reported_mb = 0.0
        self._leased = False

    def watch(self) -> None:
        """Returns when nothing is left of the kernel."""
        wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        poll = select.poll()
        for fd in (self._control.fileno(), wake, self._solver):
            if fd is not None:
                poll.register(fd, select.POLLIN)
        end = self._reap()
        weighed = time.monotonic()
        while end is None:
            ready = {fd for fd, _ in poll.poll(_TICK_S * 1_000 if self._leased else None)}
            if wake in ready:
                os.read(wake, 4_096)
            if self._solver in ready:
                end = End(None, "the solver is gone")
            elif self._control.fileno() in ready:
                end = self._obey()
            end = self._reap() or end
            if end is None and time.monotonic() - weighed > _TICK_S:
                end = self._weigh()
                weighed = time.monotonic()
        self._sweep()
        self._wipe()
        tell(self._control, reason=end.reason, detail=end.detail)

    def _obey(self) -> End | None:
        command = self._control.recv(16)
        if command == b"i":
            with suppress(OSError):
                os.killpg(self._kernel, signal.SIGINT)
        elif command == b"l":
            self._leased = True
            for thread in os.listdir(f"/proc/{self._kernel}/task"):
                with suppress(OSError):  # only root may raise a priority
                    os.setpriority(os.PRIO_PROCESS, int(thread), self._nest.limits.nice)
        else:
            return End(None, "killed")
        return None

    def _reap(self) -> End | None:
        end = None
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                if pid == self._kernel:
                    end = _end_of(status)
        return end

    def _weigh(self) -> End | None:
        pids = self._descendants()
        held = sum(map(_resident_mb, pids)) - self._fresh_mb
        if held > self._nest.limits.memory_mb:
            held = sum(map(_proportional_mb, pids))  # right where processes share pages, but slow
            if held > self._nest.limits.memory_mb:
                return End(KillReason.MEMORY, f"{held:,.0f} MB in {len(pids)} processes")
        if abs(held - self._reported_mb) >= _MEMORY_STEP_MB:
            self._reported_mb = held
            tell(self._control, memory_mb=held)
        return None

    def _descendants(self) -> list[int]:
        if self._own_pids:
            return [int(name) for name in os.listdir("/proc") if name.isdigit() and name != "1"]
        found: list[int] = []
        frontier = [os.getpid()]
        while frontier:
            frontier = [child for pid in frontier for child in _children(pid)]
            found += frontier
        return found

    def _sweep(self) -> None:
        """Kills everything below this process and waits until it is gone."""
        while True:
            if self._own_pids:
                with suppress(ProcessLookupError):
                    os.kill(-1, signal.SIGKILL)
            else:
                for pid in self._descendants():
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                return
            time.sleep(0.001)

    def _wipe(self) -> None:
        self._nest.directory.chmod(0o700)
        for path in self._nest.directory.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        if not self._own_pids and Guard.USER in self._nest.limits.guards:
            for path in Path("/dev/shm").iterdir():  # the one place outside that multiprocessing must write to
                with suppress(OSError):
                    if path.lstat().st_uid == self._uid:
                        path.unlink()


def _end_of(status: int) -> End:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return End(KillReason.EXIT, f"exit code {code}")
    name = signal.Signals(-code).name
    return End(KillReason.CPU_TIME if -code == signal.SIGXCPU else KillReason.CRASH, name)


def _children(pid: int) -> list[int]:
    if not _CHILDREN.exists():
        return [child for child in map(int, filter(str.isdigit, os.listdir("/proc"))) if _parent(child) == pid]
    found: list[int] = []
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    return found


def _parent(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _resident_mb(pid: int) -> float:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES / 2**20
    return 0.0


def _proportional_mb(pid: int) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return _resident_mb(pid)
