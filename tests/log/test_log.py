"""A run directory is complete at any moment. About 5 s, and 40 s for the one test on the vLLM server."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimo_solver.config import Config, load_config
from aimo_solver.errors import RunDirectoryError
from aimo_solver.lab.records import read_groups
from aimo_solver.log.files import json_line, trajectory_path
from aimo_solver.log.reader import Step, is_running, read_lines, read_run
from aimo_solver.log.resume import resume_run
from aimo_solver.log.writer import NullLog, RunLog, describe_environment, summarise_run
from aimo_solver.problems import Candidate, Problem, ProblemResult
from aimo_solver.results import Attempt, FinishReason
from tests.conftest import ROOT, Served

WARMUP = ROOT / "data" / "warmup.csv"


@dataclass
class ManualClock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def attempt(problem_id: str, index: int = 0, **values: object) -> Attempt:
    return Attempt(problem_id=problem_id, index=index, answer=7, finish_reason=FinishReason.ANSWERED, **values)  # type: ignore[arg-type]


def result(problem_id: str, **values: object) -> ProblemResult:
    known = {"answer": 7, "truth": 7, "reason": "equal", "candidates": (Candidate(7, 2.5, 3, 1.0),)}
    return ProblemResult(problem_id=problem_id, **(known | values))  # type: ignore[arg-type]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def log(tmp_path: Path, clock: ManualClock) -> RunLog:
    return RunLog.create(tmp_path / "run", config=Config(), environment={"python": "3"}, clock=clock)


def write_problem(log: RunLog, problem_id: str, *, finish: bool = True) -> None:
    """Writes one problem with one attempt of two turns and a tool call."""
    log.problem_started(Problem(problem_id, "What is 3 + 4?", 7), 60.0)
    trajectory = log.start_trajectory(problem_id, 0)
    trajectory.write_prompt([1, 2, 3], "<user>What is 3 + 4?")
    trajectory.add_sampled([4, 5], [0.5, 0.25])
    trajectory.write_turn([4, 5], "call", [0.5, 0.25], seconds=1.5, waited_s=0.5, kind="tool_call", finish="stop")
    trajectory.write_tool_call("print(3 + 4)", "7\n", seconds=0.02)
    trajectory.write_insertion([6], "7", "tool_result")
    trajectory.write_turn([7, 8], "\\boxed{7}", [0.125, 0.0], seconds=0.5, kind="final", finish="stop")
    if finish:
        log.attempt_finished(attempt(problem_id, tokens=4))
        log.write_votes(problem_id, [Candidate(7, 1.0, 1, 1.0)])
        log.problem_finished(result(problem_id, tokens=4))


def test_everything_written_is_read_back(log: RunLog, clock: ManualClock) -> None:
    log.event("server_ready", seconds=3.5)
    clock.now += 10
    write_problem(log, "a")
    clock.now += 5
    log.finish()

    run = read_run(log.directory)
    assert run.config["solver"]["slots"] == Config().solver.slots
    assert run.environment == {"python": "3"}
    assert [event.kind for event in run.events] == ["run_started", "server_ready", "problem_started", "run_finished"]
    assert run.events[1].values == {"seconds": 3.5}
    (problem,) = run.problems
    assert (problem.t, problem.text, problem.truth, problem.allotted_s) == (10.0, "What is 3 + 4?", 7, None)
    assert problem.result == result("a", tokens=4)
    assert run.attempts == (attempt("a", tokens=4),)
    assert run.votes[0].t == 10.0
    assert run.votes[0].candidates == (Candidate(7, 1.0, 1, 1.0),)
    assert run.summary is not None
    assert run.summary["accuracy"] == 1.0
    assert run.summary["seconds"] == 15.0


def test_the_tokens_of_all_steps_are_the_conversation(log: RunLog) -> None:
    write_problem(log, "a")
    log.close()
    trajectory = read_run(log.directory).read_trajectory("a", 0)
    assert trajectory is not None
    assert [token for step in trajectory.steps for token in step.tokens] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [step.kind for step in trajectory.steps] == ["prompt", "turn", "tool", "inserted", "turn"]
    assert trajectory.steps[1].entropies == (0.5, 0.25)
    assert trajectory_path(log.directory, "a", 0).with_suffix(".jsonl.gz").exists()
    assert not trajectory_path(log.directory, "a", 0).exists()


def test_an_unfinished_turn_keeps_its_tokens(log: RunLog, clock: ManualClock) -> None:
    log.problem_started(Problem("a", "?", None), 60.0)
    trajectory = log.start_trajectory("a", 0, decode=lambda tokens: "".join(map(chr, tokens)))
    trajectory.write_prompt([1], "p")
    for token in b"hello":
        clock.now += 0.4
        trajectory.add_sampled([token], [0.5])
    running = read_run(log.directory).read_trajectory("a", 0)
    assert running is not None
    assert running.steps[-1].text == "hel"  # written after a second; the rest follows
    assert running.ended is None
    trajectory.close()
    log.close()
    closed = read_run(log.directory).read_trajectory("a", 0)
    assert closed is not None
    assert closed.steps[-1].text == "hello"
    assert closed.steps[-1].tokens == tuple(b"hello")
    assert closed.steps[-1].turn == "cut"


def test_the_time_of_a_step_is_its_start(log: RunLog, clock: ManualClock) -> None:
    log.problem_started(Problem("a", "?", None), 60.0)
    trajectory = log.start_trajectory("a", 0)
    trajectory.write_prompt([1], "p")
    clock.now += 7
    trajectory.write_turn([2, 3], "x", seconds=6.0, waited_s=3.0, kind="tool_call", finish="stop", cached=90, lost=(300, 1.5))
    clock.now += 2
    trajectory.write_tool_call("1/0", "", seconds=2.0, error_name="ZeroDivisionError")
    log.close()
    record = read_run(log.directory).read_trajectory("a", 0)
    assert record is not None
    assert [(step.t, step.seconds) for step in record.steps] == [(0.0, 0.0), (1.0, 6.0), (7.0, 2.0)]
    assert record.steps[1].waited_s == 3.0
    assert (record.steps[1].cached, record.steps[1].lost, record.steps[1].lost_s) == (90, 300, 1.5)
    assert record.steps[2].error_name == "ZeroDivisionError"
    assert record.ended == 9.0


CHILD = """
import sys
from pathlib import Path
from aimo_solver.config import Config
from aimo_solver.log.writer import RunLog
from aimo_solver.problems import Problem
now = 0.0
log = RunLog.create(Path(sys.argv[1]), config=Config(), environment={}, clock=lambda: now)
log.problem_started(Problem("a", "?", 7), 60.0)
trajectory = log.start_trajectory("a", 0)
trajectory.write_prompt([0], "p")
step = 0
while True:
    step += 1
    now += 0.25
    trajectory.add_sampled([step])
    log.event("tick", step=step)
    print(step, flush=True)
