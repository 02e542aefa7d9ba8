"""The kernel: IPython in an event loop, with output into a pipe and one reply per call, which holds the value or the error.

Output uses the process's file descriptors 1 and 2. It therefore reaches the solver in the order in which it was written,
including that of child processes and C code, even if the next line never returns to the interpreter; and a full pipe blocks a
process that floods it. As in a Jupyter kernel, the event loop runs while cells do: a cell can await, and its tasks go on between
calls.
"""

# mypy: disable-error-code="no-untyped-call, override"

from __future__ import annotations

import asyncio
import builtins
import faulthandler
import importlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, NoReturn

from IPython.core import inputtransformer2
from IPython.core.compilerop import CachingCompiler
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import ExecutionResult, InteractiveShell
from traitlets import Type
from traitlets.config import Config

from aimo_solver.kernels.inside import formatting

# modules that a session finds imported, by the name it uses for them
_NAMES = {
    **{name: name for name in ("collections", "fractions", "functools", "itertools", "math", "mpmath", "numpy", "sympy")},
    "np": "numpy",
    "sp": "sympy",
}
_PART_BYTES = 4_096  # read at a time: the kernel may have no memory left for more
DIGITS = 64  # precision of mpmath; its default of 15 is no more than a float has
# otherwise imported when a kernel starts or by its first calls; not every version of the packages has all of them
_LATE = (
    *("IPython.core.magics.ast_mod", "IPython.core.magics.execution", "IPython.core.completerlib", "IPython.core.oinspect"),
    *("IPython.utils.module_paths", "multiprocessing.pool", "numpy.random", "pdb", "statistics"),
)


def preload() -> None:
    """Imports the modules that every kernel needs."""
    for name in _NAMES.values():
        importlib.import_module(name)
    importlib.import_module("mpmath").mp.dps = DIGITS
    for name in _LATE:
        with suppress(ImportError):
            importlib.import_module(name)


def run_kernel(calls: socket.socket, on_ready: Callable[[], object]) -> None:
    """Runs the calls that arrive on a socket until its other end is closed; calls `on_ready` before the first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # between calls
    _seed()
    sys.set_int_max_str_digits(0)
    for message in ("To exit: use", "This process .* is multi-threaded"):  # from exit() and fork(), which are allowed here
        warnings.filterwarnings("ignore", message)
    sys.path.insert(0, "")
    session, loop = _Session(), asyncio.new_event_loop()
    on_ready()
    loop.run_until_complete(_serve(session, calls))


async def _serve(session: _Session, calls: socket.socket) -> None:
    calls.setblocking(False)
    os.register_at_fork(after_in_child=calls.close)  # a task that forks makes a second loop, which would take the next call
    loop = asyncio.get_running_loop()
    received = bytearray()
    while part := await _receive(loop, calls):
        received += part
        if part.endswith(b"\n"):  # there is one call at a time
            request = json.loads(received)
            received.clear()
            reply = await session.run(request["code"])
            await loop.sock_sendall(calls, json.dumps({"call": request["call"], **reply}).encode() + b"\n")
            await asyncio.sleep(0)  # the session's tasks go on even if the next call is there already


async def _receive(loop: asyncio.AbstractEventLoop, calls: socket.socket) -> bytes:
    try:
        return await loop.sock_recv(calls, _PART_BYTES)
    except OSError:  # closed in a fork, or by the solver
        os._exit(0)


def _seed() -> None:
    """Seeds the generators that, unlike Python's own, are not reseeded by a fork."""
    importlib.import_module("numpy.random").seed()
    importlib.import_module("sympy.core.random").seed(None)


class _Streams:
    """Standard input, output and error of the session, which it may have changed in a call."""

    def __init__(self) -> None:
        self._pipe = os.dup(1)
        faulthandler.enable(file=self._pipe, all_threads=False)
        self._stdin = open(0, closefd=False)  # noqa: SIM115
        self._open()

    def _open(self) -> None:
        # unbuffered, so that nothing is lost with the process
        self.stdout, self._stderr = (
            io.TextIOWrapper(io.FileIO(fd, "w", closefd=False), "utf-8", "backslashreplace", write_through=True) for fd in (1, 2)
        )

    def restore(self) -> None:
        for fd in (1, 2):
            os.dup2(self._pipe, fd)
        if self.stdout.closed or self._stderr.closed:
            self._open()
        sys.stdin = sys.__stdin__ = self._stdin  # type: ignore[misc, assignment, unused-ignore]
        sys.stdout = sys.__stdout__ = self.stdout  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = self._stderr  # type: ignore[misc]


class _Value(DisplayHook):
    """Holds the text of the last expression's value for the reply."""

    text: str | None = None

    def __call__(self, result: object = None) -> None:
        self.check_for_underscore()
        if result is not None and not self.quiet():
            text = formatting.format_value(result)
            self.update_user_ns(result)
            self.fill_exec_result(result)
            self.text = text


class _Display(DisplayPublisher):
    """Makes `display(...)` print the plain text of an object; images are not shown."""

    def publish(self, data: dict[str, Any], *args: object, **options: object) -> None:
        text = data.get("text/plain")
        print(formatting.clean(text) if isinstance(text, str) else f"[not shown: {', '.join(data)}]")

    def clear_output(self, wait: bool = False) -> None:
        pass


class _Compiler(CachingCompiler):
    cell = ""  # file name of the last cell

    def get_code_name(self, raw_code: str, transformed_code: str, number: int) -> str:
        self.cell = f"<cell {number}>"
        return self.cell


