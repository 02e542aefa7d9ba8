"""A run goes on while its log cannot be written, and so does the log afterwards. Limits of the process make real calls fail."""

from __future__ import annotations

import logging
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aimo_solver.config import Config
from aimo_solver.log import write_queue
from aimo_solver.log.files import append_line, replace_file, trajectory_path
from aimo_solver.log.reader import RunRecord, read_run
from aimo_solver.log.writer import RunLog
from aimo_solver.problems import Problem
from tests.log.test_log import ManualClock, attempt, result, write_problem


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def log(tmp_path: Path, clock: ManualClock) -> Iterator[RunLog]:
    with RunLog.create(tmp_path / "run", config=Config(), environment={}, clock=clock) as log:
        yield log


@contextmanager
def limited(what: int, value: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(what)
    resource.setrlimit(what, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(what, (soft, hard))


@contextmanager
def nothing_opens() -> Iterator[None]:
    """Every `open` in this process fails with EMFILE."""
    with limited(resource.RLIMIT_NOFILE, 0):
        yield


def ticks(run: RunRecord) -> list[int]:
    return [event.values["step"] for event in run.events if event.kind == "tick"]


def values_of(run: RunRecord, kind: str) -> list[dict[str, object]]:
    return [dict(event.values) for event in run.events if event.kind == kind]


def test_a_short_failure_costs_no_record(log: RunLog, clock: ManualClock) -> None:
    with nothing_opens():
        write_problem(log, "during")
    clock.now += 1.5
    write_problem(log, "after")
    log.finish()
    run = read_run(log.directory)
    assert run.results == (result("during", tokens=4), result("after", tokens=4))
    assert run.attempts == (attempt("during", tokens=4), attempt("after", tokens=4))
    trajectories = [run.read_trajectory(problem_id, 0) for problem_id in ("during", "after")]
    assert [[step.tokens for step in trajectory.steps] for trajectory in trajectories if trajectory] == [
        [(1, 2, 3), (4, 5), (), (6,), (7, 8)]
    ] * 2
    assert values_of(run, "log_resumed") == [{"seconds": 1.5, "lost": 0}]
    assert run.summary is not None


def test_records_for_which_there_is_no_room_are_counted(
    log: RunLog, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(write_queue, "_WAITING_BYTES", 12_000)
    with nothing_opens():
        for step in range(100):
            log.event("tick", step=step)
    clock.now += 1.5
    log.event("tick", step=100)
    log.finish()
    run = read_run(log.directory)
    written = ticks(run)
    lost = 101 - len(written)
    assert written == [*range(len(written) - 1), 100]
    assert lost > 50
    assert values_of(run, "log_resumed") == [{"seconds": 1.5, "lost": lost}]
    assert values_of(run, "run_finished")[0]["lost"] == lost
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3  # when it fails, when it goes on, at the end
    assert f"{lost} records were lost" in messages[1]
    assert f"lacks {lost} records" in messages[2]


def test_trajectories_leave_room_for_results(log: RunLog, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_queue, "_WAITING_BYTES", 40_000)
    trajectory = log.start_trajectory("a", 0)
    with nothing_opens():
        for _ in range(100):
            trajectory.write_prompt([1], "p")
        write_problem(log, "a")
    clock.now += 1.5
    log.finish()
    assert read_run(log.directory).results == (result("a", tokens=4),)


def test_a_trajectory_that_lost_a_step_ends_before_it(log: RunLog, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    trajectory = log.start_trajectory("a", 0)
    trajectory.write_prompt([1], "p")
    monkeypatch.setattr(write_queue, "_WAITING_BYTES", 4_000)
    with nothing_opens():
        trajectory.write_insertion([2], "waits", "complaint")
        trajectory.write_insertion([3], "x" * 4_000, "complaint")
        trajectory.write_insertion([4], "fits", "complaint")
    clock.now += 1.5
    trajectory.write_insertion([5], "later", "complaint")
    log.close()
    read = read_run(log.directory).read_trajectory("a", 0)
    assert read is not None
    assert [step.tokens for step in read.steps] == [(1,), (2,)]
    assert read.ended is None


def test_a_full_disk_leaves_no_part_of_a_line(log: RunLog, clock: ManualClock) -> None:
    events = log.directory / "events.jsonl"
    before = events.read_bytes()
    with limited(resource.RLIMIT_FSIZE, len(before) + 30):
        log.event("tick", step=0)
        assert events.read_bytes() == before
    clock.now += 1.5
    log.event("tick", step=1)
    run = read_run(log.directory)
    assert (ticks(run), run.torn_lines) == ([0, 1], 0)


def test_a_line_that_does_not_fit_raises(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    append_line(path, b"one\n")
    with limited(resource.RLIMIT_FSIZE, 6), pytest.raises(OSError, match="File too large"):
        append_line(path, b"two\n")
    append_line(path, b"three\n")
    assert path.read_bytes() == b"one\nthree\n"


def test_a_file_that_cannot_be_replaced_stays(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    replace_file(path, b"old\n")
    with limited(resource.RLIMIT_FSIZE, 6), pytest.raises(OSError, match="File too large"):
        replace_file(path, b"too long\n")
    assert path.read_bytes() == b"old\n"
    assert list(tmp_path.iterdir()) == [path]


def test_pauses_between_tries_double(log: RunLog, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[float] = []

    def counted(path: Path, line: bytes) -> None:
        tries.append(clock.now - 100)
        append_line(path, line)

    monkeypatch.setattr(write_queue, "append_line", counted)
    with nothing_opens():
        for _ in range(1000):
            log.event("tick")
            clock.now += 0.125
    assert tries == [0, 1, 3, 7, 15, 31, 63, 95]


def test_a_log_that_fails_every_second_is_reported_seldom(
    log: RunLog, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    for step in range(1200):
        with nothing_opens():
            log.event("tick", step=2 * step)
        clock.now += 0.5
        log.event("tick", step=2 * step + 1)
        clock.now += 0.5
    assert len(caplog.records) < 100
    log.close()
    assert ticks(read_run(log.directory)) == list(range(2400))


def test_what_waits_is_written_by_close(log: RunLog) -> None:
    with nothing_opens():
        write_problem(log, "a")
    log.close()  # before the pause is over
    run = read_run(log.directory)
    assert run.results == (result("a", tokens=4),)
    trajectory = run.read_trajectory("a", 0)
    assert trajectory is not None
    assert trajectory.ended is not None


def test_a_log_that_fails_to_the_end_is_closed_and_resumed(log: RunLog, caplog: pytest.LogCaptureFixture) -> None:
    write_problem(log, "before")
    with nothing_opens():
        write_problem(log, "a")
        assert log.finish()["problems"] == 2
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "could not be written" in caplog.records[1].getMessage()
    log.event("x")
    run = read_run(log.directory)
    assert [problem.problem_id for problem in run.problems] == ["before"]
    assert run.summary is None


def test_a_problem_that_starts_again_during_a_failure_counts_once(log: RunLog, clock: ManualClock) -> None:
    write_problem(log, "again")
    with nothing_opens():
        write_problem(log, "again")
    clock.now += 1.5
    log.finish()
    run = read_run(log.directory)
    assert [(attempt.problem_id, attempt.index) for attempt in run.attempts] == [("again", 0)]
    assert (len(run.votes), run.trajectory_indices("again")) == (1, (0,))
    trajectory = run.read_trajectory("again", 0)
    assert trajectory is not None
    assert len(trajectory.steps) == 5
    assert list((log.directory / "interrupted" / "1" / "trajectories" / "again").glob("0.jsonl*"))


def test_a_folder_that_is_gone_for_a_while_gets_all_records(log: RunLog, clock: ManualClock) -> None:
    elsewhere = log.directory.with_name("elsewhere")
    log.directory.rename(elsewhere)
    log.event("tick", step=0)
    clock.now += 1.5
    write_problem(log, "a")
    assert not log.directory.exists()
    elsewhere.rename(log.directory)
    clock.now += 2.5
    log.event("tick", step=1)
    log.close()
    run = read_run(log.directory)
    assert ticks(run) == [0, 1]
    assert run.results == (result("a", tokens=4),)


def test_nothing_is_written_into_the_folder_of_a_later_run(log: RunLog, clock: ManualClock) -> None:
    shutil.rmtree(log.directory)
    log.event("tick", step=0)
    with RunLog.create(log.directory, config=Config(), environment={}):
        clock.now += 1.5
        log.event("tick", step=1)
        log.close()
    assert [event.kind for event in read_run(log.directory).events] == ["run_started"]


def test_a_trajectory_that_cannot_be_compressed_stays_as_it_is(log: RunLog) -> None:
    log.problem_started(Problem("a", "?", 7), 60.0)
    trajectory = log.start_trajectory("a", 0)
    path = trajectory_path(log.directory, "a", 0)
    path.with_suffix(".jsonl.part").mkdir()
    trajectory.write_prompt([1], "p")
    log.attempt_finished(attempt("a"))
    log.finish()
    run = read_run(log.directory)
    assert path.exists()
    read = run.read_trajectory("a", 0)
    assert read is not None
    assert (len(read.steps), values_of(run, "log_resumed")) == (1, [])
