"""Runs as tables: polars frames, and parquet files for polars, pandas and whatever else reads parquet.

Columns are the fields of the library's records, so a field that is added to a record becomes a column; docs/exports.md
describes them.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import polars as pl

from aimo_solver.log.reader import RunRecord, Step
from aimo_solver.problems import Answer, ProblemResult
from aimo_solver.results import Attempt

Schema = Mapping[str, pl.DataType]

_PLAIN: Mapping[type, pl.DataType] = {int: pl.Int64(), float: pl.Float64(), bool: pl.Boolean(), str: pl.String()}


def _column_type(hint: Any, answer: pl.DataType) -> pl.DataType:
    """The type of a column that holds a field of a record; `answer` is that of answers."""
    parts = set(get_args(hint)) - {types.NoneType} if isinstance(hint, types.UnionType) else {hint}
    if parts == set(get_args(Answer)):
        return answer
    (hint,) = parts
    if get_origin(hint) is tuple:
        return pl.List(_column_type(get_args(hint)[0], answer))
    if is_dataclass(hint):
        return pl.Struct(_columns(hint, answer))
    return _PLAIN[str if issubclass(hint, StrEnum) else hint]


def _columns(record: Any, answer: pl.DataType) -> dict[str, pl.DataType]:
    return {name: _column_type(hint, answer) for name, hint in get_type_hints(record).items()}


@dataclass(frozen=True, slots=True)
class Schemas:
    """The columns of the tables.

    Attributes:
        problems: one row per problem that was started; what an open problem does not have yet is null.
        attempts: one row per attempt that ended, in the order of their ends.
        turns: one row per step of a trajectory: a prompt, a turn of the model, a Python call or inserted tokens.
    """

    problems: Schema
    attempts: Schema
    turns: Schema

    @classmethod
    def of(cls, runs: Sequence[RunRecord]) -> Schemas:
        """The columns for runs. Answers are 64-bit integers, or texts if any of the runs has symbolic answers."""
        symbolic = any(run.config.get("answers", {}).get("kind") == "symbolic" for run in runs)
        answer = _PLAIN[str if symbolic else int]
        run: Schema = {"run": pl.String()}
        key: Schema = {**run, "problem_id": pl.String(), "index": pl.Int64()}
        more: Schema = {"right": pl.Boolean(), "text": pl.String(), "t": pl.Float64(), "ended": pl.Float64()}
        return cls(
            problems={**run, **_columns(ProblemResult, answer), **more},
            attempts={**key, **_columns(Attempt, answer), "truth": answer, "right": pl.Boolean()},
            turns={**key, "step": pl.Int64(), **_columns(Step, answer)},
        )


def name_run(run: RunRecord) -> str:
    """Returns the name of a run in exports: that of its directory."""
    return run.directory.resolve().name


def problem_table(run: RunRecord, schemas: Schemas | None = None) -> pl.DataFrame:
    """Returns the problems of a run in the order of their start."""
    rows = []
    for problem in run.problems:
        result = {} if problem.result is None else asdict(problem.result) | {"right": problem.result.right}
        start = {"problem_id": problem.problem_id, "truth": problem.truth, "allotted_s": problem.allotted_s}
        rows.append({"run": name_run(run), "text": problem.text, "t": problem.t, "ended": problem.ended} | start | result)
    return _frame(rows, (schemas or Schemas.of([run])).problems)


def attempt_table(run: RunRecord, schemas: Schemas | None = None) -> pl.DataFrame:
    """Returns the attempts of a run that ended; `right` is null where the truth is unknown."""
    truths = {problem.problem_id: problem.truth for problem in run.problems}
    rows = []
    for attempt in run.attempts:
        truth = truths.get(attempt.problem_id)
        right = None if truth is None else attempt.answer == truth
        rows.append({"run": name_run(run)} | asdict(attempt) | {"truth": truth, "right": right})
    return _frame(rows, (schemas or Schemas.of([run])).attempts)


def turn_table(run: RunRecord, schemas: Schemas | None = None) -> pl.DataFrame:
    """Returns every step of every trajectory of a run."""
    schema = (schemas or Schemas.of([run])).turns
    return pl.concat([_frame([], schema), *_turns(run, schema)])


def _turns(run: RunRecord, schema: Schema) -> Iterator[pl.DataFrame]:
    names = [field.name for field in fields(Step)]
    for problem in run.problems:
        for index in run.trajectory_indices(problem.problem_id):
            trajectory = run.read_trajectory(problem.problem_id, index)
            key = {"run": name_run(run), "problem_id": problem.problem_id, "index": index}
            steps = trajectory.steps if trajectory is not None else ()
            rows = [{**key, "step": number} | {name: getattr(step, name) for name in names} for number, step in enumerate(steps)]
            yield _frame(rows, schema)


def _frame(rows: Sequence[Mapping[str, Any]], schema: Schema) -> pl.DataFrame:
    # Not strict: in a run with symbolic answers, the fallback answer is the integer 0.
    return pl.DataFrame(rows, schema=schema, strict=schema.get("answer") != pl.String())


def write_parquet(
    runs: Sequence[RunRecord], folder: Path, progress: Callable[[float], object] = lambda share: None
) -> list[Path]:
    """Writes ``problems.parquet``, ``attempts.parquet`` and ``turns.parquet``, each with all runs, and returns the paths.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables = {"problems": problem_table, "attempts": attempt_table, "turns": turn_table}
    schemas = Schemas.of(runs)
    written: list[Path] = []
    for name, table in tables.items():
        frames = []
        for run in runs:
            frames.append(table(run, schemas))
            progress((len(written) + len(frames) / len(runs)) / len(tables))
        path = folder / f"{name}.parquet"
        pl.concat(frames).write_parquet(path)
        written.append(path)
    return written
