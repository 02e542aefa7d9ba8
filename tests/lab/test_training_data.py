"""Training data from runs: tokens, masks, filters, pairs and files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from aimo_solver.cli.main import app
from aimo_solver.config import Config
from aimo_solver.lab.export.training import Filters, LeftOut, Pairs, select_dpo, select_sft
from aimo_solver.lab.export.training_files import write_training_data
from aimo_solver.lab.runs import LoggedRun, read_runs
from aimo_solver.log.reader import read_run
from aimo_solver.log.writer import RunLog
from aimo_solver.problems import Problem, ProblemResult
from aimo_solver.results import Attempt, FinishReason

ALL = Filters(held_out=0.0, keep_solved=True, per_problem=100)


@dataclass(frozen=True)
class Try:
    """An attempt to be logged: two turns of `length` tokens that start with `start`, and a tool result between them."""

    answer: int | None
    start: int
    length: int = 10
    finish: FinishReason = FinishReason.ANSWERED
    malformed: int = 0
    given_up: bool = False
    logged: int | None = None  # sampled tokens in attempts.jsonl, if others than in the trajectory
    prompt: tuple[int, ...] = (1, 2)


def log_run(folder: Path, problems: Mapping[str, Sequence[Try]]) -> Path:
    log = RunLog.create(folder, config=Config(), environment={}, clock=lambda: 0.0)
    for problem_id, tries in problems.items():
        log.problem_started(Problem(problem_id, "text", 7), 900.0)
        for index, attempt in enumerate(tries):
            trajectory = log.start_trajectory(problem_id, index)
            trajectory.write_prompt(attempt.prompt, "prompt")
            turn = [attempt.start, *range(100, 99 + attempt.length)]
            trajectory.write_turn(turn, "thinking", seconds=1.0, kind="tool_call", finish="stop")
            trajectory.write_tool_call("print(1)", "1", seconds=0.1)
            trajectory.write_insertion([8, 9], "result", "tool_result")
            trajectory.write_turn(turn, "answer", seconds=1.0, kind="final", finish="stop")
            if attempt.given_up:
                trajectory.write_insertion((), "[the last 3 tokens are given up]", "given_up")
            log.attempt_finished(
                Attempt(
                    problem_id=problem_id,
                    index=index,
                    answer=attempt.answer,
                    finish_reason=attempt.finish,
                    tokens=2 * attempt.length if attempt.logged is None else attempt.logged,
                    malformed=attempt.malformed,
                )
            )
        log.problem_finished(ProblemResult(problem_id=problem_id, answer=7, truth=7, reason="attempts"))
    log.finish()
    log.close()
    return folder


def logged(folder: Path, problems: Mapping[str, Sequence[Try]]) -> tuple[LoggedRun, ...]:
    return read_runs([log_run(folder, problems)])


MIXED = {
    "a": [Try(7, 10), Try(7, 11, 20), Try(8, 12), Try(7, 13, 40)],
    "b": [Try(7, 14), Try(9, 15, 30), Try(None, 16, finish=FinishReason.NO_ANSWER)],
}


def test_tokens_and_masks_equal_the_steps_of_the_trajectories(tmp_path: Path) -> None:
    runs = logged(tmp_path / "run", MIXED)
    write_training_data(select_sft(runs, ALL), tmp_path / "sft.parquet", ALL, shown=1)
    rows = pl.read_parquet(tmp_path / "sft.parquet").to_dicts()
    assert len(rows) == 4
    for row in rows:
        _, problem_id, index = row["source"].split("/")
        trajectory = read_run(tmp_path / "run").read_trajectory(problem_id, int(index))
        assert trajectory is not None
        assert row["input_ids"] == [token for step in trajectory.steps for token in step.tokens]
        assert row["assistant_masks"] == [int(step.kind == "turn") for step in trajectory.steps for _ in step.tokens]


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_shifted_mask_does_not_select_the_sampled_tokens(shift: int, tmp_path: Path) -> None:
    for example in select_sft(logged(tmp_path / "run", MIXED), ALL).rows:
        sampled = [token for step in example.steps if step.kind == "turn" for token in step.tokens]
        shifted = example.mask[-shift:] + example.mask[:-shift]
        assert [token for token, kept in zip(example.tokens, example.mask, strict=True) if kept] == sampled
        assert [token for token, kept in zip(example.tokens, shifted, strict=True) if kept] != sampled


@pytest.mark.parametrize(
    ("attempt", "reason"),
    [
        (Try(8, 20), LeftOut.WRONG),
        (Try(7, 20, finish=FinishReason.FORCED), LeftOut.UNFINISHED),
        (Try(None, 20, finish=FinishReason.CANCELLED), LeftOut.UNFINISHED),
        (Try(7, 20, malformed=1), LeftOut.MALFORMED),
        (Try(7, 20, given_up=True), LeftOut.INCOMPLETE),
        (Try(7, 20, logged=999), LeftOut.INCOMPLETE),
        (Try(7, 20, length=2), LeftOut.SHORT),
        (Try(7, 20, length=50), LeftOut.LONG),
        (Try(7, 10), LeftOut.DUPLICATE),
    ],
    ids=lambda value: value.name if isinstance(value, LeftOut) else "",
)
def test_an_attempt_is_left_out_for_its_reason(attempt: Try, reason: LeftOut, tmp_path: Path) -> None:
    runs = logged(tmp_path / "run", {"p": [Try(7, 10), attempt]})
    data = select_sft(runs, replace(ALL, least_tokens=10, most_tokens=60))
    assert data.left_out == {reason: 1}
    assert [example.source for example in data.rows] == ["run/p/0"]
    assert data.attempts == data.used + 1


def test_problems_that_all_or_no_attempts_solved_are_left_out(tmp_path: Path) -> None:
    runs = logged(tmp_path / "run", {"easy": [Try(7, 10), Try(7, 11)], "hard": [Try(8, 12)], "mid": [Try(7, 13), Try(8, 14)]})
    data = select_sft(runs, replace(ALL, keep_solved=False))
    assert [example.problem for example in data.rows] == ["mid"]
    assert data.left_out == {LeftOut.SOLVED: 2, LeftOut.UNSOLVED: 1, LeftOut.WRONG: 1}


def test_a_problem_gives_at_most_so_many_attempts_over_all_runs(tmp_path: Path) -> None:
    folders = [log_run(tmp_path / name, {"p": [Try(7, start + 10 * k) for k in range(5)]}) for start, name in enumerate("xy")]
    data = select_sft(read_runs(folders), replace(ALL, per_problem=3))
    assert len(data.rows) == 3
    assert data.left_out == {LeftOut.SURPLUS: 7}


def test_held_out_problems_are_in_the_test_part_only_and_stay_there_with_more_runs(tmp_path: Path) -> None:
    first = log_run(tmp_path / "first", {f"p{k}": [Try(7, 10), Try(7, 11)] for k in range(40)})
    second = log_run(tmp_path / "second", {f"p{k}": [Try(7, 12), Try(8, 13)] for k in range(20, 60)})
    filters = replace(ALL, held_out=0.3)
    alone, both = (select_sft(read_runs(paths), filters) for paths in ([first], [first, second]))
    assert {row.problem for row in alone.test} <= {row.problem for row in both.test}
    assert not {row.problem for row in both.test} & {row.problem for row in both.rows}
    assert 4 <= len({row.problem for row in alone.test}) <= 20


def test_pairs_prefer_right_to_wrong_and_use_an_attempt_once(tmp_path: Path) -> None:
    data = select_dpo(logged(tmp_path / "run", MIXED), ALL)
    assert {(pair.problem, pair.chosen.right, pair.rejected.right) for pair in data.rows} == {
        ("a", True, False),
        ("b", True, False),
    }
    sources = [example.source for pair in data.rows for example in (pair.chosen, pair.rejected)]
    assert len(sources) == len(set(sources)) == data.used == 4
    assert data.left_out == {LeftOut.UNPAIRED: 3}


def test_pairs_by_length_prefer_the_shorter_of_two_right_attempts(tmp_path: Path) -> None:
    data = select_dpo(logged(tmp_path / "run", MIXED), replace(ALL, pairs=(Pairs.LENGTH,), length_ratio=2.0))
    for pair in data.rows:
        assert pair.chosen.right
        assert pair.rejected.right
        assert len(pair.rejected.sampled) >= 2 * len(pair.chosen.sampled)
    assert {pair.problem for pair in data.rows} == {"a"}


def test_pairs_that_are_too_similar_or_too_different_are_not_made(tmp_path: Path) -> None:
    runs = logged(tmp_path / "run", {"p": [Try(7, 10, 50), Try(8, 11, 50)]})  # 98 of 100 tokens are the same
    assert not select_dpo(runs, ALL).rows
    (pair,) = select_dpo(runs, replace(ALL, most_similarity=1.0)).rows
    assert pair.similarity == pytest.approx(0.98)
    assert not select_dpo(runs, replace(ALL, least_similarity=0.99, most_similarity=1.0)).rows


def test_attempts_with_different_prompts_are_not_paired(tmp_path: Path) -> None:
    assert not select_dpo(logged(tmp_path / "run", {"p": [Try(7, 10), Try(8, 11, 30, prompt=(1, 3))]}), ALL).rows


def test_completions_and_masks_of_a_pair_fit_the_trajectories(tmp_path: Path) -> None:
    data = select_dpo(logged(tmp_path / "run", MIXED), ALL)
    write_training_data(data, tmp_path / "dpo.parquet", ALL, shown=1)
    for row, pair in zip(pl.read_parquet(tmp_path / "dpo.parquet").to_dicts(), data.rows, strict=True):
        for name, example in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            assert row["prompt_ids"] + row[f"{name}_ids"] == example.tokens
            assert [0, 0, *row[f"{name}_mask"]] == example.mask


def test_the_text_shows_what_is_trained(tmp_path: Path) -> None:
    runs = logged(tmp_path / "run", {"p": [Try(7, 10, 20), Try(8, 11)]})
    write_training_data(select_sft(runs, ALL), tmp_path / "sft.parquet", ALL, shown=1)
    text = (tmp_path / "sft.txt").read_text(encoding="utf-8")
    assert text.count("====") == 1
    assert "---- sampled, mask 1, 20 tokens\nthinking" in text
    assert "---- tool_result, mask 0, 2 tokens\nresult" in text


def test_a_test_file_of_an_earlier_export_does_not_stay(tmp_path: Path) -> None:
    runs = logged(tmp_path / "run", {f"p{k}": [Try(7, 10)] for k in range(20)})
    out = tmp_path / "sft.parquet"
    write_training_data(select_sft(runs, replace(ALL, held_out=0.5)), out, ALL, shown=1)
    assert out.with_suffix(".test.parquet").exists()
    write_training_data(select_sft(runs, ALL), out, ALL, shown=1)
    assert not out.with_suffix(".test.parquet").exists()


def test_the_command_writes_files_and_says_what_was_left_out(tmp_path: Path) -> None:
    run = log_run(tmp_path / "run", MIXED)
    result = CliRunner().invoke(app, ["export", "sft", str(run), "--out", str(tmp_path / "sft.parquet"), "--held-out", "0"])
    assert result.exit_code == 0
    assert "wrong" in result.output
    statistics = json.loads((tmp_path / "sft.json").read_text(encoding="utf-8"))
    assert statistics["train"] == {"rows": 4, "problems": 2, "tokens": 176, "sampled_tokens": 160}
    assert statistics["left_out"] == {"wrong": 3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sft", "--out", "x.csv"], "must end in .parquet"),
        (["sft", "--out", "x.parquet", "--least-tokens", "9", "--most-tokens", "8"], "is below --least-tokens"),
        (["dpo", "--out", "x.parquet", "--least-similarity", "0.9", "--most-similarity", "0.1"], "is below --least-similarity"),
        (["sft", "--out", "x.parquet", "--least-tokens", "999"], "nothing is left to train on"),
    ],
)
def test_what_cannot_be_exported_is_said_in_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    run = log_run(tmp_path / "run", MIXED)
    result = CliRunner().invoke(app, ["export", arguments[0], str(run), *arguments[1:]])
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
