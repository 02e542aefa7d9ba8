"""One small process per kernel that puts up its guards, starts it, passes interrupts on and lets nothing outlive it.

With `Guard.NAMESPACES` the warden is process 1 of a pid namespace, where all that the kernel started dies at one stroke.
Otherwise it is the subreaper of its descendants and kills them until none is left, and looks at what they store.

Datagrams to the warden: ``i`` interrupt the kernel, ``l`` it is leased now, ``k`` kill it; the end of the stream means
kill, too. Datagrams from it, in JSON: ``{"guards", "pid"}`` when the kernel is ready, ``{"memory_mb"}`` when that
changed much, ``{"failed"}`` with a traceback if the start failed, and last ``{"reason", "detail"}``.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from aimo_solver.kernels.inside import usage
from aimo_solver.kernels.inside.isolation import Nest, become_kernel, close_directory, enter_namespaces, open_directory, tell
from aimo_solver.kernels.inside.linux import looking_as
from aimo_solver.kernels.limits import Guard, KillReason

_TICK_S = 0.25  # how often is looked at what a leased kernel holds
_MEMORY_STEP_MB = 64  # smaller changes are not reported
_EXACT_PAUSE = 4  # times as long as an exact look at memory took, before the next
_LONGEST_PAUSE_S = 1.0
_REWRITES = 4  # times that a kernel may write all it may store: files without a name are seen by what is written alone
_SHARED_MEMORY = Path("/dev/shm")  # the one place outside of its directory that multiprocessing must write to
_NAMES = 500  # in one command


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
        _wipe_shared_memory(nest)  # of a kernel of the same user id whose warden was killed
        started, starting = os.pipe()
        kernel = os.fork()
        if kernel == 0:
            for fd in filter(None, (solver, started)):
                os.close(fd)
            become_kernel(nest, uid, work, control, output, starting)
        for fd in (output, starting):
            os.close(fd)
        _Warden(nest, uid, control, kernel, started, solver).watch()
    except BaseException:  # noqa: BLE001 - told to the solver, which has nothing else to go by
        tell(control, failed=traceback.format_exc()[-4_000:])
    os._exit(0)


def kill_orphans(wardens: set[int]) -> None:
    """Kills the children of this process that are no wardens, with all below them: they are what a killed warden left behind.

    Takes those that have ended out of `wardens`.
    """
    children = set(usage.children(os.getpid()))
    wardens &= children
    for orphan in children - wardens:
        for pid in (orphan, *usage.descendants(orphan)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class _Warden:
    def __init__(self, nest: Nest, uid: int, control: socket.socket, kernel: int, started: int, solver: int | None) -> None:
        self._nest = nest
        self._uid = uid
        self._control = control
        self._kernel = kernel
        self._started: int | None = started
        self._solver = solver
        self._own_pids = self._own_files = Guard.NAMESPACES in nest.limits.guards
        self._fresh_mb = usage.resident_mb(os.getpid())  # most of which all kernels share
        self._reported_mb = 0.0
        self._exact_from = 0.0
        self._leased = False
        self._fresh_shm = self._shm()

    def watch(self) -> None:
        """Returns when nothing is left of the kernel."""
        wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        poll = select.poll()
        for fd in (self._control.fileno(), wake, self._started, self._solver):
            if fd is not None:
                poll.register(fd, select.POLLIN)
        end = self._reap()
        weighed = time.monotonic()
        while end is None:
            ready = {fd for fd, _ in poll.poll(_TICK_S * 1_000 if self._leased else None)}
            if wake in ready:
                os.read(wake, 4_096)
            if self._started in ready:
                poll.unregister(self._started)
                self._greet(self._started)
            if self._solver in ready:
                end = End(None, "the solver is gone")
            elif self._control.fileno() in ready:
                end = self._obey()
            end = self._reap() or end
            if end is None and time.monotonic() - weighed > _TICK_S:
                end = self._weigh()
                weighed = time.monotonic()
        self._sweep()
        _wipe_shared_memory(self._nest)  # others can see these
        tell(self._control, reason=end.reason, detail=end.detail)  # before its own files go, as a call waits for it
        self._wipe()

    def _greet(self, started: int) -> None:
        """The kernel is ready, or lost its pipe in dying."""
        message = os.read(started, 4_096)
        os.close(started)
        self._started = None
        if message:
            close_directory(self._nest, self._uid)
            tell(self._control, **json.loads(message))

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
        pids = self._below()
        shm = self._shm()
        return self._weigh_memory(pids, shm.mb - self._fresh_shm.mb) or self._weigh_files(pids, shm.files - self._fresh_shm.files)

    def _weigh_memory(self, pids: list[int], shm_mb: float) -> End | None:
        limit = self._nest.limits.memory_mb
        held = sum(map(usage.resident_mb, pids)) - self._fresh_mb + shm_mb  # too much where processes share pages
        if held > limit or (len(pids) > 1 and held - self._reported_mb >= _MEMORY_STEP_MB):
            began = time.monotonic()
            if began < self._exact_from:
                return None
            with looking_as(self._uid):
                held = usage.shared_out_mb(pids, shm_mb)
            ended = time.monotonic()
            self._exact_from = ended + min(_EXACT_PAUSE * (ended - began), _LONGEST_PAUSE_S)
            if held > limit:
                return End(KillReason.MEMORY, f"{held:,.0f} MB in {len(pids)} processes")
        if abs(held - self._reported_mb) >= _MEMORY_STEP_MB:
            self._reported_mb = held
            tell(self._control, memory_mb=held)
        return None

    def _weigh_files(self, pids: list[int], shm_files: int) -> End | None:
        if self._own_files:  # their file system holds no more
            return None
        limits = self._nest.limits
        scratch = usage.stored(self._nest.directory, self._uid, limits.scratch_files)
        written = usage.written_mb(os.getpid())  # in processes that have ended
        with looking_as(self._uid):
            written += sum(map(usage.written_mb, pids))
        if scratch.mb > limits.scratch_mb:
            return End(KillReason.DISK, f"{scratch.mb:,.0f} MB stored")
        if written > _REWRITES * limits.scratch_mb:
            return End(KillReason.DISK, f"{written:,.0f} MB written")
        if scratch.files + shm_files > limits.scratch_files:
            return End(KillReason.DISK, f"more than {limits.scratch_files:,} files or directories")
        return None

    def _shm(self) -> usage.Stored:
        return usage.stored(_SHARED_MEMORY, self._uid, self._nest.limits.scratch_files)

    def _below(self) -> list[int]:
        if self._own_pids:
            return [int(name) for name in os.listdir("/proc") if name.isdigit() and name != "1"]
        return usage.descendants(os.getpid())

    def _sweep(self) -> None:
        """Kills everything below this process and waits until it is gone."""
        while True:
            if self._own_pids:
                with suppress(ProcessLookupError):
                    os.kill(-1, signal.SIGKILL)
            else:
                for pid in self._below():
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                return
            time.sleep(0.001)

    def _wipe(self) -> None:
        with suppress(OSError):
            open_directory(self._nest)
            _remove(list(self._nest.directory.iterdir()))


def _wipe_shared_memory(nest: Nest) -> None:
    """Files of a user that only this kernel is; with a file system of its own they go with that."""
    if Guard.USER in nest.limits.guards and Guard.NAMESPACES not in nest.limits.guards:
        with suppress(OSError):
            _remove([path for path in _SHARED_MEMORY.iterdir() if _owner(path) == nest.uid])


def _owner(path: Path) -> int | None:
    with suppress(OSError):
        return path.lstat().st_uid
    return None


def _remove(paths: list[Path]) -> None:
    """Files, and directories however deep and full they are."""
    directories = []
    for path in paths:
        try:
            path.unlink()
        except IsADirectoryError:
            directories.append(str(path))
    for first in range(0, len(directories), _NAMES):
        os.spawnvp(os.P_WAIT, "rm", ["rm", "-rf", "--", *directories[first : first + _NAMES]])


def _end_of(status: int) -> End:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return End(KillReason.EXIT, f"exit code {code}")
    name = signal.Signals(-code).name
    return End(KillReason.CPU_TIME if -code == signal.SIGXCPU else KillReason.CRASH, name)
