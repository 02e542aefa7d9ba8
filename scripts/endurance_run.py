"""The notebook's run behind the local gateway, in a process that scripts/endurance.py starts and watches.

    python endurance_run.py PROBLEMS.csv MODEL SETTINGS.json RUNS [WHEELS]

Writes events to standard output and reads commands from standard input, one JSON object per line. It ends after the last
problem, or when standard input is closed.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl


class Clocks:
    """Replaces the clocks of this process by clocks that can jump."""

    def __init__(self) -> None:
        self._offset_s = self._date_s = 0.0
        monotonic, date = time.monotonic, time.time
        time.monotonic = lambda: monotonic() + self._offset_s
        time.time = lambda: date() + self._date_s

    def jump(self, seconds: float, date_s: float) -> None:
        self._offset_s += seconds
        self._date_s += date_s


class _EventHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        write_event("log", level=record.levelname, text=record.getMessage())


def write_event(kind: str, **values: Any) -> None:
    sys.stdout.write(json.dumps({"kind": kind, **values}) + "\n")
    sys.stdout.flush()


def with_events(answer_problem: Callable[..., pl.DataFrame]) -> Callable[..., pl.DataFrame]:
    """Returns a plain function named `predict` that writes an event before and after each call."""

    def predict(id_: Any, problem: Any = None, *rest: Any) -> pl.DataFrame:
        write_event("asked", problem=id_.to_list()[0])
        answer = answer_problem(id_, problem)
        write_event("answered", problem=answer["id"][0], answer=answer["answer"][0])
        return answer

    return predict


def report_folders(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook that reports the folders of kernels and servers: elsewhere while the temporary folder is full or missing."""
    if event == "os.mkdir" and ("/aimo-kernels-" in str(arguments[0]) or "/aimo-server-" in str(arguments[0])):
        write_event("folder", path=str(arguments[0]))


def follow_commands(clocks: Clocks) -> None:
    for line in sys.stdin:
        command = json.loads(line)
        assert command.pop("kind") == "jump"
        clocks.jump(**command)
    os.kill(os.getpid(), signal.SIGINT)  # standard input was closed


def main(problems: str, model: str, settings: str, runs: str, wheels: str = "") -> None:
    clocks = Clocks()  # before any module binds a clock
    sys.addaudithook(report_folders)

    from aimo_solver.kaggle.gateway import LocalInferenceServer, make_predict
    from aimo_solver.kaggle.notebook import notebook_run
    from aimo_solver.server.wheels import NOTHING_TO_INSTALL, Installation

    threading.Thread(target=follow_commands, args=(clocks,), daemon=True).start()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("aimo_solver").setLevel(logging.INFO)
    logging.getLogger("aimo_solver").addHandler(_EventHandler())
    installation = Installation(Path(wheels)) if wheels else NOTHING_TO_INSTALL
    run = notebook_run(model, json.loads(Path(settings).read_text()), installation, Path(runs))
    run.start()
    try:
        LocalInferenceServer(with_events(make_predict(run))).run_local_gateway((problems,))
        write_event("submitted")
    except KeyboardInterrupt:
        write_event("interrupted")
    finally:
        run.close()
    write_event("closed")


if __name__ == "__main__":
    main(*sys.argv[1:])