class _SystemAssign(inputtransformer2.SystemAssign):
    """Finds ``name = !command`` in the tokens of Python 3.12 too, which IPython 7 misreads."""

    @classmethod
    def find(cls, tokens_by_line: Any) -> Any:
        for line in tokens_by_line:
            sign = inputtransformer2._find_assign_op(line)
            if sign is not None and sign + 1 < len(line) and line[sign + 1].string == "!":
                return cls(line[sign + 1].start)
        return None


def _exit(code: object = None) -> NoReturn:
    raise SystemExit(code)


class _Shell(InteractiveShell):
    compiler_class = Type(_Compiler)
    displayhook_class = Type(_Value)
    display_pub_class = Type(_Display)
    exiter: Any = staticmethod(_exit)  # IPython's own would end the kernel
    compile: _Compiler
    displayhook: _Value
    source = ""  # of the running cell, after IPython's transformations
    error: str | None = None  # of the running cell, with its traceback

    def init_instance_attrs(self) -> None:
        super().init_instance_attrs()
        self.input_transformer_manager.token_transformers.append(_SystemAssign)

    def enable_gui(self, gui: object = None) -> None:
        """Does nothing: there is no screen."""

    def transform_cell(self, raw_cell: str) -> str:
        self.source = super().transform_cell(raw_cell)
        return self.source

    def showtraceback(self, exc_tuple: Any = None, *args: object, **options: object) -> None:
        error = self._get_exc_info(exc_tuple)[1]
        self.error = formatting.format_error(error, self.source, self.compile.cell)

    def showsyntaxerror(self, *args: object, **options: object) -> None:
        self.showtraceback()

    def _format_exception_for_storage(self, *args: object, **options: object) -> dict[str, object]:
        return {}  # no tracebacks in the history

    def _tee(self, channel: str) -> AbstractContextManager[None]:
        return nullcontext()  # no copies of output

    def system_piped(self, cmd: str) -> None:
        """Runs ``!cmd`` with the session's own standard output."""
        done = subprocess.run(self.var_expand(cmd, depth=1), shell=True, stdin=subprocess.DEVNULL, check=False)
        self.user_ns["_exit_code"] = done.returncode

    system = system_piped


class _Session:
    """IPython's shell; whatever earlier calls have changed, what a call relies on is restored before it."""

    def __init__(self) -> None:
        self._streams = _Streams()
        self._streams.restore()
        self._shell = _Shell.instance(config=Config(HistoryManager={"enabled": False}))
        self._pid = os.getpid()
        display = importlib.import_module("IPython.display").display
        self._pristine = vars(builtins) | {
            "input": _no_input, "exit": _exit, "quit": _exit, "display": display, "get_ipython": self._shell.get_ipython
        }  # fmt: skip
        # the session modifies a copy of builtins
        self._builtins = sys.modules["builtins"] = types.ModuleType("builtins")
        names: dict[str, object] = {name: importlib.import_module(module) for name, module in _NAMES.items()}
        self._prepare()
        self._shell.user_ns.update(names)
        self._shell.user_ns_hidden.update(names)

    def _prepare(self) -> None:
        self._streams.restore()
        for name in self._pristine.keys() - vars(self._builtins).keys():
            setattr(self._builtins, name, self._pristine[name])
        if "_oh" not in self._shell.user_ns:  # the session's globals were cleared
            self._shell.init_user_ns()
        self._shell.user_ns["__builtins__"] = self._builtins
        self._shell.displayhook.text = self._shell.error = None

    async def run(self, code: str) -> dict[str, str | None]:
        """Runs a cell; returns the texts of its value, and of the name and traceback of its error; None where there is none."""
        error: BaseException | None
        self._prepare()
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            result = await self._run_cell(code)
            error = result.error_before_exec or result.error_in_exec
        except (Exception, KeyboardInterrupt) as failure:  # noqa: BLE001 - the call failed in IPython itself
            error = failure
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            if os.getpid() != self._pid:
                os._exit(0)  # a fork of the session ends with the cell
            for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
                signal.setitimer(timer, 0)  # a signal between calls would end the kernel
            self._streams.restore()
            # filters of the session must not turn warnings of the kernel into errors
            warnings.filterwarnings("ignore", module=r"(asyncio|IPython|traitlets)\b")
        if error is None:
            return {"value": self._shell.displayhook.text, "error": None, "traceback": None}
        traceback = self._shell.error or formatting.format_error(error, "", "")
        return {"value": self._shell.displayhook.text, "error": type(error).__name__, "traceback": traceback}

    async def _run_cell(self, code: str) -> ExecutionResult:
        """Runs a cell; one that awaits runs as a task, which an interrupt cancels."""
        shell = self._shell
        try:
            transformed = shell.transform_cell(code)
            awaits = shell.should_run_async(code, transformed_cell=transformed)
        except Exception:  # noqa: BLE001 - the cell is not valid Python; `run_cell` reports it
            awaits = False
        if not awaits:
            done: ExecutionResult = shell.run_cell(code, store_history=True)
            return done
        task = asyncio.ensure_future(shell.run_cell_async(code, store_history=True, transformed_cell=transformed))
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, task.cancel)
        try:
            return await task
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            shell.events.trigger("post_execute")


def _no_input(prompt: object = "") -> NoReturn:
    raise EOFError("input() is not available here; write the value into the code")
