"""The charts of voting, stop rules and budgets: of one run for its page, of a replay or simulation as files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from aimo_solver.lab.replay import Bin, Replay, calibration_bins
from aimo_solver.lab.report.format import count_ticks, log_ticks, percent, short_number, short_time, ticks, time_ticks
from aimo_solver.lab.report.policy import PolicyReport, StopRule, stop_rule
from aimo_solver.lab.report.svg import HALF, Chart
from aimo_solver.lab.simulate import SweepPoint

_SIZE = (HALF, 240)
_COLOURS = 10  # classes c0 to c9


def score_chart(policy: PolicyReport) -> Chart:
    """Problems right against seconds per problem: by the vote, and with the truth among the answers."""
    last = max((moment.seconds for moment in policy.moments), default=1.0) * 1.02
    label = f"Problems right by seconds per problem, of {policy.known}; {policy.right} in the end"
    chart = Chart(label, _SIZE, (0, last), left=34, right=40)
    chart.x_axis(time_ticks(last), short_time)
    y = chart.y_axis(count_ticks(policy.known), policy.known, short_number)
    chart.steps([(moment.seconds, moment.present) for moment in policy.moments], y, "line mute")
    chart.steps([(moment.seconds, moment.right) for moment in policy.moments], y, "line plain first")
    chart.dot(last, y(policy.right), 4.5, "good")
    chart.text(chart.x(last) + 9, y(policy.right) + 4, str(policy.right), "answer good")
    return chart


def tokens_chart(rules: Sequence[StopRule]) -> Chart:
    """Problems decided by a number of tokens."""
    values = [tokens for rule in rules for tokens in rule.tokens] or [1.0]
    low, high = min(values) / 1.15, max(values) * 1.15
    count = max(len(rule.tokens) for rule in rules)
    chart = Chart("Problems decided by tokens of all attempts together", _SIZE, (low, high), left=34, log=True)
    chart.x_axis(log_ticks(low, high), short_number)
    y = chart.y_axis(count_ticks(count), count, short_number)
    for rule in rules:
        chart.steps([(tokens, number) for number, tokens in enumerate(rule.tokens, 1)], y, f"line {rule.style}")
    return chart


def calibration_chart(bins: Sequence[Bin]) -> Chart:
    """The share that is right against the winner's share of the vote: 95 % intervals, areas and numbers for counts."""
    chart = Chart("Part right by the winner's share of the vote", _SIZE, (0, 1), right=24)
    chart.x_axis([0, 0.2, 0.4, 0.6, 0.8, 1], percent)
    y = chart.y_axis([0, 0.25, 0.5, 0.75, 1], 1, percent)
    chart.line([(0, 0), (1, 1)], y, "guide")
    most = max([10, *(part.count for part in bins)])  # a single problem is a small dot in any run
    for part in bins:
        accuracy = part.accuracy
        radius = round(3 + 8 * math.sqrt(part.count / most), 1)
        chart.vertical(part.share, y(accuracy.low), y(accuracy.high), "whisker")
        chart.dot(part.share, y(accuracy.mean), radius, "plain")
        chart.text(chart.x(part.share) - radius - 4, y(accuracy.mean) + 4, str(part.count), "answer", "end")
    return chart


def sweep_chart(points: Sequence[SweepPoint]) -> Chart:
    """The expected score against the time limit, by configuration; the band is the first one's 95 % interval."""
    problems = points[0].simulations[0].problems
    limits = [point.time_limit_s for point in points]
    chart = Chart(f"Expected score of {problems} problems by time limit", (640, 400), (0, max(limits)))
    chart.x_axis(time_ticks(max(limits)), short_time)
    y = chart.y_axis(ticks(problems), problems, short_number)
    for number in range(len(points[0].simulations)):
        scores = [point.simulations[number].score for point in points]
        if number == 0:
            lows, highs = [score.low for score in scores], [score.high for score in scores]
            chart.area(list(zip(limits, highs, strict=True)), list(zip(limits, lows, strict=True)), y, "band c0")
        chart.line([(limit, score.mean) for limit, score in zip(limits, scores, strict=True)], y, f"line {_colour(number)}")
    return chart


def save_replay_charts(folder: Path, replay: Replay) -> None:
    """Writes ``tokens.svg`` for all policies, and ``calibration.svg`` for the first."""
    folder.mkdir(parents=True, exist_ok=True)
    rules = [stop_rule(score.policy.name, _colour(number), score.outcomes) for number, score in enumerate(replay.scores)]
    tokens_chart(rules).save(folder / "tokens.svg", [(rule.style, rule.name) for rule in rules])
    first = replay.scores[0]
    calibration_chart(calibration_bins(first.outcomes)).save(folder / "calibration.svg", [("plain", first.policy.name)])


def save_sweep_chart(folder: Path, points: Sequence[SweepPoint]) -> None:
    """Writes ``budget.svg``."""
    folder.mkdir(parents=True, exist_ok=True)
    legend = [(_colour(number), one.name) for number, one in enumerate(points[0].simulations)]
    sweep_chart(points).save(folder / "budget.svg", legend)


def _colour(number: int) -> str:
    return f"c{number % _COLOURS}"
