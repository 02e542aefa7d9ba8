"""Charts as inline SVG and as files. About 1 s."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimo_solver.config import Config
from aimo_solver.lab.replay import Replay, parse_policy, replay
from aimo_solver.lab.report.format import duration, log_ticks, percentage_points, short_number, short_time, ticks
from aimo_solver.lab.report.plots import histogram
from aimo_solver.lab.report.policy import StopRule
from aimo_solver.lab.report.policy_plots import calibration_chart, save_replay_charts, save_sweep_chart, tokens_chart
from aimo_solver.lab.report.svg import Chart
from aimo_solver.lab.simulate import parse_configuration, sweep
from tests.lab.groups import six_groups

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def replayed() -> Replay:
    return replay(six_groups(), [parse_policy(name, Config().voting) for name in ("majority", "default/equal=2")], samples=50)


def texts(path: Path) -> list[str]:
    return [element.text or "" for element in ElementTree.parse(path).iter(f"{SVG}text")]


def test_files_of_a_replay_name_their_policies_and_count_every_group(tmp_path: Path, replayed: Replay) -> None:
    save_replay_charts(tmp_path / "new", replayed)
    tokens, calibration = (tmp_path / "new" / name for name in ("tokens.svg", "calibration.svg"))
    assert {"majority", "default/equal=2"} <= set(texts(tokens))
    lines = [path for path in ElementTree.parse(tokens).iter(f"{SVG}path") if "line" in path.attrib["class"]]
    assert [path.attrib["d"].count("V") for path in lines] == [replayed.groups] * 2
    dots = [element for element in ElementTree.parse(calibration).iter(f"{SVG}text") if element.get("class") == "answer"]
    assert sum(int(element.text or "") for element in dots) == replayed.groups


def test_the_file_of_a_sweep_has_a_line_per_configuration_and_a_band(tmp_path: Path) -> None:
    plays = {name: parse_configuration(name, Config()) for name in ("default", "default@even")}
    save_sweep_chart(tmp_path, sweep(six_groups(), plays, [600, 1_200], competitions=5))
    root = ElementTree.parse(tmp_path / "budget.svg").getroot()
    assert len([line for line in root.iter(f"{SVG}polyline") if "line" in line.attrib["class"]]) == 2
    assert len(list(root.iter(f"{SVG}polygon"))) == 1


def test_a_file_needs_no_css_variables(tmp_path: Path) -> None:
    Chart("title", (100, 100), (0, 1)).save(tmp_path / "x.svg", [("good", "a < b")])
    assert "var(" not in (tmp_path / "x.svg").read_text()
    assert {"title", "a < b"} <= set(texts(tmp_path / "x.svg"))


def test_charts_without_data_are_drawn() -> None:
    for chart in (calibration_chart(()), histogram([("good", [])], short_number, "x"), Chart("x", (10, 10), (0, 0))):
        ElementTree.fromstring(chart.__html__())


def test_text_and_titles_are_escaped() -> None:
    chart = Chart('"<b>', (100, 100), (0, 1))
    chart.text(0, 0, "<i>")
    chart.bar(0, 1, 0, 10, "good", "<u>")
    with chart.group(link='"><s>'):
        pass
    assert not re.search("<[bius]>", chart.__html__())
    ElementTree.fromstring(chart.__html__())


def test_steps_keep_a_value_until_the_next_point() -> None:
    chart = Chart("x", (110, 110), (0, 10), left=0, right=10, bottom=10)
    y = chart.y_axis([], 10, short_number, 0)
    chart.steps([(2, 5), (4, 5), (6, 10)], y, "line")
    assert 'd="M0,100H20V50H60V0H100"' in chart.__html__()


def test_a_logarithmic_axis_spaces_factors_evenly() -> None:
    chart = Chart("x", (220, 50), (1, 100), left=10, right=10, log=True)
    assert [chart.x(value) for value in (0.1, 1, 10, 100, 1000)] == [10, 10, 110, 210, 210]


def test_tokens_without_any_logged_are_an_empty_chart() -> None:
    ElementTree.fromstring(tokens_chart([StopRule("majority", "c0", (), 0)]).__html__())


def test_numbers_as_text() -> None:
    assert [duration(value) for value in (0, 0.04, 8.44, 75, 125, 119.7, 3600, 17_180)] == [
        "0 s", "0.0 s", "8.4 s", "75 s", "2 min 05 s", "2 min", "1 h 00 min", "4 h 46 min",
    ]  # fmt: skip
    assert [short_number(value) for value in (0, 950, 9_999, 12_345, 3_100_000)] == ["0", "950", "9,999", "12.3k", "3.1M"]
    assert [short_time(value) for value in (0, 0.5, 45, 150, 4500, 7200)] == ["0s", "0.5s", "45s", "2m30", "1h15", "2h"]
    assert [percentage_points(value) for value in (0.04, -0.125, 0, -1e-9)] == ["+4.0", "−12.5", "0.0", "0.0"]


@given(st.floats(1e-3, 1e9))
def test_ticks_are_few_even_and_inside(high: float) -> None:
    marks = ticks(high)
    assert 2 <= len(marks) <= 8
    assert marks[0] == 0
    assert marks[-1] <= high * 1.0001
    steps = {round((b - a) / high, 6) for a, b in pairwise(marks)}
    assert len(steps) == 1


@given(st.floats(1, 1e6), st.floats(1.4, 1e6))
def test_logarithmic_ticks_are_few_rising_and_inside(low: float, factor: float) -> None:
    marks = log_ticks(low, low * factor)
    assert len(marks) <= 7
    assert marks == sorted(set(marks))
    assert all(low <= mark <= low * factor for mark in marks)
