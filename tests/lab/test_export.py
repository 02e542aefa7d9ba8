"""Runs in the formats of other tools, read back by those tools."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest
from typer.testing import CliRunner

from aimo_solver.cli.main import app
from aimo_solver.config import Config
from aimo_solver.lab.export.inspect_log import model_name, write_inspect_log
from aimo_solver.lab.export.tables import Schemas, write_parquet
from aimo_solver.lab.export.wandb_run import write_wandb_run
from aimo_solver.log.reader import Event, RunRecord, Step, read_run
from aimo_solver.options import AnswersConfig
from aimo_solver.problems import ProblemResult
from aimo_solver.results import Attempt
from tests.conftest import ROOT
from tests.small_run import ANSWERS, write_run

SYMBOLIC = AnswersConfig(kind="symbolic")
NUMBERS = sum(len(answers) for _, answers in ANSWERS.values())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    return read_run(write_run(tmp_path_factory.mktemp("runs") / "first", ANSWERS))


@pytest.fixture(scope="module")
def tables(run: RunRecord, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    write_parquet([run], folder)
    return folder


def records(frame: pl.DataFrame, kind: type[Any]) -> list[Any]:
    names = [field.name for field in fields(kind)]
    lists = {name for name, dtype in frame.schema.items() if isinstance(dtype, pl.List)}
    rows = frame.select(names).iter_rows(named=True)
    return [kind(**{name: tuple(value) if name in lists else value for name, value in row.items()}) for row in rows]


def test_attempts_from_parquet_equal_those_of_the_run(run: RunRecord, tables: Path) -> None:
    assert tuple(records(pl.read_parquet(tables / "attempts.parquet"), Attempt)) == run.attempts


def test_steps_from_parquet_equal_the_trajectories(run: RunRecord, tables: Path) -> None:
    frame = pl.read_parquet(tables / "turns.parquet")
    for attempt in run.attempts:
        own = frame.filter(problem_id=attempt.problem_id, index=attempt.index).sort("step")
        trajectory = run.read_trajectory(attempt.problem_id, attempt.index)
        assert trajectory is not None
        assert tuple(records(own, Step)) == trajectory.steps


def test_problems_in_parquet_are_those_of_the_run(run: RunRecord, tables: Path) -> None:
    frame = pl.read_parquet(tables / "problems.parquet")
    assert frame["problem_id"].to_list() == list(ANSWERS)
    assert frame["right"].to_list() == [result.right for result in run.results]
    leaders = [candidates[0]["votes"] if candidates else None for candidates in frame["candidates"].to_list()]
    assert leaders == [2, 2, 1, None, 2]


def test_symbolic_answers_are_texts(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "symbolic", {"p": ("\\pi", ["\\pi", "3.1", None])}, config=Config(answers=SYMBOLIC))
    integers = write_run(tmp_path / "integers", {"p": (7, [7])})
    write_parquet([read_run(folder), read_run(integers)], tmp_path)
    attempts, problems = (pl.read_parquet(tmp_path / f"{name}.parquet") for name in ("attempts", "problems"))
    assert attempts["answer"].to_list() == ["\\pi", "3.1", None, "7"]
    assert attempts["right"].to_list() == [True, False, False, True]
    assert [one["answer"] for one in problems["candidates"][0]] == ["\\pi", "3.1"]


def test_pandas_reads_the_same_values(tables: Path) -> None:
    attempts = pd.read_parquet(tables / "attempts.parquet")
    assert attempts["answer"].fillna(-1).astype(int).tolist() == [
        -1 if answer is None else answer for _, answers in ANSWERS.values() for answer in answers
    ]
    assert attempts.groupby("problem_id")["right"].sum()["outvoted"] == 1


def test_a_running_attempt_and_an_open_problem_are_in_the_tables(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "open", {"p": (7, [7])}, end=False)
    for name in ("attempts", "problems"):
        (folder / f"{name}.jsonl").unlink()
    write_parquet([read_run(folder)], tmp_path)
    problems, attempts, turns = (pl.read_parquet(tmp_path / f"{name}.parquet") for name in ("problems", "attempts", "turns"))
    assert problems["answer"].to_list() == [None]
    assert problems["truth"].to_list() == [7]
    assert attempts.is_empty()
    assert turns["kind"].to_list() == ["prompt", "turn", "tool", "turn"]


@pytest.mark.parametrize(("name", "kind"), [("problems", ProblemResult), ("attempts", Attempt), ("turns", Step)])
def test_the_docs_have_every_column_that_is_not_a_field_of_the_record(
    name: str, kind: type[Any], run: RunRecord, tables: Path
) -> None:
    schema = getattr(Schemas.of([run]), name)
    assert pl.read_parquet_schema(tables / f"{name}.parquet") == schema
    text = (ROOT / "docs" / "exports.md").read_text(encoding="utf-8")
    (row,) = (line for line in text.splitlines() if line.startswith(f"| `{name}.parquet`"))
    listed = set(row.split("|")[3].split("`")[1::2])
    assert listed == schema.keys() - {field.name for field in fields(kind)}


@pytest.mark.slow  # inspect_ai takes two seconds to import
def test_inspect_reads_samples_messages_and_scores(run: RunRecord, tmp_path: Path) -> None:
    from inspect_ai.log import read_eval_log

    log = read_eval_log(str(write_inspect_log(run, tmp_path)))
    assert log.samples is not None
    assert log.results is not None
    assert len(log.samples) == NUMBERS
    scores = {score.name: score.metrics["accuracy"].value for score in log.results.scores}
    assert scores == {"vote": 1 / 4, "attempt": 3 / 11}  # `unknown` has no truth; the other four have 11 attempts
    samples = {(sample.id, sample.epoch): sample for sample in log.samples}
    second = samples["outvoted", 2]
    assert second.scores is not None
    assert {name: score.value for name, score in second.scores.items()} == {"attempt": "I", "vote": "I"}
    assert [message.role for message in second.messages] == ["user", "assistant", "tool", "assistant"]
    call = second.messages[1].tool_calls[0]
    assert call.arguments["code"].startswith("print(1)")
    assert second.messages[2].tool_call_id == call.id
    assert second.messages[2].error is not None
    assert samples["outvoted", 1].messages[2].error is None
    assert second.output.completion == "\\boxed{8}"
    assert samples["unknown", 1].scores == {}
    assert samples["silent", 1].scores["attempt"].value == "N"


def test_the_model_is_named_after_the_folder_that_the_server_loaded(run: RunRecord) -> None:
    event = Event(0.0, "", "server_starting", {"command": "python -m vllm --model /models/gpt-oss-120b --port 1"})
    assert model_name(run) == "vllm/unknown"
    assert model_name(RunRecord(**{field.name: getattr(run, field.name) for field in fields(run)} | {"events": (event,)})) == (
        "vllm/gpt-oss-120b"
    )


@pytest.mark.slow
def test_wandb_writes_an_offline_run(run: RunRecord, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    folder = write_wandb_run(run, tmp_path)
    assert list(folder.glob("run-*.wandb"))
    (attempts,) = folder.rglob("attempts*.table.json")
    table = json.loads(attempts.read_text())
    assert table["columns"] == list(Schemas.of([run]).attempts)
    assert len(table["data"]) == NUMBERS


def test_a_missing_package_is_one_line_and_exit_code_2(
    run: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    result = CliRunner().invoke(app, ["export", "wandb", str(run.directory), "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "pip install wandb" in result.output + capfd.readouterr().err


def test_two_runs_with_one_name_are_refused(run: RunRecord, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", "parquet", str(run.directory), str(run.directory), "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_exit_code_2(run: RunRecord, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(app, ["export", "parquet", str(run.directory), "--out", str(tmp_path / "file" / "out")])
    assert result.exit_code == 2
