"""Reads the problems of a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from aimo_solver.errors import UserError
from aimo_solver.options import AnswersConfig
from aimo_solver.problems import Answer, Problem

_ID_COLUMNS = ("id", "unique_id")  # the latter in MATH-500
_TEXT_COLUMNS = ("problem", "question")
_COMPETITION = AnswersConfig()


class ProblemFileError(UserError):
    """A problem CSV that cannot be used."""

    def __init__(self, path: Path, problem: str, row: int | None = None) -> None:
        """`row` counts from 1; None means the whole file."""
        super().__init__(f"{path}: {problem}" if row is None else f"{path}, row {row}: {problem}")


def read_problems(
    path: Path, answers: AnswersConfig = _COMPETITION, *, ids: Sequence[str] = (), limit: int | None = None
) -> tuple[Problem, ...]:
    """Reads a CSV with the columns `id` (or `unique_id`), `problem` (or `question`) and, if known, `answer`, in any case.

    Ids stay text; polars and pandas would turn ``000123`` into 123 and ``424e18`` into a float.

    Args:
        answers: what a true answer has to be.
        ids: keep only these problems, in this order.
        limit: keep only the first `limit` problems.

    Raises:
        ProblemFileError: the file or a row cannot be used; the message has the row and the remedy.
    """
    problems: dict[str, Problem] = {}
    for number, (id_, text, answer) in enumerate(_read_rows(path), start=1):
        if not id_:
            raise ProblemFileError(path, "the id is empty", number)
        if not text:
            raise ProblemFileError(path, f"problem {id_} has no text", number)
        if id_ in problems:
            raise ProblemFileError(path, f"id {id_} occurs twice; give each problem its own", number)
        try:
            problems[id_] = Problem(id_, text, _read_truth(answer, answers))
        except ValueError as error:
            raise ProblemFileError(path, f"the answer of {id_} is {error}", number) from None
    if not problems:
        raise ProblemFileError(path, "holds no problem")
    missing = [id_ for id_ in ids if id_ not in problems]
    if missing:
        raise ProblemFileError(path, f"has no problem with id {', '.join(missing)}")
    chosen = [problems[id_] for id_ in dict.fromkeys(ids)] if ids else list(problems.values())
    return tuple(chosen[:limit])


def _read_rows(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yields id, text and answer of each row; "" is an empty field."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
            rows = list(reader)
    except FileNotFoundError:
        raise ProblemFileError(path, "no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ProblemFileError(path, f"cannot be read as a UTF-8 CSV file: {error}") from None
    id_column, text_column = (next((one for one in known if one in columns), None) for known in (_ID_COLUMNS, _TEXT_COLUMNS))
    if id_column is None or text_column is None:
        raise ProblemFileError(path, f"needs the columns id and problem; it has {', '.join(columns) or 'none'}")
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise ProblemFileError(path, "has more or fewer fields than the header; check its quotes and commas", number)
        yield row[id_column].strip(), row[text_column].strip(), row.get("answer", "").strip()


def _read_truth(text: str, answers: AnswersConfig) -> Answer | None:
    if not text or answers.kind == "symbolic":
        return text.strip("$").strip() or None
    try:
        truth = int(text)
    except ValueError:
        remedy = "for other exact values use --set answers.kind=symbolic"
        raise ValueError(f"not an integer: {text!r}; {remedy}") from None
    lowest, highest = (0, answers.modulus - 1) if answers.modulus else answers.range
    if not lowest <= truth <= highest:
        raise ValueError(f"{truth}, outside {lowest}..{highest}")
    return truth
