"""Reads a run directory at any time; docs/run-directory.md describes every file and field.

Runs that are still written or were killed can be read too: torn lines are skipped and counted.
"""

from __future__ import annotations

import fcntl
import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic_core import from_json

from aimo_solver.errors import RunDirectoryError
from aimo_solver.log.files import SCHEMA, trajectory_path
from aimo_solver.problems import Answer, Candidate, ProblemResult
from aimo_solver.results import Attempt, FinishReason

_STARTED = ("problem_id", "text", "truth", "allotted_s")

_Record = TypeVar("_Record")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. `t` counts seconds from the run's start, `wall` is UTC in ISO 8601."""

    t: float
    wall: str
    kind: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class VoteRecord:
    """The ranking at one moment, best candidate first."""

    t: float
    problem_id: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class ProblemRecord:
    """One problem of a run; `result` is None until it ends. `t` and `ended` are its start and end in seconds of the run."""

    problem_id: str
    t: float
    text: str
    truth: Answer | None
    allotted_s: float | None
    result: ProblemResult | None = None
    ended: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One line of a trajectory. `t` is when it began, in seconds of the run; fields that its kind lacks are empty.

    Attributes:
        kind: "prompt", "turn" (sampled by the model), "tool" (a Python call) or "inserted" (tokens that were not sampled).
        tokens, text: exact token ids, and their text. The tokens of all steps in order are the conversation.
        waited_s: the part of a turn's `seconds` before its first token.
        entropies: nats, one per sampled token; empty if not measured.
        cached: prompt tokens of a turn found in the server's prefix cache; None if not reported.
        lost, lost_s: tokens that the server had computed before and computed again, and the estimated seconds.
        turn: "tool_call", "final", "malformed", or "cut" by a limit, a cancellation or a crash.
        finish: the engine's reason for a turn's end: "stop", "length", or "" for any other.
        why: why tokens were inserted: "tool_result", "complaint" or "ask_answer"; "given_up" inserts none, and its text states
            how many tokens were dropped from the end of the conversation.
    """

    kind: str
    t: float
    seconds: float = 0.0
    waited_s: float = 0.0
    tokens: tuple[int, ...] = ()
    text: str = ""
    entropies: tuple[float, ...] = ()
    cached: int | None = None
    lost: int = 0
    lost_s: float = 0.0
    turn: str = ""
    finish: str = ""
    why: str = ""
    code: str = ""
    output: str = ""
    error_name: str | None = None
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class TrajectoryRecord:
    """The steps of an attempt, from `t` to `ended` (None: it was still running at the last line)."""

    problem_id: str
    index: int
    t: float
    steps: tuple[Step, ...]
    ended: float | None


@dataclass(frozen=True)
class RunRecord:
    """The content of a run directory. Trajectories are large and read one by one with `read_trajectory`."""

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

    def read_trajectory(self, problem_id: str, index: int) -> TrajectoryRecord | None:
        """Reads an attempt's trajectory; None if nothing was written for it."""
        for suffix in (".jsonl.gz", ".jsonl"):
            path = trajectory_path(self.directory, problem_id, index).with_suffix(suffix)
            if path.exists():
                return _read_trajectory(path)
        return None

    def trajectory_indices(self, problem_id: str) -> tuple[int, ...]:
        """Returns the attempts at a problem that have a trajectory, running ones included."""
        folder = trajectory_path(self.directory, problem_id, 0).parent
        names = {path.name.split(".")[0] for path in folder.glob("*.jsonl*")} if folder.is_dir() else set()
        return tuple(sorted(int(name) for name in names if name.isdecimal()))


def read_run(directory: Path | str) -> RunRecord:
    """Reads a run directory, finished or not.

    Raises:
        RunDirectoryError: there is no run, or one of another schema.
    """
    directory = Path(directory)
    head = _read_head(directory)
    lines = {name: list(read_records(directory / f"{name}.jsonl")) for name in ("events", "problems", "attempts", "votes")}
    torn = sum(line is None for name in lines for line in lines[name])
    good = {name: [line for line in lines[name] if line is not None] for name in lines}
    events = tuple(
        Event(line["t"], line["wall"], line["kind"], {k: v for k, v in line.items() if k not in ("t", "wall", "kind")})
        for line in good["events"]
    )
    return RunRecord(
        directory=directory,
        started=head["started"],
        config=head["config"],
        environment=head["environment"],
        events=events,
        problems=_problems(events, good["problems"]),
        attempts=tuple(
            _record(Attempt, line | {"finish_reason": FinishReason(line["finish_reason"])}) for line in good["attempts"]
        ),
        votes=tuple(VoteRecord(line["t"], line["problem_id"], _candidates(line["candidates"])) for line in good["votes"]),
        summary=_read_json(directory / "summary.json") if (directory / "summary.json").exists() else None,
        torn_lines=torn,
        last_t=max((line["t"] for name in good for line in good[name]), default=0.0),
    )


