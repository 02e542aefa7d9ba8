"""The parts of an endurance run, and a small run with a stand-in for the server; `make endurance` is the large one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))  # the scripts import each other

import endurance_faults
import endurance_report
from endurance_faults import EVERY, KINDS, Fault
from endurance_report import Outcome, Sample

SCRIPT = ROOT / "scripts" / "endurance.py"


def test_faults_follow_from_the_seed() -> None:
    plans = [endurance_faults.plan(seed, 500, tuple(KINDS)) for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]


@pytest.mark.parametrize("seed", range(20))
def test_a_long_run_has_every_fault_alone_some_pairs_and_none_at_either_end(seed: int) -> None:
    faults = endurance_faults.plan(seed, 500, tuple(KINDS))
    assert len(faults) == 500 // EVERY
    assert {fault.kinds for fault in faults} >= {(kind,) for kind in KINDS}
    assert sum(len(fault.kinds) == 2 for fault in faults) >= 5
    moments = [fault.problem for fault in faults]
    assert moments == sorted(set(moments))
    assert moments[0] >= 25
    assert moments[-1] < 475


def outcome(count: int = 100, **changes: Any) -> Outcome:
    """A run that went as expected."""
    truth = {f"p{number}": number for number in range(count)}
    events: list[dict[str, Any]] = []
    for number, problem in enumerate(truth):
        events.append({"t": 2.0 * number, "kind": "asked", "problem": problem})
        events.append({"t": 2.0 * number + 1.5, "kind": "answered", "problem": problem, "answer": number})
    events.insert(21, {"t": 20.5, "kind": "fault", "what": "kernels killed"})
    events.insert(22, {"t": 20.6, "kind": "over", "what": "kernels killed", "detail": "3 processes"})
    samples = [Sample(2.0 * number, number, 100.0, 900.0, 30, 8, 12, 20) for number in range(count)]
    made = Outcome(7, truth, 10.0, events, samples, (), (Fault(("kernels killed",), 10, 0.5),))
    return replace(made, **changes)


def test_a_run_without_problems_has_no_deviation() -> None:
    assert outcome().deviations == []
    assert outcome().right == 100


@pytest.mark.parametrize(
    ("changes", "deviation"),
    [
        ({"truth": {f"p{number}": number for number in range(101)}}, "1 problems without an answer"),
        ({"truth": {f"p{number}": number + (number < 3) for number in range(100)}}, "only 97 of 100 right"),
        ({"left": ("process 12",)}, "left behind: process 12"),
        ({"planned": (Fault(("disk full", "server killed"), 1, 0.0),)}, "only 1 faults were injected"),
        ({"minutes": 3.0}, "it took 200 s of 180"),
        (
            {"samples": [Sample(2.0 * n, n, 100.0 + n, 900.0, 30 + n, 8, 12, 20) for n in range(100)]},
            "memory_mb grew from 129.5 to 189.5",
        ),
    ],
)
def test_each_deviation_is_reported(changes: dict[str, Any], deviation: str) -> None:
    assert deviation in outcome(**changes).deviations


def test_two_wrong_answers_of_a_hundred_are_no_deviation() -> None:
    assert outcome(truth={f"p{number}": number + (number < 2) for number in range(100)}).deviations == []


def test_the_page_shows_faults_wrong_answers_and_the_seed(tmp_path: Path) -> None:
    endurance_report.write_page(outcome(truth={f"p{n}": n + (n == 99) for n in range(100)}), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    for text in ("make endurance SEED=7", "<svg", "kernels killed", "3 processes", "<td>p99</td>"):
        assert text in page


def small_run(out: Path, *arguments: str) -> list[str | Path]:
    return [sys.executable, SCRIPT, "--stand-in", "--scale", "0.05", "--out", out, *arguments]


@pytest.mark.kernels
def test_a_small_run_is_answered_and_reported(tmp_path: Path) -> None:
    run = subprocess.run(
        small_run(tmp_path, "--problems", "40", "--minutes", "2", "--seed", "125"), capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "40 of 40 answered, 40 right" in run.stdout
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert kinds.count("fault") == kinds.count("over") == 1
    assert kinds[-1] == "closed"
    assert (tmp_path / "report.html").exists()


@pytest.mark.kernels
def test_an_interrupted_run_ends_in_order_with_a_report(tmp_path: Path) -> None:
    command = small_run(tmp_path, "--problems", "5000", "--minutes", "5", "--seed", "4")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        for line in run.stdout:
            if "answered" in line:
                run.send_signal(signal.SIGINT)
                break
        rest = run.stdout.read()
    assert run.returncode == 130
    assert "problems without an answer" in rest
    assert "left behind" not in rest
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert events[-1]["kind"] == "closed"
    assert "make endurance SEED=4" in (tmp_path / "report.html").read_text()
