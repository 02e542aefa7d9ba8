"""`aimo-solver evaluate --repeat`, with problems that are answered at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from aimo_solver.cli import evaluation
from aimo_solver.cli.main import app
from aimo_solver.config import Config
from aimo_solver.errors import EngineLost
from aimo_solver.log.reader import read_run
from aimo_solver.log.writer import RunLog
from aimo_solver.problems import Problem, ProblemResult


class Solved:
    """Answers 2 in place of a server, and is lost at problem `dies_at` of all, once."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.dies_at = 0

    async def __call__(self, problems: Sequence[Problem], config: Config, log: RunLog, *_: Any) -> None:
        for problem in problems:
            self.problems.append(f"{log.directory.name}/{problem.id}")
            log.problem_started(problem, 60.0)
            if len(self.problems) == self.dies_at:
                raise EngineLost("the server is gone")
            log.problem_finished(ProblemResult(problem_id=problem.id, answer=2, truth=problem.truth, reason="attempts"))


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> Solved:
    solver = Solved()
    monkeypatch.setattr(evaluation, "_solve", solver)
    return solver


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "problems.csv"
    path.write_text("id,problem,answer\na,What is 1 + 1?,2\nb,What is 1 + 2?,3\n")
    return path


def evaluate(problems: Path, out: Path, *options: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", str(problems), "--out", str(out), *map(str, options)])


def seeds(out: Path) -> dict[str, int | None]:
    return {path.name: read_run(path).config["sampling"]["seed"] for path in sorted(out.iterdir())}


def test_each_repeat_is_a_run_of_its_own_with_its_own_seed(solved: Solved, problems: Path, tmp_path: Path) -> None:
    done = evaluate(problems, tmp_path / "runs", "--repeat", 3, "--seed", 40)
    assert done.exit_code == 0, done.output
    assert seeds(tmp_path / "runs") == {"1": 40, "2": 41, "3": 42}
    assert all((tmp_path / "runs" / name / "summary.json").exists() for name in "123")
    assert "3 runs: 1, 1, 1 right, 1.0 on average" in done.output
    stats = CliRunner().invoke(app, ["stats", str(tmp_path / "runs"), "--json"])
    assert [run["name"] for run in json.loads(stats.stdout)["runs"]] == ["1", "2", "3"]


def test_without_a_seed_each_server_draws_its_own(solved: Solved, problems: Path, tmp_path: Path) -> None:
    assert evaluate(problems, tmp_path / "runs", "--repeat", 2).exit_code == 0
    assert seeds(tmp_path / "runs") == {"1": None, "2": None}


def test_resumed_repeats_continue_with_the_open_problem(solved: Solved, problems: Path, tmp_path: Path) -> None:
    solved.dies_at = 4
    broken = evaluate(problems, tmp_path / "runs", "--repeat", 3, "--seed", 7)
    assert broken.exit_code == 1
    assert solved.problems == ["1/a", "1/b", "2/a", "2/b"]
    solved.problems.clear()
    done = evaluate(problems, tmp_path / "runs", "--repeat", 3, "--seed", 7, "--resume")
    assert done.exit_code == 0, done.output
    assert solved.problems == ["2/b", "3/a", "3/b"]
    assert seeds(tmp_path / "runs") == {"1": 7, "2": 8, "3": 9}


def test_finished_repeats_can_be_followed_by_more(solved: Solved, problems: Path, tmp_path: Path) -> None:
    assert evaluate(problems, tmp_path / "runs", "--repeat", 1).exit_code == 0
    solved.problems.clear()
    assert evaluate(problems, tmp_path / "runs", "--repeat", 2, "--resume").exit_code == 0
    assert solved.problems == ["2/a", "2/b"]


def test_repeats_do_not_mix_with_other_runs(solved: Solved, problems: Path, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    assert evaluate(problems, out, "--repeat", 2).exit_code == 0
    again = evaluate(problems, out, "--repeat", 2)
    assert again.exit_code == 2
    assert "is not empty" in again.output
    assert evaluate(problems, out, "--repeat", 2, "--overwrite").exit_code == 0
    fewer = evaluate(problems, out, "--repeat", 1, "--overwrite")
    assert "is not empty" in fewer.output
    single = evaluate(problems, tmp_path / "single")
    assert single.exit_code == 0, single.output
    assert "holds a single run" in evaluate(problems, tmp_path / "single", "--repeat", 2, "--resume").output
