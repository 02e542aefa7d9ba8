"""`aimo-solver stats`, `compare` and `power`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from aimo_solver.cli.main import app
from tests.small_run import write_run

FIRST: dict[str, tuple[int | None, list[int | None]]] = {"p": (7, [7, 7, 3, None]), "q": (5, [4, 4, 5, 4])}
SECOND: dict[str, tuple[int | None, list[int | None]]] = {"p": (7, [7, 7, 7, 7]), "q": (5, [5, 4, 5, 5])}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write_run(tmp_path / "runs" / "first", FIRST)
    write_run(tmp_path / "runs" / "second", SECOND)
    return tmp_path / "runs"


def printed(*arguments: object) -> str:
    done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def values(*arguments: object) -> dict[str, Any]:
    found = json.loads(printed(*arguments, "--json"))
    assert isinstance(found, dict)
    return found


def refusal(*arguments: object) -> str:
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


def test_stats_of_a_folder_of_runs(runs: Path) -> None:
    found = values("stats", runs)
    assert [run["name"] for run in found["runs"]] == ["first", "second"]
    assert found["estimates"][0]["pass_at"]["mean"] == pytest.approx((6 / 8 + 4 / 8) / 2)
    assert found["agreement"]["two_run"]["mean"] == pytest.approx((1 + 0.5) / 2)
    assert {part["name"] for part in found["by_error"]} == {"none", "NameError"}
    assert "| two-run score" in printed("stats", runs)


def test_stats_for_chosen_numbers_of_attempts_with_charts(runs: Path, tmp_path: Path) -> None:
    found = values("stats", runs, "--k", "3,1", "--plots", tmp_path / "plots")
    assert [one["k"] for one in found["estimates"]] == [1, 3]
    for name in ("attempts.svg", "scores.svg", "tokens.svg"):
        assert ElementTree.parse(tmp_path / "plots" / name).getroot().tag.endswith("svg")


def test_compare_gives_the_difference_in_right_answers(runs: Path) -> None:
    found = values("compare", runs / "first", runs / "second")
    assert found["differences"][0]["difference"]["mean"] == 1
    assert (found["differences"][0]["paired"]["better"], found["differences"][0]["paired"]["worse"]) == (1, 0)
    assert f"Against {runs / 'first'}" in printed("compare", runs / "first", runs / "second")


def test_power_from_published_and_from_measured_spread(runs: Path) -> None:
    published, measured = values("power"), values("power", runs, "--difference", 5)
    assert published["runs_needed"] == 47
    assert published["deviation"] == pytest.approx(1.7)
    assert measured["deviation"] == pytest.approx((0.5 * 50 / 2) ** 0.5)  # one of two problems differs between the runs
    assert "47 runs of each" in printed("power")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stats", "missing"], "no such file"),
        (["stats", ".", "--k", "1,x"], "write numbers like 1,4,16"),
        (["stats", ".", "--k", "0"], "write numbers like 1,4,16"),
        (["compare", "first"], "two configurations"),
        (["compare", "first", "first"], "each must be given once"),
        (["power", "first"], "two or more runs"),
    ],
)
def test_what_cannot_be_computed_is_refused(
    runs: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(runs)
    assert message in refusal(*arguments)
