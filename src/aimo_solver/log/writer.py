"""Writing a run down as it happens. rundir.py says what the files are and reads them back.

Every record is one line, written in one piece the moment it is known: a run that is killed loses at most the last second.
Writing never stops a run: when the disk fails, the log says so once and the run goes on without it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from aimo_solver.config import Config
from aimo_solver.errors import RunDirectoryError
from aimo_solver.log.environment import describe_environment
from aimo_solver.log.jsonl import as_plain, json_line
from aimo_solver.log.lock import locked
from aimo_solver.log.reader import SCHEMA, ProblemResult, Run, cut_torn_line, read_run, set_aside, trajectory_path
from aimo_solver.log.trajectory import Trajectory
from aimo_solver.results import Attempt

__all__ = [
    "NullLog",
    "ProblemResult",
    "Run",
    "RunLog",
    "Trajectory",
    "describe_environment",
    "read_run",
    "summarise",
]

_log = logging.getLogger(__name__)


class RunLog:
    """The run directory's writer. Safe to use from several threads; nothing here raises once the log is open.

    Attributes:
        directory: where it writes.
        started: the clock's reading at second 0 of the run, the seconds of the runs before it counted.
        config: the configuration the run was made with, plain values.
        finished: problems that already ended, by id; a resumed run starts with those of the runs before.
    """

    def __init__(self, directory: Path, clock: Callable[[], float], started: float) -> None:
        """Use `create` or `resume`."""
        self.directory = directory
        self.started = started
        self.config: Mapping[str, Any] = {}
        self.finished: dict[str, ProblemResult] = {}
        self._clock = clock
        self._lock = threading.Lock()
        self._files: dict[str, BinaryIO] = {}
        self._truths: dict[str, int | None] = {}
        self._open: dict[tuple[str, int], Trajectory] = {}
        self._packer = ThreadPoolExecutor(1, "runlog-pack")
        self._off = False

    @classmethod
    def create(
        cls,
        directory: Path | str,
        *,
        config: Config,
        environment: Mapping[str, Any],
        clock: Callable[[], float] = time.monotonic,
        started: float | None = None,
    ) -> RunLog:
        """Begins a run in a folder that is empty or does not exist yet.

        `started` is the clock's reading at second 0, now by default.

        Raises:
            RunDirectoryError: the folder holds something already, or cannot be written.
        """
        directory = Path(directory)
        log = cls(directory, clock, clock() if started is None else started)
        log.config = config.as_dict()
        head = {"schema": SCHEMA, "started": _wall(log.t), "config": log.config, "environment": environment}
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if any(directory.iterdir()):
                raise RunDirectoryError(directory, "is not empty; choose another folder, or go on with --resume")
            log._files["events"] = locked(directory)
            _write_json(directory / "run.json", head)
        except OSError as error:
            log.close()
            raise RunDirectoryError(directory, f"cannot be written: {error.strerror}") from None
        log.event("run_started")
        return log

    @classmethod
    def resume(
        cls, directory: Path | str, *, config: Config | None = None, clock: Callable[[], float] = time.monotonic
    ) -> RunLog:
        """Goes on with a run that was interrupted: problems in `finished` are done, all others start afresh.

        The seconds go on from the last one written. What was written about problems left open moves to ``interrupted/K/``.
        `config` is what the run goes on with, by default what it was made with; ``run.json`` then says so too.

        Raises:
            RunDirectoryError: there is no run, one of another schema, one that is still being written, or it cannot be written.
        """
        directory = Path(directory)
        run = read_run(directory)
        try:
            events = locked(directory)
            log = cls(directory, clock, clock() - run.last_t)
            log.config = run.config if config is None else config.as_dict()
            log._files["events"] = events
            cut_torn_line(directory / "events.jsonl")
            log.finished = {result.problem_id: result for result in run.results}
            set_aside(directory, set(log.finished))
            (directory / "summary.json").unlink(missing_ok=True)
            changed = _changes(run.config, log.config)
            if changed:
                head = {"schema": SCHEMA, "started": run.started, "config": log.config, "environment": run.environment}
                _write_json(directory / "run.json", head)
        except OSError as error:
            raise RunDirectoryError(directory, f"cannot be written: {error.strerror}") from None
        log.event("run_resumed", finished=len(log.finished), changed=changed)
        return log

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def server_log(self) -> Path | None:
        """Where a server's output goes; None if nothing is written."""
        return self.directory / "server.log"

    @property
    def t(self) -> float:
        """Seconds since the run's start."""
        return round(self._now(), 3)

    def event(self, kind: str, **values: Any) -> None:
        """Something happened: a stage of the boot, a restart, a fault."""
        self._append("events", {"t": self.t, "wall": _wall(), "kind": kind} | values)

    def problem_started(self, problem_id: str, text: str, truth: int | None, allotted_s: float | None) -> None:
        """A problem starts, or starts again: then what was written about it before moves to ``interrupted/K/``."""
        if problem_id in self._truths:
            self._guard(lambda: self._start_again(problem_id))
        self._truths[problem_id] = truth
        self.event("problem_started", problem_id=problem_id, text=text, truth=truth, allotted_s=allotted_s)

    def attempt_finished(self, attempt: Attempt) -> None:
        """Writes the attempt's fields, with the truth so that the file alone can be replayed, and closes its trajectory."""
        if (attempt.problem_id, attempt.index) in self._open:
            self._open[attempt.problem_id, attempt.index].close()
        self._append("attempts", {"t": self.t} | as_plain(attempt) | {"truth": self._truths.get(attempt.problem_id)})

    def votes(self, problem_id: str, candidates: Sequence[Any], t: float | None = None) -> None:
        """The ballot, best first, as records of `voting.Candidate`. `t` is a second of the run; None is now."""
        self._append("votes", {"t": self.t if t is None else t, "problem_id": problem_id, "candidates": candidates})

    def problem_finished(self, result: ProblemResult) -> None:
        self.finished[result.problem_id] = result
        self._append("problems", {"t": self.t} | as_plain(result) | {"right": result.right})

    def trajectory(self, problem_id: str, index: int, *, decode: Callable[[Sequence[int]], str] | None = None) -> Trajectory:
        """Begins the record of an attempt. `decode` makes the text of turns readable that are cut off in the middle."""
        path = trajectory_path(self.directory, problem_id, index)
        writer = Trajectory(path, clock=self._now, guard=self._guard, closed=self._pack, decode=decode)
        self._open[problem_id, index] = writer
        writer.start(problem_id, index)
        return writer

    def finish(self, summary: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Writes and returns the run's summary, `summary`'s values over those counted here, and closes the log."""
        for writer in tuple(self._open.values()):
            writer.close()
        self._packer.shutdown(wait=True)
        full = summarise(tuple(self.finished.values()), self.t, self.config) | dict(summary or {})
        self._guard(lambda: self.event("run_finished", bytes=_size(self.directory)))
        self._guard(lambda: _write_json(self.directory / "summary.json", full))
        self.close()
        return full

    def close(self) -> None:
        """Closes all files; the run can be resumed. Does nothing the second time."""
        for writer in tuple(self._open.values()):
            writer.close()
        self._packer.shutdown(wait=True)
        with self._lock:
            files, self._files = self._files, {}
            self._off = True
        for file in files.values():
            with contextlib.suppress(OSError):  # a network drive may tell of a full disk only here
                file.close()

    def _now(self) -> float:
        return self._clock() - self.started

    def _start_again(self, problem_id: str) -> None:
        self._packer.submit(lambda: None).result()  # its attempts have ended, their trajectories may still be packed
        with self._lock:
            for name in ("problems", "attempts", "votes"):  # the next record opens the file that takes its place
                if name in self._files:
                    self._files.pop(name).close()
            set_aside(self.directory, {*self._truths, *self.finished} - {problem_id})

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        if self._off:
            return
        data = json_line(record)

        def write() -> None:
            with self._lock:
                if not self._off:
                    if name not in self._files:
                        self._files[name] = (self.directory / f"{name}.jsonl").open("ab", buffering=0)
                    self._files[name].write(data)

        self._guard(write)

    def _guard(self, write: Callable[[], object]) -> None:
        """A disk that is full or gone costs the log, never the run."""
        if self._off:
            return
        try:
            write()
        except OSError as error:
            self._off = True
            _log.error("run log %s cannot be written any more; the run goes on without it: %s", self.directory, error)

    def _pack(self, writer: Trajectory) -> None:
        self._open = {key: other for key, other in self._open.items() if other is not writer}
        if not self._off:
            self._packer.submit(self._guard, writer.pack)


class NullLog(RunLog):
    """Writes nothing; everything else is as in `RunLog`."""

    def __init__(self, config: Config | None = None, started: float | None = None) -> None:
        super().__init__(Path(os.devnull), time.monotonic, time.monotonic() if started is None else started)
        self.config = {} if config is None else config.as_dict()
        self._off = True

    @property
    def server_log(self) -> Path | None:
        return None


def summarise(results: Sequence[ProblemResult], seconds: float, config: Mapping[str, Any]) -> dict[str, Any]:
    """What ``summary.json`` holds. `right` and `accuracy` count the problems whose truth is known; None if there are none."""
    known = [result for result in results if result.right is not None]
    right = sum(result.right is True for result in known)
    tokens = sum(result.tokens for result in results)
    return {
        "problems": len(results),
        "right": right if known else None,
        "accuracy": right / len(known) if known else None,
        "seconds": round(seconds, 3),
        "tokens": tokens,
        "tokens_per_s": round(tokens / seconds, 1) if seconds > 0 else 0.0,
        "config": config,
    }


def _wall(seconds_ago: float = 0.0) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds_ago)).isoformat(timespec="milliseconds")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_bytes(json_line(value))
    os.replace(part, path)


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The options that differ, by their dotted names, with their new values."""
    plain = json.loads(json_line(after))
    return {
        f"{section}.{option}": value
        for section, options in plain.items()
        for option, value in options.items()
        if before.get(section, {}).get(option) != value
    }


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
