"""The Jupyter kernel: IPython's, but that output goes straight into a pipe, and values and errors come with the reply.

Output takes the process's own file descriptors 1 and 2 and not ZMQ. So it reaches the solver in the order in which it was
written, that of child processes and C code too, even if the next line never gives the interpreter back; and a full pipe
stops whoever floods it.
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

sys.modules["debugpy"] = None  # type: ignore[assignment]  # nobody debugs these kernels, and it is slow to start
from ipykernel import kernelapp  # noqa: E402
from ipykernel.displayhook import ZMQDisplayHook, ZMQShellDisplayHook  # noqa: E402
from ipykernel.iostream import IOPubThread  # noqa: E402
from ipykernel.ipkernel import IPythonKernel  # noqa: E402
from ipykernel.zmqshell import ZMQDisplayPublisher, ZMQInteractiveShell  # noqa: E402
from IPython.core.compilerop import CachingCompiler  # noqa: E402
from traitlets import Type  # noqa: E402
from traitlets.config import Config  # noqa: E402

from aimo_solver.kernels.inside import report  # noqa: E402

# what the session finds imported: its name for it, and the module
_NAMES = {
    **{name: name for name in ("collections", "fractions", "functools", "itertools", "math", "mpmath", "numpy", "sympy")},
    "np": "numpy",
    "sp": "sympy",
}
# imported late by a kernel that starts or by its first calls; what one version of a package lacks is passed over
_LATE = (
    *("IPython.core.magics.ast_mod", "IPython.core.magics.execution", "IPython.core.completerlib", "IPython.core.oinspect"),
    *("IPython.extensions.storemagic", "IPython.utils.module_paths", "ipykernel.debugger", "tornado.platform.asyncio"),
    *("multiprocessing.pool", "numpy.random", "pdb", "statistics"),
)


def preload() -> None:
    """Imports what every kernel needs."""
    for name in _NAMES.values():
        importlib.import_module(name)
    for name in _LATE:
        with suppress(ImportError):
            importlib.import_module(name)


def run_kernel(directory: Path, on_ready: Callable[[], object]) -> None:
    """Serves the connection file in `directory`; calls `on_ready` when its sockets are bound. Returns when told to end."""
    _seed()
    sys.set_int_max_str_digits(0)
    for message in ("To exit: use", "This process .* is multi-threaded"):  # of exit() and fork(), which are fine here
        warnings.filterwarnings("ignore", message)
    kernelapp.IOPubThread = _IOPub  # type: ignore[misc, assignment, attr-defined, unused-ignore]
    config = Config()
    config.HistoryManager.enabled = False
    config.IPKernelApp.log_level = 50
    app = _App.instance(config=config, connection_file=str(directory / "connection.json"))
    streams = _Streams()
    streams.restore()
    app.initialize([])
    app.kernel.begin(streams)
    on_ready()
    app.start()


def _seed() -> None:
    """For the generators that, unlike Python's own, are not seeded anew by a fork."""
    importlib.import_module("numpy.random").seed()
    importlib.import_module("sympy.core.random").seed(None)


class _Streams:
    """Standard input, output and error as they ought to be."""

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
        """Whatever the last call did to them."""
        for fd in (1, 2):
            if not _same_file(fd, self._pipe):
                os.dup2(self._pipe, fd)
        if self.stdout.closed or self._stderr.closed:
            self._open()
        sys.stdin = sys.__stdin__ = self._stdin  # type: ignore[misc, assignment, unused-ignore]
        sys.stdout = sys.__stdout__ = self.stdout  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = self._stderr  # type: ignore[misc]


def _same_file(one: int, other: int) -> bool:
    try:
        return os.path.sameopenfile(one, other)
    except OSError:
        return False


class _Value(ZMQShellDisplayHook):
    """Keeps the text of the last expression's value for the reply."""

    text: str | None = None

    def start_displayhook(self) -> None:
        pass

    def write_output_prompt(self) -> None:
        pass

    def compute_format_data(self, result: object) -> tuple[dict[str, str], dict[str, Any]]:
        return {"text/plain": report.value_text(result)}, {}

    def write_format_data(self, format_dict: dict[str, str], md_dict: object = None) -> None:
        self.text = format_dict["text/plain"]

    def finish_displayhook(self) -> None:
        pass


class _Display(ZMQDisplayPublisher):
    """`display(...)` prints the plain text among the representations; pictures have nobody to see them."""

    def publish(self, data: dict[str, Any], *args: object, **options: object) -> None:
        text = data.get("text/plain")
        print(report.clean(text) if isinstance(text, str) else f"[not shown: {', '.join(data)}]")

    def clear_output(self, wait: bool = False) -> None:
        pass


class _Compiler(CachingCompiler):
    cell = ""  # the name the last cell was compiled under

    def get_code_name(self, raw_code: str, transformed_code: str, number: int) -> str:
        self.cell = report.cell_name(number)
        return self.cell


