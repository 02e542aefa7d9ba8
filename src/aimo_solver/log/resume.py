"""Continues a run that was interrupted."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Set
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from aimo_solver.config import Config
from aimo_solver.errors import RunDirectoryError
from aimo_solver.log.files import SCHEMA, json_line, lock_events, next_interruption, replace_file, trajectory_path
from aimo_solver.log.reader import read_lines, read_run
from aimo_solver.log.writer import RunLog
from aimo_solver.problems import ProblemResult


def resume_run(directory: Path | str, *, config: Config | None = None, clock: Callable[[], float] = time.monotonic) -> RunLog:
    """Opens the log of an interrupted run: problems in its `finished` are done, all others start afresh.

    So does a problem that a lost server or a defect ended before any attempt gave an answer. The seconds continue from the last
    one written. The records of open problems move to ``interrupted/K/``. The run continues with `config`, by default its
    earlier configuration; a change is written to ``run.json``.

    Raises:
        RunDirectoryError: there is no run, one of another schema, one that is still being written, or it cannot be written.
    """
    directory = Path(directory)
    run = read_run(directory)
    done = [result for result in run.results if not _gave_up(result)]
    plain = run.config if config is None else config.as_dict()
    changed = _changes(run.config, plain)
    started = clock() - run.last_t
    try:
        with ExitStack() as stack:
            events = stack.enter_context(lock_events(directory))
            # In place, as a new file would not have the lock.
            events.truncate((directory / "events.jsonl").read_bytes().rfind(b"\n") + 1)
            _set_aside(directory, {result.problem_id for result in done})
            (directory / "summary.json").unlink(missing_ok=True)
            if changed:
                head = {"schema": SCHEMA, "started": run.started, "config": plain, "environment": run.environment}
                replace_file(directory / "run.json", json_line(head))
            stack.pop_all()
    except OSError as error:
        raise RunDirectoryError(directory, f"cannot be written: {error.strerror}") from None
    log = RunLog(directory, clock, started, plain, events, done)
    log.event("run_resumed", finished=len(log.finished), changed=changed)
    return log


def _gave_up(result: ProblemResult) -> bool:
    return result.votes == 0 and result.reason in ("server", "fault")


def _set_aside(directory: Path, kept: Set[str]) -> None:
    """Moves the records of all problems but those `kept` to ``interrupted/K/``, and drops torn lines."""
    folder = next_interruption(directory)
    for name in ("problems", "attempts", "votes"):
        path = directory / f"{name}.jsonl"
        lines = list(read_lines(path))
        keep = [line for line in lines if line and line["problem_id"] in kept]
        removed = [line for line in lines if line and line["problem_id"] not in kept]
        if removed:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / path.name).write_bytes(b"".join(map(json_line, removed)))
        if len(keep) < len(lines):
            replace_file(path, b"".join(map(json_line, keep)))
    done = {trajectory_path(directory, problem_id, 0).parent.name for problem_id in kept}
    trajectories = directory / "trajectories"
    for path in sorted(trajectories.iterdir()) if trajectories.is_dir() else ():
        if path.name not in done:
            (folder / "trajectories").mkdir(parents=True, exist_ok=True)
            shutil.move(path, folder / "trajectories" / path.name)


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the new values of the options that differ, by dotted name."""
    plain = json.loads(json_line(after))
    return {
        f"{section}.{option}": value
        for section, options in plain.items()
        for option, value in options.items()
        if before.get(section, {}).get(option) != value
    }
