"""The run that an endurance run watches: the notebook's own, behind the local gateway, in a process of its own.

    python endurance_run.py PROBLEMS.csv MODEL SETTINGS.json RUNS [WHEELS]

It writes an event per line of JSON to standard output and takes commands, one per line of JSON, from standard input. Its
end is the end of the commands, or of the problems.
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
    """Time as this process sees it."""

    def __init__(self) -> None:
        self._offset_s = self._date_s = 0.0
        monotonic, date = time.monotonic, time.time
        time.monotonic = lambda: monotonic() + self._offset_s
        time.time = lambda: date() + self._date_s

    def jump(self, seconds: float, date_s: float) -> None:
        self._offset_s += seconds
        self._date_s += date_s


class _Telling(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tell("log", level=record.levelname, text=record.getMessage())


def tell(kind: str, **values: Any) -> None:
    sys.stdout.write(json.dumps({"kind": kind, **values}) + "\n")
    sys.stdout.flush()


def telling(predict: Callable[..., pl.DataFrame]) -> Callable[..., pl.DataFrame]:
    """`predict`, with what comes and goes told. Kaggle wants a plain function of that name."""
    really = predict

    def predict(id_: Any, problem: Any = None, *rest: Any) -> pl.DataFrame:
        tell("asked", problem=id_.to_list()[0])
        answer = really(id_, problem)
        tell("answered", problem=answer["id"][0], answer=answer["answer"][0])
        return answer

    return predict


def obey(clocks: Clocks) -> None:
    for line in sys.stdin:
        command = json.loads(line)
        assert command.pop("kind") == "jump"
        clocks.jump(**command)
    os.kill(os.getpid(), signal.SIGINT)  # the watcher has gone, or wants an end


def main(problems: str, model: str, settings: str, runs: str, wheels: str = "") -> None:
    clocks = Clocks()  # before anything takes a clock

    from aimo_solver.kaggle.gateway import make_predict
    from aimo_solver.kaggle.local_gateway import LocalInferenceServer
    from aimo_solver.kaggle.notebook import notebook_run
    from aimo_solver.server.wheels import NOTHING_TO_INSTALL, Installation

    threading.Thread(target=obey, args=(clocks,), daemon=True).start()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("aimo_solver").setLevel(logging.INFO)
    logging.getLogger("aimo_solver").addHandler(_Telling())
    installation = Installation(Path(wheels)) if wheels else NOTHING_TO_INSTALL
    run = notebook_run(model, json.loads(Path(settings).read_text()), installation, Path(runs))
    run.start()
    try:
        LocalInferenceServer(telling(make_predict(run))).run_local_gateway((problems,))
        tell("submitted")
    except KeyboardInterrupt:
        tell("interrupted")
    finally:
        run.close()
    tell("closed")


if __name__ == "__main__":
    main(*sys.argv[1:])