"""


def test_kill_9_loses_at_most_the_last_second(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) >= 100:
            break
    assert is_running(tmp_path / "run")
    child.send_signal(signal.SIGKILL)
    child.wait()
    printed = [int(line) for line in child.stdout] or [100]
    child.stdout.close()

    assert not is_running(tmp_path / "run")
    run = read_run(tmp_path / "run")
    ticks = [event.values["step"] for event in run.events if event.kind == "tick"]
    assert ticks[: printed[-1]] == list(range(1, printed[-1] + 1))
    trajectory = run.read_trajectory("a", 0)
    assert trajectory is not None
    tokens = trajectory.steps[-1].tokens
    assert tokens == tuple(range(1, len(tokens) + 1))
    assert len(tokens) >= printed[-1] - 4  # four steps a second
    assert run.problems[0].result is None


def test_a_truncated_file_reads_as_its_whole_lines(tmp_path: Path) -> None:
    records: list[dict[str, object]] = [{"n": 1, "text": "ä\n"}, {"n": 2}, {"n": 3, "list": [1, 2]}]
    data = b"".join(json_line(record) for record in records)
    path = tmp_path / "x.jsonl"
    for end in range(len(data) + 1):
        path.write_bytes(data[:end])
        whole = [line for line in read_lines(path) if line is not None]
        lines = data[:end].count(b"\n")
        assert whole[:lines] == records[:lines]
        assert len(whole) - lines in (0, 1)  # a line that lacks only its newline counts
        assert whole == records[: len(whole)]


def test_resuming_keeps_finished_problems_and_restarts_open_ones(log: RunLog, clock: ManualClock) -> None:
    clock.now += 50
    write_problem(log, "done")
    write_problem(log, "open", finish=False)
    log.attempt_finished(attempt("open"))
    log.write_votes("open", [Candidate(7, 1.0, 1, 1.0)])
    log.close()
    with (log.directory / "attempts.jsonl").open("ab") as file:
        file.write(b'{"t": 3.0, "problem_id": "op')
    with (log.directory / "events.jsonl").open("ab") as file:
        file.write(b'{"t": 3.0, "ki')

    later = ManualClock(9_000.0)
    resumed = resume_run(log.directory, clock=later)
    assert set(resumed.finished) == {"done"}
    assert resumed.config["solver"]["slots"] == Config().solver.slots
    assert resumed.t == 50.0  # the last second written
    write_problem(resumed, "open")
    assert resumed.finish()["problems"] == 2

    run = read_run(log.directory)
    assert run.torn_lines == 0
    assert [attempt.problem_id for attempt in run.attempts] == ["done", "open"]
    assert [(problem.problem_id, problem.t) for problem in run.problems] == [("done", 50.0), ("open", 50.0)]
    assert run.trajectory_indices("open") == (0,)
    aside = log.directory / "interrupted" / "1"
    assert [line["problem_id"] for line in read_lines(aside / "attempts.jsonl") if line] == ["open"]
    assert (aside / "trajectories" / "open" / "0.jsonl.gz").exists()


@pytest.mark.parametrize("reason", ["server", "fault"])
def test_resuming_restarts_problems_that_a_failure_ended_without_an_answer(log: RunLog, reason: str) -> None:
    for problem_id, votes in (("answered", 1), ("given-up", 0)):
        log.problem_started(Problem(problem_id, "?", 7), 60.0)
        log.attempt_finished(attempt(problem_id))
        log.problem_finished(result(problem_id, votes=votes, reason=reason))
    log.close()
    resumed = resume_run(log.directory)
    resumed.close()
    assert set(resumed.finished) == {"answered"}
    assert [problem.problem_id for problem in read_run(log.directory).problems if problem.result] == ["answered"]
    assert [line["problem_id"] for line in read_lines(log.directory / "interrupted" / "1" / "problems.jsonl") if line] == [
        "given-up"
    ]


def test_resuming_with_another_configuration_records_the_changes(log: RunLog) -> None:
    log.close()
    config = load_config({"solver": {"slots": 2, "max_attempts": 4}})
    resumed = resume_run(log.directory, config=config)
    resumed.close()
    run = read_run(log.directory)
    assert load_config(run.config) == config
    assert resumed.config == config.as_dict()
    assert run.events[-1].values["changed"] == {"solver.slots": 2, "solver.max_attempts": 4}
    resume_run(log.directory, config=config).close()
    assert read_run(log.directory).events[-1].values["changed"] == {}


def test_the_clock_of_a_resumed_run_counts_from_its_start(log: RunLog, clock: ManualClock) -> None:
    clock.now += 50
    log.event("x")
    log.close()
    resumed = resume_run(log.directory, clock=ManualClock(9_000.0))
    resumed.close()
    assert resumed.started == 8_950.0


def test_a_problem_that_starts_again_has_one_record_of_each_attempt(log: RunLog) -> None:
    write_problem(log, "other")
    for _ in range(3):
        write_problem(log, "again")
    log.finish()
    run = read_run(log.directory)
    assert [(attempt.problem_id, attempt.index) for attempt in run.attempts] == [("other", 0), ("again", 0)]
    assert [problem.problem_id for problem in run.problems] == ["other", "again"]
    assert (len(run.votes), run.trajectory_indices("again"), run.trajectory_indices("other")) == (2, (0,), (0,))
    for number in (1, 2):
        assert (log.directory / "interrupted" / str(number) / "trajectories" / "again" / "0.jsonl.gz").exists()
    (group,) = (group for group in read_groups([log.directory]) if group.problem_id == "again")
    assert len(group.attempts) == 1


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunDirectoryError, match=r"is not empty.*--resume"):
        RunLog.create(tmp_path, config=Config(), environment={})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(RunDirectoryError, match=r"no run\.json"):
        resume_run(tmp_path)
    with pytest.raises(RunDirectoryError, match="no such folder"):
        read_run(tmp_path / "nowhere")


def test_another_schema_is_refused(log: RunLog) -> None:
    log.close()
    head = json.loads((log.directory / "run.json").read_text())
    (log.directory / "run.json").write_text(json.dumps(head | {"schema": 99}))
    with pytest.raises(RunDirectoryError, match="schema 99"):
        resume_run(log.directory)


def test_records_of_other_versions_are_read(log: RunLog) -> None:
    """Fields that an earlier version did not write take their defaults, and unknown fields are ignored."""
    log.close()
    candidate = {"answer": 7, "votes": 3, "score": 2.5, "share": 1.0, "later": 1}
    lines = {
        "attempts": {"t": 2, "problem_id": "a", "index": 0, "answer": 7, "finish_reason": "answered", "later": 1},
        "votes": {"t": 2, "problem_id": "a", "candidates": [candidate]},
        "problems": {"t": 3, "problem_id": "a", "answer": 7, "reason": "equal", "candidates": [candidate], "later": 1},
    }
    for name, line in lines.items():
        (log.directory / f"{name}.jsonl").write_bytes(json_line(line))
    path = trajectory_path(log.directory, "a", 0)
    path.parent.mkdir(parents=True)
    steps = [{"kind": "start", "t": 0, "problem_id": "a", "index": 0}, {"kind": "prompt", "t": 0, "tokens": [1], "later": 1}]
    path.write_bytes(b"".join(map(json_line, steps)))
    run = read_run(log.directory)
    assert run.attempts == (attempt("a"),)
    assert run.results == (result("a", truth=None),)
    assert run.votes[0].candidates == (Candidate(7, 2.5, 3, 1.0),)
    trajectory = run.read_trajectory("a", 0)
    assert trajectory is not None
    assert trajectory.steps == (Step(kind="prompt", t=0, tokens=(1,)),)


def test_only_one_process_can_write_a_run(log: RunLog) -> None:
    code = "import sys\nfrom aimo_solver.log.resume import resume_run\nresume_run(sys.argv[1])"
    other = subprocess.run([sys.executable, "-c", code, str(log.directory)], capture_output=True, text=True, check=False)
    assert "is being written by another process" in other.stderr
    log.close()
    resume_run(log.directory).close()


FULL = """
import resource, sys
from pathlib import Path
from aimo_solver.config import Config
from aimo_solver.log.writer import RunLog
log = RunLog.create(Path(sys.argv[1]), config=Config(), environment={})
resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, 4_000))
for step in range(200):
    log.event("tick", step=step)
