"""The notebook about reading runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import aimo_solver
from aimo_solver.log import reader
from tests.conftest import ROOT
from tests.small_run import ANSWERS, write_run

CELLS = json.loads((ROOT / "docs" / "reading-runs.ipynb").read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "runs" / "warmup", ANSWERS)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in CODE:
        exec("".join(cell["source"]), names)
        assert capsys.readouterr().out


def test_the_library_has_only_the_names_that_it_declares() -> None:
    assert aimo_solver.read_run is reader.read_run
    assert aimo_solver.RunRecord is reader.RunRecord
    assert not hasattr(aimo_solver, "write_run")


def test_every_cell_is_shown_with_its_output() -> None:
    assert len(CODE) == 4
    assert [output["output_type"] for cell in CODE for output in cell["outputs"]] == ["stream"] * len(CODE)
