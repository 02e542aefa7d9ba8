"""The Jupyter kernel: IPython's, except that output goes directly into a pipe, and the reply holds values and errors.

Output uses the process's file descriptors 1 and 2 instead of ZMQ. It therefore reaches the solver in the order in which it
was written, including that of child processes and C code, even if the next line never returns to the interpreter; and a full
pipe blocks a process that floods it.
"""

# mypy: disable-error-code="no-untyped-call, override"

from __future__ import annotations

import asyncio
import builtins
import faulthandler
import importlib
import io
import os
import signal
import socket
import subprocess
import sys
import types
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, NoReturn

sys.modules["debugpy"] = None  # type: ignore[assignment]  # slow to import, and kernels are not debugged
from ipykernel import kernelapp  # noqa: E402
from ipykernel.displayhook import ZMQDisplayHook, ZMQShellDisplayHook  # noqa: E402
from ipykernel.iostream import IOPubThread  # noqa: E402
from ipykernel.ipkernel import IPythonKernel  # noqa: E402
from ipykernel.zmqshell import ZMQDisplayPublisher, ZMQInteractiveShell  # noqa: E402
from IPython.core import inputtransformer2  # noqa: E402
from IPython.core.compilerop import CachingCompiler  # noqa: E402
from traitlets import Type  # noqa: E402
from traitlets.config import Config  # noqa: E402

from aimo_solver.kernels.inside import formatting  # noqa: E402

# modules that a session finds imported, by the name it uses for them
_NAMES = {
    **{name: name for name in ("collections", "fractions", "functools", "itertools", "math", "mpmath", "numpy", "sympy")},
    "np": "numpy",
    "sp": "sympy",
}
DIGITS = 64  # of mpmath's numbers; its own 15 are no more than a float has
# otherwise imported when a kernel starts or by its first calls; not every version of the packages has all of them
_LATE = (
    *("IPython.core.magics.ast_mod", "IPython.core.magics.execution", "IPython.core.completerlib", "IPython.core.oinspect"),
    *("IPython.extensions.storemagic", "IPython.utils.module_paths", "ipykernel.debugger", "tornado.platform.asyncio"),
    *("multiprocessing.pool", "numpy.random", "pdb", "statistics"),
)


def preload() -> None:
    """Imports the modules that every kernel needs."""
    for name in _NAMES.values():
        importlib.import_module(name)
    importlib.import_module("mpmath").mp.dps = DIGITS
    for name in _LATE:
        with suppress(ImportError):
            importlib.import_module(name)


def run_kernel(directory: Path, on_ready: Callable[[], object]) -> None:
    """Runs a kernel with the connection file in `directory`; calls `on_ready` when its sockets are bound."""
    _seed()
    sys.set_int_max_str_digits(0)
    for message in ("To exit: use", "This process .* is multi-threaded"):  # from exit() and fork(), which are allowed here
        warnings.filterwarnings("ignore", message)
    kernelapp.IOPubThread = _IOPub  # type: ignore[misc, assignment, attr-defined, unused-ignore]
    config = Config(HistoryManager={"enabled": False}, IPKernelApp={"log_level": 50})
    app = _App.instance(config=config, connection_file=str(directory / "connection.json"))
    streams = _Streams()
    streams.restore()
    app.initialize([])
    app.kernel.set_up_session(streams)
    on_ready()
    app.start()


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


class _Value(ZMQShellDisplayHook):
    """Holds the text of the last expression's value for the reply."""

    text: str | None = None

    def __call__(self, result: object = None) -> None:
        self.check_for_underscore()
        if result is not None and not self.quiet():
            text = formatting.format_value(result)
            self.update_user_ns(result)
            self.fill_exec_result(result)
            self.text = text


class _Display(ZMQDisplayPublisher):
    """Makes `display(...)` print the plain text of an object; images are not shown."""

    def publish(self, data: dict[str, Any], *args: object, **options: object) -> None:
        text = data.get("text/plain")
        print(formatting.clean(text) if isinstance(text, str) else f"[not shown: {', '.join(data)}]")

    def clear_output(self, wait: bool = False) -> None:
        pass


class _Compiler(CachingCompiler):
    cell = ""  # file name of the last cell

    def get_code_name(self, raw_code: str, transformed_code: str, number: int) -> str:
        self.cell = formatting.cell_name(number)
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


class _Shell(ZMQInteractiveShell):
    displayhook_class = Type(_Value)
    display_pub_class = Type(_Display)
    compile: _Compiler
    source = ""  # of the running cell, after transformation
    _last_traceback: list[str] | None

    def init_instance_attrs(self) -> None:
        super().init_instance_attrs()
        self.compile = _Compiler()
        self.input_transformer_manager.token_transformers.append(_SystemAssign)

    def init_environment(self) -> None:
        """Leaves the environment unchanged; the inherited method requests colours."""

    def transform_cell(self, raw_cell: str) -> str:
        self.source = super().transform_cell(raw_cell)
        return self.source

    def showtraceback(self, exc_tuple: Any = None, *args: object, **options: object) -> None:
        error = self._get_exc_info(exc_tuple)[1]
        self._last_traceback = [formatting.format_error(error, self.source, self.compile.cell)]

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