log.start_trajectory("a", 0).write_prompt([1], "p")
print(log.finish()["problems"])
"""


def test_a_full_disk_never_stops_the_run(tmp_path: Path) -> None:
    child = subprocess.run([sys.executable, "-c", FULL, str(tmp_path / "run")], capture_output=True, text=True, check=False)
    assert (child.returncode, child.stdout) == (0, "0\n")
    assert child.stderr.count("records wait in memory") == 1
    ticks = [event.values["step"] for event in read_run(tmp_path / "run").events if event.kind == "tick"]
    assert len(ticks) > 20
    assert ticks == list(range(len(ticks)))


def test_lines_written_by_many_threads_stay_whole(log: RunLog) -> None:
    def write(name: int) -> None:
        for step in range(100):
            log.event("tick", name=name, step=step, padding="x" * 500)

    threads = [threading.Thread(target=write, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    ticks = [event.values for event in read_run(log.directory).events if event.kind == "tick"]
    assert sorted((tick["name"], tick["step"]) for tick in ticks) == [(name, step) for name in range(8) for step in range(100)]


def test_polars_reads_every_file(log: RunLog) -> None:
    for problem_id in ("a", "b"):
        write_problem(log, problem_id)
    log.finish()
    assert pl.read_ndjson(log.directory / "attempts.jsonl")["truth"].to_list() == [7, 7]
    assert pl.read_ndjson(log.directory / "problems.jsonl")["right"].to_list() == [True, True]
    assert pl.read_ndjson(log.directory / "votes.jsonl").height == 2
    assert pl.read_ndjson(log.directory / "events.jsonl", infer_schema_length=None).height == 4
    steps = pl.read_ndjson(log.directory / "trajectories" / "a" / "0.jsonl.gz", infer_schema_length=None)
    assert steps["kind"].to_list() == ["start", "prompt", "turn", "tool", "inserted", "turn", "end"]


@given(st.lists(st.text(st.characters(exclude_categories=())), min_size=1, max_size=5, unique=True))
def test_any_problem_id_has_a_path_of_its_own(ids: list[str]) -> None:
    root = Path("/run")
    paths = [trajectory_path(root, problem_id, 0) for problem_id in ids]
    assert len(set(paths)) == len(ids)
    for path in paths:
        assert path.parts[:3] == ("/", "run", "trajectories")
        assert len(path.parts) == 5
        assert path.parts[3] not in ("", ".", "..")
        assert len(os.fsencode(path.parts[3])) < 200


DOC = ROOT / "docs" / "run-directory.md"


def test_the_documented_code_reads_a_run(log: RunLog, capsys: pytest.CaptureFixture[str]) -> None:
    write_problem(log, "ID")
    log.finish()
    blocks = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    known: dict[str, object] = {}
    for block in blocks:
        exec(block.replace("DIR", str(log.directory)), known)
    assert len(blocks) == 2
    assert known["conversation"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert capsys.readouterr().out == "ID 7\n"


def test_every_field_of_a_record_is_documented(log: RunLog) -> None:
    write_problem(log, "ID")
    log.start_trajectory("ID", 1).add_sampled([1])
    log.finish()
    text = DOC.read_text(encoding="utf-8")
    for name in ("attempts", "votes", "problems", "summary", "run"):
        path = log.directory / (f"{name}.jsonl" if name.endswith("s") else f"{name}.json")
        for line in read_lines(path):
            assert line is not None
            for field in line:
                assert f"`{field}`" in text, f"{field} of {name}"
    for index in (0, 1):
        for line in read_lines(trajectory_path(log.directory, "ID", index).with_suffix(".jsonl.gz")):
            assert line is not None
            for field in (line["kind"], *line):
                assert f"`{field}`" in text, f"{field} of a trajectory"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    )
)
def test_any_value_becomes_one_line_of_strict_json(value: object) -> None:
    line = json_line({"value": value})
    assert line.count(b"\n") == 1

    def refuse(name: str) -> float:
        raise AssertionError(name)

    read = json.loads(line.decode("utf-8"), parse_constant=refuse)["value"]
    if isinstance(value, str):
        assert read == value.encode("utf-8", "replace").decode("utf-8")
    elif isinstance(value, float) and not math.isfinite(value):
        assert read is None
    elif isinstance(value, int | float | None):
        assert read == value


def test_the_null_log_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = NullLog()
    log.event("x")
    write_problem(log, "a")
    assert log.finish()["problems"] == 1
    assert list(tmp_path.iterdir()) == []


def test_accuracy_counts_only_known_truths() -> None:
    results = (result("a"), result("b", answer=8), result("c", truth=None, tokens=50))
    summary = summarise_run(results, 10.0, {})
    assert (summary["problems"], summary["right"], summary["accuracy"]) == (3, 1, 0.5)
    assert (summary["tokens"], summary["tokens_per_s"]) == (50, 5.0)
    assert summarise_run((result("c", truth=None),), 1.0, {})["accuracy"] is None


def test_the_environment_has_versions() -> None:
    environment = describe_environment()
    assert environment["python"].startswith("3.")
    assert environment["versions"]["numpy"]
    json.dumps(environment, allow_nan=False)


@pytest.mark.vllm
@pytest.mark.kernels
def test_an_evaluation_killed_during_a_problem_is_reported_and_resumed(vllm: Served, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "aimo_solver.cli"]
    begin = [
        *command,
        "evaluate",
        str(WARMUP),
        "--endpoint",
        vllm.url,
        "--model",
        str(vllm.model),
        "--out",
        str(run_dir),
        "--limit",
        "4",
        "--set",
        "solver.max_attempts=2",
        "--set",
        "solver.slots=2",
    ]

    def is_during_a_problem() -> bool:
        """Returns whether a problem has ended and an attempt at the next has sampled tokens."""
        if not (run_dir / "problems.jsonl").exists():
            return False
        run = read_run(run_dir)
        opened = [problem.problem_id for problem in run.problems if problem.result is None]
        steps = [
            step
            for problem_id in opened
            for index in run.trajectory_indices(problem_id)
            for trajectory in [run.read_trajectory(problem_id, index)]
            if trajectory
            for step in trajectory.steps
        ]
        return len(run.results) >= 1 and any(step.tokens and step.kind != "prompt" for step in steps)

    with subprocess.Popen(begin, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as solver:
        end = time.monotonic() + 120
        while True:
            assert solver.poll() is None
            assert time.monotonic() < end
            solver.send_signal(signal.SIGSTOP)  # nothing changes between the check and the kill
            if is_during_a_problem():
                break
            solver.send_signal(signal.SIGCONT)
            time.sleep(0.05)
        solver.send_signal(signal.SIGKILL)

    killed = read_run(run_dir)
    assert killed.torn_lines == 0
    assert killed.summary is None
    done = killed.results
    (cut,) = (problem for problem in killed.problems if problem.result is None)
    trajectories = [killed.read_trajectory(cut.problem_id, index) for index in killed.trajectory_indices(cut.problem_id)]
    assert any(step.tokens for trajectory in trajectories if trajectory for step in trajectory.steps)
    page = ["report", str(run_dir), "--out", str(tmp_path / "killed.html")]
    reported = subprocess.run([*command, *page], capture_output=True, text=True, check=True)
    assert "interrupted" in reported.stdout

    subprocess.run([*begin, "--resume"], stdout=subprocess.DEVNULL, check=True, timeout=200)
    whole = read_run(run_dir)
    assert whole.results[: len(done)] == done
    assert len(whole.results) == 4
    assert whole.summary is not None
    assert whole.summary["problems"] == 4
    assert sum(result.right is True for result in whole.results) >= 3
    assert len({(attempt.problem_id, attempt.index) for attempt in whole.attempts}) == len(whole.attempts)
