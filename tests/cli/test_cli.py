"""`aimo-solver evaluate` in processes of its own, with a real server and real interruptions."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from aimo_solver.cli.main import app
from aimo_solver.server.process import free_port
from tests.conftest import MODEL, ROOT, Served
from tests.processes import runs

COMMAND = [sys.executable, "-m", "aimo_solver.cli"]
WARMUP = ROOT / "data" / "warmup.csv"
FEW = ("--set", "solver.slots=2", "--set", "solver.max_attempts=2")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs a command in this process, which saves a second of imports."""
    words = [*map(str, arguments)]
    done = CliRunner().invoke(app, words)
    return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)


def evaluate(vllm: Served, out: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run("evaluate", WARMUP, "--endpoint", vllm.url, "--out", out, *FEW, *arguments)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.05)


@pytest.fixture
def family() -> Iterator[Callable[[], list[psutil.Process]]]:
    """Running processes that are descendants of the test, or were when last asked."""
    known: set[psutil.Process] = set()
    before = set(psutil.Process().children(recursive=True))

    def alive() -> list[psutil.Process]:
        known.update(set(psutil.Process().children(recursive=True)) - before)
        return [process for process in known if runs(process)]

    yield alive
    for process in alive():
        process.kill()


@pytest.mark.vllm
def test_problems_run_in_parallel_on_an_endpoint(vllm: Served, tmp_path: Path) -> None:
    done = evaluate(vllm, tmp_path / "run", "--limit", 8, "--problems-in-parallel", 4)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["problems"] == 8
    assert summary["right"] >= 7
    assert {"accuracy", "seconds", "tokens", "tokens_per_s", "config"} <= summary.keys()
    attempts = lines(tmp_path / "run" / "attempts.jsonl")
    assert len({(attempt["problem_id"], attempt["index"]) for attempt in attempts}) == len(attempts) >= 16
    assert len(list((tmp_path / "run" / "trajectories").rglob("*.jsonl*"))) == len(attempts)


@pytest.mark.vllm
def test_ids_choose_problems(vllm: Served, tmp_path: Path) -> None:
    wanted = [line.split(",")[0] for line in WARMUP.read_text().splitlines()[3:5]]
    done = evaluate(vllm, tmp_path / "run", "--ids", ",".join(wanted))
    assert done.returncode == 0, done.stderr
    assert [problem["problem_id"] for problem in lines(tmp_path / "run" / "problems.jsonl")] == wanted


@pytest.mark.vllm
def test_a_killed_run_resumes_with_the_next_problem(
    vllm: Served, tmp_path: Path, family: Callable[[], list[psutil.Process]]
) -> None:
    out = tmp_path / "run"
    command = [*COMMAND, "evaluate", str(WARMUP), "--endpoint", vllm.url, "--out", str(out), "--limit", "4", *FEW]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        until(lambda: len(lines(out / "problems.jsonl")) >= 1)
        family()
        process.kill()
    until(lambda: not family())
    finished = [problem["problem_id"] for problem in lines(out / "problems.jsonl")]
    assert 1 <= len(finished) < 4
    done = run("evaluate", WARMUP, "--endpoint", vllm.url, "--out", out, "--limit", 4, *FEW, "--resume")
    assert done.returncode == 0, done.stderr
    problems = [problem["problem_id"] for problem in lines(out / "problems.jsonl")]
    assert problems[: len(finished)] == finished
    assert len(set(problems)) == len(problems) == 4


@pytest.mark.vllm
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_finished_problems(
    vllm: Served, tmp_path: Path, family: Callable[[], list[psutil.Process]], sent: signal.Signals
) -> None:
    out = tmp_path / "run"
    command = [*COMMAND, "evaluate", str(WARMUP), "--endpoint", vllm.url, "--out", str(out), *FEW]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        until(lambda: len(lines(out / "problems.jsonl")) >= 1)
        family()
        process.send_signal(sent)
        assert process.wait(120) == 130
    assert not family()
    assert len(lines(out / "problems.jsonl")) >= 1
    assert not (out / "summary.json").exists()


