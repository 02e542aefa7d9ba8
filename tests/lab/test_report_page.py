"""The page of a report. About 25 s, most of it in Chromium if it is installed."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from aimo_solver.lab.report.command import report_runs
from aimo_solver.lab.report.compare import compare
from aimo_solver.lab.report.data import RunReport, load_report
from aimo_solver.lab.report.page import TEXT_LIMIT, render_page
from aimo_solver.lab.report.text import fit_texts
from aimo_solver.log.reader import read_run
from tests.chromium import CHROMIUM, Page
from tests.simulated_run import ATTEMPTS, simulate
from tests.small_run import ANSWERS, HOSTILE, write_run

needs_records = pytest.mark.skipif(not ATTEMPTS.exists(), reason="needs the logged attempts")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


def unpack(text: str) -> list[dict[str, object]]:
    steps: list[dict[str, object]] = json.loads(gzip.decompress(base64.b64decode(text)))
    return steps


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


def test_every_row_of_the_problems_table_has_a_cell_for_each_heading(run_report: RunReport) -> None:
    table = re.search(r"<table[^>]*>(?:(?!</table>).)*aria-sort.*?</table>", render_page([run_report]), re.DOTALL)
    assert table is not None
    headings, *rows = re.findall(r"<tr.*?</tr>", table[0], re.DOTALL)
    assert rows
    assert {len(re.findall(r"<td", row)) for row in rows} == {len(re.findall(r"<th", headings))}


def test_lost_prefixes_are_counted_for_the_run_each_problem_and_each_attempt(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", {"a": (1, [1, 1]), "b": (1, [1])}))
    lost = {"lost_turns": 2, "lost_tokens": 30_000, "lost_s": 1.5}  # of attempts 0 of both problems
    attempts = tuple(replace(one, **lost) if one.index == 0 else one for one in run.attempts)  # type: ignore[arg-type]
    page = render_page([load_report(replace(run, attempts=attempts))])
    assert page.count("4 turns lost the prefix in the server&#39;s cache: 60,000 tokens computed again, about 3.0 s.") == 1
    assert page.count("2 turns lost the prefix in the server&#39;s cache: 30,000 tokens computed again, about 1.5 s.") == 2
    assert page.count("· 30k tokens computed again") == 2
    assert "lost the prefix" not in render_page([load_report(run)])


def test_the_page_of_a_comparison_has_unique_anchors(run_report: RunReport) -> None:
    tags = _Tags()
    tags.feed(render_page([run_report, run_report], compare(run_report, run_report)))
    assert tags.open == []
    assert len(tags.ids) == len(set(tags.ids))


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
def test_a_lost_problem_links_to_the_attempt_that_shows_it(page: Page) -> None:
    page.run("document.querySelectorAll('details').forEach(part => { part.open = false; })")
    row = "document.querySelector('table.lost tbody tr')"
    cells = page.run(f"[...{row}.cells].map(cell => cell.textContent.trim())")
    assert cells == ["outvoted", "outvoted", "outvoted 2 to 1: 8 won over 7", "2 more votes for it", "attempt 2"]
    page.run(f"{row}.cells[4].querySelector('a').click()")
    page.wait_for("document.getElementById('a-2-p-outvoted').open && document.getElementById('p-outvoted').open")
    assert page.run("document.querySelector('#a-2-p-outvoted .answer').textContent") == "7"
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
