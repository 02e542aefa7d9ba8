"""The page of many runs."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from rich.console import Console

from aimo_solver.lab.lost_problem import Cause
from aimo_solver.lab.records import RecordsError
from aimo_solver.lab.report.command import report_runs
from aimo_solver.lab.report.data import Verdict
from aimo_solver.lab.report.matrix import Matrix, build_matrix, matrix_tiles
from aimo_solver.lab.runs import read_runs
from tests.chromium import CHROMIUM, Page
from tests.small_run import write_run

QUIET = Console(quiet=True)
RUNS: tuple[dict[str, tuple[int | None, list[int | None]]], ...] = (
    {"always": (7, [7]), "sometimes": (7, [7, 7, 8]), "never": (7, [8]), "unknown": (None, [5])},
    {"always": (7, [7]), "sometimes": (7, [8, 8, 7]), "never": (7, [9]), "unknown": (None, [5])},
    {"always": (7, [7]), "sometimes": (7, [7]), "never": (7, [None]), "extra": (7, [7])},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs; tests add pages only."""
    folder = tmp_path_factory.mktemp("runs")
    for number, problems in enumerate(RUNS, start=1):
        write_run(folder / f"run-{number}", problems)
    return folder


@pytest.fixture(scope="module")
def matrix(folder: Path) -> Matrix:
    return build_matrix(read_runs([folder]))


def test_the_matrix_has_the_outcome_of_each_problem_in_each_run(matrix: Matrix) -> None:
    right = Verdict.RIGHT
    assert {row.id: [cell.outcome for cell in row.cells] for row in matrix.rows} == {
        "always": [right] * 3,
        "sometimes": [right, Cause.OUTVOTED, right],
        "never": [Cause.NOT_FOUND, Cause.NOT_FOUND, Cause.NO_ANSWER],
        "unknown": [Verdict.UNKNOWN, Verdict.UNKNOWN, None],
        "extra": [None, None, right],
    }
    assert {row.id: (row.right, row.known, row.kind) for row in matrix.rows} == {
        "always": (3, 3, "always"),
        "sometimes": (2, 3, "sometimes"),
        "never": (0, 3, "never"),
        "unknown": (0, 0, ""),
        "extra": (1, 1, "always"),
    }
    assert matrix.rows[1].cells[1].title.startswith("run-2: outvoted 2 to 1: 8 won over 7")
    assert matrix.rows[2].causes == "2 not found, no answer"


def test_the_figures_match_values_computed_by_hand(matrix: Matrix) -> None:
    tiles = {tile.name: tile for tile in matrix_tiles(matrix)}
    # By problem, the share of runs that are right: 1, 2/3, 0 and, in one run only, 1.
    assert tiles["Score of a run"].value == f"{1 + 2 / 3 + 0 + 1:.1f}"
    # On the three problems that all runs have: always both, sometimes in one pair of three, never none.
    assert tiles["Two-run score"].value == f"{1 + 2 / 3:.1f}"
    assert "of 3, 95 % interval" in tiles["Two-run score"].note
    # Attempts: 3 of 3, 4 of 7, 0 of 3, 1 of 1.
    assert tiles["pass@1"].value == f"{100 * (1 + 4 / 7 + 0 + 1) / 4:.1f} %"
    assert tiles["Always right"].note == "1 sometimes, 1 never right"


def test_the_terminal_shows_each_run(folder: Path) -> None:
    console = Console(record=True, width=120, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    assert report_runs(sorted(folder.glob("run-*")), console) == folder / "run-1" / "runs.html"
    console.file.close()
    shown = console.export_text()
    assert re.search(r"run-2 +1/3 +1 right, 1 outvoted, 1 not found", shown)
    assert "Two-run score" in shown


def test_pages_of_single_runs_are_written_if_they_are_missing_or_old(folder: Path) -> None:
    report_runs([folder], QUIET)
    missing, old, kept = (folder / f"run-{number}" / "report.html" for number in (1, 2, 3))
    kept.write_text("newer than its run", encoding="utf-8")
    os.utime(old, (0, 0))
    missing.unlink()
    report_runs([folder], QUIET)
    assert "run-1" in missing.read_text(encoding="utf-8")
    assert old.stat().st_mtime > 0
    assert kept.read_text(encoding="utf-8") == "newer than its run"
    kept.unlink()


def test_runs_without_a_known_answer_are_a_one_line_error(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / str(number), {"p": (None, [1])}) for number in range(3)]
    with pytest.raises(RecordsError, match="no finished problem with a known answer"):
        report_runs(runs, QUIET)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_cells_link_to_the_problem_in_the_page_of_their_run(folder: Path) -> None:
    path = report_runs([folder], QUIET, folder / "a page.html")
    rows = "[...document.querySelectorAll('#matrix tbody tr')]"
    with Page(path, width=390) as page:
        assert page.run("document.documentElement.scrollWidth") <= 390
        page.run("document.querySelector('[data-show=\"sometimes\"]').click()")
        assert page.run(f"{rows}.filter(row => !row.hidden).map(row => row.cells[0].textContent)") == ["sometimes"]
        page.run("document.querySelectorAll('#matrix th')[2].firstElementChild.click()")
        assert page.run(f"{rows}[0].cells[0].textContent") == "always"
        page.run(f"{rows}.find(row => !row.hidden).querySelectorAll('a')[1].click()")
        page.wait_for("document.getElementById('p-sometimes')?.open")
        assert page.run("document.querySelector('h1').textContent") == "run-2"
        assert page.problems == []
