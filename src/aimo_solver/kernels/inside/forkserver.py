"""The process that forks kernels: it has imported what a kernel needs, so that a new one is a fork away.

    solver -- zygote -- warden -- kernel -- whatever the model's code starts
                    `-- warden -- kernel

The solver talks to the zygote over one Unix socket: a datagram per kernel wanted, with two file descriptors, the
warden's own socket and the pipe for the kernel's output. The zygote keeps to one thread and opens no ZMQ context, so
that its forks are sound. It ends when the solver closes its end of the socket or is gone, however it went; so do the
wardens, each with all that is below it; and the zygote removes the pool's directory last.
"""

from __future__ import annotations

import errno
import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import sys
import time
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from aimo_solver.kernels.inside import ipython as kernel_guard
from aimo_solver.kernels.inside import linux as sandbox
from aimo_solver.kernels.inside.isolation import Nest, enter_namespaces, needs_to_read_all, tell
from aimo_solver.kernels.inside.monitor import kill_orphans, run_warden
from aimo_solver.kernels.limits import UIDS_PER_POOL, Guard, ZygoteSpec

REQUEST_BYTES = 4_096
FIRST_UID = 100_000
_SHORTAGES = {errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_SHORT = 2  # exit code of a trial that failed by one of them


def main() -> None:
    """``sys.argv[1:]`` is the socket's file descriptor and a `ZygoteSpec` as JSON."""
    requests = socket.socket(fileno=int(sys.argv[1]))
    spec = ZygoteSpec.from_json(sys.argv[2])
    sys.argv[:] = [""]
    requests.set_inheritable(False)
    solver = watch_process(spec.solver_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    spec = replace(spec, limits=replace(spec.limits, guards=_possible(spec)))
    if Guard.NETWORK in spec.limits.guards and os.geteuid() == 0:
        sandbox.unshare(sandbox.CLONE_NEWNET)  # one for all kernels, as it is the slowest to make
    _preload(spec.preload)
    with suppress(OSError):
        sandbox.become_subreaper()  # of the wardens, each of which leaves its parent for a pid namespace
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the wardens; so none becomes a zombie
    wardens: set[int] = set()
    try:
        _serve(requests, solver, spec, wardens)
    finally:
        requests.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with suppress(ChildProcessError):
            while True:
                _clean_up(spec, wardens)
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    time.sleep(0.01)
        os.execvp("rm", ["rm", "-rf", "--", spec.directory])  # however deep and full it is


def watch_process(pid: int) -> int | None:
    """A descriptor that polls readable when the process is gone; None where the system has none."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _possible(spec: ZygoteSpec) -> frozenset[Guard]:
    """The guards among those wanted that the system allows."""
    return frozenset(guard for guard in spec.limits.guards if _works(spec, guard))


def _works(spec: ZygoteSpec, guard: Guard) -> bool:
    """Tries a guard in a child, as none of them can be taken back; again where the system was only short of something."""
    for pause_s in (0.05, 0.2, 0.5, 0.0):
        code = _trial(spec, guard)
        if code != _SHORT:
            break
        time.sleep(pause_s)
    return code == 0


def _trial(spec: ZygoteSpec, guard: Guard) -> int:
    directory = Path(spec.directory, "trial")
    directory.mkdir()
    child = os.fork()
    if child == 0:
        try:
            _try(spec, guard, directory)
        except OSError as error:
            os._exit(_SHORT if error.errno in _SHORTAGES else 1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    shutil.rmtree(directory)
    return os.waitstatus_to_exitcode(status)


def _try(spec: ZygoteSpec, guard: Guard, directory: Path) -> None:
    match guard:
        case Guard.USER:
            sandbox.switch_user(_uid(0), read_all=needs_to_read_all())
        case Guard.NETWORK | Guard.NAMESPACES:
            limits = replace(spec.limits, guards=frozenset({guard}))
            enter_namespaces(Nest(directory=directory, uid=os.geteuid(), package=Path(spec.package), limits=limits), os.geteuid())
        case Guard.SECCOMP:
            sandbox.forbid_privileges()
            sandbox.filter_calls(connect=False)
        case Guard.LANDLOCK:
            sandbox.forbid_privileges()
            sandbox.restrict_writes([directory], sockets=directory)


def _uid(slot: int) -> int:
    """A user id that no other kernel on this machine has."""
    return FIRST_UID + os.getpid() % (1 << 22) * UIDS_PER_POOL + slot


def _preload(names: tuple[str, ...]) -> None:
    kernel_guard.preload()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            with suppress(ImportError):
                importlib.import_module(name)
    for name in [n for n in sys.modules if n.partition(".")[0] == "aimo_solver"]:
        del sys.modules[name]
    gc.collect()
    gc.freeze()  # so that a collection in a fork leaves these pages shared


def _clean_up(spec: ZygoteSpec, wardens: set[int]) -> None:
    """What a killed warden leaves behind dies with its pid namespace; without one it is below this process."""
    if Guard.NAMESPACES not in spec.limits.guards:
        kill_orphans(wardens)


def _serve(requests: socket.socket, solver: int | None, spec: ZygoteSpec, wardens: set[int]) -> None:
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    if solver is not None:
        poll.register(solver, select.POLLIN)
    while os.getppid() == spec.solver_pid:
        ready = {fd for fd, _ in poll.poll(1_000)}
        if solver in ready:
            return
        _clean_up(spec, wardens)  # before a user id is used again
        if requests.fileno() not in ready:
            continue
        try:
            message, descriptors, _, _ = socket.recv_fds(requests, REQUEST_BYTES, 2)
        except ConnectionResetError:
            return
        if not message:
            return
        if len(descriptors) == 2:  # else there is no room for them here, and the solver sees its ends closed
            wardens.add(_fork(message, descriptors[0], descriptors[1], requests, solver, spec))
        for descriptor in descriptors:
            os.close(descriptor)


def _fork(message: bytes, control: int, output: int, requests: socket.socket, solver: int | None, spec: ZygoteSpec) -> int:
    """A warden for one request; returns its process id.

    Returns 0 if the system has no room for a process: the solver is told, and asks again.
    """
    wanted = json.loads(message)
    nest = Nest(directory=Path(wanted["directory"]), uid=_uid(wanted["slot"]), package=Path(spec.package), limits=spec.limits)
    with socket.socket(fileno=os.dup(control)) as warden:
        tell(warden, forked=True)
        try:
            child = os.fork()
        except OSError as error:
            tell(warden, failed=f"fork: {error}")
            return 0
        if child == 0:
            requests.close()
            os.close(control)
            run_warden(nest, warden, output, solver)
    return child
