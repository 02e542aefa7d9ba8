"""Continues a run that was interrupted."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from aimo_solver.config import Config
from aimo_solver.errors import RunDirectoryError
from aimo_solver.log.files import SCHEMA, json_line, lock_events, replace_file, set_aside
from aimo_solver.log.reader import read_run
from aimo_solver.log.writer import RunLog


def resume_run(directory: Path | str, *, config: Config | None = None, clock: Callable[[], float] = time.monotonic) -> RunLog:
    """Opens the log of an interrupted run: problems in its `finished` are done, all others start afresh.

    The seconds continue from the last one written. The records of open problems move to ``interrupted/K/``. `config` is what
    the run continues with, by default its earlier configuration; a change is written to ``run.json``.

    Raises:
        RunDirectoryError: there is no run, one of another schema, one that is still being written, or it cannot be written.
    """
    directory = Path(directory)
    run = read_run(directory)
    plain = run.config if config is None else config.as_dict()
    changed = _changes(run.config, plain)
    started = clock() - run.last_t
    try:
        with ExitStack() as stack:
            events = stack.enter_context(lock_events(directory))
            # In place, as a new file would not have the lock.
            events.truncate((directory / "events.jsonl").read_bytes().rfind(b"\n") + 1)
            set_aside(directory, {result.problem_id for result in run.results})
            (directory / "summary.json").unlink(missing_ok=True)
            if changed:
                head = {"schema": SCHEMA, "started": run.started, "config": plain, "environment": run.environment}
                replace_file(directory / "run.json", json_line(head))
            stack.pop_all()
    except OSError as error:
        raise RunDirectoryError(directory, f"cannot be written: {error.strerror}") from None
    log = RunLog(directory, clock, started, plain, events, run.results)
    log.event("run_resumed", finished=len(log.finished), changed=changed)
    return log


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the new values of the options that differ, by dotted name."""
    plain = json.loads(json_line(after))
    return {
        f"{section}.{option}": value
        for section, options in plain.items()
        for option, value in options.items()
        if before.get(section, {}).get(option) != value
    }
