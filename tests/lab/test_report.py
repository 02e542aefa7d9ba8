"""The report of a run directory. About 25 s, most of it in Chromium if it is installed."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from aimo_solver.config import Config
from aimo_solver.errors import RunDirectoryError
from aimo_solver.lab.report.command import report_runs
from aimo_solver.lab.report.compare import compare
from aimo_solver.lab.report.data import RunReport, Verdict, load_report
from aimo_solver.lab.report.page import TEXT_LIMIT, render_page
from aimo_solver.lab.report.text import fit_texts
from aimo_solver.lab.report.timeline import Activity, count_active, entropy_curve, split_segments
from aimo_solver.log.reader import Step, TrajectoryRecord, read_run
from aimo_solver.log.resume import resume_run
from aimo_solver.log.writer import RunLog
from aimo_solver.problems import Candidate, Problem, ProblemResult
from aimo_solver.results import Attempt, FinishReason
from tests.chromium import CHROMIUM, Page
from tests.simulated_run import ATTEMPTS, simulate

needs_records = pytest.mark.skipif(not ATTEMPTS.exists(), reason="needs the logged attempts")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")

HOSTILE = '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 2">'


def write_run(directory: Path, answers: dict[str, tuple[int | None, list[int | None]]], *, end: bool = True) -> Path:
    """Writes a run with one attempt per given answer; problems are id -> (truth, answers), the first answer is the run's."""
    now = 0.0
    log = RunLog.create(directory, config=Config(), environment={"gpus": ["H100"]}, clock=lambda: now)
    log.event("stage_started", stage="server")
    log.event("stage_ended", stage="server", seconds=0.0, outcome="done")
    for problem_id, (truth, choices) in answers.items():
        log.problem_started(Problem(problem_id, f"Find $n$. {HOSTILE}", truth), 900.0)
        for index, answer in enumerate(choices):
            trajectory = log.start_trajectory(problem_id, index)
            trajectory.write_prompt([1, 2], "prompt")
            now += 2
            trajectory.write_turn(
                [3] * 50, f"thinking {HOSTILE}", [0.5] * 50, seconds=2.0, waited_s=0.5, kind="tool_call", finish="stop"
            )
            now += 1
            trajectory.write_tool_call(f"print(1) # {HOSTILE}", "1", seconds=1.0, error_name="NameError" if index == 1 else None)
            now += 1
            trajectory.write_turn([4] * 10, f"\\boxed{{{answer}}}", [0.1] * 10, seconds=1.0, kind="final", finish="stop")
            finish = FinishReason.NO_ANSWER if answer is None else FinishReason.ANSWERED
            log.attempt_finished(
                Attempt(
                    problem_id=problem_id,
                    index=index,
                    answer=answer,
                    finish_reason=finish,
                    tokens=60,
                    turns=2,
                    tool_calls=1,
                    tool_errors=int(index == 1),
                    started_s=4.0 * index,
                    seconds=4.0,
                    tool_seconds=1.0,
                )
            )
        ballot = [answer for answer in choices if answer is not None]
        candidates = tuple(
            Candidate(a, ballot.count(a), ballot.count(a), ballot.count(a) / len(ballot)) for a in dict.fromkeys(ballot)
        )
        log.write_votes(problem_id, candidates)
        answer = candidates[0].answer if candidates else 0
        log.problem_finished(
            ProblemResult(
                problem_id=problem_id,
                answer=answer,
                truth=truth,
                reason="attempts",
                votes=ballot.count(answer),
                attempts=len(choices),
                tokens=60 * len(choices),
                seconds=4.0 * len(choices),
                allotted_s=900.0,
                candidates=candidates,
            )
        )
    if end:
        log.finish()
    log.close()
    return directory


ANSWERS: dict[str, tuple[int | None, list[int | None]]] = {
    "right": (7, [7, 7, None]),
    "outvoted": (7, [8, 8, 7]),
    "missed": (7, [8, 9, None]),
    "silent": (7, [None, None]),
    "unknown": (None, [5, 5]),
}


@pytest.fixture(scope="module")
def run_report(tmp_path_factory: pytest.TempPathFactory) -> RunReport:
    return load_report(read_run(write_run(tmp_path_factory.mktemp("runs") / "run", ANSWERS)))