class _Shell(ZMQInteractiveShell):
    displayhook_class = Type(_Value)
    display_pub_class = Type(_Display)
    compile: _Compiler
    source = ""  # of the running cell, as it is compiled
    _last_traceback: list[str] | None

    def init_instance_attrs(self) -> None:
        super().init_instance_attrs()
        self.compile = _Compiler()

    def init_environment(self) -> None:
        """Leaves the environment as it is; the inherited method asks for colours."""

    def transform_cell(self, raw_cell: str) -> str:
        self.source = super().transform_cell(raw_cell)
        return self.source

    def showtraceback(self, exc_tuple: Any = None, *args: object, **options: object) -> None:
        error = self._get_exc_info(exc_tuple)[1]
        self._last_traceback = [report.error_text(error, self.source, self.compile.cell)]

    def showsyntaxerror(self, *args: object, **options: object) -> None:
        self.showtraceback()

    def _format_exception_for_storage(self, *args: object, **options: object) -> dict[str, object]:
        return {}  # the history would keep tracebacks that nobody reads

    def _tee(self, channel: str) -> AbstractContextManager[None]:
        return nullcontext()  # and a copy of all output

    def system_piped(self, cmd: str) -> None:
        """``!cmd``, whose output takes the same way as all other."""
        done = subprocess.run(self.var_expand(cmd, depth=1), shell=True, stdin=subprocess.DEVNULL, check=False)
        self.user_ns["_exit_code"] = done.returncode

    system = system_piped


class GuardedKernel(IPythonKernel):
    """Its execute_reply carries ``value``, text or None, and a ``traceback`` of one plain text."""

    shell: Any
    shell_class = Type(_Shell)
    _execute_sleep = 0.0  # a wait for output on ZMQ, of which there is none

    def begin(self, streams: _Streams) -> None:
        """Fills the session's namespace. To be called once."""
        self._streams = streams
        self._pid = os.getpid()
        display = importlib.import_module("IPython.display").display
        self._pristine = vars(builtins) | {
            "input": _no_input, "exit": _exit, "quit": _exit, "display": display, "get_ipython": self.shell.get_ipython
        }  # fmt: skip
        # what the session does to builtins, it does to a copy
        self._builtins = sys.modules["builtins"] = types.ModuleType("builtins")
        names: dict[str, object] = {name: importlib.import_module(module) for name, module in _NAMES.items()}
        names |= {"exit": _exit, "quit": _exit}  # IPython's own would end the kernel
        self._prepare()
        self.shell.user_ns.update(names)
        self.shell.user_ns_hidden.update(names)

    def start(self) -> None:
        super().start()
        # without it an interrupt is noticed by the event loop only when something else happens
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
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the call failed in IPython itself, and says so
            text = (self.shell._last_traceback or [report.error_text(error, "", "")])[0]
            reply = {"status": "error", "ename": type(error).__name__, "evalue": "", "traceback": [text]}
            reply |= {"execution_count": self.shell.execution_count - 1, "user_expressions": {}}
        finally:
            if os.getpid() != self._pid:
                os._exit(0)  # a fork of the session, at the end of the cell
            for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
                signal.setitimer(timer, 0)  # one that goes off between calls would end the kernel
            self._streams.restore()
            # the session's own filters shall not turn the kernel's warnings into errors
            warnings.filterwarnings("ignore", module=r"(ipykernel|IPython|jupyter_client|tornado|traitlets|zmq)\b")
        for page in reply.get("payload", ()):
            if page.get("source") == "page":  # what `name?` shows
                print(report.clean(page["data"].get("text/plain", "")), file=self._streams.stdout)
        reply["payload"] = []
        reply["value"] = self.shell.displayhook.text
        reply["evalue"] = report.clean(reply.get("evalue", ""), 1_000)
        return reply


class _IOPub(IOPubThread):
    """Without its pipe, a TCP socket for what forked children publish: nobody publishes here."""

    def __init__(self, channel: Any, pipe: bool = False, **options: Any) -> None:
        super().__init__(channel, pipe=False, **options)


class _App(kernelapp.IPKernelApp):
    kernel_class = Type(GuardedKernel, klass="ipykernel.kernelbase.Kernel")  # type: ignore[assignment]

    def load_config_file(self, *args: object, **options: object) -> None:
        """Nobody's profile shall change what a kernel does."""

    def write_connection_file(self, **options: object) -> None:
        """The solver wrote it, and it is removed as soon as the sockets are bound."""

    cleanup_connection_file = write_connection_file

    def init_path(self) -> None:
        sys.path.insert(0, "")

    def init_io(self) -> None:
        """Leaves the streams as they are; the inherited method sends what is printed over ZMQ."""
        self.displayhook = ZMQDisplayHook(self.session, self.iopub_socket)

    def init_pdb(self) -> None:
        """There is nobody to talk to a debugger."""


def _no_input(prompt: object = "") -> NoReturn:
    raise EOFError("input() has nobody to ask; write the value into the code")


def _exit(code: object = None) -> NoReturn:
    raise SystemExit(code)
