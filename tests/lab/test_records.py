"""Reading logged attempts."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from aimo_solver.lab.records import CSV_COLUMNS, RecordsError, Use, read_groups
from aimo_solver.problems import Answer
from aimo_solver.results import Attempt, FinishReason
from tests.lab.groups import make_attempt

HEADER = ",".join(CSV_COLUMNS)
ROWS = (
    "r,m,p1,7,0,7,0.5,100,9.5,2,1,2,false",
    "r,m,p1,7,1,8,,90,8,0,0,1,false",
    "r,m,p1,7,2,,,300,30,0,0,,true",
    "r,m,p2,5,0,,,10,1,,,,false",
)


def csv_file(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "attempts.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def jsonl_file(folder: Path, *attempts: Attempt, truth: Answer | None = 7) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "attempts.jsonl"
    path.write_text("".join(json.dumps(asdict(one) | {"truth": truth, "t": 1.0}) + "\n" for one in attempts), encoding="utf-8")
    return path


def test_a_csv_gives_groups_in_order_of_finishing(tmp_path: Path) -> None:
    first, second = read_groups([csv_file(tmp_path, *ROWS)])
    assert [(a.index, a.answer) for a in first.ended] == [(1, 8), (0, 7)]
    assert [a.index for a in first.cut] == [2]
    assert first.ended[1] == Attempt(
        problem_id="p1", index=0, answer=7, finish_reason=FinishReason.ANSWERED,
        entropy=0.5, tokens=100, seconds=9.5, tool_calls=2, tool_errors=1, finish_order=2,
    )  # fmt: skip
    assert (first.truth, first.truth_present, first.timed, first.model) == (7, True, True, "m")
    assert (second.ended[0].finish_reason, second.truth_present) == (FinishReason.NO_ANSWER, False)


def test_a_run_directory_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = [
        make_attempt(0, 7, seconds=9.0, started_s=0.0, finish_order=2, tail_entropy=0.3, seen_in_tool=True, tokens=50),
        make_attempt(1, 7, seconds=4.0, started_s=1.0, finish_order=1, tokens=40),
        make_attempt(2, None, finish_reason=FinishReason.CANCELLED, seconds=9.0, tokens=44),
    ]
    jsonl_file(tmp_path / "run", *written)
    (group,) = read_groups([tmp_path / "run"])
    assert group.ended == (written[1], written[0])
    assert group.cut == (written[2],)
    assert group.end(written[1]) == 5.0
    assert group.run == "run"
    assert group.use == Use.ACCURACY | Use.STOPPING


def test_torn_lines_and_problems_without_truth_are_left_out(tmp_path: Path) -> None:
    path = jsonl_file(tmp_path / "run", make_attempt(0, 7), make_attempt(1, 8))
    path.write_text(path.read_text(encoding="utf-8") + '{"problem_id": "p", "ind', encoding="utf-8")
    (group,) = read_groups([path])
    assert len(group.attempts) == 2
    with pytest.raises(RecordsError, match="no attempt at a problem with a known answer"):
        read_groups([jsonl_file(tmp_path / "other", make_attempt(0, 7), truth=None)])


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (ROWS, "run,problem_id", "lacks the columns model, correct_answer"),
        (("r,m,p,seven,0,7,,1,1,0,0,1,false",), HEADER, "record 1: cannot be read"),
        (("r,m,p,7,0,7,,1",), HEADER, "record 1: cannot be read"),
        ((), HEADER, "holds no attempt"),
    ],
)
def test_a_bad_csv_is_reported_with_its_place(tmp_path: Path, rows: tuple[str, ...], header: str, message: str) -> None:
    with pytest.raises(RecordsError, match=message) as caught:
        read_groups([csv_file(tmp_path, *rows, header=header)])
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_missing_file_and_a_folder_without_a_run_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(RecordsError, match="no such file"):
            read_groups([path])


def test_a_bad_record_is_named(tmp_path: Path) -> None:
    path = jsonl_file(tmp_path / "run", make_attempt(0, 7))
    path.write_text(path.read_text(encoding="utf-8").replace("answered", "vanished"), encoding="utf-8")
    with pytest.raises(RecordsError, match="record 1: cannot be read: 'vanished'"):
        read_groups([path])


def test_symbolic_answers_are_read_as_texts(tmp_path: Path) -> None:
    path = jsonl_file(tmp_path, make_attempt(0, "\\frac{1}{2}"), truth="\\frac{1}{2}")
    (group,) = read_groups([path])
    assert (group.truth, group.truth_present) == ("\\frac{1}{2}", True)


def test_the_groups_of_several_files_are_joined(tmp_path: Path) -> None:
    one = jsonl_file(tmp_path / "a", make_attempt(0, 7))
    other = jsonl_file(tmp_path / "b", make_attempt(0, 8))
    assert [group.run for group in read_groups([one, other])] == ["a", "b"]


def test_public_runs_are_excluded_from_uses_they_do_not_allow(tmp_path: Path) -> None:
    rows = [row.replace("r,", f"{run},", 1) for run in ("jxm/v22", "jxm/v23-wrongonly-pass1", "zz/x") for row in ROWS[:1]]
    cut, selected, whole = read_groups([csv_file(tmp_path, *rows)])
    assert (cut.use, selected.use, whole.use) == (Use.ACCURACY, Use.NONE, Use.ACCURACY | Use.STOPPING)


def test_second_looks_are_read_from_events_and_have_no_vote(tmp_path: Path) -> None:
    looks = [make_attempt(2, 8, prompt="select"), make_attempt(3, 8, prompt="verify")]
    path = jsonl_file(tmp_path / "run", make_attempt(0, 7), make_attempt(1, 8), *looks)
    event = {"t": 1, "kind": "selection", "problem_id": "p", "answer": 8}
    events = [
        event | {"method": "select", "votes": 3, "picks": [8, 8, 7, 8]},
        event | {"method": "verify", "votes": 2, "picks": [8, 8, None, None]},
        {"t": 1, "kind": "run_started"},
    ]
    path.with_name("events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    (group,) = read_groups([tmp_path / "run"])
    assert [one.index for one in group.attempts] == [0, 1]
    assert group.choices == {"select": 8}
