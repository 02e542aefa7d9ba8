"""The fault table: every call that can fail, failing once, ten times and for ever in a whole run of the notebook.

A cell is a process of its own: the notebook's run (`notebook.notebook_run`), real kernels, a real server process under the
real supervisor (`fake_vllm`), and three problems asked one after the other through `predict`. Expected: the run ends in time
with an answer to every problem, and with right answers wherever the rest of the system can give them; it leaves no process
and no temporary file behind. `scripts/fault_table.py` prints the table.
"""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from enum import Enum
from itertools import zip_longest
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from aimo_solver.answers import ANSWER_RANGE
from tests.faults import fake_vllm, injection
from tests.faults.fake_vllm import COMPLETIONS, HEALTH, MODELS, START, Breaking
from tests.faults.injection import FORKSERVER, KERNEL, THREAD, WRITE, Failing

MODEL = Path(__file__).parents[2] / "data" / "pocket-model"
PROBLEMS = 3
TIMES = {"once": 1, "ten times": 10, "for ever": 1 << 60}
_LIMIT_S = 180.0
_HOPELESS_S = 16.0  # the limit of a run that can answer nothing, and uses its whole limit
_LATE_S = 10.0  # so long after its limit a run is late; twice as long after it, it is killed
_SIDE_BY_SIDE = 12  # runs mostly wait
_PLACES = ("/tmp", "/var/tmp", "/dev/shm")  # where kernels are kept while the temporary folder is full
_PRELOAD = [
    "aimo_solver.solve.session",
    "aimo_solver.kaggle.notebook",
    "aimo_solver.kaggle.gateway",
    "aimo_solver.chat.gemma",
    "tests.faults.table",
]


class Loss(Enum):
    """What a run may lack while a call fails for ever; everything else is expected."""

    NOTHING = "nothing"
    PYTHON = "Python"
    ANSWERS = "answers"


@dataclass(frozen=True)
class Row:
    """A call that fails.

    Attributes:
        deadly: each failure ends the server. A problem that lost it twice is given up, so ten failures cost answers.
    """

    name: str
    fault: Failing | Breaking
    loss: Loss = Loss.NOTHING
    deadly: bool = False

    def hopeless(self, times: str) -> bool:
        return times == "for ever" and self.loss is Loss.ANSWERS

    def least_right(self, times: str) -> int:
        return 0 if self.hopeless(times) or (self.deadly and times == "ten times") else PROBLEMS

    def expects_python(self, times: str) -> bool:
        return times != "for ever" or self.loss is Loss.NOTHING

    def limit_s(self, times: str) -> float:
        return _HOPELESS_S if self.hopeless(times) else _LIMIT_S


