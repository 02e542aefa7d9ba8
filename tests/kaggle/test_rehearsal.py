"""A run outside the competition, with a scripted solver: what it shows, when it fails, and that it can be run again."""

from __future__ import annotations

import _thread
import asyncio
import logging
import shutil
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from aimo_solver.clock import RunClock
from aimo_solver.config import Config
from aimo_solver.errors import ConfigError, RehearsalError, ServerStartError
from aimo_solver.kaggle.notebook import NotebookRun, notebook_run
from aimo_solver.kaggle.observer import LoggingObserver, ProgressFile
from aimo_solver.kaggle.rehearsal import rehearse
from aimo_solver.kaggle.run import OpenSession
from aimo_solver.kaggle.summary import LAUNCH
from aimo_solver.paths import find_compile_cache
from aimo_solver.policy.budget import Allotment
from aimo_solver.policy.options import BudgetConfig
from aimo_solver.problems import Problem, ProblemResult
from aimo_solver.server.checks import Check, Health
from aimo_solver.server.compile_cache import make_stamp, place_cache
from aimo_solver.server.launch import LaunchPlan, plan_launch
from aimo_solver.server.wheels import NOTHING_TO_INSTALL
from tests.conftest import H100, MODEL

PROBLEMS = "id,problem,answer\naa0001,one,11\nbb0002,two,12\ncc0003,three,13\n"
FALLBACK = Check(LAUNCH, Health.BROKEN, "a fallback serves", "look")


class ScriptedSessions:
    """Sessions that give each problem its number of letters plus 8, or boots that fail."""

    def __init__(self, *checks: Check, fails: bool = False) -> None:
        self.checks: Sequence[Check] = checks
        self.plan: LaunchPlan | None = None
        self.fallback: Sequence[str] = ()
        self.lost: str | None = None
        self.solver = self
        self.solved: list[Problem] = []
        self.repeats: list[int] = []
        self.boots = 0
        self.votes = 1
        self.late = False
        self.event = 2
        self.interrupted = False
        self.cancelled = 0
        self._fails = fails

    @asynccontextmanager
    async def open(self, observer: LoggingObserver) -> AsyncIterator[OpenSession]:
        self.boots += 1
        self.observer = observer
        if self._fails:
            raise ServerStartError("the vLLM server ended", ["vllm"], 1, ["CUDA out of memory"])
        yield self

    async def solve(self, problem: Problem, allotment: Allotment) -> ProblemResult:
        self.solved.append(problem)
        self.observer.problem_started(problem, allotment.seconds)
        if self.late:
            await asyncio.sleep(allotment.seconds + 60)
        answer = len(problem.text) + 8
        self.observer.answers[problem.id] += Counter({answer: self.votes})
        result = ProblemResult(problem_id=problem.id, answer=answer, truth=problem.truth, reason="scripted", votes=self.votes)
        self.observer.problem_finished(result)
        if len(self.solved) == self.event:
            self.happens()
            await self.paused()
        return result

    def happens(self) -> None:
        """Called after the problem of the number `event`."""

    async def paused(self) -> None:
        if self.interrupted:
            self.interrupted = False
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise

    def interrupt(self) -> None:
        """Interrupts the main thread, while the problem goes on."""
        self.interrupted = True
        threading.Timer(0.2, _thread.interrupt_main).start()

    def best(self, problem_id: str) -> int:
        return 0

    def begin_repeat(self, number: int) -> None:
        self.repeats.append(number)

    def diagnose(self) -> Sequence[Check]:
        return [Check("vLLM", Health.BROKEN, "cannot be imported", "build the wheels again")]

    def finish(self) -> None: ...


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("aimo_solver.kaggle.run.PAUSES_S", (0.0, 0.01))
    monkeypatch.setattr("aimo_solver.kaggle.run._POLL_S", 0.01)
    (tmp_path / "problems.csv").write_text(PROBLEMS)
    return tmp_path


@pytest.fixture
def runs() -> Iterator[list[NotebookRun]]:
    made: list[NotebookRun] = []
    yield made
    for run in made:
        run.close()


def scripted(runs: list[NotebookRun], sessions: ScriptedSessions, **options: Any) -> NotebookRun:
    budget = BudgetConfig(time_limit_s=100, margin_s=0.0, problems=2, **options)
    clock = RunClock.begin(budget, time.monotonic, time.monotonic())
    run = NotebookRun(sessions, 0.0, budget, clock, Path("progress.txt"))  # type: ignore[arg-type]
    runs.append(run)
    return run


def answer_problems(run: NotebookRun, **options: Any) -> dict[str, int]:
    return dict(rehearse(run, "no-such-competition", "problems.csv", **options).rows())