def read_lines(path: Path) -> Iterator[dict[str, Any] | None]:
    """Yields the records of a JSON-lines file, gzip or plain; None for a torn line. A missing file has no records."""
    # Token ids make up most of a run; pydantic's parser reads them four times as fast as the standard library's.
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except FileNotFoundError:
        return
    for line in data.split(b"\n"):
        if line.strip():
            try:
                record = from_json(line)
            except ValueError:
                record = None
            yield record if isinstance(record, dict) else None


def read_records(path: Path) -> Iterator[dict[str, Any] | None]:
    """Yields the records of a run's file as `read_lines` does, without those of a problem's earlier starts."""
    lines = list(read_lines(path))
    restarts = {line["problem_id"]: place for place, line in enumerate(lines) if line is not None and line.get("restarted")}
    for place, line in enumerate(lines):
        if line is None or place > restarts.get(line.get("problem_id"), -1):
            yield line


def is_running(directory: Path) -> bool:
    """Returns whether a process is writing this run."""
    try:
        with (directory / "events.jsonl").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


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


def _problems(events: tuple[Event, ...], ended: list[dict[str, Any]]) -> tuple[ProblemRecord, ...]:
    problems: dict[str, ProblemRecord] = {}
    for event in events:
        if event.kind == "problem_started":
            started = ProblemRecord(t=event.t, **{name: event.values[name] for name in _STARTED})
            problems.pop(started.problem_id, None)  # started again after an interruption
            problems[started.problem_id] = started
    for line in ended:
        result = _record(ProblemResult, line | {"candidates": _candidates(line["candidates"])})
        start = problems.get(result.problem_id) or ProblemRecord(result.problem_id, line["t"], "", None, None)
        problems[result.problem_id] = ProblemRecord(
            start.problem_id, start.t, start.text, result.truth, result.allotted_s, result, line["t"]
        )
    return tuple(problems.values())


def _candidates(lines: list[Mapping[str, Any]]) -> tuple[Candidate, ...]:
    return tuple(_record(Candidate, line) for line in lines)


def _read_trajectory(path: Path) -> TrajectoryRecord:
    """Reads one attempt. Tokens that a running or killed attempt had sampled so far become a turn that is "cut"."""
    steps: list[Step] = []
    problem_id, index, start, ended = "", 0, 0.0, None
    cut: list[Mapping[str, Any]] = []
    for line in filter(None, read_lines(path)):
        kind = line["kind"]
        if kind == "sampled":
            cut.append(line)
            continue
        if kind == "start":
            problem_id, index, start = line["problem_id"], line["index"], line["t"]
        elif kind == "end":
            ended = line["t"]
        else:
            if cut and kind != "turn":
                steps.append(_cut_turn(cut))
            cut = []
            listed = {name: tuple(line[name]) for name in ("tokens", "entropies") if line.get(name)}
            steps.append(_record(Step, {k: v for k, v in line.items() if v is not None} | listed))
    if cut:
        steps.append(_cut_turn(cut))
    return TrajectoryRecord(problem_id, index, start, tuple(steps), ended)


def _cut_turn(sampled: list[Mapping[str, Any]]) -> Step:
    start = sampled[0]["since"]
    return Step(
        kind="turn",
        turn="cut",
        t=start,
        seconds=sampled[-1]["t"] - start,
        tokens=tuple(token for line in sampled for token in line["tokens"]),
        text="".join(line["text"] for line in sampled),
        entropies=tuple(value for line in sampled for value in line["entropies"]),
    )


def _record(kind: type[_Record], line: Mapping[str, Any]) -> _Record:
    """Makes a record of the known fields; later versions may have written more."""
    names = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in line.items() if name in names})
