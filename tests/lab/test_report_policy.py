"""The policy section of a report, against values computed by hand. About 3 s."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aimo_solver.config import load_config
from aimo_solver.lab.report.data import RunReport, load_report
from aimo_solver.lab.report.page import render_page
from aimo_solver.lab.report.policy import Moment, PolicyReport, assess_policy
from aimo_solver.lab.statistics import proportion
from aimo_solver.log.reader import read_run
from aimo_solver.log.writer import RunLog
from aimo_solver.policy.selection import Method
from aimo_solver.problems import Problem, ProblemResult
from aimo_solver.results import Attempt, FinishReason

# By problem: the truth, the chosen answer, and (answer, end in seconds) of each attempt. All attempts start at second 0 and
# sample ten tokens a second. The voter is majority; two equal answers end a problem.
PROBLEMS: dict[str, tuple[int | None, int, list[tuple[int | None, float]]]] = {
    "late": (5, 5, [(9, 10.0), (5, 20.0), (5, 30.0)]),
    "lost": (6, 8, [(6, 10.0), (8, 20.0), (8, 40.0), (None, 50.0)]),
    "even": (7, 7, [(7, 20.0), (7, 30.0)]),
}


def reported(directory: Path, problems: dict[str, Any], *, looks: bool = False) -> RunReport:
    config = load_config({"voting": {"voter": "majority", "stop": "equal", "equal": 2}})
    with RunLog.create(directory, config=config, environment={}, clock=lambda: 0.0) as log:
        for problem_id, (truth, answer, attempts) in problems.items():
            log.problem_started(Problem(problem_id, "?", truth), 900.0)
            for index, (given, seconds) in enumerate(attempts):
                reason = FinishReason.NO_ANSWER if given is None else FinishReason.ANSWERED
                attempt = Attempt(problem_id=problem_id, index=index, answer=given, finish_reason=reason)
                log.attempt_finished(replace(attempt, seconds=seconds, tokens=int(10 * seconds)))
            if looks:
                look = Attempt(problem_id=problem_id, index=90, answer=truth, finish_reason=FinishReason.ANSWERED)
                log.attempt_finished(replace(look, seconds=1.0, tokens=5, prompt=next(iter(Method)).value))
            log.problem_finished(ProblemResult(problem_id=problem_id, answer=answer, truth=truth, reason="equal"))
        log.finish()
    return load_report(read_run(directory))


@pytest.fixture
def one(tmp_path: Path) -> RunReport:
    return reported(tmp_path / "run", PROBLEMS)


@pytest.fixture
def shown(one: RunReport) -> PolicyReport:
    return assess_policy(one)


def test_the_score_at_a_second_counts_the_attempts_that_had_ended(shown: PolicyReport) -> None:
    # 10 s: lost is right so far. 20 s: even is right; late has 5 and 9 level, lost has 6 and 8: the smaller answer wins.
    # 40 s: 8 has two votes against 6.
    by_time = {moment.seconds: (moment.right, moment.present) for moment in shown.moments}
    assert by_time == {0.0: (0, 0), 10.0: (1, 1), 20.0: (3, 3), 40.0: (2, 3)}
    assert shown.moments[0] == Moment(0.0, 0, 0)
    assert (shown.right, shown.known) == (2, 3)


def test_tokens_until_the_decision_include_all_attempts(shown: PolicyReport) -> None:
    rules = {rule.name: (rule.tokens, rule.right) for rule in shown.rules}
    assert rules == {
        # After 10, 10 and 20 s, with 3, 4 and 2 attempts at ten tokens a second.
        "the first answer": ((300.0, 400.0, 400.0), 2),
        # After 30, 40 and 30 s, less what had ended before: 100 + 200 + 300, 100 + 200 + 400 + 400, 200 + 300.
        "this run's rule, equal": ((500.0, 600.0, 1100.0), 2),
        "all attempts": ((500.0, 600.0, 1200.0), 2),
    }
    assert [rule.median for rule in shown.rules] == [400, 600, 600]


def test_shares_of_the_vote_are_binned_with_counts(shown: PolicyReport) -> None:
    # When they are decided, late and lost have two of three votes, even has both of two.
    bins = {(part.low, part.high): (part.count, part.right) for part in shown.bins}
    assert bins == {(0.6, 0.8): (2, 1), (0.8, 1.0): (1, 1)}
    assert shown.bins[0].share == pytest.approx(2 / 3)
    assert shown.bins[0].accuracy == proportion(1, 2)


def test_the_page_shows_counts_and_intervals(one: RunReport) -> None:
    page = render_page([one])
    assert re.search(r"<td>60–80</td>.*?>2</td>.*?>1</td>.*?50 % <span class=\"soft\">\(9 to 91 %\)", page)
    for label in ("Problems right by seconds", "Problems decided by tokens", "Part right by the winner"):
        assert f'role="img" aria-label="{label}' in page


def test_second_looks_have_no_vote(tmp_path: Path, shown: PolicyReport) -> None:
    assert assess_policy(reported(tmp_path / "looks", PROBLEMS, looks=True)) == shown


def test_without_truth_only_tokens_are_shown(tmp_path: Path) -> None:
    one = reported(tmp_path / "run", {name: (None, answer, attempts) for name, (_, answer, attempts) in PROBLEMS.items()})
    shown = assess_policy(one)
    assert (shown.known, shown.moments, shown.bins) == (0, (), ())
    assert shown.rules[0].tokens == (300.0, 400.0, 400.0)
    page = render_page([one])
    assert "No truth is known" in page
    assert "Problems decided by tokens" in page
    assert "Problems right by seconds" not in page
    assert "Part right by the winner's" not in page


def test_problems_without_truth_do_not_count_for_the_score(tmp_path: Path) -> None:
    mixed = reported(tmp_path / "run", PROBLEMS | {"unknown": (None, 3, [(3, 5.0), (3, 6.0)])})
    shown = assess_policy(mixed)
    assert (shown.known, max(moment.right for moment in shown.moments)) == (3, 3)
    assert sum(part.count for part in shown.bins) == 3
    assert len(shown.rules[0].tokens) == 4


def test_a_run_without_attempts_has_no_policy_section(tmp_path: Path) -> None:
    one = reported(tmp_path / "run", {"p": (1, 0, [])})
    assert assess_policy(one).rules == ()
    assert "Choosing the answer" not in render_page([one])


def test_unknown_options_are_ignored(one: RunReport, shown: PolicyReport) -> None:
    config = dict(one.run.config) | {"voting": {**one.run.config["voting"], "of_the_future": 3}}
    assert assess_policy(replace(one, run=replace(one.run, config=config))) == shown
