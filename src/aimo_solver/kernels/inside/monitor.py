"""The monitor of one kernel: isolates it, starts it, forwards interrupts, checks its usage and kills all its processes.

With `Isolation.NAMESPACES` the monitor is process 1 of a pid namespace, whose processes die together. Otherwise it is the
subreaper of its descendants and kills them until none is left.

Datagrams to the monitor: ``i`` interrupts the kernel, ``l`` marks it as leased, ``k`` or the end of the stream kills it.
Datagrams to the solver are JSON: ``{"isolation"}`` from the kernel when it is ready, ``{"memory_mb"}`` after a large
change, ``{"failed"}`` with a traceback if the start failed, and finally ``{"reason", "detail"}``.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from aimo_solver.kernels.inside import usage
from aimo_solver.kernels.inside.isolation import Sandbox, become_kernel, enter_namespaces, send_message
from aimo_solver.kernels.inside.linux import file_access_as
from aimo_solver.kernels.limits import Ending, Isolation, KillReason

_NICE = 5  # of a leased kernel
_TICK_S = 0.25  # between two checks of a leased kernel's usage
_MEMORY_STEP_MB = 64  # smaller changes are not reported
_EXACT_PAUSE = 4  # pause after an exact measurement of memory, as a multiple of its duration
_LONGEST_PAUSE_S = 1.0
_REWRITES = 4  # times scratch_mb that a kernel may write; unlinked open files show up only in what was written
_SHARED_MEMORY = Path("/dev/shm")  # the only place outside its directory that multiprocessing must write to


def run_monitor(sandbox: Sandbox, control: socket.socket, output: int, calls: int, solver: int | None) -> NoReturn:
    """Turns this process into a monitor with a kernel below it.

    Args:
        output: the pipe for the kernel's output.
        calls: the kernel's socket for calls.
        solver: a descriptor that becomes readable when the solver ends.
    """
    try:
        work = enter_namespaces(sandbox, share_network=os.geteuid() == 0)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _wipe_shared_memory(sandbox)  # of an earlier kernel with this user id whose monitor was killed
        kernel = os.fork()
        if kernel == 0:
            if solver is not None:
                os.close(solver)
            become_kernel(sandbox, work, control, output, calls)
        for fd in (output, calls):
            os.close(fd)
        _Monitor(sandbox, control, kernel, solver).run()
    except BaseException:  # noqa: BLE001 - whatever it is, a forked process must not continue in its parent's code
        send_message(control, failed=traceback.format_exc()[-4_000:])
    os._exit(0)


class _Monitor:
    def __init__(self, sandbox: Sandbox, control: socket.socket, kernel: int, solver: int | None) -> None:
        self._sandbox = sandbox
        self._limits = sandbox.limits
        self._control = control
        self._kernel = kernel
        self._solver = solver
        self._namespaces = sandbox.has(Isolation.NAMESPACES)
        self._fresh_mb = usage.resident_mb(os.getpid())  # mostly shared by all kernels
        self._fresh_shm = self._shm_usage()
        self._reported_mb = 0.0
        self._next_exact = 0.0
        self._leased = False

    def run(self) -> None:
        """Returns when nothing is left of the kernel."""
        end = self._wait_for_end()
        self._kill_all()
        _wipe_shared_memory(self._sandbox)  # visible to other kernels
        send_message(self._control, reason=end.reason, detail=end.detail)  # a call waits for it; private files are removed later
        if not self._namespaces:
            os.spawnvp(os.P_WAIT, "rm", ["rm", "-rf", "--", str(self._sandbox.directory)])

    def _wait_for_end(self) -> Ending:
        wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        poll = select.poll()
        for fd in (self._control.fileno(), wake, self._solver):
            if fd is not None:
                poll.register(fd, select.POLLIN)
        end = self._reap()
        checked = time.monotonic()
        while end is None:
            ready = {fd for fd, _ in poll.poll(_TICK_S * 1_000 if self._leased else None)}
            if wake in ready:
                os.read(wake, 4_096)
            if self._solver in ready:
                end = Ending(None, "the solver is gone")
            elif self._control.fileno() in ready:
                end = self._handle_command()
            end = self._reap() or end
            if end is None and time.monotonic() - checked > _TICK_S:
                end = self._check_usage()
                checked = time.monotonic()
        return end

    def _handle_command(self) -> Ending | None:
        command = self._control.recv(16)
        if command == b"i":
            with suppress(OSError):
                os.killpg(self._kernel, signal.SIGINT)
        elif command == b"l":
            self._leased = True
            for thread in os.listdir(f"/proc/{self._kernel}/task"):
                with suppress(OSError):  # only root may raise a priority
                    os.setpriority(os.PRIO_PROCESS, int(thread), _NICE)
        else:
            return Ending(None, "killed")
        return None

    def _reap(self) -> Ending | None:
        end = None
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                if pid == self._kernel:
                    end = _end_from(status)
        return end

    def _check_usage(self) -> Ending | None:
        pids = self._processes()
        shm = self._shm_usage()
        return self._check_memory(pids, shm.mb - self._fresh_shm.mb) or self._check_files(pids, shm.files - self._fresh_shm.files)

    def _check_memory(self, pids: list[int], shm_mb: float) -> Ending | None:
        limit = self._limits.memory_mb
        held = sum(map(usage.resident_mb, pids)) - self._fresh_mb + shm_mb  # an overestimate where processes share pages
        if held > limit or (len(pids) > 1 and held - self._reported_mb >= _MEMORY_STEP_MB):
            began = time.monotonic()
            if began < self._next_exact:
                return None
            with file_access_as(self._sandbox.uid):
                held = usage.proportional_mb(pids, shm_mb)
            ended = time.monotonic()
            self._next_exact = ended + min(_EXACT_PAUSE * (ended - began), _LONGEST_PAUSE_S)
            if held > limit:
                return Ending(KillReason.MEMORY, f"{held:,.0f} MB in {len(pids)} processes")
        if abs(held - self._reported_mb) >= _MEMORY_STEP_MB:
            self._reported_mb = held
            send_message(self._control, memory_mb=held)
        return None

    def _check_files(self, pids: list[int], shm_files: int) -> Ending | None:
        if self._namespaces:  # the size of their file system is limited
            return None
        limits = self._limits
        scratch = usage.disk_usage(self._sandbox.directory, self._sandbox.uid, limits.scratch_files)
        written = usage.written_mb(os.getpid())  # by processes that have ended
        with file_access_as(self._sandbox.uid):
            written += sum(map(usage.written_mb, pids))
        if scratch.mb > limits.scratch_mb:
            return Ending(KillReason.DISK, f"{scratch.mb:,.0f} MB stored")
        if written > _REWRITES * limits.scratch_mb:
            return Ending(KillReason.DISK, f"{written:,.0f} MB written")
        if scratch.files + shm_files > limits.scratch_files:
            return Ending(KillReason.DISK, f"more than {limits.scratch_files:,} files or directories")
        return None

    def _shm_usage(self) -> usage.DiskUsage:
        return usage.disk_usage(_SHARED_MEMORY, self._sandbox.uid, self._limits.scratch_files)

    def _processes(self) -> list[int]:
        if self._namespaces:
            return [int(name) for name in os.listdir("/proc") if name.isdigit() and name != "1"]
        return usage.descendants(os.getpid())

    def _kill_all(self) -> None:
        """Kills everything below this process and waits until it is gone."""
        while True:
            for pid in [-1] if self._namespaces else self._processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                return
            time.sleep(0.001)


def _end_from(status: int) -> Ending:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return Ending(KillReason.EXIT, f"exit code {code}")
    name = signal.Signals(-code).name
    return Ending(KillReason.CPU_TIME if -code == signal.SIGXCPU else KillReason.CRASH, name)


def _wipe_shared_memory(sandbox: Sandbox) -> None:
    """Removes the kernel's files in /dev/shm, if its user id identifies them and the directory is shared."""
    if sandbox.has(Isolation.USER) and not sandbox.has(Isolation.NAMESPACES):
        own = str(_SHARED_MEMORY), "-mindepth", "1", "-maxdepth", "1", "-user", str(sandbox.uid)
        os.spawnvp(os.P_WAIT, "find", ["find", *own, "-exec", "rm", "-rf", "--", "{}", "+"])
