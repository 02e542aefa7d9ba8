"""Reading problem files: accepted files, and the error for each kind of bad file."""

from __future__ import annotations

from pathlib import Path

import pytest

from aimo_solver.cli.problem_file import ProblemFileError, read_problems
from aimo_solver.options import AnswersConfig
from aimo_solver.problems import Answer, Problem

SHARED = Path(__file__).parents[3] / "shared" / "problems"


def write(folder: Path, text: str) -> Path:
    path = folder / "problems.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_ids_stay_text(tmp_path: Path) -> None:
    path = write(tmp_path, "id,problem,answer\n000123,a,1\n424e18,b,2\n")
    assert [problem.id for problem in read_problems(path)] == ["000123", "424e18"]


def test_answer_is_optional(tmp_path: Path) -> None:
    assert read_problems(write(tmp_path, "id,problem\nx,What?\n")) == (Problem("x", "What?", None),)


def test_byte_order_mark_and_newlines_in_fields_are_accepted(tmp_path: Path) -> None:
    assert read_problems(write(tmp_path, '\ufeffid,problem\nx,"two\nlines"\n'))[0].text == "two\nlines"


def test_ids_select_and_order(tmp_path: Path) -> None:
    path = write(tmp_path, "id,problem\na,A\nb,B\nc,C\n")
    assert [problem.id for problem in read_problems(path, ids=["c", "a"])] == ["c", "a"]


def test_limit_keeps_the_first_problems(tmp_path: Path) -> None:
    assert len(read_problems(write(tmp_path, "id,problem\na,A\nb,B\nc,C\n"), limit=2)) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name,problem\na,A\n", "needs the columns id and problem"),
        ("id,text\na,A\n", "needs the columns id and problem"),
        ("", "needs the columns id and problem"),
        ("id,problem\n", "holds no problem"),
        ("id,problem\na,\n", "row 1: problem a has no text"),
        ("id,problem\n,A\n", "row 1: the id is empty"),
        ("id,problem\na,A\na,B\n", "row 2: id a occurs twice"),
        ("id,problem,answer\na,A,1.5\n", "row 1: the answer of a is not an integer: '1.5'"),
        ("id,problem,answer\na,A,x\n", "not an integer"),
        ("id,problem,answer\na,A,100000\n", "is 100000, outside 0..99999"),
        ("id,problem,answer\na,A,-1\n", "outside 0..99999"),
        ("id,problem\na,A,3\n", "more or fewer fields than the header"),
        ("id,problem,answer\na\n", "more or fewer fields than the header"),
    ],
)
def test_bad_file_gives_a_one_line_error(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ProblemFileError) as error:
        read_problems(write(tmp_path, text))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("answers", "truth", "read"),
    [
        (AnswersConfig(range=(-5, 5)), "-5", -5),
        (AnswersConfig(modulus=1_000), "025", 25),
        (AnswersConfig(kind="symbolic"), " $\\frac{1}{2}$ ", "\\frac{1}{2}"),
        (AnswersConfig(kind="symbolic"), "", None),
    ],
)
def test_true_answers_follow_the_options(tmp_path: Path, answers: AnswersConfig, truth: str, read: Answer | None) -> None:
    assert read_problems(write(tmp_path, f"id,problem,answer\na,A,{truth}\n"), answers)[0].truth == read


def test_a_true_answer_that_is_no_remainder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ProblemFileError, match=r"is 1000, outside 0\.\.999"):
        read_problems(write(tmp_path, "id,problem,answer\na,A,1000\n"), AnswersConfig(modulus=1_000))


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ProblemFileError, match="no such file"):
        read_problems(tmp_path / "absent.csv")


def test_unknown_id_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ProblemFileError, match="no problem with id z"):
        read_problems(write(tmp_path, "id,problem\na,A\n"), ids=["z"])


def test_binary_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"\xff\xfe\x00id")
    with pytest.raises(ProblemFileError, match="UTF-8"):
        read_problems(path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real problem files are not here")
@pytest.mark.parametrize(("name", "count"), [("aimo3_reference.csv", 10), ("aime_2025.csv", 30), ("aimo3_test.csv", 3)])
def test_real_problem_files_load(name: str, count: int) -> None:
    assert len(read_problems(SHARED / name)) == count
