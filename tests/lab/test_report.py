"""The data of a report, and its summary in the terminal. About 5 s."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from aimo_solver.config import Config
from aimo_solver.errors import RunDirectoryError
from aimo_solver.lab.report.command import report_runs
from aimo_solver.lab.report.compare import compare
from aimo_solver.lab.report.data import RunReport, Verdict, load_report
from aimo_solver.lab.report.page import render_page, tiles
from aimo_solver.lab.report.timeline import Activity, count_active, entropy_curve, split_segments
from aimo_solver.log.reader import Step, TrajectoryRecord, read_run
from aimo_solver.log.resume import resume_run
from aimo_solver.log.writer import RunLog
from aimo_solver.options import AnswersConfig
from aimo_solver.problems import Problem
from tests.simulated_run import ATTEMPTS, simulate
from tests.small_run import ANSWERS, write_run

needs_records = pytest.mark.skipif(not ATTEMPTS.exists(), reason="needs the logged attempts")


def test_each_lost_problem_has_a_reason(run_report: RunReport) -> None:
    verdicts = {problem.id: problem.verdict for problem in run_report.problems}
    assert verdicts == {
        "right": Verdict.RIGHT,
        "outvoted": Verdict.OUTVOTED,
        "missed": Verdict.NOT_FOUND,
        "silent": Verdict.NO_ANSWER,
        "unknown": Verdict.UNKNOWN,
    }
    why = {problem.id: problem.why for problem in run_report.problems}
    assert why["outvoted"] == "outvoted 2 to 1: 8 won over 7"
    assert why["missed"] == "no attempt of 3 had 7: 1 gave 8, the most of 2 answers"
    assert (run_report.right, run_report.known, run_report.oracle) == (1, 4, 2)


def test_seconds_of_slots_add_up(run_report: RunReport) -> None:
    shares = run_report.shares
    attempts = sum(len(given) for _, given in ANSWERS.values())
    slots = Config().solver.slots
    assert shares.thinking == pytest.approx(2.5 * attempts)
    assert shares.waiting == pytest.approx(0.5 * attempts)
    assert shares.tool == pytest.approx(attempts)
    assert shares.thinking + shares.tool + shares.waiting + shares.idle == pytest.approx(slots * 4 * attempts)


def test_tool_errors_are_counted_by_cause(run_report: RunReport) -> None:
    assert run_report.tool_errors == {"NameError": 5}


@needs_records
def test_shares_of_a_run_with_parallel_attempts_add_up(tmp_path: Path) -> None:
    one = load_report(read_run(simulate(tmp_path / "run", problems=4, attempts=8, scale=0.02)))
    total = sum(problem.seconds for problem in one.problems) * 16
    shares = one.shares
    assert shares.thinking + shares.tool + shares.waiting + shares.idle == pytest.approx(total, rel=0.01)
    assert max(count for _, count in one.streams) <= 16


def test_segments_follow_each_other_without_overlap() -> None:
    steps = (
        Step(kind="turn", t=11.0, seconds=4.0, waited_s=1.0, turn="tool_call"),
        Step(kind="tool", t=15.0, seconds=2.0),
        Step(kind="tool", t=17.0, seconds=1.0, timed_out=True),
        Step(kind="turn", t=19.0, seconds=1.0, turn="final"),
    )
    found = split_segments(TrajectoryRecord("a", 0, 10.0, steps, 20.0), zero=10.0)
    assert [(part.activity, part.start, part.end) for part in found] == [
        (Activity.WAITING, 0.0, 1.0),
        (Activity.WAITING, 1.0, 2.0),
        (Activity.THINKING, 2.0, 5.0),
        (Activity.TOOL, 5.0, 7.0),
        (Activity.FAILED, 7.0, 8.0),
        (Activity.WAITING, 8.0, 9.0),
        (Activity.THINKING, 9.0, 10.0),
    ]


def test_a_boot_stage_without_an_end_lasts_until_the_run_ends(tmp_path: Path) -> None:
    now = 0.0
    log = RunLog.create(tmp_path / "run", config=Config(), environment={}, clock=lambda: now)
    log.event("stage_started", stage="kernels")
    now = 1.0
    log.event("stage_started", stage="server")
    now = 3.0
    log.event("stage_ended", stage="kernels", seconds=3.0, outcome="done")
    now = 9.0
    log.event("server_fault", error="it died")
    log.close()
    one = load_report(read_run(tmp_path / "run"))
    assert [(stage.name, stage.start, stage.end, stage.outcome) for stage in one.boot] == [
        ("kernels", 0.0, 3.0, "done"),
        ("server", 1.0, 9.0, "cut"),
    ]
    assert [event.kind for event in one.notable] == ["server_fault"]
    with resume_run(tmp_path / "run", clock=lambda: now) as log:
        log.event("stage_started", stage="server")
        now = 12.0
        log.event("stage_ended", stage="server", seconds=3.0, outcome="done")
    again = load_report(read_run(tmp_path / "run"))
    assert [(stage.start, stage.end, stage.outcome) for stage in again.boot if stage.name == "server"] == [
        (1.0, 9.0, "cut"),
        (9.0, 12.0, "done"),
    ]
    assert "it died" in render_page([one])


def test_drafted_tokens_are_added_up_over_restarts_of_the_server(tmp_path: Path) -> None:
    log = RunLog.create(tmp_path / "run", config=Config(), environment={})
    for steps, accepted in ((10, 15), (30, 45), (20, 20)):  # the server was restarted before the third
        log.event("drafts", problem_id="a", steps=steps, drafted=3 * steps, accepted=accepted, tokens_per_step=2.5)
    log.close()
    one = load_report(read_run(tmp_path / "run"))
    tile = next(tile for tile in tiles(one) if tile.name == "Tokens per step")
    assert (tile.value, tile.note) == ("2.30", "43% of 3.0 drafted tokens accepted")
    assert one.notable == ()


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), max_size=30))
def test_count_active_matches_a_direct_count(spans: list[tuple[int, int]]) -> None:
    steps = count_active((start, start + length) for start, length in spans)
    for second in range(75):
        expected = sum(start <= second < start + length for start, length in spans)
        now = [count for t, count in steps if t <= second]
        assert (now[-1] if now else 0) == expected


@given(st.lists(st.floats(0, 5), max_size=300), st.integers(1, 50))
def test_the_entropy_curve_preserves_the_mean(values: list[float], bins: int) -> None:
    curve = entropy_curve([Step(kind="turn", t=0.0, entropies=tuple(values))], bins)
    assert len(curve) <= bins
    if values:
        assert curve[-1][0] == len(values)
        edges = [0, *(tokens for tokens, _ in curve)]
        weighted = sum(mean * (after - before) for (_, mean), before, after in zip(curve, edges, edges[1:], strict=False))
        assert weighted / len(values) == pytest.approx(sum(values) / len(values), abs=1e-3)


def test_an_interrupted_run_is_reported(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "run", {"done": (7, [7])}, end=False)
    with resume_run(directory) as log:
        log.problem_started(Problem("open", "?", 7), 60.0)
        trajectory = log.start_trajectory("open", 0)
        trajectory.write_turn([1, 2, 3], "x", [0.5] * 3, seconds=1.0, kind="tool_call", finish="stop")
        os.truncate(directory / "attempts.jsonl", (directory / "attempts.jsonl").stat().st_size - 5)
    one = load_report(read_run(directory))
    assert one.state == "interrupted"
    assert one.problems[1].verdict is Verdict.OPEN
    assert one.problems[1].attempts[0].running
    assert one.problems[1].attempts[0].attempt.tokens == 3
    assert one.run.torn_lines == 1
    assert "interrupted" in render_page([one])


def test_a_run_without_problems_is_reported(tmp_path: Path) -> None:
    assert "empty" in render_page([load_report(read_run(write_run(tmp_path / "empty", {})))])


def test_a_comparison_matches_values_computed_by_hand(tmp_path: Path) -> None:
    a = load_report(
        read_run(write_run(tmp_path / "a", {"p": (1, [1]), "q": (1, [2]), "r": (1, [1]), "s": (None, [1]), "t": (1, [2])}))
    )
    b = load_report(
        read_run(write_run(tmp_path / "b", {"p": (1, [1]), "q": (1, [1]), "r": (1, [2]), "s": (None, [1]), "u": (1, [1])}))
    )
    comparison = compare(a, b)
    assert (comparison.pairs, comparison.both, comparison.only_a, comparison.only_b, comparison.neither) == (3, 1, 1, 1, 0)
    assert comparison.difference.mean == 0
    assert comparison.difference.low < 0 < comparison.difference.high
    assert comparison.p_value == 1.0
    assert {row.id for row in comparison.rows if row.differs} == {"q", "r"}
    assert "t" in {row.id for row in comparison.rows}


def test_an_unwritable_page_path_is_a_one_line_error(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"p": (1, [1])})
    with pytest.raises(RunDirectoryError, match=r"cannot be written.*--out"):
        report_runs([run], Console(quiet=True), tmp_path / "nowhere" / "x.html")
    with pytest.raises(RunDirectoryError, match="no such folder"):
        report_runs([tmp_path / "nothing"], Console(quiet=True))


def test_the_terminal_shows_score_and_reasons(tmp_path: Path) -> None:
    console = Console(record=True, width=160, quiet=False, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    page = report_runs([write_run(tmp_path / "run", ANSWERS)], console)
    console.file.close()
    shown = console.export_text()
    assert page == tmp_path / "run" / "report.html"
    assert "1 of 4 right, truth among the answers in 2" in shown
    assert "outvoted 2 to 1: 8 won over 7" in shown
    assert "5 NameError" in shown


KILLED = """
import itertools, os, sys
from pathlib import Path
from aimo_solver.config import Config
from aimo_solver.log.writer import RunLog
from aimo_solver.options import AnswersConfig
from aimo_solver.problems import Problem
log = RunLog.create(Path(sys.argv[1]), config=Config(), environment={})
log.problem_started(Problem("p", "?", 7), 60.0)
trajectory = log.start_trajectory("p", 0)
trajectory.write_prompt([1], "p")
trajectory.write_turn([2, 3], "call", [0.5, 0.5], seconds=0.1, kind="tool_call", finish="stop")
trajectory.write_tool_call("1/0", "no", seconds=0.1, error_name="ZeroDivisionError")
os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
def test_a_killed_run_is_reported(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "run")], check=False)
    one = load_report(read_run(tmp_path / "run"))
    assert one.state == "interrupted"
    assert one.tool_errors == {"ZeroDivisionError": 1}
    assert one.problems[0].attempts[0].attempt.turns == 1
    report_runs([tmp_path / "run"], Console(quiet=True))


def test_a_run_with_symbolic_answers_has_a_report(tmp_path: Path) -> None:
    answers: dict[str, tuple[str, list[str | None]]] = {
        "a": ("\\pi", ["\\pi", "[x]"]),
        "b": ("[-2,7]", ["[a,7]", "[a,7]", "[-2,7]"]),
        "c": ("\\frac{1}{2}", [None]),
    }
    run = write_run(tmp_path / "run", answers, config=Config(answers=AnswersConfig(kind="symbolic")))
    output = io.StringIO()
    report_runs([run], Console(file=output, width=200))
    assert "[a,7]" in output.getvalue()
    assert "\\frac{1}{2}" in output.getvalue()