class _Kernel(IPythonKernel):
    """Adds ``value``, text or None, to the execute_reply; its ``traceback`` is one plain text."""

    shell: Any
    shell_class = Type(_Shell)
    _execute_sleep = 0.0  # ipykernel's wait for output on ZMQ

    def set_up_session(self, streams: _Streams) -> None:
        self._streams = streams
        self._pid = os.getpid()
        display = importlib.import_module("IPython.display").display
        self._pristine = vars(builtins) | {
            "input": _no_input, "exit": _exit, "quit": _exit, "display": display, "get_ipython": self.shell.get_ipython
        }  # fmt: skip
        # the session modifies a copy of builtins
        self._builtins = sys.modules["builtins"] = types.ModuleType("builtins")
        names: dict[str, object] = {name: importlib.import_module(module) for name, module in _NAMES.items()}
        names |= {"exit": _exit, "quit": _exit}  # IPython's own would end the kernel
        self._prepare()
        self.shell.user_ns.update(names)
        self.shell.user_ns_hidden.update(names)

    def start(self) -> None:
        super().start()
        # without it the event loop notices an interrupt only at its next event
        wake, woken = socket.socketpair()
        for end in (wake, woken):
            end.setblocking(False)
        asyncio.get_event_loop().add_reader(wake, wake.recv, 4_096)
        signal.set_wakeup_fd(woken.detach(), warn_on_full_buffer=False)

    def _prepare(self) -> None:
        self._streams.restore()
        for name in self._pristine.keys() - vars(self._builtins).keys():
            setattr(self._builtins, name, self._pristine[name])
        if "_oh" not in self.shell.user_ns:  # the session's globals were cleared
            self.shell.init_user_ns()
        self.shell.user_ns["__builtins__"] = self._builtins
        self.shell.displayhook.text = None

    async def do_execute(self, code: str, silent: bool, *args: Any, **options: Any) -> dict[str, Any]:
        self._prepare()
        try:
            reply: dict[str, Any] = await super().do_execute(code, silent, *args, **options)
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the call failed in IPython itself
            text = (self.shell._last_traceback or [formatting.format_error(error, "", "")])[0]
            reply = {"status": "error", "ename": type(error).__name__, "evalue": "", "traceback": [text]}
            reply |= {"execution_count": self.shell.execution_count - 1, "user_expressions": {}}
        finally:
            if os.getpid() != self._pid:
                os._exit(0)  # a fork of the session ends with the cell
            for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
                signal.setitimer(timer, 0)  # a signal between calls would end the kernel
            self._streams.restore()
            # filters of the session must not turn warnings of the kernel into errors
            warnings.filterwarnings("ignore", module=r"(ipykernel|IPython|jupyter_client|tornado|traitlets|zmq)\b")
        for page in reply.get("payload", ()):
            if page.get("source") == "page":  # the output of `name?`
                print(formatting.clean(page["data"].get("text/plain", "")), file=self._streams.stdout)
        reply["payload"] = []
        reply["value"] = self.shell.displayhook.text
        reply["evalue"] = formatting.clean(reply.get("evalue", ""), 1_000)
        return reply


class _IOPub(IOPubThread):
    """Omits the TCP socket on which forked children publish output."""

    def __init__(self, channel: Any, pipe: bool = False, **options: Any) -> None:
        super().__init__(channel, pipe=False, **options)


class _App(kernelapp.IPKernelApp):
    kernel_class = Type(_Kernel, klass="ipykernel.kernelbase.Kernel")  # type: ignore[assignment]

    def load_config_file(self, *args: object, **options: object) -> None:
        """Ignores IPython profiles."""

    def write_connection_file(self, **options: object) -> None:
        """Does nothing: the solver writes the file, and the monitor removes it as soon as the sockets are bound."""

    cleanup_connection_file = write_connection_file

    def init_path(self) -> None:
        sys.path.insert(0, "")

    def init_io(self) -> None:
        """Leaves the streams unchanged; the inherited method redirects them to ZMQ."""
        self.displayhook = ZMQDisplayHook(self.session, self.iopub_socket)

    def init_pdb(self) -> None:
        """Does nothing: there is no debugger."""


def _no_input(prompt: object = "") -> NoReturn:
    raise EOFError("input() is not available here; write the value into the code")


def _exit(code: object = None) -> NoReturn:
    raise SystemExit(code)
