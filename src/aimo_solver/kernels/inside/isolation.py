"""Where a kernel lives, and how a process settles there: namespaces, guards, limits, and then it becomes a kernel."""

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
from pathlib import Path
from typing import NoReturn

from aimo_solver.kernels.inside import ipython as kernel_guard
from aimo_solver.kernels.inside import linux as sandbox
from aimo_solver.kernels.inside.usage import PAGE_BYTES
from aimo_solver.kernels.limits import Guard, KernelLimits

_STACK_BYTES = 64 << 20
_RESERVED_BYTES = 4 << 30  # address space without memory: malloc takes 64 MB for every thread
_CPU_SPARE_S = 5  # between SIGXCPU and SIGKILL
_WRITABLE_DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts", "shm")
_CONNECTION_FILE = "connection.json"
_WORK = "work"


@dataclass(frozen=True, slots=True, kw_only=True)
class Nest:
    """Where a kernel lives.

    Attributes:
        directory: holds its connection file, its sockets and, without namespaces, its scratch directory.
        uid: the user id it gets with `Guard.USER`.
        package: a directory that it shall not see.
        limits: with the guards that the system allows, and no others.
    """

    directory: Path
    uid: int
    package: Path
    limits: KernelLimits


def enter_namespaces(nest: Nest, uid: int, *, share_network: bool = False) -> Path:
    """Goes on in a child process with the namespaces among the guards; returns the scratch directory.

    With `share_network` the network namespace is the one that the process is in already.

    Raises:
        OSError: the system does not allow them.
    """
    guards = nest.limits.guards
    if os.geteuid() != 0 and guards & {Guard.NAMESPACES, Guard.NETWORK}:
        sandbox.enter_user_namespace()
    if Guard.NETWORK in guards and not share_network:
        sandbox.unshare(sandbox.CLONE_NEWNET)
    for path in (nest.directory, *nest.directory.iterdir()):
        os.chown(path, uid, -1)
    if Guard.NAMESPACES in guards:
        sandbox.unshare(sandbox.CLONE_NEWNS | sandbox.CLONE_NEWPID | sandbox.CLONE_NEWIPC)
        child = os.fork()
        if child:  # only the child is inside
            os._exit(0 if _detached() else os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        hidden = (nest.directory.parent, nest.package)
        return sandbox.isolate_mounts(nest.directory, hidden, nest.limits.scratch_mb, nest.limits.scratch_files, uid)
    with suppress(OSError):
        sandbox.become_subreaper()
    work = nest.directory / _WORK
    work.mkdir(mode=0o700)
    os.chown(work, uid, -1)
    return work


def close_directory(nest: Nest, uid: int) -> None:
    """Leaves the kernel, whose sockets are bound, no place outside its scratch directory, and nobody the key to its sockets."""
    (nest.directory / _CONNECTION_FILE).unlink(missing_ok=True)
    if Guard.NAMESPACES in nest.limits.guards:
        sandbox.set_read_only(nest.directory, True)
    elif uid != os.geteuid():
        os.chown(nest.directory, os.geteuid(), uid)
        nest.directory.chmod(0o710)
    else:  # Landlock, where there is one, lets it make nothing but sockets there
        nest.directory.chmod(0o500)


def open_directory(nest: Nest) -> None:
    """Undoes `close_directory`, so that the directory can be emptied."""
    if Guard.NAMESPACES in nest.limits.guards:
        sandbox.set_read_only(nest.directory, False)
    nest.directory.chmod(0o700)


def _detached() -> bool:
    """Nobody waits for this process."""
    return signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN


def tell(control: socket.socket, **message: object) -> None:
    """Sends the solver a datagram, if it is still there."""
    with suppress(OSError):
        control.send(json.dumps(message).encode())


def become_kernel(nest: Nest, uid: int, work: Path, control: socket.socket, output: int, started: int) -> NoReturn:
    """Runs a kernel in the scratch directory `work` until it is told to end.

    When its sockets are bound, it writes to the pipe `started` what the warden is to tell the solver.
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
        held = _restrict(nest, uid, work)

        def ready() -> None:
            os.write(started, json.dumps({"guards": sorted(held), "pid": os.getpid()}).encode())
            os.close(started)
            control.close()

        kernel_guard.run_kernel(nest.directory, ready)
    except BaseException:  # noqa: BLE001 - told to the solver, which has nothing else to go by
        tell(control, failed=traceback.format_exc()[-4_000:])
        os._exit(1)
    os._exit(0)


def _restrict(nest: Nest, uid: int, work: Path) -> set[Guard]:
    """Puts up the guards that concern one process; returns all that hold."""
    limits = nest.limits
    held = limits.guards & {Guard.NETWORK, Guard.NAMESPACES}
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, limits.start_nice)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # should the system run out of memory, kernels go first
    if uid != os.geteuid():
        sandbox.switch_user(uid, read_all=needs_to_read_all())
        held |= {Guard.USER}
    else:
        with suppress(OSError):
            sandbox.drop_capabilities()
    with suppress(OSError):
        sandbox.forbid_privileges()
    if Guard.SECCOMP in limits.guards:
        sandbox.filter_calls(connect=Guard.USER in held)  # the sockets of its user's other processes
        held |= {Guard.SECCOMP}
    if Guard.LANDLOCK in limits.guards and Guard.NAMESPACES not in held:
        sandbox.restrict_writes([work, *(Path("/dev", name) for name in _WRITABLE_DEVICES)], sockets=nest.directory)
        held |= {Guard.LANDLOCK}
    with suppress(OSError):
        sandbox.die_with_parent()
    _set_limits(limits, held)
    return set(held)


def needs_to_read_all() -> bool:
    """Python or its packages lie where only their owner can read them."""
    paths = {Path(p).resolve() for p in (sys.executable, *sys.path) if p and Path(p).exists()}
    return any(p.stat().st_mode & 0o005 != 0o005 for path in paths for p in (path, *path.parents))


def _set_limits(limits: KernelLimits, held: frozenset[Guard]) -> None:
    processes = limits.processes
    if not held & {Guard.USER, Guard.NAMESPACES}:  # the limit counts all that this user runs
        processes += _tasks_of_user()
    space, _, _, _, _, data, _ = (int(n) * PAGE_BYTES for n in Path("/proc/self/statm").read_text().split())
    memory = limits.memory_mb << 20
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_FSIZE, limits.scratch_mb << 20),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_STACK, _STACK_BYTES),  # room for deep recursion through C code
        (resource.RLIMIT_DATA, data + memory),
        (resource.RLIMIT_AS, space + 2 * memory + _RESERVED_BYTES),  # memory that is shared, which the above leaves out
    ):
        sandbox.limit(kind, value)
    sandbox.limit(resource.RLIMIT_CPU, limits.cpu_s, spare=_CPU_SPARE_S)


def _tasks_of_user() -> int:
    tasks = 0
    for path in Path("/proc").iterdir():
        with suppress(OSError):
            if path.name.isdigit() and path.stat().st_uid == os.geteuid():
                tasks += len(os.listdir(path / "task"))
    return tasks
