"""The forkserver: a process that has imported what a kernel needs, so that starting a kernel takes one fork.

    solver -- forkserver -- monitor -- kernel -- processes of the model's code
                        `-- monitor -- kernel

Over a Unix socket, the solver sends a `ForkserverSpec`, then one datagram per kernel, for example
``{"directory": "/tmp/aimo-kernels-x/k0", "slot": 0}``, with three file descriptors: the monitor's socket, the pipe for the
kernel's output and its socket for calls. The forkserver has one thread, which makes its forks safe. It ends when the solver
closes the socket or dies in any way; so do the monitors, each with all processes below it. Finally the forkserver removes the
pool's directory.
"""

from __future__ import annotations

import errno
import gc
import importlib
import json
import os
import pickle
import select
import shutil
import signal
import socket
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from aimo_solver.kernels.inside import ipython, linux, usage
from aimo_solver.kernels.inside.isolation import Sandbox, enter_namespaces, restrict, send_message
from aimo_solver.kernels.inside.monitor import run_monitor
from aimo_solver.kernels.limits import UIDS_PER_POOL, ForkserverSpec, Isolation

_SPEC_BYTES = 65_536
_REQUEST_BYTES = 4_096
_FIRST_UID = 100_000
_SHORTAGES = {errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_SHORTAGE_CODE = 2  # exit code of a trial that failed for one of them
_TRIAL_PAUSES_S = (0.05, 0.2, 0.5, 0.0)


def main() -> None:
    """Serves requests until the solver ends. ``sys.argv[1]`` is the socket's file descriptor."""
    requests = socket.socket(fileno=int(sys.argv[1]))
    spec: ForkserverSpec = pickle.loads(requests.recv(_SPEC_BYTES))
    sys.argv[:] = [""]
    requests.set_inheritable(False)
    solver = _open_pidfd(spec.solver_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    allowed = frozenset(isolation for isolation in spec.limits.isolation if _works(spec, isolation))
    spec = replace(spec, limits=replace(spec.limits, isolation=allowed))
    if Isolation.NETWORK in allowed and os.geteuid() == 0:
        linux.unshare(linux.CLONE_NEWNET)  # shared by all kernels, as a network namespace is slow to create
    _preload(spec)
    with suppress(OSError):
        linux.become_subreaper()  # monitors leave their parent when they enter a pid namespace
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that no monitor becomes a zombie
    monitors: set[int] = set()
    try:
        _serve(requests, solver, spec, monitors)
    finally:
        requests.close()
        _end(spec, monitors)


def _end(spec: ForkserverSpec, monitors: set[int]) -> NoReturn:
    """Waits for all monitors and removes the pool's directory."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with suppress(ChildProcessError):
        while True:
            _kill_orphans(spec, monitors)
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.01)
    os.execvp("rm", ["rm", "-rf", "--", str(spec.directory)])  # removes trees of any depth


def _open_pidfd(pid: int) -> int | None:
    """Returns a descriptor that becomes readable when the process ends; None where the system provides none."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _works(spec: ForkserverSpec, isolation: Isolation) -> bool:
    """Tries one kind of isolation in a child process, repeatedly while the system is short of resources."""
    for pause_s in _TRIAL_PAUSES_S:
        code = _try_in_child(spec, isolation)
        if code != _SHORTAGE_CODE:
            break
        time.sleep(pause_s)
    return code == 0


def _try_in_child(spec: ForkserverSpec, isolation: Isolation) -> int:
    directory = spec.directory / "trial"
    directory.mkdir()
    child = os.fork()
    if child == 0:
        uid = _uid(0) if isolation is Isolation.USER else os.geteuid()
        limits = replace(spec.limits, isolation=frozenset({isolation}))
        sandbox = Sandbox(directory=directory, uid=uid, package=spec.package, limits=limits)
        try:
            restrict(sandbox, enter_namespaces(sandbox))
        except OSError as error:
            os._exit(_SHORTAGE_CODE if error.errno in _SHORTAGES else 1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    shutil.rmtree(directory)
    return os.waitstatus_to_exitcode(status)


def _uid(slot: int) -> int:
    """Returns a user id that no other kernel on this machine has."""
    return _FIRST_UID + os.getpid() % (1 << 22) * UIDS_PER_POOL + slot


def _preload(spec: ForkserverSpec) -> None:
    ipython.preload()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in spec.preload:
            with suppress(ImportError):
                importlib.import_module(name)
    for name in [n for n in sys.modules if n.partition(".")[0] == "aimo_solver"]:
        del sys.modules[name]
    gc.collect()
    gc.freeze()  # a collection in a fork then leaves these pages shared


def _serve(requests: socket.socket, solver: int | None, spec: ForkserverSpec, monitors: set[int]) -> None:
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    if solver is not None:
        poll.register(solver, select.POLLIN)
    while os.getppid() == spec.solver_pid:
        ready = {fd for fd, _ in poll.poll(1_000)}
        if solver in ready:
            return
        _kill_orphans(spec, monitors)  # before their user id is used again
        if requests.fileno() not in ready:
            continue
        try:
            message, descriptors, _, _ = socket.recv_fds(requests, _REQUEST_BYTES, 3)
        except ConnectionResetError:
            return
        if not message:
            return
        if len(descriptors) == 3:  # fewer if this process has too many open; the solver then finds its ends closed
            monitors.add(_fork_monitor(message, descriptors, requests, solver, spec))
        for descriptor in descriptors:
            os.close(descriptor)


def _kill_orphans(spec: ForkserverSpec, monitors: set[int]) -> None:
    """Kills children that are not monitors, which killed monitors left behind; removes ended monitors from `monitors`."""
    if Isolation.NAMESPACES in spec.limits.isolation:  # orphans died with their pid namespace
        return
    children = set(usage.children(os.getpid()))
    monitors &= children
    for orphan in children - monitors:
        for pid in (orphan, *usage.descendants(orphan)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _fork_monitor(
    message: bytes, descriptors: Sequence[int], requests: socket.socket, solver: int | None, spec: ForkserverSpec
) -> int:
    """Forks a monitor for a request; returns its process id, or 0 after a failure that was reported to the solver."""
    request = json.loads(message)
    control, output, calls = descriptors
    uid = _uid(request["slot"]) if Isolation.USER in spec.limits.isolation else os.geteuid()
    sandbox = Sandbox(directory=Path(request["directory"]), uid=uid, package=spec.package, limits=spec.limits)
    with socket.socket(fileno=os.dup(control)) as own_control:
        send_message(own_control, forked=True)
        try:
            child = os.fork()
        except OSError as error:
            send_message(own_control, failed=f"fork: {error}")
            return 0
        if child == 0:
            requests.close()
            os.close(control)
            run_monitor(sandbox, own_control, output, calls, solver)
    return child
