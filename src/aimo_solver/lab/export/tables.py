"""Runs as tables: polars frames, and parquet files for polars, pandas and whatever else reads parquet.

Columns are the fields of the library's records, so a field that is added to a record becomes a column; docs/exports.md
describes them.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import polars as pl

from aimo_solver.log.reader import RunRecord, Step
from aimo_solver.problems import ProblemResult
from aimo_solver.results import Attempt

Schema = Mapping[str, pl.DataType]

_PLAIN: Mapping[type, pl.DataType] = {int: pl.Int64(), float: pl.Float64(), bool: pl.Boolean(), str: pl.String()}
_ATTEMPT_KEY: Schema = {"run": pl.String(), "problem_id": pl.String(), "index": pl.Int64()}


def _column_type(hint: Any) -> pl.DataType:
    """The type of a column that holds a field of a record."""
    if isinstance(hint, types.UnionType):
        (hint,) = (part for part in get_args(hint) if part is not types.NoneType)
    if get_origin(hint) is tuple:
        return pl.List(_column_type(get_args(hint)[0]))
    if is_dataclass(hint):
        return pl.Struct(_columns(hint))
    return _PLAIN[str if issubclass(hint, StrEnum) else hint]


def _columns(record: Any) -> dict[str, pl.DataType]:
    return {name: _column_type(hint) for name, hint in get_type_hints(record).items()}


PROBLEMS: Schema = {
    "run": pl.String(),
    **_columns(ProblemResult),
    "right": pl.Boolean(),
    "text": pl.String(),
    "t": pl.Float64(),
    "ended": pl.Float64(),
}
"""One row per problem that was started; what an open problem has not yet is null."""

ATTEMPTS: Schema = {**_ATTEMPT_KEY, **_columns(Attempt), "truth": pl.Int64(), "right": pl.Boolean()}
"""One row per attempt that ended, in the order of their ends."""

TURNS: Schema = {**_ATTEMPT_KEY, "step": pl.Int64(), **_columns(Step)}
"""One row per step of a trajectory: a prompt, a turn of the model, a Python call or inserted tokens."""


def name_run(run: RunRecord) -> str:
    """Returns the name of a run in exports: that of its directory."""
    return run.directory.resolve().name


def problem_table(run: RunRecord) -> pl.DataFrame:
    """Returns the problems of a run in the order of their start, with the columns `PROBLEMS`."""
    rows = []
    for problem in run.problems:
        result = {} if problem.result is None else asdict(problem.result) | {"right": problem.result.right}
        start = {"problem_id": problem.problem_id, "truth": problem.truth, "allotted_s": problem.allotted_s}
        rows.append({"run": name_run(run), "text": problem.text, "t": problem.t, "ended": problem.ended} | start | result)
    return pl.DataFrame(rows, schema=PROBLEMS)


def attempt_table(run: RunRecord) -> pl.DataFrame:
    """Returns the attempts of a run that ended, with the columns `ATTEMPTS`; `right` is null where the truth is unknown."""
    truths = {problem.problem_id: problem.truth for problem in run.problems}
    rows = []
    for attempt in run.attempts:
        truth = truths.get(attempt.problem_id)
        right = None if truth is None else attempt.answer == truth
        rows.append({"run": name_run(run)} | asdict(attempt) | {"truth": truth, "right": right})
    return pl.DataFrame(rows, schema=ATTEMPTS)


def turn_table(run: RunRecord) -> pl.DataFrame:
    """Returns every step of every trajectory of a run, with the columns `TURNS`."""
    return pl.concat([pl.DataFrame(schema=TURNS), *_turns(run)])


def _turns(run: RunRecord) -> Iterator[pl.DataFrame]:
    names = list(_columns(Step))
    for problem in run.problems:
        for index in run.trajectory_indices(problem.problem_id):
            trajectory = run.read_trajectory(problem.problem_id, index)
            key = {"run": name_run(run), "problem_id": problem.problem_id, "index": index}
            steps = trajectory.steps if trajectory is not None else ()
            rows = [{**key, "step": number} | {name: getattr(step, name) for name in names} for number, step in enumerate(steps)]
            yield pl.DataFrame(rows, schema=TURNS)


def write_parquet(
    runs: Sequence[RunRecord], folder: Path, progress: Callable[[float], object] = lambda share: None
) -> list[Path]:
    """Writes ``problems.parquet``, ``attempts.parquet`` and ``turns.parquet``, each with all runs, and returns the paths.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables = {"problems": problem_table, "attempts": attempt_table, "turns": turn_table}
    written: list[Path] = []
    for name, table in tables.items():
        frames = []
        for run in runs:
            frames.append(table(run))
            progress((len(written) + len(frames) / len(runs)) / len(tables))
        path = folder / f"{name}.parquet"
        pl.concat(frames).write_parquet(path)
        written.append(path)
    return written
