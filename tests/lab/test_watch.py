"""The live view of a run that another process writes. About 5 s."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from aimo_solver.errors import RunDirectoryError
from aimo_solver.lab.report.watch import Follower, render_snapshot, watch

WRITER = """
import sys
from pathlib import Path
from aimo_solver.results import Attempt, FinishReason
from aimo_solver.config import Config
from aimo_solver.log.writer import RunLog
from aimo_solver.problems import Candidate, Problem, ProblemResult

log = RunLog.create(Path(sys.argv[1]), config=Config(), environment={})
log.event("server_fault", error="it died\\nOut of memory")
log.problem_started(Problem("first", "?", 7), 60.0)
log.problem_finished(ProblemResult(problem_id="first", answer=7, truth=7, reason="equal", votes=4, tokens=1000))
log.problem_started(Problem("second", "?", 7), 60.0)
thinking, calling, done = (log.start_trajectory("second", index) for index in range(3))
thinking.write_prompt([1], "p")
thinking.write_turn([2] * 100, "call", seconds=0.1, kind="tool_call", finish="stop")
thinking.write_tool_call("1/0", "no", seconds=0.1, error_name="ZeroDivisionError")
calling.write_prompt([1], "p")
calling.write_turn([2] * 40, "call", seconds=0.1, kind="tool_call", finish="stop")
done.write_turn([2] * 7, "7", seconds=0.1, kind="final", finish="stop")
log.attempt_finished(Attempt(problem_id="second", index=2, answer=7, finish_reason=FinishReason.ANSWERED, tokens=7, turns=1))
log.write_votes("second", [Candidate(7, 1.0, 1, 1.0)])
print("ready", flush=True)
sys.stdin.readline()
log.problem_finished(ProblemResult(problem_id="second", answer=8, truth=7, reason="attempts", votes=1, tokens=200))
log.finish()
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def shown(follower: Follower) -> str:
    console = Console(file=io.StringIO(), width=140, record=True)
    console.print(render_snapshot(follower.snapshot()))
    return console.export_text()


def test_each_attempt_has_an_activity(tmp_path: Path, writer: subprocess.Popen[str]) -> None:
    snapshot = Follower(tmp_path / "run").snapshot()
    assert snapshot.running
    assert snapshot.tokens == 1000 + 100 + 40 + 7
    (problem,) = snapshot.open
    assert [(now.activity, now.attempt.tokens, now.attempt.tool_calls, now.attempt.tool_errors) for now in problem.attempts] == [
        ("thinking", 100, 1, 1),
        ("Python", 40, 0, 0),
        ("", 7, 0, 0),
    ]
    assert problem.ballot is not None
    assert problem.ballot.candidates[0].votes == 1


def test_the_screen_shows_score_votes_and_faults(tmp_path: Path, writer: subprocess.Popen[str]) -> None:
    text = shown(Follower(tmp_path / "run"))
    assert "running" in text
    assert "1 problem, 1 of 1 right" in text
    assert "✓ first" in text
    assert "7 ×1" in text
    assert "server fault  error it died Out of memory" in text


def test_a_killed_run_shows_as_interrupted(tmp_path: Path, writer: subprocess.Popen[str]) -> None:
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert "interrupted" in shown(Follower(tmp_path / "run"))


def test_watching_ends_with_the_run(tmp_path: Path, writer: subprocess.Popen[str]) -> None:
    code = (
        "import sys; from pathlib import Path; from rich.console import Console; from aimo_solver.lab.report.watch import watch; "
        "watch(Path(sys.argv[1]), Console(width=120), interval_s=0.05)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout is not None
        assert watcher.stdout.readline().startswith("✓ first")
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
        rest = watcher.stdout.read().splitlines()
    assert rest[0].startswith("✗ second")
    assert "truth 7" in rest[0]
    assert "finished" in rest[1]
    assert "1 of 2 right" in rest[1]
    assert watcher.returncode == 0


def test_the_token_rate_covers_the_last_seconds(tmp_path: Path, writer: subprocess.Popen[str]) -> None:
    now = 1_000.0
    follower = Follower(tmp_path / "run", clock=lambda: now)
    assert follower.snapshot().tokens_per_s is None
    now += 10
    assert follower.snapshot().tokens_per_s == 0.0
    with (tmp_path / "run" / "trajectories" / "second" / "0.jsonl").open("a") as file:
        file.write('{"kind":"sampled","t":1,"since":0,"tokens":[1,2,3,4,5,6,7,8,9,10],"text":"","entropies":[]}\n')
    now += 10
    assert follower.snapshot().tokens_per_s == 1.0  # 10 tokens in the 10 s since the last snapshot


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="holds no run"):
        watch(tmp_path, Console(quiet=True))
