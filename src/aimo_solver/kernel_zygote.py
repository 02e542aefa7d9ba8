"""The process that forks kernels: it has imported everything a kernel needs, so that a new kernel is one fork away.

    solver ── zygote ── warden ── kernel ── whatever the model's code starts
                     └─ warden ── kernel

The solver talks to the zygote over one Unix socket: a datagram per kernel wanted, with two file descriptors, the warden's own socket and
the pipe for the kernel's output. The zygote keeps to a single thread and opens no ZMQ context, so its forks are sound. It ends, and with
it everything below, when the solver's end of the socket closes or the solver's process is gone, however it went.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aimo_solver import kernel_guard, kernel_sandbox
from aimo_solver.kernel_limits import Guard, KernelLimits
from aimo_solver.kernel_warden import Nest, run_warden

REQUEST_BYTES = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class ZygoteSpec:
    """What a zygote is started with.

    Attributes:
        directory: the pool's directory; the zygote removes it when the solver is gone.
        solver_pid: the process it must not outlive.
        package: the library's own source directory, hidden from the kernels where possible.
        preload: modules imported before the first fork; one that is missing is passed over.
    """

    directory: str
    solver_pid: int
    package: str
    preload: tuple[str, ...]
    limits: KernelLimits

    @classmethod
    def from_json(cls, text: str) -> ZygoteSpec:
        values = json.loads(text)
        limits = values.pop("limits")
        guards = tuple(Guard(g) for g in limits.pop("guards"))
        return cls(**{**values, "preload": tuple(values["preload"])}, limits=KernelLimits(**limits, guards=guards))


def main() -> None:
    """Runs until the solver is gone. ``sys.argv`` is: the socket's file descriptor, a `ZygoteSpec` as JSON."""
    requests = socket.socket(fileno=int(sys.argv[1]))
    spec = ZygoteSpec.from_json(sys.argv[2])
    sys.argv[:] = [""]
    requests.set_inheritable(False)
    solver = _watch(spec.solver_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the wardens, so none becomes a zombie
    guards = _enter_shared_guards(spec.limits)
    _preload(spec.preload)
    requests.send(json.dumps({"guards": guards}).encode())
    try:
        _serve(requests, solver, spec, guards)
    finally:
        if os.getppid() != spec.solver_pid:
            _wait_for_wardens()
            shutil.rmtree(spec.directory, ignore_errors=True)


def _watch(pid: int) -> int | None:
    """A descriptor that polls readable when the process is gone; None where the system has none."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _preload(names: tuple[str, ...]) -> None:
    kernel_guard.preload()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            try:
                importlib.import_module(name)
            except ImportError:
                continue
    for name in [n for n in sys.modules if n.partition(".")[0] == "aimo_solver"]:
        del sys.modules[name]
    gc.collect()
    gc.freeze()  # a collection in a fork then leaves these pages shared


def _enter_shared_guards(limits: KernelLimits) -> list[str]:
    """Guards that all kernels of the pool share and that need no setting up per kernel; returns those that hold."""
    held = []
    if os.geteuid() != 0 and limits.guards:
        try:
            kernel_sandbox.enter_user_namespace()
        except OSError:
            return held
    if Guard.NETWORK in limits.guards:
        try:
            kernel_sandbox.unshare(kernel_sandbox.CLONE_NEWNET)
            held.append(Guard.NETWORK.value)
        except OSError:
            pass
    return held


def _serve(requests: socket.socket, solver: int | None, spec: ZygoteSpec, guards: list[str]) -> None:
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    if solver is not None:
        poll.register(solver, select.POLLIN)
    while os.getppid() == spec.solver_pid:
        ready = {fd for fd, _ in poll.poll(1_000)}
        if solver in ready:
            return
        if requests.fileno() not in ready:
            continue
        try:
            message, fds, _, _ = socket.recv_fds(requests, REQUEST_BYTES, 2)
        except ConnectionResetError:
            return
        if not message:
            return
        request: dict[str, Any] = json.loads(message)
        control, output = fds
        if os.fork() == 0:
            requests.close()
            nest = Nest(
                directory=Path(request["directory"]),
                uid=request["uid"],
                package=Path(spec.package),
                limits=spec.limits,
                held=tuple(guards),
            )
            run_warden(nest, socket.socket(fileno=control), output, solver)
        os.close(control)
        os.close(output)


def _wait_for_wardens() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        while True:
            os.wait()
    except ChildProcessError:
        pass