POOL, RUN = "aimo-kernels-", "/runs/"
_SOLVER = (
    Row("spawn of the server", Failing("subprocess.Popen", "EAGAIN", "api_server"), Loss.ANSWERS),
    Row("bind of the server's port", Failing("socket.bind", "EADDRINUSE", "127.0.0.1"), Loss.ANSWERS),
    Row("connect to the server", Failing("socket.connect", "ECONNREFUSED", "127.0.0.1"), Loss.ANSWERS),
    Row("socket to the server", Failing("socket.__new__", "EMFILE", "AF_INET"), Loss.ANSWERS),
    Row("start of a thread", Failing(THREAD, "RuntimeError"), Loss.ANSWERS),
    Row("open of the model's configuration", Failing("open", "EIO", "config.json"), Loss.ANSWERS),
    Row("open of the model's weights", Failing("open", "EIO", "model.safetensors")),
    Row("open of /proc", Failing("open", "EMFILE", "/proc/")),
    Row("run directory: mkdir", Failing("os.mkdir", "EROFS", RUN)),
    Row("run directory: open", Failing("open", "ENOSPC", RUN)),
    Row("run directory: write", Failing(WRITE, "ENOSPC", RUN)),
    Row("run directory: rename", Failing("os.rename", "ENOSPC", RUN)),
    Row("kernels: spawn of the forkserver", Failing("subprocess.Popen", "EAGAIN", injection.FORKSERVER_MARK), Loss.PYTHON),
    Row("kernels: mkdtemp", Failing("os.mkdir", "ENOSPC", POOL), Loss.PYTHON),
    Row("kernels: mkdtemp in the temporary folder", Failing("os.mkdir", "ENOSPC", f"/t/{POOL}")),
    Row("Unix socket to the kernels or the server", Failing("socket.__new__", "EMFILE", "AF_UNIX"), Loss.ANSWERS),
    Row("kernels: open", Failing("open", "EMFILE", POOL), Loss.PYTHON),
    Row("kernels: rmdir", Failing("os.rmdir", "EIO", POOL)),
)
_KERNELS = (
    Row("forkserver: fork", Failing("os.fork", "EAGAIN", process=FORKSERVER), Loss.PYTHON),
    Row("forkserver: mkdir", Failing("os.mkdir", "ENOSPC", process=FORKSERVER), Loss.PYTHON),
    Row("kernel: fork", Failing("os.fork", "EAGAIN", process=KERNEL), Loss.PYTHON),
    Row("kernel: mkdir", Failing("os.mkdir", "ENOSPC", process=KERNEL), Loss.PYTHON),
    Row("kernel: chown", Failing("os.chown", "EPERM", process=KERNEL), Loss.PYTHON),
    Row("kernel: open", Failing("open", "EMFILE", process=KERNEL), Loss.PYTHON),
    Row("kernel: socket", Failing("socket.__new__", "EMFILE", "AF_UNIX", KERNEL), Loss.PYTHON),
)
_SERVER = tuple(
    Row(f"server's {place}: {how}", Breaking(place, how), Loss.NOTHING if place == MODELS else Loss.ANSWERS)
    for place, hows in {
        START: ("CUDA error", "port taken", "SIGKILL", "SIGSTOP", "silence"),
        HEALTH: ("503", "no answer", "silence"),
        MODELS: ("500", "no answer", "garbage", "half JSON", "other JSON", "silence"),
        COMPLETIONS: (
            *("503", "429", "500", "no answer", "garbage", "half JSON", "other JSON"),
            *("garbage in the stream", "half JSON in the stream", "other JSON in the stream", "error in the stream"),
            *("stream cut", "stream without an end"),
        ),
    }.items()
    for how in hows
) + tuple(
    Row(f"server's {COMPLETIONS}: {how}", Breaking(COMPLETIONS, how), Loss.ANSWERS, deadly=True)
    for how in ("silence", "exit", "SIGKILL", "SIGSTOP")
)
_SOCKETS = Row("folder of the server's sockets: mkdtemp", Failing("os.mkdir", "ENOSPC", "/aimo-server-"))
ROWS = {row.name: row for row in (*_SOLVER, *_KERNELS, *_SERVER, _SOCKETS)}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The outcome of one run.

    Attributes:
        injected: number of calls that failed.
        answered, right: numbers of problems.
        computed: turns in which the model got a result from Python.
        seconds: from the start of the run to its end.
        left: processes and temporary files that remain after it.
        fault: why the outcome is not as expected, "" if it is.
        log: the end of the notebook's output.
    """

    row: str
    times: str
    injected: int = 0
    answered: int = 0
    right: int = 0
    computed: int = 0
    seconds: float = 0.0
    left: tuple[str, ...] = ()
    fault: str = ""
    log: str = ""


def run_cells(cells: Iterable[tuple[str, str]]) -> Iterator[Cell]:
    """Runs cells, given as (row, times), side by side; yields each when it ends."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    asked = list(cells)
    # Runs that use their whole limit are spread among the others, so that none of them is last.
    hopeless = [cell for cell in asked if ROWS[cell[0]].hopeless(cell[1])]
    working = [cell for cell in asked if cell not in hopeless]
    wanted = [cell for pair in zip_longest(hopeless, working) for cell in pair if cell is not None]
    with ThreadPoolExecutor(_SIDE_BY_SIDE) as threads:
        for done in as_completed([threads.submit(_in_a_process, context, *cell) for cell in wanted]):
            yield _judged(done.result())


def _in_a_process(context: Any, name: str, times: str) -> Cell:
    with tempfile.TemporaryDirectory(prefix="ft-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)  # as /tmp is: kernels are users of their own
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(name, times, Path(folder), there), name=f"{name} {times}")
        process.start()
        there.close()
        began = time.monotonic()
        try:
            arrived = here.poll(ROWS[name].limit_s(times) + _LATE_S + 10.0)
            cell = here.recv() if arrived else None
        except EOFError:
            cell = None
        if cell is None:
            log = Path(folder, "log")
            text = log.read_text(errors="replace") if log.exists() else ""
            cell = Cell(
                row=name,
                times=times,
                seconds=time.monotonic() - began,
                fault="the run hangs, or its process died",
                log=text[-6_000:],
            )
        process.join(10.0)
        if process.is_alive():
            process.kill()
            process.join()
            cell = dataclasses.replace(cell, fault=cell.fault or "the process does not end")
        return cell