def test_the_truth_column_gives_a_verdict_for_each_problem_and_a_score(
    folder: Path, runs: list[NotebookRun], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    sessions = ScriptedSessions(Check("GPU", Health.OK, "1 x H100"))
    with caplog.at_level(logging.INFO):
        assert answer_problems(scripted(runs, sessions)) == {"aa0001": 11, "bb0002": 11, "cc0003": 13}
    printed = capsys.readouterr().out
    for line in ("ok       GPU       1 x H100", "aa0001     11  right", "bb0002     11  wrong, true is 12", "score: 2 of 3"):
        assert line in printed
    assert printed.endswith("fit to be submitted\n")
    assert (folder / "rehearsal.txt").read_text() == printed
    assert {problem.id: problem.truth for problem in sessions.solved} == {"aa0001": 11, "bb0002": 12, "cc0003": 13}
    assert "problem bb0002: 11 (wrong: 12) by" in caplog.text


def test_without_truths_there_is_no_score(folder: Path, runs: list[NotebookRun], capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "problems.csv").write_text("id,problem\naa0001,one\n")
    sessions = ScriptedSessions()
    answer_problems(scripted(runs, sessions))
    printed = capsys.readouterr().out
    assert "aa0001     11\n" in printed
    assert "score" not in printed
    assert sessions.solved[0].truth is None


def test_repeats_are_numbered_from_one_and_the_first_is_submitted(
    folder: Path, runs: list[NotebookRun], capsys: pytest.CaptureFixture[str]
) -> None:
    sessions = ScriptedSessions()
    assert set(answer_problems(scripted(runs, sessions), repeat=3)) == {"aa0001", "bb0002", "cc0003"}
    assert sessions.repeats == [1, 2, 3]
    assert sorted(problem.id for problem in sessions.solved) == sorted(["aa0001", "bb0002", "cc0003"] * 3)
    printed = capsys.readouterr().out
    assert "aa0001     11    11    11  right" in printed
    assert "score: 2, 2, 2 of 3, 2.0 on average" in printed
    assert sessions.boots == 1


@pytest.mark.parametrize(
    "text",
    [
        "id,answer,problem\na,11,one\n",
        "problem,id\none,a\n",
        ",id,problem\n0,a,one\n",
        "id;problem\na;one\n",
        "id,problem\na,\xe9\n",
        "",
    ],
    ids=["answer second", "id second", "index", "semicolons", "Latin-1", "empty"],
)
def test_problems_that_the_gateway_would_misread_are_an_error_before_the_boot(
    folder: Path, runs: list[NotebookRun], text: str
) -> None:
    (folder / "problems.csv").write_bytes(text.encode("latin-1"))
    sessions = ScriptedSessions()
    with pytest.raises(ConfigError, match=r"^option PROBLEMS: problems\.csv (has the columns .* id and problem|cannot be read)"):
        answer_problems(scripted(runs, sessions))
    assert sessions.boots == 0


def test_other_names_for_the_columns_and_a_byte_order_mark_are_read_in_every_repeat(
    folder: Path, runs: list[NotebookRun], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "problems.csv").write_bytes(b"\xef\xbb\xbfID,question,answer\n007,one,11\n008,two,12\n")
    answer_problems(scripted(runs, ScriptedSessions()), repeat=2)
    assert sorted(pl.read_parquet("submission.parquet").rows()) == [(7, 11), (8, 11)]
    assert "score: 1, 1 of 2" in capsys.readouterr().out


def test_problems_that_reach_no_attempt_are_an_error(folder: Path, runs: list[NotebookRun]) -> None:
    (folder / "problems.csv").write_text("id,problem\naa0001,\n")
    with pytest.raises(RehearsalError, match="no attempt at any problem gave an answer"):
        answer_problems(scripted(runs, ScriptedSessions()))


def test_repeats_beyond_the_time_limit_are_named(
    folder: Path, runs: list[NotebookRun], capsys: pytest.CaptureFixture[str]
) -> None:
    sessions = ScriptedSessions()
    run = scripted(runs, sessions)

    def end() -> None:
        clock = run._clock
        run._clock = RunClock(clock.now, clock.now(), clock.now())

    sessions.event, sessions.happens = 5, end  # type: ignore[method-assign]
    answer_problems(run, repeat=2)
    assert "score: 2, " in (printed := capsys.readouterr().out)
    assert printed.endswith("\nthe time limit was reached, and the problems after it got 0\nfit to be submitted\n")


def test_a_problem_without_an_answer_among_others_is_named(
    folder: Path, runs: list[NotebookRun], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "problems.csv").write_text("id,problem,answer\naa0001,,11\nbb0002,two,11\n")
    answer_problems(scripted(runs, ScriptedSessions()))
    printed = capsys.readouterr().out
    assert "aa0001      0  wrong, true is 11  no attempt gave an answer\nbb0002     11  right\n" in printed
    assert printed.endswith("fit to be submitted\n")


@pytest.mark.parametrize("on_kaggle", [False, True])
def test_without_kaggles_package_a_version_on_kaggle_is_not_fit(
    folder: Path, runs: list[NotebookRun], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], on_kaggle: bool
) -> None:
    run = scripted(runs, ScriptedSessions())
    if on_kaggle:
        monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
        with pytest.raises(RehearsalError, match="gateway: Kaggle's package kaggle_evaluation is absent"):
            answer_problems(run)
        assert len(pl.read_parquet("submission.parquet")) == 3
    else:
        answer_problems(run)
    assert f"{'broken ' if on_kaggle else 'warning'}  gateway " in capsys.readouterr().out


