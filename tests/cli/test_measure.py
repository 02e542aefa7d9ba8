"""`aimo-solver replay`, `cache`, `bench`, `report`, `watch` and `serve` in processes of their own."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

from aimo_solver.cli.main import app
from aimo_solver.config import Config
from aimo_solver.lab.records import CSV_COLUMNS
from aimo_solver.log.writer import RunLog
from aimo_solver.problems import Problem, ProblemResult
from aimo_solver.server.compile_cache import read_stamp
from tests.cli.test_cli import assert_refused, run
from tests.conftest import MODEL

# By problem: the truth, and the answers in order of finishing. Majority is right at a and c, two equal answers at a and b.
ATTEMPTS: dict[str, tuple[int, list[int | None]]] = {
    "a": (5, [5, 5, 5, 9]),
    "b": (6, [6, 6, 8, 8, 8]),
    "c": (7, [1, 1, 7, 7, 7]),
    "d": (8, [3, 3, None]),
}


@pytest.fixture
def attempts(tmp_path: Path) -> Path:
    """Attempt I of a problem takes 10 * (I + 1) seconds and 100 * (I + 1) tokens; all start together."""
    rows = []
    for problem, (truth, answers) in ATTEMPTS.items():
        for index, answer in enumerate(answers):
            row = {"source": "here", "run": "r", "model": "m", "problem_id": problem, "correct_answer": truth, "attempt": index}
            row |= {"answer": "" if answer is None else answer, "tokens": 100 * (index + 1), "seconds": 10.0 * (index + 1)}
            row |= {"entropy": 0.5, "tool_calls": 1, "tool_errors": 0, "finish_order": index + 1, "stopped_early": "false"}
            rows.append(row)
    columns = ("source", *CSV_COLUMNS)
    path = tmp_path / "attempts.csv"
    path.write_text("\n".join([",".join(columns), *(",".join(str(row[name]) for name in columns) for row in rows)]) + "\n")
    return path


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    """A finished run: one right answer, one wrong one."""
    with RunLog.create(tmp_path / "run", config=Config(), environment={}) as log:
        for number, answer in enumerate((2, 3)):
            log.problem_started(Problem(f"problem-{number}", "What is 1 + 1?", 2), 60.0)
            log.problem_finished(ProblemResult(problem_id=f"problem-{number}", answer=answer, truth=2, reason="equal"))
        log.finish()
    return tmp_path / "run"


def as_json(*arguments: object) -> dict[str, Any]:
    done = run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert isinstance(values, dict)
    return values


def test_replay_scores_match_values_computed_by_hand(attempts: Path) -> None:
    values = as_json("replay", attempts, "--policy", "majority", "--policy", "majority/equal=2")
    assert values["oracle"] == 3
    assert values["policies"].keys() == {"majority", "majority/equal=2"}
    full, early = values["policies"].values()
    assert (full["groups"], full["right"], full["accuracy"], full["diff"]) == (4, 2, 0.5, 0)
    assert (full["mean_seconds"], full["mean_tokens"]) == (42.5, 1150)  # 40, 50, 50, 30; 1000, 1500, 1500, 600
    assert (early["groups"], early["right"], early["accuracy"], early["diff"]) == (4, 2, 0.5, 0)
    assert early["mean_seconds"] == 20
    assert early["diff_low"] <= -0.25 < 0.25 <= early["diff_high"]


def test_replay_prints_a_table(attempts: Path) -> None:
    done = run("replay", attempts, "--policy", "majority", "--strata")
    assert done.returncode == 0, done.stderr
    assert "4 groups of 4 problems; the truth is present in 3" in done.stdout
    assert "right answers by run" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--simulate", "--competitions", "3", "--problems", "2"]])
def test_replay_writes_charts(attempts: Path, tmp_path: Path, options: list[str]) -> None:
    policies = ["default@even", "default@greedy"] if options else ["majority"]
    command = ["replay", attempts, *options, "--plots", tmp_path / "plots"]
    values = as_json(*command, *(part for name in policies for part in ("--policy", name)))
    assert list(values["policies"]) == policies
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    assert names == ({"budget.svg"} if options else {"tokens.svg", "calibration.svg"})
    for name in names:
        assert ElementTree.parse(tmp_path / "plots" / name).getroot().tag.endswith("svg")


@pytest.mark.slow
def test_a_simulated_score_lies_between_no_problem_and_all(attempts: Path) -> None:
    command = ["replay", attempts, "--simulate", "--competitions", 20, "--problems", 3, "--policy", "majority@even"]
    command += ["--order", "hard-last"]
    values = as_json(*command)
    assert values["competitions"] == 20
    assert 0 < values["policies"]["majority@even"]["score"] < 3


def forecast(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["forecast", *map(str, arguments)])


def test_a_forecast_says_what_was_fitted(attempts: Path) -> None:
    rows = list(csv.DictReader(attempts.read_text().splitlines()))
    for number, row in enumerate(rows):
        row["tool_calls"] = str(number % 2)
    with attempts.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    done = forecast(attempts, "--problems", 10, "--pass-at", "1=4", "--pass-at", "4=7", "--sets", 2, "--json")
    values = json.loads(done.stdout)
    assert values["pass_at"] == {"1": 4.0, "4": 7.0}
    assert values["fitted_pass_at"] == {"1": 4.0, "4": 7.0}
    assert list(values["policies"]) == ["default", "default/equal=6@16"]
    assert 0 < values["policies"]["default"]["score"] < 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "too few problems with attempts both with and without Python calls"),
        (["--pass-at", "five"], "write N=PROBLEMS"),
        (["--pass-at", "1=20"], "at least two figures that rise with N"),
        (["--lengths", "nobody/"], "no run that can lend lengths begins with 'nobody/'"),
    ],
)
def test_a_forecast_from_unfit_records_is_refused(attempts: Path, options: list[str], message: str) -> None:
    done = forecast(attempts, *options)
    assert done.exit_code == 2
    assert message in done.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--policy", "majorty"], "no such voter; known: default, majority"),
        (["--policy", "majority/equals=3"], "no such stop rule"),
        (["--policy", "majority@evenly", "--simulate"], "@evenly"),
        (["--set", "voting.voterr=x"], "voting.voterr"),
    ],
)
def test_a_wrong_policy_is_refused(attempts: Path, options: list[str], message: str) -> None:
    assert_refused(run("replay", attempts, *options), message)


def test_a_csv_without_the_needed_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert_refused(run("replay", tmp_path / "other.csv"), "lacks the columns run, model")


def test_cache_pack_records_where_it_was_compiled(tmp_path: Path) -> None:
    (tmp_path / "jit" / "vllm").mkdir(parents=True)
    (tmp_path / "jit" / "vllm" / "compiled").write_text("graph")
    archive = tmp_path / "x.aimocache"
    done = run(
        "cache", "pack", "--model", MODEL, "--root", tmp_path / "jit", "--archive", archive, "--set", "server.context_tokens=2048"
    )
    assert done.returncode == 0, done.stderr
    made = read_stamp(archive)
    assert (made.root, made.model) == (str(tmp_path / "jit"), str(MODEL))
    assert made.args[made.args.index("--max-model-len") + 1] == "2048"


def test_an_empty_cache_is_refused(tmp_path: Path) -> None:
    assert_refused(run("cache", "pack", "--model", MODEL, "--root", tmp_path / "jit"), "holds no compile cache")


def test_report_prints_the_score_and_writes_the_page(run_directory: Path, tmp_path: Path) -> None:
    done = run("report", run_directory, "--out", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    assert "1 of 2 right" in done.stdout
    assert "problem-1" in (tmp_path / "page.html").read_text()


def test_watch_shows_a_finished_run_and_ends(run_directory: Path) -> None:
    done = run("watch", run_directory)
    assert done.returncode == 0, done.stderr
    assert "1 of 2 right" in done.stdout


@pytest.mark.parametrize("command", ["report", "watch"])
def test_a_folder_without_a_run_is_refused(tmp_path: Path, command: str) -> None:
    assert_refused(run(command, tmp_path), "no run.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--depths", "0"], "--depths: write numbers like 1,8,16"),
        (["--weights", "made-up"], "known: real, random, dummy"),
        (["--skew", "1"], "belongs to --weights random"),
    ],
)
def test_the_decode_benchmark_refuses_impossible_options(options: list[str], message: str) -> None:
    assert_refused(run("bench", "decode", "--model", MODEL, *options), message)


def test_the_engine_benchmark_refuses_invalid_counts() -> None:
    assert_refused(run("bench", "engine", "--model", MODEL, "--streams", "1,many"), "write numbers like 1,8,16")


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("serve", ["--model", "--port", "--slots"]),
        ("bench", ["kernels", "readahead", "engine", "decode", "boot"]),
        ("cache", ["build", "pack"]),
    ],
)
def test_help_names_options_and_subcommands(command: str, names: list[str]) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    assert [name for name in names if name not in done.stdout] == []