def unpack(text: str) -> list[dict[str, object]]:
    steps: list[dict[str, object]] = json.loads(gzip.decompress(base64.b64decode(text)))
    return steps


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
    assert why["outvoted"] == "7 had 1 of 3 attempts, 8 had 2"
    assert why["missed"] == "none of 3 attempts gave 7; 2 other answers (2 answered, 1 no answer)"
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


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), max_size=30))
@settings(deadline=None)
def test_count_active_matches_a_direct_count(spans: list[tuple[int, int]]) -> None:
    steps = count_active((start, start + length) for start, length in spans)
    for second in range(75):
        expected = sum(start <= second < start + length for start, length in spans)
        now = [count for t, count in steps if t <= second]
        assert (now[-1] if now else 0) == expected


@given(st.lists(st.floats(0, 5), max_size=300), st.integers(1, 50))
@settings(deadline=None)
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


class _Tags(HTMLParser):
    """Counts tags and checks that they are closed in order."""

    VOID = frozenset({"meta", "link", "input", "br", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: dict[str, int] = {}
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen[tag] = self.seen.get(tag, 0) + 1
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_valid_and_self_contained(run_report: RunReport) -> None:
    page = render_page([run_report])
    tags = _Tags()
    tags.feed(page)
    assert tags.open == []
    assert len(tags.ids) == len(set(tags.ids))
    assert tags.seen.get("img", 0) == 0  # texts of the run are escaped
    assert not re.findall(r'(?:src|href)="(?!#|data:)', page)
    assert "@import" not in page
    assert "url(" not in page
    assert "http" not in re.sub(r"http-equiv", "", page)


def test_the_page_contains_whole_trajectories(run_report: RunReport) -> None:
    page = render_page([run_report])
    packed = re.search(r'id="t-0-p-right">([^<]+)<', page)
    assert packed is not None
    steps = unpack(packed[1])
    assert [step["kind"] for step in steps] == ["prompt", "turn", "tool", "turn"]
    assert steps[1]["text"] == f"thinking {HOSTILE}"
    assert (steps[2]["code"], steps[2]["output"]) == (f"print(1) # {HOSTILE}", "1")


def test_large_trajectories_are_shortened_in_the_middle_and_small_ones_kept() -> None:
    def packed(chars: int, seed: int) -> str:
        text = "".join(chr(97 + (index * index * 7919 + seed) % 26) for index in range(chars))
        noise = base64.b64encode(os.urandom(chars)).decode()
        steps = [{"kind": "turn", "text": f"begin {text[:10]} {noise} the end"}]
        return base64.b64encode(gzip.compress(json.dumps(steps).encode())).decode()

    texts = [packed(400, 1), None, packed(60_000, 2), packed(90_000, 3)]
    fitted = fit_texts(texts, 80_000)
    assert fitted[:2] == texts[:2]
    assert sum(len(text) for text in fitted if text) <= 80_000
    for text in fitted[2:]:
        assert text is not None
        left = str(unpack(text)[0]["text"])
        assert left.startswith("begin")
        assert left.endswith("the end")
        assert "characters left out here" in left
    assert fit_texts(texts, 10_000_000) == texts


@needs_records
def test_the_page_of_a_long_run_stays_under_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aimo_solver.lab.report.page.TEXT_LIMIT", 200_000)
    one = load_report(read_run(simulate(tmp_path / "run", problems=4, attempts=16, scale=0.2)))
    assert sum(len(attempt.text) for attempt in one.attempts if attempt.text) > 400_000
    page = render_page([one])
    packed = sum(map(len, re.findall(r'<script type="text/plain"[^>]*>([^<]*)<', page)))
    assert packed <= 200_000
    # 50 problems of 16 attempts: charts grow with the attempts, texts are limited.
    charts = len(page) - packed
    assert charts * 50 / 4 + TEXT_LIMIT < 20_000_000


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
    page = render_page([a, b], comparison)
    tags = _Tags()
    tags.feed(page)
    assert len(tags.ids) == len(set(tags.ids))


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
    assert "7 had 1 of 3 attempts, 8 had 2" in shown
    assert "5 NameError" in shown


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, run_report: RunReport) -> Iterator[Page]:
    path = tmp_path_factory.mktemp("page") / "report #1.html"
    path.write_text(render_page([run_report]), encoding="utf-8")
    with Page(path) as open_page:
        yield open_page


def column(page: Page, name: str) -> list[str]:
    script = """(name => {
      const table = document.querySelector('table.sortable');
      const index = [...table.tHead.rows[0].cells].findIndex(cell => cell.textContent.trim() === name);
      table.tHead.rows[0].cells[index].querySelector('button').click();
      return [...table.tBodies[0].rows].map(row => row.cells[1].textContent.trim());
    })"""
    rows: list[str] = page.run(f"{script}({json.dumps(name)})")
    return rows


@needs_chromium
def test_a_click_on_a_heading_sorts(page: Page) -> None:
    assert column(page, "id") == sorted(ANSWERS)
    assert column(page, "id") == sorted(ANSWERS, reverse=True)
    assert column(page, "truth")[-1] == "unknown"  # numbers from large to small, the unknown one last
    assert column(page, "#") == list(reversed(ANSWERS))
    assert column(page, "#") == list(ANSWERS)
    assert page.problems == []


@needs_chromium
def test_an_opened_trajectory_has_its_code_highlighted(page: Page) -> None:
    page.run("document.querySelector('a[href=\"#p-outvoted\"]').click()")
    page.wait_for("document.getElementById('p-outvoted').open")
    attempt = "document.querySelectorAll('#p-outvoted details.attempt')[1]"
    page.run(f"{attempt}.querySelector('summary').click()")
    page.wait_for(f"{attempt}.querySelectorAll('.step').length === 4")
    assert page.run(f"{attempt}.querySelector('pre.code').textContent") == f"print(1) # {HOSTILE}"
    assert page.run(f"{attempt}.querySelector('pre.code .call').textContent") == "print"
    assert page.run(f"{attempt}.querySelector('pre.code .comment').textContent") == f"# {HOSTILE}"
    assert page.run(f"{attempt}.querySelector('.failed').textContent") == "NameError"
    assert page.run(f"{attempt}.querySelector('.boxed').textContent") == "\\boxed{8}"
    assert page.run("window.hacked") is None
    assert page.problems == []


@needs_chromium
def test_filters_show_matching_rows(page: Page) -> None:
    rows = "[...document.querySelectorAll('table.sortable tbody tr')]"
    shown = f"{rows}.filter(row => !row.hidden).map(row => row.cells[1].textContent.trim()).sort()"
    page.run("document.querySelector('[data-show=\"outvoted\"]').click()")
    assert page.run(shown) == ["outvoted"]
    page.run("document.querySelectorAll('.filters button')[1].click()")
    assert page.run(shown) == ["missed", "outvoted", "silent"]
    page.run("document.querySelectorAll('.filters button')[0].click()")
    page.run("(box => { box.value = 'UNKN'; box.dispatchEvent(new Event('input')); })(document.querySelector('.filters input'))")
    assert page.run(shown) == ["unknown"]
    assert page.problems == []


@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_never_wider_than_the_screen(page: Page, width: int) -> None:
    page.resize(width, 900)
    page.run("document.querySelectorAll('details.problem').forEach(part => { part.open = true; })")
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.problems == []


@needs_chromium
def test_a_comparison_links_into_both_runs(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, ANSWERS) for name in ("first", "second")]
    path = report_runs(runs, Console(quiet=True), tmp_path / "both.html")
    with Page(path) as page:
        assert page.run("document.querySelector('#tab-1').hidden")
        page.run("document.querySelectorAll('#tab-c table.sortable tbody tr')[1].cells[2].querySelector('a').click()")
        page.wait_for("!document.querySelector('#tab-1').hidden && document.getElementById('b-p-outvoted').open")
        attempt = "document.querySelector('#b-p-outvoted details.attempt')"
        page.run(f"{attempt}.querySelector('summary').click()")
        page.wait_for(f"{attempt}.querySelectorAll('.step').length === 4")
        assert page.problems == []


KILLED = """
import itertools, os, sys
from pathlib import Path
from aimo_solver.config import Config
from aimo_solver.log.writer import RunLog
from aimo_solver.problems import Problem
log = RunLog.create(Path(sys.argv[1]), config=Config(), environment={})
log.problem_started(Problem("p", "?", 7), 60.0)
trajectory = log.start_trajectory("p", 0)
trajectory.write_prompt([1], "p")
trajectory.write_turn([2, 3], "call", [0.5, 0.5], seconds=0.1, kind="tool_call", finish="stop")
trajectory.write_tool_call("1/0", "no", seconds=0.1, error_name="ZeroDivisionError")
os.kill(os.getpid(), 9)
"""


def test_a_killed_run_is_reported(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "run")], check=False)
    one = load_report(read_run(tmp_path / "run"))
    assert one.state == "interrupted"
    assert one.tool_errors == {"ZeroDivisionError": 1}
    assert one.problems[0].attempts[0].attempt.turns == 1
    report_runs([tmp_path / "run"], Console(quiet=True))
