"""The run directory: what is in it, and reading it back. docs/run-directory.md describes every field.

    run.json                    schema, start, configuration, environment
    events.jsonl                boot stages, problems started, restarts, faults
    problems.jsonl              one line per problem that ended
    attempts.jsonl              one line per attempt that ended
    votes.jsonl                 the candidates after every change
    trajectories/ID/N.jsonl.gz  every token, tool call and output of attempt N (plain .jsonl while it runs)
    summary.json                the score, when the run ended by itself
    interrupted/K/              attempts at problems that the K-th interruption left open, or that started again

Everything reads at any moment, also while the run goes on and after it was killed: a line that was cut is left out and counted.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from aimo_solver.errors import RunDirectoryError
from aimo_solver.log.jsonl import json_line, read_lines, record_of
from aimo_solver.log.trajectory import TrajectoryRecord, read_trajectory
from aimo_solver.results import Attempt, FinishReason

__all__ = [
    "SCHEMA",
    "CandidateRecord",
    "Event",
    "ProblemRecord",
    "ProblemResult",
    "Run",
    "VoteRecord",
    "cut_torn_line",
    "read_lines",
    "read_run",
    "set_aside",
    "trajectory_path",
]

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. `t` counts seconds from the run's start, `wall` is UTC in ISO 8601."""

    t: float
    wall: str
    kind: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CandidateRecord:
    """An answer on the ballot: how many attempts gave it, the score it got from the voter, and its share of all scores."""

    answer: int
    votes: int
    score: float
    share: float


