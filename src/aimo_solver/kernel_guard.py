"""The Jupyter kernel itself: an IPython kernel that writes its output straight to a pipe and reports values and errors in its reply.

Output goes through the process's own file descriptors 1 and 2 and not over ZMQ, so that it reaches the solver in the order it was
written, from child processes and C code too, even if the next thing the code does is never to give the interpreter back; and a
full pipe stops whoever floods it.
"""

from __future__ import annotations

import builtins
import faulthandler
import importlib
import io
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ipykernel import kernelapp
from ipykernel.displayhook import ZMQShellDisplayHook
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp
from ipykernel.iostream import IOPubThread
from ipykernel.zmqshell import ZMQDisplayPublisher, ZMQInteractiveShell
from IPython.core.compilerop import CachingCompiler
from traitlets import Type
from traitlets.config import Config

from aimo_solver import kernel_report as report

# name in the user's namespace: module
NAMESPACE = {
    "collections": "collections", "fractions": "fractions", "functools": "functools", "itertools": "itertools", "math": "math",
    "mpmath": "mpmath", "np": "numpy", "numpy": "numpy", "sp": "sympy", "sympy": "sympy",
}  # fmt: skip
# what a kernel's first calls import, found by comparing sys.modules before and after
_LAZY = ("IPython.core.completer", "IPython.core.magics", "comm", "multiprocessing.pool", "pprint", "random", "unittest.mock")


def preload() -> None:
    """Imports what every kernel needs."""
    for name in (*NAMESPACE.values(), *_LAZY):
        importlib.import_module(name)


def run_kernel(directory: Path, on_ready: Callable[[], object]) -> None:
    """Serves the connection file in `directory` until the kernel is told to end; `on_ready` is called when its sockets are bound."""
    _reseed()
    sys.set_int_max_str_digits(0)
    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.cache_size = 100
    config.IPKernelApp.outstream_class = None
    config.IPKernelApp.log_level = 50
    kernelapp.IOPubThread = _IOPub  # type: ignore[misc]
    app = _App.instance(config=config, connection_file=str(directory / "connection.json"))
    streams = Streams()
    app.initialize([])
    kernel = app.kernel
    assert isinstance(kernel, GuardedKernel)
    kernel.begin(streams)
    faulthandler.enable(file=streams.backup, all_threads=False)
    on_ready()
    app.start()


def _reseed() -> None:
    """The generators that, unlike Python's own, do not seed themselves anew after a fork."""
    import numpy
    import sympy

    numpy.random.seed()
    sympy.core.random.seed(None)


class Streams:
    """Standard output and error as they should be, whatever the last call did to them."""

    def __init__(self) -> None:
        self.backup = os.dup(1)
        self.stdin = open(0, closefd=False)  # noqa: SIM115
        self._open()

    def _open(self) -> None:
        self.stdout, self.stderr = (
            io.TextIOWrapper(io.FileIO(fd, "w", closefd=False), "utf-8", "backslashreplace", write_through=True)  # type: ignore[type-var]
            for fd in (1, 2)
        )

    def restore(self) -> None:
        """Puts everything back."""
        for fd in (1, 2):
            if not _same_file(fd, self.backup):
                os.dup2(self.backup, fd)
        if self.stdout.closed or self.stderr.closed:
            self._open()
        sys.stdout = sys.__stdout__ = self.stdout  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = self.stderr  # type: ignore[misc]
        sys.stdin = sys.__stdin__ = self.stdin  # type: ignore[misc]


def _same_file(one: int, other: int) -> bool:
    try:
        a, b = os.fstat(one), os.fstat(other)
    except OSError:
        return False
    return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)


class _Value(ZMQShellDisplayHook):
    """Keeps the text of the last expression's value for the reply."""

    text: str | None = None

    def compute_format_data(self, result: object) -> tuple[dict[str, str], dict[str, Any]]:
        return {"text/plain": report.value_text(result)}, {}

    def start_displayhook(self) -> None:
        pass

    def write_output_prompt(self) -> None:
        pass

    def write_format_data(self, format_dict: dict[str, str], md_dict: object = None) -> None:
        self.text = format_dict["text/plain"]

    def finish_displayhook(self) -> None:
        pass


