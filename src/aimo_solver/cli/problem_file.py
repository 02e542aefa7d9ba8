"""Reads the problems of a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from aimo_solver.answers import ANSWER_RANGE
from aimo_solver.errors import ProblemFileError
from aimo_solver.problems import Problem

_TEXT_COLUMNS = ("problem", "question")


def read_problems(path: Path, *, ids: Sequence[str] = (), limit: int | None = None) -> tuple[Problem, ...]:
    """Reads a CSV with the columns `id`, `problem` (or `question`) and, if known, `answer`.

    Ids stay text; polars and pandas would turn ``000123`` into 123 and ``424e18`` into a float.

    Args:
        ids: keep only these problems, in this order.
        limit: keep only the first `limit` problems.

    Raises:
        ProblemFileError: the file or a row cannot be used; the message has the row and the remedy.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = list(reader.fieldnames or ())
            rows = list(reader)
    except FileNotFoundError:
        raise ProblemFileError(path, "no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ProblemFileError(path, f"cannot be read as a UTF-8 CSV file: {error}") from None
    text_column = next((name for name in _TEXT_COLUMNS if name in columns), None)
    if "id" not in columns or text_column is None:
        raise ProblemFileError(path, f"needs the columns id and problem; it has {', '.join(columns) or 'none'}")
    problems: dict[str, Problem] = {}
    for number, row in enumerate(rows, start=1):
        problem = _problem(path, number, row, text_column, has_answer="answer" in columns)
        if problem.id in problems:
            raise ProblemFileError(path, f"id {problem.id} occurs twice; give each problem its own", number)
        problems[problem.id] = problem
    if not problems:
        raise ProblemFileError(path, "holds no problem")
    missing = [id_ for id_ in ids if id_ not in problems]
    if missing:
        raise ProblemFileError(path, f"has no problem with id {', '.join(missing)}")
    chosen = [problems[id_] for id_ in dict.fromkeys(ids)] if ids else list(problems.values())
    return tuple(chosen[:limit])


def _problem(path: Path, number: int, row: dict[str, str], text_column: str, *, has_answer: bool) -> Problem:
    if None in row or None in row.values():
        raise ProblemFileError(path, "has more or fewer fields than the header; check its quotes and commas", number)
    id_, text = row["id"].strip(), row[text_column].strip()
    if not id_:
        raise ProblemFileError(path, "the id is empty", number)
    if not text:
        raise ProblemFileError(path, f"problem {id_} has no text", number)
    if not has_answer or not row["answer"].strip():
        return Problem(id_, text)
    try:
        answer = int(row["answer"].strip())
    except ValueError:
        raise ProblemFileError(path, f"the answer of {id_} is not an integer: {row['answer']!r}", number) from None
    if answer not in ANSWER_RANGE:
        low, high = ANSWER_RANGE[0], ANSWER_RANGE[-1]
        raise ProblemFileError(path, f"the answer of {id_} is {answer}, outside {low}..{high}", number)
    return Problem(id_, text, answer)
