"""One small process per kernel that puts up its guards, starts it, passes interrupts on, and lets nothing outlive it.

Where the system allows it the warden is process 1 of a pid namespace, so that whatever the kernel started dies at one stroke.
Elsewhere it is the subreaper of its descendants and kills them until none is left.

Datagrams to the warden: ``i`` interrupt the kernel, ``l`` it is leased now, ``k`` kill it; the end of the stream means kill, too.
Datagrams from it, JSON: ``{"ready": [guards], "pid"}``, ``{"memory_mb": n}`` when that changed much, and last ``{"reason", "detail"}``.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from aimo_solver import kernel_guard
from aimo_solver import kernel_sandbox as sandbox
from aimo_solver.kernel_limits import Guard, KernelLimits, KillReason

TICK_S = 0.25
_PAGE = os.sysconf("SC_PAGE_SIZE")
_MEMORY_STEP_MB = 64  # changes smaller than this are not reported
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Nest:
    """Where a kernel lives.

    Attributes:
        directory: its directory, with the connection file; sockets are created here.
        uid: the user id it gets where that is possible.
        package: directory that it shall not see.
        held: guards that hold already.
    """

    directory: Path
    uid: int
    package: Path
    limits: KernelLimits
    held: tuple[str, ...]


class Warden:
    """The loop of the process described above."""

    def __init__(self, nest: Nest, control: socket.socket, solver: int | None) -> None:
        self.nest = nest
        self.control = control
        self.solver = solver
        self.held = list(nest.held)
        self.own_pids = Guard.PIDS in nest.limits.guards and self._allowed(sandbox.CLONE_NEWPID | sandbox.CLONE_NEWIPC)
        if self.own_pids and os.fork():
            os._exit(0)  # only the child is inside
        if self.own_pids:
            self.held.append(Guard.PIDS.value)
        else:
            with suppress(OSError):
                sandbox.become_subreaper()
        self.uid = nest.uid if os.geteuid() == 0 and Guard.USER in nest.limits.guards else os.geteuid()
        self.work = self._enter_mounts()
        self.kernel = 0
        self.reported_mb = 0.0
        self.base_mb = 0.0

    @staticmethod
    def _allowed(namespaces: int) -> bool:
        try:
            sandbox.unshare(namespaces)
        except OSError:
            return False
        return True

    def _enter_mounts(self) -> Path:
        directory = self.nest.directory
        if self.uid != os.geteuid():
            for path in (directory, *directory.iterdir()):
                os.chown(path, self.uid, -1)
        if Guard.MOUNTS in self.nest.limits.guards:
            try:
                work = sandbox.isolate_mounts(directory, self.nest.package, self.nest.limits.scratch_mb, self.uid, self.own_pids)
                self.held.append(Guard.MOUNTS.value)
                return work
            except OSError as error:
                if Path("/tmp/work").exists():
                    raise  # half-way in
                del error
        work = directory / "work"
        work.mkdir()
        os.chown(work, self.uid, -1)
        return work

    def start(self, output: int) -> None:
        """Forks the kernel."""
        self.kernel = os.fork()
        if self.kernel == 0:
            try:
                os.setsid()
                self._be_kernel(output)
            except BaseException:
                self.control.send(json.dumps({"failed": traceback.format_exc()[-4_000:]}).encode())
            finally:
                os._exit(1)
        os.close(output)

    def _be_kernel(self, output: int) -> None:
        for number in (signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(null)
        os.close(output)
        if self.solver is not None:
            os.close(self.solver)
        os.environ.update(HOME=str(self.work), TMPDIR=str(self.work), IPYTHONDIR=str(self.work / ".ipython"), PWD=str(self.work))
        os.chdir(self.work)
        self._restrict()
        control = self.control
        kernel_guard.run_kernel(
            self.nest.directory,
            on_ready=lambda: (control.send(json.dumps({"ready": self.held, "pid": os.getpid()}).encode()), control.close()),
        )
        sys.stdout.flush()
        os._exit(0)

    def _restrict(self) -> None:
        limits = self.nest.limits
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, limits.start_nice)
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")
        if self.uid != os.geteuid():
            self._switch_user()
        elif os.geteuid() == 0:
            with suppress(OSError):
                sandbox.drop_capabilities()
        with suppress(OSError):
            sandbox.drop_privileges()
        if Guard.SECCOMP in limits.guards:
            with suppress(OSError):
                sandbox.forbid_sockets()
                self.held.append(Guard.SECCOMP.value)
        if Guard.LANDLOCK in limits.guards and Guard.MOUNTS.value not in self.held:
            with suppress(OSError):
                sandbox.restrict_writes([self.nest.directory, *(Path("/dev", d) for d in _DEVICES)])
                self.held.append(Guard.LANDLOCK.value)
        self._set_limits()

    def _switch_user(self) -> None:
        prefixes = {Path(p) for p in (sys.executable, *sys.path) if p and Path(p).exists()}
        hidden = any(not _readable_by_all(p) for p in prefixes)
        try:
            sandbox.switch_user(self.uid, read_all=hidden)
        except OSError:
            if os.geteuid() == 0:
                raise
        self.held.append(Guard.USER.value)

    def _set_limits(self) -> None:
        limits = self.nest.limits
        sandbox.limit(resource.RLIMIT_CORE, 0)
        sandbox.limit(resource.RLIMIT_CPU, limits.cpu_s)
        sandbox.limit(resource.RLIMIT_NOFILE, limits.open_files)
        sandbox.limit(resource.RLIMIT_FSIZE, limits.scratch_mb << 20)
        sandbox.limit(resource.RLIMIT_NPROC, limits.processes)
        sandbox.limit(resource.RLIMIT_STACK, 64 << 20)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        sandbox.limit(resource.RLIMIT_AS, pages * _PAGE + (limits.memory_mb << 20))

    def watch(self) -> None:
        """Returns when nothing below is left."""
        wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        poll = select.poll()
        for fd in (self.control.fileno(), wake, self.solver):
            if fd is not None:
                poll.register(fd, select.POLLIN)
        end = None
        while end is None:
            ready = {fd for fd, _ in poll.poll(TICK_S * 1_000)}
            if wake in ready:
                os.read(wake, 4_096)
            end = self._reap()
            if end is None and self.solver in ready:
                end = {"reason": None, "detail": "the solver is gone"}
            if end is None and self.control.fileno() in ready:
                end = self._obey()
            if end is None and not ready:
                end = self._weigh()
        self._sweep()
        with suppress(OSError):
            self.control.send(json.dumps(end).encode())

    def _obey(self) -> dict[str, str | None] | None:
        command = self.control.recv(16)
        if command == b"i":
            with suppress(OSError):
                os.killpg(self.kernel, signal.SIGINT)
        elif command == b"l":
            for thread in os.listdir(f"/proc/{self.kernel}/task"):
                with suppress(OSError):
                    os.setpriority(os.PRIO_PROCESS, int(thread), self.nest.limits.nice)
        else:
            return {"reason": None, "detail": "killed on request"}
        return None

    def _reap(self) -> dict[str, str | None] | None:
        end = None
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                if pid == self.kernel:
                    end = _obituary(status)
        return end

    def _weigh(self) -> dict[str, str | None] | None:
        pids = self._descendants()
        held = sum(_resident_mb(pid) for pid in pids)
        limit = self.nest.limits.memory_mb + self.base_mb
        if held > limit:
            held = sum(_proportional_mb(pid) for pid in pids)  # exact where processes share pages, but slow
            if held > limit:
                return {"reason": KillReason.MEMORY.value, "detail": f"{held:.0f} MB in {len(pids)} processes"}
        if abs(held - self.reported_mb) >= _MEMORY_STEP_MB:
            self.reported_mb = held
            with suppress(OSError):
                self.control.send(json.dumps({"memory_mb": held}).encode())
        return None

    def _descendants(self) -> list[int]:
        if self.own_pids:
            return [int(name) for name in os.listdir("/proc") if name.isdigit() and name != "1"]
        found: list[int] = []
        frontier = [os.getpid()]
        while frontier:
            children = [c for pid in frontier for c in _children(pid)]
            found += children
            frontier = children
        return found

    def _sweep(self) -> None:
        """Kills everything below this process and waits until it is gone."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if self.own_pids:
                with suppress(ProcessLookupError):
                    os.kill(-1, signal.SIGKILL)
            else:
                for pid in self._descendants():
                    with suppress(OSError):
                        os.kill(pid, signal.SIGKILL)
            try:
                while os.waitpid(-1, 0 if self.own_pids else os.WNOHANG)[0]:
                    pass
                time.sleep(0.001)
            except ChildProcessError:
                return


def run_warden(nest: Nest, control: socket.socket, output: int, solver: int | None) -> NoReturn:
    """Becomes a warden with a kernel below it."""
    try:
        warden = Warden(nest, control, solver)
        warden.start(output)
        warden.watch()
    except BaseException:
        with suppress(OSError):
            control.send(json.dumps({"failed": traceback.format_exc()[-4_000:]}).encode())
    os._exit(0)


def _obituary(status: int) -> dict[str, str | None]:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return {"reason": KillReason.EXIT.value, "detail": f"exit code {code}"}
    name = signal.Signals(-code).name
    if -code == signal.SIGXCPU:
        return {"reason": KillReason.CPU_TIME.value, "detail": name}
    return {"reason": KillReason.CRASH.value, "detail": name}


def _readable_by_all(path: Path) -> bool:
    return all(p.stat().st_mode & 0o5 == 0o5 for p in (path.resolve(), *path.resolve().parents))


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    return found


def _resident_mb(pid: int) -> float:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE / 2**20
    return 0.0


def _proportional_mb(pid: int) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return _resident_mb(pid)
