"""Reads logged attempts at problems with known answers, grouped by run and problem.

Two formats: the ``attempts.jsonl`` of a run directory, and CSV with the columns `CSV_COLUMNS`, where an empty field was not
logged.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Flag, auto
from pathlib import Path
from typing import Any

from aimo_solver.errors import UserError
from aimo_solver.log.reader import read_lines, read_records
from aimo_solver.policy.selection import Method
from aimo_solver.problems import Answer
from aimo_solver.results import Attempt, FinishReason

CSV_COLUMNS = (
    "run", "model", "problem_id", "correct_answer", "attempt", "answer", "entropy", "tokens", "seconds", "tool_calls",
    "tool_errors", "finish_order", "stopped_early",
)  # fmt: skip
_CUT = {FinishReason.CANCELLED, FinishReason.DEADLINE, FinishReason.ENGINE_ERROR}


class RecordsError(UserError):
    """Logged attempts that cannot be replayed."""

    def __init__(self, path: Path, problem: str, record: int | None = None) -> None:
        """`record` counts from 1; None means the whole file."""
        super().__init__(f"{path}: {problem}" if record is None else f"{path}, record {record}: {problem}")


class Use(Flag):
    """The comparisons that a run's records allow."""

    ACCURACY = auto()  # how often a rule is right
    STOPPING = auto()  # how early a rule can stop, and what that saves
    NONE = 0


PUBLIC_RUNS: Mapping[str, Use] = {
    "jxm/v22": Use.ACCURACY,  # cut by its own stop at 3 equal
    "nat/": Use.ACCURACY,  # cut at 4 equal
    "grubbylu/": Use.ACCURACY,  # cut at 4 equal
    "jxm/shiv-latest-hinted": Use.STOPPING,  # the prompts held hints
    "jxm/v23-wrongonly": Use.NONE,  # only problems that the run's own vote got wrong
}
"""Uses of the public runs that do not allow all of them, by prefix of the run's id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The attempts of one run at one problem.

    Attributes:
        ended: attempts that finished or gave an answer, in order of finishing.
        cut: attempts that were cut off without an answer.
        timed: whether seconds are known; otherwise tokens replace them, as if all attempts sampled at one speed.
        choices: clear choices of the second look, by `selection.Method`.
    """

    run: str
    model: str
    problem_id: str
    truth: Answer
    ended: tuple[Attempt, ...]
    cut: tuple[Attempt, ...]
    timed: bool
    use: Use
    choices: Mapping[str, Answer] = field(default_factory=dict)

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        return self.ended + self.cut

    @property
    def truth_present(self) -> bool:
        """Whether any attempt gave the true answer, so that a perfect voter would be right."""
        return any(attempt.answer == self.truth for attempt in self.ended)

    def end(self, attempt: Attempt) -> float:
        """Returns when an attempt ended, from the problem's start: seconds, or tokens if the group is not timed."""
        return attempt.started_s + attempt.seconds if self.timed else float(attempt.tokens)


def read_groups(paths: Sequence[Path]) -> tuple[Group, ...]:
    """Reads the groups of all files. A folder stands for its ``attempts.jsonl``.

    Raises:
        RecordsError: a file or record cannot be read, or no problem has a known answer.
    """
    groups: list[Group] = []
    for path in paths:
        file = path / "attempts.jsonl" if path.is_dir() else path
        if not file.exists():
            raise RecordsError(file, "no such file; give a CSV of attempts, a run directory or its attempts.jsonl")
        rows = _csv_rows(file) if file.suffix.lower() == ".csv" else _jsonl_rows(file)
        groups += _grouped(rows, _choices(file.with_name("events.jsonl")))
    if not groups:
        raise RecordsError(paths[0], "holds no attempt at a problem with a known answer")
    return tuple(groups)


