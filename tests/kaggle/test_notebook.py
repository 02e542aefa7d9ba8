"""The built notebook, run top to bottom in an empty folder without a network, on real vLLM, kernels and gRPC.

Only the settings cell is edited, as by a user. Kaggle's package is a stand-in in the competition's folder.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest

from tests.conftest import ROOT
from tests.without_network import can_cut_network

TESTS = ROOT / "tests"
MODEL = ROOT / "data" / "pocket-model"
INSTALL = 'wheels = wheels.renewed() if "wheels" in globals() else install()'
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.kernels,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not can_cut_network(), reason="no network namespaces here"),
]


@dataclass
class Place:
    """An empty folder with a built notebook and a competition."""

    folder: Path

    def problems(self, rows: list[tuple[str, str | None]], truth: dict[str, int] | None = None) -> Path:
        path = self.folder / "competition" / "test.csv"
        table = pl.DataFrame(rows, schema={"id": pl.String, "problem": pl.String}, orient="row")
        if truth is not None:
            table = table.with_columns(answer=pl.Series([truth.get(id_) for id_, _ in rows], dtype=pl.Int64))
        table.write_csv(path)
        return path

    def edit(self, old: str, new: str) -> None:
        """Replaces text in one of the notebook's own cells."""
        notebook = json.loads((self.folder / "notebook.ipynb").read_text())
        cells = [cell for cell in notebook["cells"] if old in "".join(cell["source"]) and not cell["id"].startswith("module-")]
        assert len(cells) == 1
        cells[0]["source"] = "".join(cells[0]["source"]).replace(old, new).splitlines(keepends=True)
        (self.folder / "notebook.ipynb").write_text(json.dumps(notebook))

    @contextmanager
    def running(self, mode: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        isolated = str(TESTS / "without_network.py"), sys.executable, str(TESTS / "notebook_run.py")
        command = [sys.executable, *isolated, mode, str(self.folder), *arguments]
        with (self.folder / "runner.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
            try:
                yield process
            finally:
                below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
                process.kill()
                for child in below:
                    child.kill()

    def run(self, mode: str, *arguments: str) -> None:
        with self.running(mode, *arguments) as process:
            self.finish(process)

    def finish(self, process: subprocess.Popen[bytes]) -> None:
        assert process.wait(timeout=800) == 0, (self.folder / "runner.log").read_text()[-4_000:]

    def submission(self, *parts: str) -> pl.DataFrame:
        table = pl.read_parquet(self.folder.joinpath(*parts, "submission.parquet"))
        assert table.schema == {"id": pl.String, "answer": pl.Int64}
        assert table["answer"].is_between(0, 99_999).all()
        return table

    def events(self) -> list[dict[str, Any]]:
        log = self.folder / "runs" / "run-1" / "events.jsonl"
        # The last line may be incomplete.
        lines = log.read_bytes().split(b"\n")[:-1] if log.exists() else []
        return [json.loads(line) for line in lines]

    def output(self) -> str:
        cells = json.loads((self.folder / "executed.ipynb").read_text())["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        return "".join("".join(output.get("text", "")) for output in outputs)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    competition = tmp_path / "competition"
    competition.mkdir()
    (competition / "kaggle_evaluation").symlink_to(TESTS / "kaggle_stand_in" / "kaggle_evaluation")
    build = [sys.executable, ROOT / "scripts" / "build_notebook.py", "--model", MODEL, "--competition", competition]
    subprocess.run([*map(str, build), "--out", tmp_path / "notebook.ipynb"], check=True, capture_output=True)
    place = Place(tmp_path)
    place.edit('"solver": {"slots": 8, "max_attempts": 8}', '"solver": {"slots": 4, "max_attempts": 4}')
    return place


def warmup(count: int) -> list[tuple[str, str, int]]:
    return pl.read_csv(ROOT / "data" / "warmup.csv").head(count).rows()


def right(submission: pl.DataFrame, truth: dict[str, int]) -> int:
    return sum(truth.get(id_) == answer for id_, answer in submission.rows())


def leftovers(folder: Path) -> list[str]:
    """Processes of a run (vLLM server, kernels) that are alive a minute after it."""
    end = time.monotonic() + 60
    while (found := _processes_of(folder)) and time.monotonic() < end:
        time.sleep(0.5)
    return found


def _processes_of(folder: Path) -> list[str]:
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "environ", "status"]):
        description = f"{process.info['cmdline']} {process.info['cwd']} {process.info['environ']}"
        if str(folder) in description and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(description[:300])
    return found


def test_a_rerun_is_served_before_the_boot_and_answered_after_it(place: Place) -> None:
    """The model folder is mounted late: the boot fails until it exists, and the first problem waits."""
    problems = warmup(6)
    truth = {id_: answer for id_, _, answer in problems}
    csv = place.problems([(id_, text) for id_, text, _ in problems])
    late = place.folder / "late"
    place.edit(f'MODEL = "{MODEL}"', f'MODEL = "{late}"')
    place.edit(INSTALL, f"logging.getLogger().addHandler(logging.FileHandler('log.txt'))\n{INSTALL}")
    place.edit("\nrun = notebook_run(", "\nimport aimo_solver; print('library in', aimo_solver.__path__[0])\nrun = notebook_run(")
    log = place.folder / "log.txt"
    with place.running("rerun", str(csv)) as process:
        while process.poll() is None and not (log.exists() and "the boot failed" in log.read_text(encoding="utf-8")):
            time.sleep(0.1)
        assert not (place.folder / "runs").exists()
        late.symlink_to(MODEL)
        place.finish(process)
    assert json.loads((place.folder / "gateway" / "result.json").read_text()) == {"Succeeded": True}
    submission = place.submission("gateway")
    assert set(submission["id"]) == set(truth)
    assert right(submission, truth) >= 5
    times = json.loads((place.folder / "times.json").read_text())
    kinds = [event["kind"] for event in place.events()]
    assert kinds.count("server_starting") == kinds.count("server_ready") == 1
    ready = next(event["wall"] for event in place.events() if event["kind"] == "server_ready")
    assert times["listening_wall"] < datetime.fromisoformat(ready).timestamp()
    output = place.output()
    assert f"library in {place.folder / 'aimo_solver'}" in output
    assert "the boot failed, and is repeated while time is left: model" in output
    progress = (place.folder / "progress.txt").read_text().splitlines()
    assert "s left; 0 problems asked, 0 solved; no session" in progress[0]
    # Failures are read from it. A notebook's kernel asks all programs for colours.
    assert [b"\x1b" in log.read_bytes() for log in place.folder.glob("runs/*/server.log")] == [False]
    assert leftovers(place.folder) == []


INJECTED = """
import aimo_solver.solve.attempt as agent
import aimo_solver.solve.solver as solver

vote, attempt = solver.rank, agent.RunningAttempt.run


def rank(attempts, voting):
    if attempts and attempts[0].problem_id == "vote":
        raise ZeroDivisionError("injected into the vote")
    if attempts and attempts[0].problem_id == "leave":
        raise SystemExit("injected into the vote")
    return vote(attempts, voting)


async def run(self):
    if self.problem.id == "exit" and self.index % 2 == 0:
        raise SystemExit("injected into an attempt")
    return await attempt(self)


solver.rank, agent.RunningAttempt.run = rank, run

run = notebook_run("""


def test_a_run_with_faults_ends_with_a_full_submission(place: Place) -> None:
    """Server stopped, kernels killed, exceptions in the vote and in attempts, odd problems, one problem twice."""
    problems = warmup(7)
    ids = ["p0", "p1", "p2", "twice", "vote", "leave", "exit"]
    truth = {id_: answer for id_, (_, _, answer) in zip(ids, problems, strict=True)}
    rows: list[tuple[str, str | None]] = [(id_, text) for id_, (_, text, _) in zip(ids, problems, strict=True)]
    rows += [rows[3], ("none", None), ("big", "How many? " * 100_000)]
    place.problems(rows, truth)
    place.edit('"problems": 50,', '"problems": 10,')
    place.edit('"kernels": {', '"server": {"stall_s": 15.0},\n    "kernels": {')
    place.edit("\nrun = notebook_run(", INJECTED)
    with place.running("local") as process:
        faults = Faults(place, process)
        # The first two plain problems, in any order. A stopped server is killed and replaced.
        faults.at_problem(1, lambda: faults.server().send_signal(signal.SIGSTOP))
        faults.at_problem(2, faults.kill_kernels)
        place.finish(process)
    submission = place.submission()
    assert sorted(submission["id"]) == sorted(id_ for id_, _ in rows)
    assert submission.filter(id="none")["answer"].to_list() == [0]
    assert submission.filter(id="twice")["answer"].n_unique() == 1
    # An exception in the vote costs nothing, as the answers of attempts are counted separately.
    assert right(submission.filter(pl.col("id") != "big"), truth) >= 6
    kinds = [event["kind"] for event in place.events()]
    assert kinds.count("server_fault") == 1
    assert faults.killed_kernels > 0
    started = [event["problem_id"] for event in place.events() if event["kind"] == "problem_started"]
    assert sorted(started) == sorted({id_ for id_, _ in rows} - {"none"})
    output = place.output()
    for message in ("injected into the vote", "problem twice was asked again", "problem none has no text"):
        assert message in output
    report = (place.folder / "rehearsal.txt").read_text()
    assert all(part in output for part in report.split("\n\n"))  # the log comes between them
    assert [line[9:18].strip() for line in report.splitlines() if line.startswith("ok ")][:3] == ["versions", "launch", "flags"]
    assert re.search(r"^score: [6-8] of 7$", report, re.MULTILINE)
    assert report.endswith("fit to be submitted\n")
    assert re.search(r"problem p0: .* tok/s, KV cache up to \d+%.* restarts; ", output)
    assert leftovers(place.folder) == []


class Faults:
    """Injects faults into a running notebook, between the start of a problem and its end."""

    def __init__(self, place: Place, runner: subprocess.Popen[bytes]) -> None:
        self.killed_kernels = 0
        self._place = place
        self._runner = runner

    def at_problem(self, number: int, harm: Callable[[], object]) -> None:
        """Calls `harm` when the `number`-th plain problem has started, before it ends."""
        end = time.monotonic() + 400
        while time.monotonic() < end and self._runner.poll() is None:
            plain = [
                event for event in self._place.events() if event["kind"] == "problem_started" and event["problem_id"][0] == "p"
            ]
            if len(plain) >= number:
                harm()
                return
            time.sleep(0.02)
        raise AssertionError(f"plain problem {number} did not start")

    def server(self) -> psutil.Process:
        pid = [event["pid"] for event in self._place.events() if event["kind"] == "server_ready"][-1]
        return psutil.Process(pid)

    def kill_kernels(self) -> None:
        """Kills all kernels, leased and spare: the leaves below the forkserver."""
        everyone = psutil.Process(self._runner.pid).children(recursive=True)
        parents: set[int] = set()
        forkserver: psutil.Process | None = None
        for process in everyone:  # kernels come and go all the time
            with contextlib.suppress(psutil.NoSuchProcess):
                parents.add(process.ppid())
                if forkserver is None and "kernels.inside.forkserver" in " ".join(process.cmdline()):
                    forkserver = process
        assert forkserver is not None
        family = forkserver.children(recursive=True)
        for process in family:
            if process.pid not in parents:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
                    self.killed_kernels += 1


def test_a_server_that_never_starts_gives_a_submission_and_an_error(place: Place) -> None:
    """Kaggle's package is absent, so the notebook uses its own gateway. The problems do not wait for their budgets."""
    (place.folder / "competition" / "kaggle_evaluation").unlink()
    problems = warmup(2)
    place.problems([(id_, text) for id_, text, _ in problems])
    place.edit('"kernels": {', '"server": {"extra_args": ["--no-such-flag"], "restarts": 0},\n    "kernels": {')
    with place.running("local") as process:
        assert process.wait(timeout=800) == 1
    submission = place.submission()
    assert sorted(submission["id"]) == sorted(id_ for id_, _, _ in problems)
    kinds = [event["kind"] for event in place.events()]
    assert kinds.count("boot_failed") == 2
    assert "problem_started" not in kinds
    output = place.output()
    assert "the boot failed, and is repeated while time is left" in output
    assert "unrecognized arguments: --no-such-flag" in output
    assert "NOT FIT TO BE SUBMITTED: the boot failed: ServerStartError: " in output
    assert "RehearsalError" in (place.folder / "runner.log").read_text()
