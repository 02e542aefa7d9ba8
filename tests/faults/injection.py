"""Makes calls to the operating system fail, inside the process that makes them.

Python raises an audit event before such a call (https://docs.python.org/3/library/audit_events.html), and an exception
raised by a hook comes out of the call. So no code under test is replaced, and calls added later fail as well. Two calls have no
event: writing to an open file, for which files are opened as a subclass whose `write` fails, and the start of a thread,
which is wrapped.

The forkserver of the kernels, and with it the kernels, get a fault by a line in front of the code they are started with.
This module imports only the standard library, so that it can be imported there.
"""

from __future__ import annotations

import builtins
import errno
import io
import json
import mmap
import os
import socket
import struct
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SOLVER, FORKSERVER, KERNEL = "solver", "forkserver", "kernel"
WRITE, THREAD = "write", "thread"
FORKSERVER_MARK = "kernels.inside.forkserver"  # in the code with which the forkserver is started


@dataclass(frozen=True)
class Failing:
    """A call that fails.

    Attributes:
        call: the audit event's name, `WRITE` or `THREAD`.
        error: the name of an errno; "RuntimeError" is what a thread that cannot be started raises.
        holding: text that the call's arguments must contain.
        process: `SOLVER`, `FORKSERVER`, or `KERNEL` for all processes forked by the forkserver. In the solver, calls of the
            main thread succeed: it is the notebook's, and without an event loop there is no run.
    """

    call: str
    error: str
    holding: str = ""
    process: str = SOLVER

    def exception(self) -> Exception:
        if self.error == "RuntimeError":
            return RuntimeError("can't start new thread")
        number = getattr(errno, self.error)
        return OSError(number, f"{os.strerror(number)} (injected)")


class Tally:
    """A number shared by processes through a file, also after a fork."""

    def __init__(self, path: Path | str) -> None:
        with open(path, "ab") as file:
            file.truncate(8)
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 8)
        self._lock = threading.Lock()

    @property
    def value(self) -> int:
        number: int = struct.unpack("q", self._map[:])[0]
        return number

    def up(self) -> int:
        with self._lock:
            number = self.value + 1
            self._map[:] = struct.pack("q", number)
            return number


class _Injector:
    """Fails the first `times` matching calls of this process and of those it forks."""

    def __init__(self, failing: Failing, times: int, tally: Tally) -> None:
        self._failing = failing
        self._times = times
        self._tally = tally
        self._home = os.getpid()
        self._busy = threading.local()

    def arm(self) -> None:
        if self._failing.call == WRITE:
            self._open_files_that_fail()
        elif self._failing.call == THREAD:
            self._start_threads_that_fail()
        else:
            sys.addaudithook(self._on_event)

    def fail(self) -> None:
        """Raises the error if this process is meant and calls are left to fail."""
        if (self._failing.process == KERNEL) == (os.getpid() == self._home):
            return
        if self._failing.process == SOLVER and threading.current_thread() is threading.main_thread():
            return
        if self._tally.value < self._times and self._tally.up() <= self._times:
            raise self._failing.exception()

    def _on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != self._failing.call or getattr(self._busy, "now", False):
            return
        self._busy.now = True  # formatting the arguments may open files
        try:
            if event == "open" and isinstance(arguments[0], int):
                return
            matches = self._failing.holding in _as_text(event, arguments)
        finally:
            self._busy.now = False
        if matches:
            self.fail()

    def _open_files_that_fail(self) -> None:
        original, injector, holding = io.open, self, self._failing.holding

        class FailingFile(io.FileIO):
            def write(self, data: Any) -> int:
                injector.fail()
                return super().write(data)

        def opened(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **named: Any) -> Any:
            if isinstance(file, int):
                return original(file, mode, buffering, *rest, **named)
            if buffering == 0 and "r" not in mode and holding in os.fspath(file):
                return FailingFile(file, mode.replace("b", ""))
            if mode == "wb" and holding in os.fspath(file):
                return io.BufferedWriter(FailingFile(file, "w"))
            return original(file, mode, buffering, *rest, **named)

        io.open = builtins.open = opened

    def _start_threads_that_fail(self) -> None:
        original, injector = threading.Thread.start, self

        def start(self: threading.Thread) -> None:
            injector.fail()
            original(self)

        threading.Thread.start = start  # type: ignore[method-assign]


def _as_text(event: str, arguments: tuple[Any, ...]) -> str:
    if event == "socket.__new__":
        return "" if arguments[1] < 0 else str(socket.AddressFamily(arguments[1]).name)  # less for a known descriptor
    return " ".join(map(str, arguments))


class Created:
    """Records the files and directories that this process creates from now on."""

    def __init__(self) -> None:
        self._paths: set[str] = set()
        sys.addaudithook(self._on_event)

    def remaining(self, *places: str) -> list[str]:
        """Returns the recorded paths below `places` that exist."""
        below = tuple(f"{place}/" for place in places)
        return sorted(path for path in list(self._paths) if path.startswith(below) and os.path.lexists(path))

    def _on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        opens = event == "open" and not isinstance(arguments[0], int) and arguments[2] & os.O_CREAT
        if event == "os.mkdir" or opens:
            self._paths.add(os.path.abspath(os.fsdecode(arguments[0])))


def arm(failing: Failing, times: int, tally: Path) -> None:
    """Makes the next `times` matching calls fail; `tally` counts them."""
    if failing.process == SOLVER:
        _Injector(failing, times, Tally(tally)).arm()
    else:
        _arm_forkserver(failing, times, tally)


def _arm_forkserver(failing: Failing, times: int, tally: Path) -> None:
    order = json.dumps([asdict(failing), times, str(tally)])
    before_forkserver(f"injection.arm_here({order!r})")


def before_forkserver(statement: str) -> None:
    """Makes the forkserver run a statement first, with this module imported."""
    prefix = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import injection; del sys.path[0]; {statement}\n"
    original: Callable[..., None] = subprocess.Popen.__init__

    def start(self: subprocess.Popen[bytes], args: Sequence[str], *rest: Any, **named: Any) -> None:
        if len(args) > 2 and args[1] == "-c" and FORKSERVER_MARK in args[2]:
            args = [*args[:2], prefix + args[2], *args[3:]]
        original(self, args, *rest, **named)

    subprocess.Popen.__init__ = start  # type: ignore[method-assign,assignment]


def arm_here(order: str) -> None:
    """`arm`, inside the forkserver."""
    failing, times, tally = json.loads(order)
    _Injector(Failing(**failing), times, Tally(tally)).arm()


def leave_out_sympy() -> None:
    """Replaces sympy by an empty module: its import is half of the forkserver's start, and no problem here needs it."""
    for name in ("sympy", "sympy.core", "sympy.core.random", "mpmath"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["sympy.core.random"].seed = lambda _: None  # type: ignore[attr-defined]
    sys.modules["mpmath"].mp = types.SimpleNamespace()  # type: ignore[attr-defined]
