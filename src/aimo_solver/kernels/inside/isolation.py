"""Isolates a process step by step (namespaces, user, system call filter, limits) and turns it into a kernel."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass
from mmap import PAGESIZE
from pathlib import Path
from typing import NoReturn

from aimo_solver.kernels.inside import ipython, linux
from aimo_solver.kernels.limits import Isolation, KernelLimits

_START_NICE = 15  # until the kernel is leased
_STACK_BYTES = 64 << 20
_RESERVED_BYTES = 4 << 30  # address space that takes no memory: malloc reserves 64 MB for every thread
_CPU_SPARE_S = 5  # between SIGXCPU and SIGKILL
_WRITABLE_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """What confines one kernel.

    Attributes:
        directory: its scratch directory; not used with namespaces, which have a file system of their own.
        uid: the user id it runs as.
        package: a directory to hide from it.
        limits: with the isolation that the system allows, and no other.
    """

    directory: Path
    uid: int
    package: Path
    limits: KernelLimits

    def has(self, isolation: Isolation) -> bool:
        return isolation in self.limits.isolation


def send_message(control: socket.socket, **message: object) -> None:
    """Sends the solver a datagram, if it still exists."""
    with suppress(OSError):
        control.send(json.dumps(message).encode())


def enter_namespaces(sandbox: Sandbox, *, share_network: bool = False) -> Path:
    """Continues in a child process with the namespaces of the sandbox; returns the scratch directory.

    With `share_network` the process is already in the network namespace.

    Raises:
        OSError: the system does not allow them.
    """
    if os.geteuid() != 0 and (sandbox.has(Isolation.NAMESPACES) or sandbox.has(Isolation.NETWORK)):
        linux.enter_user_namespace()
    if sandbox.has(Isolation.NETWORK) and not share_network:
        linux.unshare(linux.CLONE_NEWNET)
    if sandbox.has(Isolation.NAMESPACES):
        linux.unshare(linux.CLONE_NEWNS | linux.CLONE_NEWPID | linux.CLONE_NEWIPC)
        child = os.fork()
        if child:  # only the child is inside
            awaited = signal.getsignal(signal.SIGCHLD) is not signal.SIG_IGN
            os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if awaited else 0)
        hidden, limits = (sandbox.directory.parent, sandbox.package), sandbox.limits
        return linux.isolate_mounts(hidden, limits.scratch_mb, limits.scratch_files, sandbox.uid)
    with suppress(OSError):
        linux.become_subreaper()
    os.chown(sandbox.directory, sandbox.uid, -1)
    return sandbox.directory


def become_kernel(sandbox: Sandbox, work: Path, control: socket.socket, output: int, calls: int) -> NoReturn:
    """Runs a kernel in the scratch directory `work` until it is told to end.

    Args:
        control: gets a message when the kernel is ready for calls, and is then closed.
        output: the pipe for its output.
        calls: its socket for calls.
    """
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        os.close(null)
        os.close(output)
        os.environ.update(HOME=str(work), TMPDIR=str(work), IPYTHONDIR=str(work / ".ipython"), PWD=str(work))
        os.chdir(work)
        active = restrict(sandbox, work)

        def report_ready() -> None:
            send_message(control, isolation=sorted(active))
            control.close()

        os.set_inheritable(calls, False)  # a received descriptor is inheritable
        ipython.run_kernel(socket.socket(fileno=calls), report_ready)
    except BaseException:  # noqa: BLE001 - the same as in `run_monitor`
        send_message(control, failed=traceback.format_exc()[-4_000:])
        os._exit(1)
    os._exit(0)


def restrict(sandbox: Sandbox, work: Path) -> set[Isolation]:
    """Applies the isolation and limits of a single process; returns all isolation that is active. Raises OSError."""
    limits = sandbox.limits
    active = set(limits.isolation & {Isolation.NETWORK, Isolation.NAMESPACES})
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, _START_NICE)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # kernels are the first to go if the system runs out of memory
    if sandbox.uid != os.geteuid():
        linux.switch_user(sandbox.uid, read_all=needs_to_read_all())
        active.add(Isolation.USER)
    else:
        with suppress(OSError):
            linux.drop_capabilities()
    with suppress(OSError):
        linux.forbid_privileges()
    if sandbox.has(Isolation.SECCOMP):
        # without a user of its own, the kernel could connect to sockets of the solver's user
        linux.filter_syscalls(allow_connect=Isolation.USER in active)
        active.add(Isolation.SECCOMP)
    if sandbox.has(Isolation.LANDLOCK) and not sandbox.has(Isolation.NAMESPACES):
        linux.restrict_writes([work, *(Path("/dev", name) for name in _WRITABLE_DEVICES)])
        active.add(Isolation.LANDLOCK)
    with suppress(OSError):
        linux.die_with_parent()
    _set_limits(limits, count_user=not active & {Isolation.USER, Isolation.NAMESPACES})
    return active


def needs_to_read_all() -> bool:
    """Whether Python or its packages are readable only by their owner."""
    paths = {Path(p).resolve() for p in (sys.executable, *sys.path) if p and Path(p).exists()}
    return any(p.stat().st_mode & 0o005 != 0o005 for path in paths for p in (path, *path.parents))


def _set_limits(limits: KernelLimits, count_user: bool) -> None:
    """Sets the resource limits. With `count_user`, processes that the solver's user already runs are added to RLIMIT_NPROC."""
    space, _, _, _, _, data, _ = (int(n) * PAGESIZE for n in Path("/proc/self/statm").read_text().split())
    memory = limits.memory_mb << 20
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_FSIZE, limits.scratch_mb << 20),
        (resource.RLIMIT_NPROC, limits.processes + (_tasks_of_user() if count_user else 0)),
        (resource.RLIMIT_STACK, _STACK_BYTES),  # room for deep recursion through C code
        (resource.RLIMIT_DATA, data + memory),
        (resource.RLIMIT_AS, space + 2 * memory + _RESERVED_BYTES),  # shared memory, which RLIMIT_DATA does not count
    ):
        linux.set_limit(kind, value)
    linux.set_limit(resource.RLIMIT_CPU, limits.cpu_s, spare=_CPU_SPARE_S)


def _tasks_of_user() -> int:
    tasks = 0
    for path in Path("/proc").iterdir():
        with suppress(OSError):
            if path.name.isdigit() and path.stat().st_uid == os.geteuid():
                tasks += len(os.listdir(path / "task"))
    return tasks