class _Display(ZMQDisplayPublisher):
    """`display(...)` prints the plain text among the representations; a picture has nobody to see it."""

    def publish(self, data: dict[str, Any], *args: object, **kwargs: object) -> None:
        text = data.get("text/plain")
        print(report.plain(text) if isinstance(text, str) else f"[not shown: {', '.join(data)}]")

    def clear_output(self, wait: bool = False) -> None:
        pass


class _Compiler(CachingCompiler):
    def get_code_name(self, raw_code: str, transformed_code: str, number: int) -> str:
        return report.cell_name(number)


class _Shell(ZMQInteractiveShell):
    displayhook_class = Type(_Value)
    display_pub_class = Type(_Display)
    source = ""  # of the running cell, transformed
    _last_traceback: list[str] | None

    def init_environment(self) -> None:
        """No colours."""

    def transform_cell(self, raw_cell: str) -> str:
        self.source = super().transform_cell(raw_cell)
        return self.source

    def showtraceback(self, exc_tuple: Any = None, *args: object, **kwargs: object) -> None:
        error = self._get_exc_info(exc_tuple)[1]
        if isinstance(error, BaseException):
            self._last_traceback = [report.plain(report.error_text(error, self.source, report.cell_name(self.execution_count)))]

    def showsyntaxerror(self, *args: object, **kwargs: object) -> None:
        self.showtraceback()

    def system_piped(self, cmd: str) -> None:
        """``!cmd``: its output takes the same way as everything else's."""
        done = subprocess.run(self.var_expand(cmd, depth=1), shell=True, stdin=subprocess.DEVNULL, check=False)
        self.user_ns["_exit_code"] = done.returncode

    system = system_piped


class GuardedKernel(IPythonKernel):
    """Its execute_reply carries ``value``, text or None, and a ``traceback`` of one text."""

    shell_class = Type(_Shell)
    compiler_class = Type(_Compiler)
    _execute_sleep = 0.0  # nothing to wait for: output does not pass through ZMQ

    def begin(self, streams: Streams) -> None:
        """Fills the user's namespace. To be called once, after the kernel was built."""
        self.streams = streams
        self.pid = os.getpid()
        self.names = types.ModuleType("builtins")
        self.names.__dict__.update(builtins.__dict__)
        self.names.__dict__.update(input=_no_input, exit=_exit, quit=_exit, get_ipython=self.shell.get_ipython)
        self.names.__dict__["display"] = importlib.import_module("IPython.display").display
        self.pristine = dict(self.names.__dict__)
        sys.modules["builtins"] = self.names  # what the model's code does to builtins, it does to this copy
        names: dict[str, Any] = {name: importlib.import_module(module) for name, module in NAMESPACE.items()}
        names |= {"__builtins__": self.names, "exit": _exit, "quit": _exit}
        self.shell.user_ns.update(names)
        self.shell.user_ns_hidden.update(names)

    async def do_execute(self, code: str, silent: bool, *args: Any, **kwargs: Any) -> dict[str, Any]:
        self.streams.restore()
        for name in self.pristine.keys() - self.names.__dict__.keys():
            self.names.__dict__[name] = self.pristine[name]
        hook = self.shell.displayhook
        hook.text = None
        reply: dict[str, Any] = await super().do_execute(code, silent, *args, **kwargs)
        if os.getpid() != self.pid:
            os._exit(0)  # the model's code forked, and this is its child at the end of the cell
        for payload in reply.get("payload", ()):
            if payload.get("source") == "page":
                print(report.plain(payload["data"].get("text/plain", "")), file=self.streams.stdout)
        reply["payload"] = []
        reply["value"] = hook.text
        reply["evalue"] = report.cut(reply.get("evalue", ""), 1_000)
        return reply


class _IOPub(IOPubThread):
    """Without its pipe, a TCP socket for what forked children publish: here nobody publishes."""

    def __init__(self, socket: Any, pipe: bool = False, **options: Any) -> None:
        super().__init__(socket, pipe=False, **options)


class _App(IPKernelApp):
    kernel_class = Type(GuardedKernel, klass="ipykernel.kernelbase.Kernel")

    def load_config_file(self, suppress_errors: bool = True) -> None:
        """Nobody's profile shall change what a kernel does."""

    def init_path(self) -> None:
        sys.path.insert(0, "")


def _no_input(prompt: object = "") -> NoReturn:
    raise EOFError("input() has nobody to ask; write the value into the code")


def _exit(code: object = None) -> NoReturn:
    raise SystemExit(code)
