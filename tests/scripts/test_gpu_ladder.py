"""The ladder of faults of the GPU bench: which rows are measured, in which order, and that none outlives its limit."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from aimo_solver.config import load_config
from aimo_solver.server.launch import plan_launch
from aimo_solver.server.wheels import Installation
from tests.conftest import MODEL, ROOT
from tests.processes import pid_runs

sys.path.insert(0, str(ROOT / "scripts"))

from gpu_ladder import FAULTS, Bench, Fault, Row, _start

FEW = (Fault("a"), Fault("b"), Fault("c", alone=True), Fault("d", alone=True))


@dataclass
class Forced:
    """Stands in for the starts: notes what runs beside what."""

    cut: frozenset[str] = frozenset()
    running: set[str] = field(default_factory=set)
    together: dict[str, set[str]] = field(default_factory=dict)
    limits: list[float] = field(default_factory=list)

    async def __call__(self, fault: Fault, limit_s: float) -> Row:
        self.limits.append(limit_s)
        self.running.add(fault.name)
        await asyncio.sleep(0)
        self.together[fault.name] = set(self.running)
        await asyncio.sleep(0)
        self.running.remove(fault.name)
        serves = f"cut after {limit_s:.0f} s" if fault.name in self.cut else "yes"
        return fault.name, "cause", "step", 1.0, 2.0, serves


def measure(
    out: Path, forced: Forced, *, alone: bool = False, left_s: float = 1_000.0, faults: Sequence[Fault] = FEW
) -> list[list[str]]:
    bench = Bench(out, out, MODEL, tiny=False, left_s=lambda: left_s)
    rows = bench.table(alone=alone, faults=faults, force=forced).rows
    saved = json.loads((out / "ladder.json").read_text())["results"] if rows else []
    assert [tuple(row.values()) for row in saved] == list(rows)
    return [[str(row[0]), str(row[-1])] for row in rows]


def test_faults_run_side_by_side_but_those_that_take_memory_alone(tmp_path: Path) -> None:
    forced = Forced()
    measure(tmp_path, forced)
    assert measure(tmp_path, forced, alone=True) == [["a", "yes"], ["b", "yes"], ["c", "yes"], ["d", "yes"]]
    assert forced.together == {"a": {"a", "b"}, "b": {"a", "b"}, "c": {"c"}, "d": {"d"}}


def test_saved_rows_are_kept_and_cut_ones_repeated(tmp_path: Path) -> None:
    measure(tmp_path, Forced(cut=frozenset("b")), faults=FEW[:2])
    again = Forced()
    assert measure(tmp_path, again) == [["a", "yes"], ["b", "yes"]]
    assert set(again.together) == {"b"}


def test_no_row_is_started_without_time_for_it(tmp_path: Path) -> None:
    forced = Forced()
    assert measure(tmp_path, forced, left_s=40.0) == []
    measure(tmp_path, forced, left_s=60.0)
    assert forced.limits == [45.0] * 2
    assert all(fault.limit_s >= 40.0 for fault in FAULTS)


async def test_a_vllm_that_cannot_be_imported_is_forced_and_found(tmp_path: Path) -> None:
    fault = next(fault for fault in FAULTS if fault.imports)
    row = await Bench(tmp_path, tmp_path, MODEL, tiny=True, left_s=lambda: 100.0)._force(fault, 60.0)
    assert row[1:3] == ("vLLM cannot be imported", "")


@pytest.mark.slow
async def test_a_row_that_overruns_is_cut_and_its_server_killed(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    python.chmod(0o755)
    plan = plan_launch(MODEL, load_config({}), Installation(environment=tmp_path), gpus=())
    row = await _start(Fault("silent"), plan, tmp_path / "server.log", 1.0)
    assert row[-1] == "cut after 1 s"
    assert not pid_runs(int((tmp_path / "pid").read_text()))