def test_an_interrupt_ends_a_repeat_and_a_live_question(folder: Path, runs: list[NotebookRun]) -> None:
    sessions = ScriptedSessions()
    sessions.event = 4  # the first problem of the second repeat
    sessions.happens = sessions.interrupt  # type: ignore[method-assign]
    run = scripted(runs, sessions)
    with pytest.raises(KeyboardInterrupt):
        answer_problems(run, repeat=2)
    assert len(sessions.solved) == 4
    sessions.event = 5
    with pytest.raises(KeyboardInterrupt):
        run.ask("live")
    assert run.ask("lively") == 14
    assert sessions.cancelled == 2


def test_a_boot_that_fails_twice_gives_a_submission_at_once_and_an_error_at_the_end(
    folder: Path, runs: list[NotebookRun], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("aimo_solver.kaggle.run.PAUSES_S", (0.0, 0.01, 60.0))  # no third boot before the run is closed
    sessions = ScriptedSessions(fails=True)
    with pytest.raises(RehearsalError, match=r"the boot failed: .* ended \(CUDA out of memory\); vLLM: cannot be imported"):
        answer_problems(scripted(runs, sessions), repeat=2)
    assert pl.read_parquet("submission.parquet")["answer"].to_list() == [0, 0, 0]
    assert sessions.boots == 2
    printed = capsys.readouterr().out
    assert "-> build the wheels again" in printed
    assert "NOT FIT TO BE SUBMITTED: the boot failed" in (folder / "rehearsal.txt").read_text()
    assert "fit to be submitted" not in printed


@pytest.mark.parametrize("late", [False, True], ids=["ended", "past its deadline"])
def test_problems_without_an_answer_from_any_attempt_are_an_error_unless_fallbacks_are_allowed(
    folder: Path, runs: list[NotebookRun], monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    monkeypatch.setattr("aimo_solver.kaggle.run.GRACE_S", 0.0)
    sessions = ScriptedSessions()
    sessions.votes, sessions.late = 0, late
    (folder / "problems.csv").write_text("id,problem\naa0001,one\n")
    options = {"cap_s": 0.05, "least_s": 0.0}
    with pytest.raises(RehearsalError, match="no attempt at any problem gave an answer"):
        answer_problems(scripted(runs, sessions, **options))
    assert len(pl.read_parquet("submission.parquet")) == 1
    answer_problems(scripted(runs, sessions, **options), allow_fallback=True)


def test_a_fallback_is_an_error_unless_it_is_allowed(folder: Path, runs: list[NotebookRun]) -> None:
    run = scripted(runs, ScriptedSessions(FALLBACK))
    with pytest.raises(RehearsalError, match="launch: a fallback serves"):
        answer_problems(run)
    assert answer_problems(run, allow_fallback=True)["aa0001"] == 11


def test_a_fallback_that_serves_since_a_restart_is_an_error_too(folder: Path, runs: list[NotebookRun]) -> None:
    sessions = ScriptedSessions(Check(LAUNCH, Health.OK, "--max-model-len 65536"))
    sessions.happens = lambda: setattr(sessions, "fallback", ["no fork (killed)"])  # type: ignore[method-assign]
    run = scripted(runs, sessions)
    with pytest.raises(RehearsalError, match=r"launch: a fallback serves since a restart: no fork \(killed\)"):
        answer_problems(run)
    assert "NOT FIT TO BE SUBMITTED: launch: a fallback serves since" in (folder / "rehearsal.txt").read_text()
    assert answer_problems(run, allow_fallback=True)["aa0001"] == 11


@pytest.mark.parametrize("problem", [2, 3], ids=["during the run", "with the last answer"])
def test_a_server_that_is_lost_for_good_after_the_boot_is_an_error(
    folder: Path, runs: list[NotebookRun], monkeypatch: pytest.MonkeyPatch, problem: int
) -> None:
    monkeypatch.setattr("aimo_solver.kaggle.run.GRACE_S", 0.0)
    monkeypatch.setattr("aimo_solver.kaggle.run._POLL_S", 0.1)  # that the loss is not seen at once
    sessions = ScriptedSessions()
    sessions.event = problem

    def lose() -> None:
        sessions.lost, sessions._fails = "no restart is left", True

    sessions.happens = lose  # type: ignore[method-assign]
    with pytest.raises(RehearsalError, match=r"the boot failed: .* ended \(CUDA out of memory\)"):
        answer_problems(scripted(runs, sessions, cap_s=3.0, least_s=0.0))
    assert sum(answer == 0 for answer in pl.read_parquet("submission.parquet")["answer"]) == 3 - problem


def test_a_report_that_cannot_be_written_is_no_error(
    folder: Path, runs: list[NotebookRun], caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "rehearsal.txt").mkdir()
    assert answer_problems(scripted(runs, ScriptedSessions()))["aa0001"] == 11
    assert "rehearsal.txt cannot be written" in caplog.text


def test_what_the_server_compiled_on_a_gpu_is_packed_for_the_next_version(
    folder: Path, runs: list[NotebookRun], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder / "jit"
    monkeypatch.setattr("aimo_solver.kaggle.rehearsal.default_root", lambda: root)
    sessions = ScriptedSessions()
    sessions.plan = plan = plan_launch(MODEL, Config(), gpus=(H100,))
    answer_problems(scripted(runs, sessions))
    assert "no compile cache: " in capsys.readouterr().out
    (root / "triton").mkdir(parents=True)
    (root / "triton" / "kernel.cubin").write_text("cubin")
    answer_problems(scripted(runs, sessions))
    assert "MB that the server compiled" in capsys.readouterr().out
    archive = find_compile_cache(folder)
    assert archive == folder / "compile-cache.aimocache"
    shutil.rmtree(root)
    assert place_cache(archive, make_stamp(plan, root)) == root
    assert (root / "triton" / "kernel.cubin").read_text() == "cubin"


def test_a_run_can_be_used_again_and_asked_in_a_live_session(folder: Path, runs: list[NotebookRun]) -> None:
    sessions = ScriptedSessions()
    run = scripted(runs, sessions)
    assert run.ask("first") == 13
    assert answer_problems(run) == answer_problems(run)
    assert run.ask("live") == 12
    assert run.ask("lively") == 14
    assert sessions.boots == 3  # the first rehearsal takes the session that is open


def test_a_dry_run_answers_zero_after_its_delay_without_a_model(
    folder: Path, runs: list[NotebookRun], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    run = notebook_run("no/such-model", {}, NOTHING_TO_INSTALL, dry_run=0.2)
    runs.append(run)
    began = time.monotonic()
    with caplog.at_level(logging.INFO):
        assert set(answer_problems(run).values()) == {0}
    assert time.monotonic() - began >= 0.6
    assert caplog.text.count("0 after 0 s, as DRY_RUN is set") == 3
    assert capsys.readouterr().out.endswith("\nfit to try the gateway only: with DRY_RUN every answer is 0\n")


def test_the_progress_file_has_a_line_at_the_start_each_minute_and_at_the_end(
    folder: Path, runs: list[NotebookRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aimo_solver.kaggle.observer.PROGRESS_S", 0.02)
    answer_problems(scripted(runs, ScriptedSessions()))
    lines = (folder / "progress.txt").read_text().splitlines()
    assert len(lines) >= 2
    assert "s left; 0 problems asked, 0 solved; " in lines[0]
    assert "3 problems asked, 3 solved" in lines[-1]


def test_a_full_disk_costs_the_progress_file_its_lines_and_nothing_else(
    folder: Path, runs: list[NotebookRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aimo_solver.kaggle.observer.PROGRESS_S", 0.01)
    sessions, progress = ScriptedSessions(), folder / "progress.txt"
    progress.symlink_to("/dev/full")
    sessions.happens = progress.unlink  # type: ignore[method-assign] # the disk has room again
    assert answer_problems(scripted(runs, sessions))["aa0001"] == 11
    lines = progress.read_text().splitlines()
    assert all("s left; " in line for line in lines)
    assert "3 problems asked, 3 solved" in lines[-1]


def test_a_progress_file_that_cannot_be_written_disturbs_nothing(tmp_path: Path) -> None:
    described: list[str] = []
    progress = ProgressFile(tmp_path / "missing" / "progress.txt", lambda: described.append("x") or "line")  # type: ignore[func-returns-value]
    progress.end()
    assert not progress._thread.is_alive()
