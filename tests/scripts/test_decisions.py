"""The tables of policies by speed."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aimo_solver.lab.records import Group
from aimo_solver.lab.simulate import simulate
from tests.conftest import ROOT
from tests.lab.groups import six_groups

sys.path.insert(0, str(ROOT / "scripts"))  # the scripts import each other

import decisions
from decisions import Case


@pytest.mark.slow
def test_every_speed_is_simulated_once_and_the_best_policies_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decisions, "POLICIES", ("default", "default/first", "default@grow"))
    monkeypatch.setattr(decisions, "cases", lambda: [Case("h100-uniform", 640.0), Case("h100-skewed")])
    monkeypatch.setattr(decisions, "REQUIRED", (Case("h100-uniform", 640.0),))
    monkeypatch.setattr(decisions, "read_groups", lambda paths: tuple(six_groups()))
    played: list[str] = []
    play = decisions.play

    def count(groups: Sequence[Group], case: Case, *rest: Any) -> Mapping[str, Any]:
        played.append(case.name)
        return play(groups, case, *rest)

    monkeypatch.setattr(decisions, "play", count)
    monkeypatch.setattr(decisions, "simulate", partial(simulate, samples=20))
    monkeypatch.setattr(sys, "argv", ["decisions.py", "records.csv", "--out", str(tmp_path / "out"), "--competitions", "3"])
    for _ in range(2):  # the second time, everything is there
        decisions.main()
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("| difference to the default | h100-uniform at 640 | h100-skewed (")
        assert [line.split(" | ")[0] for line in lines[4:6]] == ["| `default/first`", "| `default@grow`"]
        assert all(line.count(" | ") == 2 for line in lines[2:6])
    assert len(played) == 2


@pytest.mark.parametrize(("low", "shown"), [(0.1, "**+0.50 [+0.10, +0.90]**"), (-0.1, "+0.50 [-0.10, +0.90]")])
def test_an_interval_above_zero_is_bold(low: float, shown: str) -> None:
    assert decisions._difference({"diff": 0.5, "diff_low": low, "diff_high": 0.9}) == shown