def group_attempts(
    attempts: Sequence[Attempt], *, run: str, truth: Answer, model: str = "", choices: Mapping[str, Answer] | None = None
) -> Group:
    """Groups one run's attempts at one problem, at least one."""
    cut = tuple(a for a in attempts if a.answer is None and a.finish_reason in _CUT)
    ended = sorted((a for a in attempts if a not in cut), key=_finishing)
    return Group(
        run=run,
        model=model,
        problem_id=attempts[0].problem_id,
        truth=truth,
        ended=tuple(ended),
        cut=cut,
        timed=all(attempt.seconds > 0 for attempt in ended),
        use=next((use for start, use in PUBLIC_RUNS.items() if run.startswith(start)), Use.ACCURACY | Use.STOPPING),
        choices=choices or {},
    )


@dataclass(frozen=True, slots=True)
class _Row:
    run: str
    model: str
    truth: Answer
    attempt: Attempt


def _grouped(rows: Iterable[_Row], choices: Mapping[str, Mapping[str, Answer]]) -> Iterator[Group]:
    by_group: dict[tuple[str, str], list[_Row]] = {}
    for row in rows:
        by_group.setdefault((row.run, row.attempt.problem_id), []).append(row)
    for (run, problem_id), own in by_group.items():
        attempts = [row.attempt for row in own]
        yield group_attempts(attempts, run=run, truth=own[0].truth, model=own[0].model, choices=choices.get(problem_id, {}))


def _finishing(attempt: Attempt) -> tuple[float, float, int, int]:
    order = float("inf") if attempt.finish_order is None else attempt.finish_order
    return order, attempt.started_s + attempt.seconds, attempt.tokens, attempt.index


def _choices(events: Path) -> dict[str, dict[str, Answer]]:
    """Reads clear choices by problem and method from "selection" events: a problem's id and the fields of a `SelectionResult`."""
    choices: dict[str, dict[str, Answer]] = {}
    for line in read_lines(events):
        if line is not None and line.get("kind") == "selection" and 2 * line["votes"] > len(line["picks"]):
            choices.setdefault(line["problem_id"], {})[line["method"]] = line["answer"]
    return choices


def _csv_rows(path: Path) -> Iterator[_Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            missing = [name for name in CSV_COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise RecordsError(path, f"lacks the columns {', '.join(missing)}")
            for number, row in enumerate(reader, start=1):
                try:
                    yield _csv_row(row)
                except ValueError as error:
                    raise RecordsError(path, f"cannot be read: {error}", number) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RecordsError(path, f"cannot be read as a UTF-8 CSV file: {error}") from None


def _csv_row(row: Mapping[str, str]) -> _Row:
    if None in row or None in row.values():
        raise ValueError("the number of fields differs from the header's")
    answer = int(row["answer"]) if row["answer"] else None
    cut = row["stopped_early"] == "true"
    reason = FinishReason.ANSWERED if answer is not None else FinishReason.CANCELLED if cut else FinishReason.NO_ANSWER
    attempt = Attempt(
        problem_id=row["problem_id"],
        index=int(row["attempt"]),
        answer=answer,
        finish_reason=reason,
        entropy=float(row["entropy"]) if row["entropy"] else None,
        tokens=int(row["tokens"] or 0),
        seconds=float(row["seconds"] or 0),
        tool_calls=int(row["tool_calls"] or 0),
        tool_errors=int(row["tool_errors"] or 0),
        finish_order=int(row["finish_order"]) if row["finish_order"] else None,
    )
    return _Row(row["run"], row["model"], int(row["correct_answer"]), attempt)


def _jsonl_rows(path: Path) -> Iterator[_Row]:
    known = {item.name for item in fields(Attempt)}
    for number, line in enumerate(read_records(path), start=1):
        if line is None or line.get("truth") is None or line.get("prompt") in set(Method):
            continue  # a torn line, a problem without a known answer, or a second look, which has no vote
        try:
            values: dict[str, Any] = {name: value for name, value in line.items() if name in known}
            attempt = Attempt(**values | {"finish_reason": FinishReason(line["finish_reason"])})
            yield _Row(str(path.parent.name or path), str(line.get("model", "")), line["truth"], attempt)
        except (KeyError, ValueError, TypeError) as error:
            raise RecordsError(path, f"cannot be read: {error}", number) from None
