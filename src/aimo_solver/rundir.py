"""The run directory: what is in it, and reading it back. docs/run-directory.md describes every field.

    run.json                    schema, start, configuration, environment
    events.jsonl                boot stages, problems started, restarts, faults
    problems.jsonl              one line per problem that ended
    attempts.jsonl              one line per attempt that ended
    votes.jsonl                 the candidates after every change
    trajectories/ID/N.jsonl.gz  every token, tool call and output of attempt N (plain .jsonl while it runs)
    summary.json                the score, when the run ended by itself
    interrupted/K/              attempts at problems that the K-th interruption left open

Everything reads at any moment, also while the run goes on and after it was killed: a line that was cut is left out and counted.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic_core import from_json

from aimo_solver.attempt import Attempt, FinishReason
from aimo_solver.errors import RunDirectoryError

SCHEMA = 1

_Record = TypeVar("_Record")


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
        truth, right: the right answer, and whether it was given; None where the truth is unknown.
        reason: why the problem ended, as the solver says.
        votes: attempts that gave `answer`.
        attempts, tool_calls, tokens: sums over all its attempts.
        seconds, allotted_s: used, and given by the budget.
        candidates: the last ballot, best first.
    """

    problem_id: str
    answer: int
    truth: int | None = None
    right: bool | None = None
    reason: str
    votes: int = 0
    attempts: int = 0
    tool_calls: int = 0
    tokens: int = 0
    seconds: float = 0.0
    allotted_s: float | None = None
    candidates: tuple[Any, ...] = ()


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One line of a trajectory. `t` is when it began, seconds of the run; fields that its kind lacks are empty.

    Attributes:
        kind: "prompt", "turn" (sampled by the model), "tool" (Python ran) or "inserted" (tokens of ours in between).
        tokens, text: exact token ids, and what they read as. The tokens of all steps in order are the conversation.
        waited_s: the part of a turn's `seconds` before its first token.
        entropies: nats, one per sampled token; empty if not measured.
        turn: what a turn was: "tool_call", "final", "malformed", or "cut" if a limit, a cancellation or a crash fell into it.
        finish: the engine's reason for a turn's end: "stop" or "length", "" if it was something else.
        why: why tokens were inserted: "tool_result", "complaint" or "ask_answer".
    """

    kind: str
    t: float
    seconds: float = 0.0
    waited_s: float = 0.0
    tokens: tuple[int, ...] = ()
    text: str = ""
    entropies: tuple[float, ...] = ()
    turn: str = ""
    finish: str = ""
    why: str = ""
    code: str = ""
    output: str = ""
    error_name: str | None = None
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class TrajectoryRecord:
    """An attempt as it went, from `t` to `ended` (None: it was still running at the last line)."""

    problem_id: str
    index: int
    t: float
    steps: tuple[Step, ...]
    ended: float | None


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
        return tuple(sorted(int(name) for name in names if name.isdigit()))


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
        result = _record(ProblemResult, line | {"candidates": _candidates(line["candidates"])})
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
            _record(Attempt, line | {"finish_reason": FinishReason(line["finish_reason"])}) for line in good["attempts"]
        ),
        votes=tuple(VoteRecord(line["t"], line["problem_id"], _candidates(line["candidates"])) for line in good["votes"]),
        summary=_read_json(directory / "summary.json") if (directory / "summary.json").exists() else None,
        torn_lines=torn,
        last_t=last,
    )


def read_trajectory(path: Path) -> TrajectoryRecord:
    """Reads one attempt. Tokens that a running or killed attempt had sampled so far become a turn that is "cut"."""
    steps: list[Step] = []
    problem_id, index, start, ended = "", 0, 0.0, None
    cut: list[Mapping[str, Any]] = []
    for line in read_lines(path):
        kind = line["kind"] if line else ""
        if line is None:
            continue
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


def read_lines(path: Path) -> Iterator[dict[str, Any] | None]:
    """The records of a JSON-lines file, gzip or plain; None for a line that is not whole. A missing file has none."""
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


def json_line(record: Mapping[str, Any]) -> bytes:
    """One line of JSON; records inside become their fields, what JSON cannot hold becomes null or text."""
    try:
        text = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_plain)
    except ValueError:
        text = json.dumps(_finite(record), ensure_ascii=False, separators=(",", ":"), default=_plain)
    return text.encode("utf-8", "replace") + b"\n"


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


def _record(kind: type[_Record], line: Mapping[str, Any]) -> _Record:
    """A record from the fields it knows; later versions may have written more."""
    names = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in line.items() if name in names})


def as_plain(record: Any) -> dict[str, Any]:
    """The fields of a record, not deeper."""
    return {item.name: getattr(record, item.name) for item in fields(record)}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return as_plain(value)
    return list(value) if isinstance(value, (set, frozenset)) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return _finite(as_plain(value)) if is_dataclass(value) and not isinstance(value, type) else value


def _candidates(lines: list[Mapping[str, Any]]) -> tuple[CandidateRecord, ...]:
    return tuple(_record(CandidateRecord, line) for line in lines)


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