def _judged(cell: Cell) -> Cell:
    row = ROWS[cell.row]
    problems = [cell.fault] if cell.fault else []
    if cell.injected < min(TIMES[cell.times], 1):
        problems.append("no call failed, so nothing was tested")
    if cell.answered < PROBLEMS:
        problems.append(f"{cell.answered} of {PROBLEMS} answered")
    if cell.right < row.least_right(cell.times):
        problems.append(f"{cell.right} of {PROBLEMS} right")
    if row.expects_python(cell.times) and not cell.computed:
        problems.append("no result from Python")
    limit_s = row.limit_s(cell.times)
    if cell.seconds > limit_s + _LATE_S:
        problems.append(f"took {cell.seconds:.0f} s of {limit_s:.0f}")
    if cell.left:
        problems.append(f"left {', '.join(cell.left)}")
    return dataclasses.replace(cell, fault="; ".join(problems))


def _run(name: str, times: str, folder: Path, results: Connection) -> None:
    """Runs one cell, in a process of its own."""
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "t")
    Path(tempfile.tempdir).mkdir()
    os.chdir(folder)
    with (folder / "log").open("w", buffering=1) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        logging.basicConfig(level=logging.INFO, stream=log, format="%(relativeCreated)7.0f %(message)s", force=True)
        try:
            cell = _solved(ROWS[name], times, folder)
        except BaseException:  # noqa: BLE001 - a run that raises is a fault to be shown
            cell = Cell(row=name, times=times, fault="the run raised", log=traceback.format_exc())
        log.flush()
        results.send(dataclasses.replace(cell, log=(cell.log + (folder / "log").read_text(errors="replace"))[-6_000:]))
    results.close()


def _solved(row: Row, times: str, folder: Path) -> Cell:
    import psutil

    from aimo_solver.kaggle import run as run_module
    from aimo_solver.kaggle.gateway import make_predict
    from aimo_solver.kaggle.notebook import notebook_run
    from aimo_solver.server.wheels import Installation

    breaking = row.fault if isinstance(row.fault, Breaking) else None
    environment = folder / "wheels"
    environment.mkdir()
    fake_vllm.installed(environment, breaking, TIMES[times], MODEL)
    created = injection.Created()
    began = time.monotonic()
    run = notebook_run(str(MODEL), _settings(row.limit_s(times)), Installation(environment), folder / "runs")
    run_module.PAUSES_S = tuple(pause / 20 for pause in run_module.PAUSES_S)  # type: ignore[assignment] # ten boots in seconds
    injection.before_forkserver("injection.leave_out_sympy()")
    if isinstance(row.fault, Failing):
        injection.arm(row.fault, TIMES[times], folder / "tally")
    run.start()
    predict = make_predict(run)
    answers = {}
    try:
        for number in range(PROBLEMS):
            text, answer = fake_vllm.problem(1_001 + number)
            answers[answer] = predict(f"p{number}", text)["answer"][0]
        while row.expects_python(times) and not _bytes(environment / "python") and time.monotonic() - began < _LIMIT_S / 3:
            # This model answers at once; a real one leaves the kernels more time.
            time.sleep(0.5)
            predict(f"at {time.monotonic()}", fake_vllm.problem(7)[0])
    finally:
        run.close()
    seconds = time.monotonic() - began
    return Cell(
        row=row.name,
        times=times,
        injected=min(
            TIMES[times], injection.Tally(folder / "tally").value if breaking is None else _bytes(environment / "faults")
        ),
        answered=sum(answer in ANSWER_RANGE for answer in answers.values()),
        right=sum(answer == truth for truth, answer in answers.items()),
        computed=_bytes(environment / "python"),
        seconds=round(seconds, 2),
        left=tuple(_left_behind(psutil.Process(), folder, created)),
    )


def _settings(limit_s: float) -> dict[str, dict[str, Any]]:
    return {
        "solver": {"slots": 2, "max_attempts": 2},
        "voting": {"equal": 2},
        "attempt": {"answer_s": 2.0},
        "kernels": {"size": 2, "spares": 0},
        "server": {"context_tokens": 65_536, "start_timeout_s": 3.0, "stall_s": 1.5},
        "budget": {"rule": "even", "time_limit_s": limit_s, "margin_s": 1.0, "problems": PROBLEMS},
    }


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _left_behind(process: Any, folder: Path, created: injection.Created) -> list[str]:
    """Returns processes below `process`, files in the temporary folder, and what was created elsewhere, after up to 5 s."""
    import psutil

    end = time.monotonic() + 5.0
    while True:
        living = []
        for child in process.children(recursive=True):
            try:
                if child.status() != psutil.STATUS_ZOMBIE:
                    living.append(" ".join(child.cmdline())[:80])
            except psutil.NoSuchProcess:
                continue
        files = [path.name for path in (folder / "t").iterdir() if not path.name.startswith("aimo-run-")]  # logs stay
        files += [path for path in created.remaining(*_PLACES) if folder not in (Path(path), *Path(path).parents)]
        if not (living or files) or time.monotonic() > end:
            return living + files
        time.sleep(0.1)