@dataclass(frozen=True, slots=True)
class VoteRecord:
    """The ballot at one moment, best candidate first."""

    t: float
    problem_id: str
    candidates: tuple[CandidateRecord, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemResult:
    """How one problem ended.

    Attributes:
        answer: what was answered.
        truth: the right answer, None where it is unknown.
        reason: why the problem ended, as the solver says.
        votes: attempts that gave `answer`.
        attempts, tool_calls, tokens: sums over all its attempts.
        seconds, allotted_s: used, and given by the budget.
        candidates: the last ballot, best first.
    """

    problem_id: str
    answer: int
    truth: int | None = None
    reason: str
    votes: int = 0
    attempts: int = 0
    tool_calls: int = 0
    tokens: int = 0
    seconds: float = 0.0
    allotted_s: float | None = None
    candidates: tuple[Any, ...] = ()

    @property
    def right(self) -> bool | None:
        """Whether the answer is the truth; None where that is unknown."""
        return None if self.truth is None else self.answer == self.truth


@dataclass(frozen=True, slots=True)
class ProblemRecord:
    """One problem of a run; `result` is None until it ends. `t` is its start, `ended` its end, seconds of the run."""

    problem_id: str
    t: float
    text: str
    truth: int | None
    allotted_s: float | None
    result: ProblemResult | None = None
    ended: float | None = None


@dataclass(frozen=True)
class Run:
    """A run directory, read. Trajectories are large and read one by one with `trajectory`."""

    directory: Path
    started: str
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    events: tuple[Event, ...]
    problems: tuple[ProblemRecord, ...]
    attempts: tuple[Attempt, ...]
    votes: tuple[VoteRecord, ...]
    summary: Mapping[str, Any] | None
    torn_lines: int = 0
    last_t: float = 0.0

    @cached_property
    def results(self) -> tuple[ProblemResult, ...]:
        """The problems that ended, in the order of their start."""
        return tuple(problem.result for problem in self.problems if problem.result is not None)

    def trajectory(self, problem_id: str, index: int) -> TrajectoryRecord | None:
        """None if nothing was written for it."""
        for suffix in (".jsonl.gz", ".jsonl"):
            path = trajectory_path(self.directory, problem_id, index).with_suffix(suffix)
            if path.exists():
                return read_trajectory(path)
        return None

    def trajectory_indices(self, problem_id: str) -> tuple[int, ...]:
        """The attempts at a problem that left a trajectory, running ones included."""
        folder = trajectory_path(self.directory, problem_id, 0).parent
        names = {path.name.split(".")[0] for path in folder.glob("*.jsonl*")} if folder.is_dir() else set()
        return tuple(sorted(int(name) for name in names if name.isdecimal()))


def trajectory_path(directory: Path, problem_id: str, index: int) -> Path:
    """Where an attempt is written while it runs. Any text is a safe problem id here."""
    name = quote(problem_id, safe=" +=,@()[]", errors="surrogatepass")
    name = name.replace(".", "%2E") if name.strip(".") == "" else name
    if len(name) > 120:
        name = f"{name[:100]}~{zlib.crc32(problem_id.encode('utf-8', 'surrogatepass')):08x}"
    return directory / "trajectories" / (name or "%") / f"{index}.jsonl"


def read_run(directory: Path | str) -> Run:
    """Reads a run directory, finished or not.

    Raises:
        RunDirectoryError: there is no run, or one of another schema.
    """
    directory = Path(directory)
    head = _read_head(directory)
    lines = {name: list(read_lines(directory / f"{name}.jsonl")) for name in ("events", "problems", "attempts", "votes")}
    torn = sum(line is None for name in lines for line in lines[name])
    good = {name: [line for line in lines[name] if line is not None] for name in lines}
    events = tuple(
        Event(line["t"], line["wall"], line["kind"], {k: v for k, v in line.items() if k not in ("t", "wall", "kind")})
        for line in good["events"]
    )
    problems: dict[str, ProblemRecord] = {}
    for event in events:
        if event.kind == "problem_started":
            started = ProblemRecord(t=event.t, **{name: event.values[name] for name in _STARTED})
            problems.pop(started.problem_id, None)  # started again after an interruption
            problems[started.problem_id] = started
    for line in good["problems"]:
        result = record_of(ProblemResult, line | {"candidates": _candidates(line["candidates"])})
        start = problems.get(result.problem_id) or ProblemRecord(result.problem_id, line["t"], "", None, None)
        problems[result.problem_id] = ProblemRecord(
            start.problem_id, start.t, start.text, result.truth, result.allotted_s, result, line["t"]
        )
    last = max((line["t"] for name in good for line in good[name]), default=0.0)
    return Run(
        directory=directory,
        started=head["started"],
        config=head["config"],
        environment=head["environment"],
        events=events,
        problems=tuple(problems.values()),
        attempts=tuple(
            record_of(Attempt, line | {"finish_reason": FinishReason(line["finish_reason"])}) for line in good["attempts"]
        ),
        votes=tuple(VoteRecord(line["t"], line["problem_id"], _candidates(line["candidates"])) for line in good["votes"]),
        summary=_read_json(directory / "summary.json") if (directory / "summary.json").exists() else None,
        torn_lines=torn,
        last_t=last,
    )


_STARTED = ("problem_id", "text", "truth", "allotted_s")


def _read_head(directory: Path) -> dict[str, Any]:
    if not directory.is_dir():
        raise RunDirectoryError(directory, "no such folder")
    if not (directory / "run.json").exists():
        raise RunDirectoryError(directory, "holds no run (no run.json); name the folder that was given to --out")
    head = _read_json(directory / "run.json")
    if head.get("schema") != SCHEMA:
        raise RunDirectoryError(directory, f"has schema {head.get('schema')!r}, this version reads {SCHEMA}")
    return head


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RunDirectoryError(path.parent, f"{path.name} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise RunDirectoryError(path.parent, f"{path.name} does not hold a record")
    return value


def _candidates(lines: list[Mapping[str, Any]]) -> tuple[CandidateRecord, ...]:
    return tuple(record_of(CandidateRecord, line) for line in lines)


def cut_torn_line(path: Path) -> None:
    """Removes a last line that is not whole, in place: a new file would not have the lock."""
    os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def set_aside(directory: Path, kept: Set[str]) -> None:
    """Moves what was written about other problems than those `kept` to ``interrupted/K/``, and drops lines that are not whole."""
    folder = directory / "interrupted"
    folder /= str(1 + sum(1 for _ in folder.iterdir()) if folder.is_dir() else 1)
    for name in ("problems", "attempts", "votes"):
        path = directory / f"{name}.jsonl"
        lines = list(read_lines(path))
        keep = [line for line in lines if line and line["problem_id"] in kept]
        gone = [line for line in lines if line and line["problem_id"] not in kept]
        if gone:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / path.name).write_bytes(b"".join(map(json_line, gone)))
        if len(keep) < len(lines):
            part = path.with_suffix(".part")
            part.write_bytes(b"".join(map(json_line, keep)))
            os.replace(part, path)
    done = {trajectory_path(directory, problem_id, 0).parent.name for problem_id in kept}
    trajectories = directory / "trajectories"
    for path in sorted(trajectories.iterdir()) if trajectories.is_dir() else ():
        if path.name not in done:
            (folder / "trajectories").mkdir(parents=True, exist_ok=True)
            shutil.move(path, folder / "trajectories" / path.name)