@pytest.mark.vllm
@pytest.mark.kernels
def test_an_interrupt_while_the_server_starts_ends_all_processes(
    tmp_path: Path, family: Callable[[], list[psutil.Process]]
) -> None:
    out = tmp_path / "run"
    with subprocess.Popen([*COMMAND, "evaluate", str(WARMUP), "--out", str(out)], stdout=subprocess.DEVNULL) as process:
        until(lambda: "non-default args" in (out / "server.log").read_text() if (out / "server.log").exists() else False)
        assert family()
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 130
    assert not family()


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    path = tmp_path / "problems.csv"
    path.write_text("id,problem,answer\na,What is 1 + 1?,2\n")
    return path


def assert_refused(done: subprocess.CompletedProcess[str], message: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert_refused(run("evaluate", tmp_path / "absent.csv", "--out", tmp_path / "run"), "no such file")
    assert not (tmp_path / "run").exists()


def test_an_unknown_option_in_the_toml_is_refused(tmp_path: Path, problems: Path) -> None:
    (tmp_path / "my.toml").write_text("[solver]\nslotz = 3\n")
    done = run("evaluate", problems, "--config", tmp_path / "my.toml", "--out", tmp_path / "run")
    assert_refused(done, "solver.slotz: unknown; known here: slots, max_attempts")
    assert not (tmp_path / "run").exists()


def test_a_model_folder_without_a_tokenizer_is_refused(tmp_path: Path, problems: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    shutil.copy(MODEL / "config.json", model)
    assert_refused(run("evaluate", problems, "--model", model, "--out", tmp_path / "run"), "no tokenizer.json")
    assert not (tmp_path / "run").exists()


def test_a_draft_that_cannot_be_used_is_refused_before_there_is_a_run(tmp_path: Path, problems: Path) -> None:
    out = tmp_path / "out"
    assert_refused(run("evaluate", problems, "--out", out, "--set", f"server.draft_model={tmp_path}"), "has no config.json")
    assert not out.exists()


def test_an_unreachable_endpoint_is_refused(tmp_path: Path, problems: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert_refused(run("evaluate", problems, "--endpoint", url, "--out", tmp_path / "run"), "does not answer")
    assert not (tmp_path / "run").exists()


def test_overwrite_deletes_only_run_directories(tmp_path: Path, problems: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    assert_refused(run("evaluate", problems, "--out", tmp_path / "run", "--overwrite"), "not a run directory")
    assert (tmp_path / "run" / "thesis.tex").exists()


def test_resuming_nothing_is_refused(tmp_path: Path, problems: Path) -> None:
    assert_refused(run("evaluate", problems, "--out", tmp_path / "absent", "--resume"), "run directory")
    assert not (tmp_path / "absent").exists()


@pytest.mark.vllm
@pytest.mark.kernels
def test_a_server_that_fails_to_start_shows_its_command_and_log(tmp_path: Path, problems: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    (model / "model.safetensors").write_bytes(b"not a model")
    done = run("evaluate", problems, "--model", model, "--out", tmp_path / "run", "--set", "server.restarts=0")
    assert done.returncode == 2
    assert "vllm.entrypoints.openai.api_server" in done.stderr
    assert "safetensors" in done.stderr.lower()
    assert 'Traceback (most recent call last):\n  File "' + str(ROOT) not in done.stderr


def test_help_lists_the_commands() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "evaluate" in done.stdout


def test_an_unknown_command_line_option_is_refused(problems: Path) -> None:
    done = run("evaluate", problems, "--slotz", 3)
    assert done.returncode == 2
    assert "--slotz" in done.stderr


@pytest.mark.vllm
def test_a_resumed_run_keeps_its_clock_and_records_its_new_options(vllm: Served, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert evaluate(vllm, out, "--limit", 1, "--time-limit", 600).returncode == 0
    with (out / "events.jsonl").open("a") as events:
        events.write(json.dumps({"t": 590.0, "wall": "", "kind": "x"}) + "\n")
    assert_refused(
        evaluate(vllm, out, "--limit", 2, "--resume"), "--time-limit: the run has used 590 of its 540 s, and 1 problems are open"
    )
    done = evaluate(vllm, out, "--limit", 2, "--resume", "--time-limit", 700, "--set", "solver.max_attempts=9")
    assert done.returncode == 0, done.stderr
    config = json.loads((out / "run.json").read_text())["config"]
    assert (config["budget"]["time_limit_s"], config["solver"]["max_attempts"]) == (700, 9)
    started = [event for event in lines(out / "events.jsonl") if event["kind"] == "problem_started"]
    assert 0 < float(str(started[-1]["allotted_s"])) <= 700 - 70 - 590
