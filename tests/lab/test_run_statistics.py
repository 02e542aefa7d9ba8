"""Statistics of runs, against values computed by hand."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from aimo_solver.errors import RunDirectoryError, UserError
from aimo_solver.lab.comparison import compare_configurations
from aimo_solver.lab.records import RecordsError
from aimo_solver.lab.run_statistics import compute_statistics
from aimo_solver.lab.runs import LoggedProblem, LoggedRun, read_runs, read_tool_errors
from aimo_solver.lab.statistics import clustered_share, paired_difference
from aimo_solver.lab.statistics_tables import comparison_markdown, markdown_table, plain_values, statistics_markdown
from aimo_solver.results import FinishReason
from tests.lab.groups import PUBLIC, make_attempt, public
from tests.small_run import ANSWERS, write_run

CUT = "cut"
"""An attempt that was cancelled."""


def logged(
    name: str, answers: Mapping[str, Sequence[int | str | None]], given: Mapping[str, int | None] | None = None
) -> LoggedRun:
    """A run on problems whose truth is 1; attempt i takes 100 (i + 1) tokens; `given` are the run's own answers, 1 by default."""
    problems = {}
    for problem_id, choices in answers.items():
        attempts = []
        for index, choice in enumerate(choices):
            cut = {"finish_reason": FinishReason.CANCELLED} if choice == CUT else {}
            answer = None if isinstance(choice, str) else choice
            attempts.append(make_attempt(index, answer, problem_id=problem_id, tokens=100 * (index + 1), turns=2, **cut))
        problems[problem_id] = LoggedProblem(problem_id, 1, (given or {}).get(problem_id, 1), tuple(attempts))
    return LoggedRun(name, {"sampling": {"seed": len(name)}}, problems)


TWO = (
    logged("a", {"p": [1, 1], "q": [1, 2], "r": [2, 2]}, {"p": 1, "q": 1, "r": 2}),
    logged("bb", {"p": [1, 1], "q": [2, 2], "r": [2, None]}, {"p": 1, "q": 2, "r": 2}),
)
"""By problem, 4 of 4, 1 of 4 and 0 of 4 attempts are right, and 2, 1 and 0 of the 2 runs."""


def test_pass_and_majority_pool_the_attempts_of_all_runs() -> None:
    statistics = compute_statistics(TWO)
    assert [one.k for one in statistics.estimates] == [1, 2, 4]
    assert [one.pass_at.mean for one in statistics.estimates] == pytest.approx([5 / 12, 1.5 / 3, 2 / 3])
    # At q the right attempt is in three of six pairs, each a tie.
    assert [one.majority_at.mean for one in statistics.estimates] == pytest.approx([5 / 12, (1 + 0.25) / 3, 1 / 3])
    assert statistics.estimates[0].pass_at == clustered_share([1, 0.25, 0])
    assert statistics.estimates[1].bounds == pytest.approx((0.5, 0.5))
    assert statistics.warnings == ()


def test_average_at_k_takes_the_attempts_that_started_first() -> None:
    statistics = compute_statistics(TWO)
    averages = [one.average_at.mean for one in statistics.estimates if one.average_at]
    assert averages == pytest.approx([(1 + 0.5 + 0) / 3, 5 / 12])
    assert statistics.estimates[2].average_at is None  # a run has two attempts


def test_scores_and_agreement_of_two_runs() -> None:
    statistics = compute_statistics(TWO)
    assert [(run.name, run.right, run.problems, run.attempts) for run in statistics.runs] == [("a", 2, 3, 6), ("bb", 1, 3, 6)]
    assert statistics.accuracy.mean == pytest.approx(0.5)
    agreement = statistics.agreement
    assert agreement is not None
    assert (agreement.problems, agreement.pairs) == (3, 1)
    assert agreement.same_answer.mean == pytest.approx(2 / 3)
    assert agreement.both_right.mean == agreement.one_right.mean == agreement.neither_right.mean == pytest.approx(1 / 3)
    assert agreement.two_run.mean == pytest.approx((1 + 0.5 + 0) / 3)
    assert agreement.scores == agreement.spread.deviation == pytest.approx(0.5**0.5)


ONCE = {"p": [1], "q": [1], "r": [1]}


def test_three_runs_have_three_pairs() -> None:
    rights = ([1, 1, 2], [1, 2, 2], [1, 3, 1])
    runs = [logged(str(number), ONCE, dict(zip("pqr", own, strict=True))) for number, own in enumerate(rights)]
    agreement = compute_statistics(runs).agreement
    assert agreement is not None
    assert agreement.pairs == 3
    # Pairs of p: 3 equal; of q (1, 2, 3): none; of r (2, 2, 1): one.
    assert agreement.same_answer.mean == pytest.approx((1 + 0 + 1 / 3) / 3)
    assert agreement.two_run.mean == pytest.approx((1 + 1 / 3 + 1 / 3) / 3)
    assert agreement.spread.deviation == pytest.approx((0 + 1 / 3 + 1 / 3) ** 0.5)


def test_cancelled_attempts_bound_the_estimates_and_are_warned_about() -> None:
    statistics = compute_statistics([logged("a", {"p": [1, 1, CUT, CUT], "q": [2, 1, 2, 2]})])
    first, second = statistics.estimates
    assert (first.k, second.k) == (1, 2)
    assert first.pass_at.mean == pytest.approx((1 + 0.25) / 2)
    assert first.bounds == pytest.approx(((0.5 + 0.25) / 2, (1 + 0.25) / 2))
    assert second.bounds == pytest.approx(((5 / 6 + 0.5) / 2, (1 + 0.5) / 2))
    assert "2 of 8 attempts, at 1 of 2 problems, were cancelled" in statistics.warnings[0]
    cancelled = next(part for part in statistics.by_finish if part.name == "cancelled")
    assert (cancelled.attempts, cancelled.cancelled, cancelled.right) == (2, 2, None)
    assert [(one.outcome, one.attempts) for one in statistics.lengths if one.quantity == "tokens"] == [
        ("right", 3),
        ("wrong", 3),
        ("cancelled", 2),
    ]


def test_problems_with_too_few_attempts_are_left_out_and_warned_about() -> None:
    run = logged("a", {"p": [1, 1, CUT], "q": [2, 1, 2]})
    statistics = compute_statistics([run], ks=(3, 9))
    assert [(one.k, one.problems, one.pass_at.mean) for one in statistics.estimates] == [(3, 1, 1.0)]
    assert any("(1 at k = 3)" in warning for warning in statistics.warnings)
    assert any("No problem has 9 attempts" in warning for warning in statistics.warnings)


def test_a_first_attempt_that_was_always_cancelled_has_no_average() -> None:
    statistics = compute_statistics([logged("a", {"p": [CUT, 1]})])
    assert statistics.estimates[0].average_at is None
    assert "| 1 " in statistics_markdown(statistics)


def test_runs_of_different_options_or_problems_are_warned_about() -> None:
    a, b = TWO
    assert compute_statistics([a, replace(b, config={"sampling": {"seed": 5}})]).warnings == ()
    other = replace(b, config={"sampling": {"seed": 5, "temperature": 0.5}}, left_out=3)
    other = replace(other, problems={name: other.problems[name] for name in "pq"})
    text = " ".join(compute_statistics([a, other]).warnings)
    assert "more than their seed" in text
    assert "not on the same problems" in text
    assert "3 problems are left out" in text


def test_parts_and_lengths_by_hand() -> None:
    run = logged("a", {"p": [1, 2, None], "q": [1, 1]})
    p = run.problems["p"]
    mixed = (p.attempts[0], replace(p.attempts[1], prompt="bare", tool_calls=1), replace(p.attempts[2], tool_calls=2))
    run = replace(run, problems={**run.problems, "p": replace(p, attempts=mixed)})
    errors = {("p", 1): Counter({"NameError": 2, "timeout": 1}), ("p", 2): Counter[str](), ("q", 0): Counter[str]()}
    statistics = compute_statistics([run], [errors])
    assert {part.name: (part.attempts, part.silent) for part in statistics.by_prompt} == {"tool": (4, 1), "bare": (1, 0)}
    tool = statistics.by_prompt[0]
    assert tool.right == clustered_share([1, 2], [2, 2])
    assert {part.name: (part.attempts, part.right and part.right.mean) for part in statistics.by_error} == {
        "none": (1, None),  # its only attempt gave no answer; q's attempt called nothing
        "NameError": (1, 0.0),
        "timeout": (1, 0.0),
    }
    right = next(one for one in statistics.lengths if (one.outcome, one.quantity) == ("right", "tokens"))
    assert right.attempts == 3
    assert [right.mean, right.low, right.median, right.high] == pytest.approx([400 / 3, 100, 100, 180])
    assert not any(one.quantity == "seconds" for one in statistics.lengths)  # not logged


def test_run_directories_are_read_with_their_own_answers_and_tool_errors(tmp_path: Path) -> None:
    write_run(tmp_path / "x" / "run-2", ANSWERS)
    write_run(tmp_path / "x" / "run-10", ANSWERS)
    runs = read_runs([tmp_path / "x"])
    assert [run.name for run in runs] == ["run-2", "run-10"]
    assert [(run.right, len(run.problems), run.left_out) for run in runs] == [(1, 4, 1), (1, 4, 1)]
    errors = read_tool_errors(runs)
    assert errors[0]["right", 1] == {"NameError": 1}
    assert errors[0]["right", 0] == {}
    statistics = compute_statistics(runs, errors)
    assert {part.name: part.attempts for part in statistics.by_error} == {"none": 14, "NameError": 8}


def test_runs_of_one_name_are_told_apart_by_their_folder(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / name / "run", ANSWERS) for name in "ab"]
    assert [run.name for run in read_runs(paths)] == [str(path) for path in paths]


def test_a_file_of_attempts_has_the_majority_as_answer(tmp_path: Path) -> None:
    write_run(tmp_path / "run", ANSWERS)
    (run,) = read_runs([tmp_path / "run" / "attempts.jsonl"])
    assert run.record is None
    assert {name: problem.answer for name, problem in run.problems.items()} == {
        "right": 7, "outvoted": 8, "missed": 8, "silent": None
    }  # fmt: skip


def test_paths_without_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="holds no run"):
        read_runs([tmp_path])
    with pytest.raises(RecordsError, match="no finished problem"):
        read_runs([write_run(tmp_path / "run", {"unknown": (None, [5])})])
    with pytest.raises(RecordsError, match="no such file"):
        read_runs([tmp_path / "missing"])


@public
def test_groups_that_cannot_count_right_answers_are_left_out() -> None:
    runs = read_runs([PUBLIC])
    hinted = [run for run in runs if run.name.startswith(("jxm/shiv-latest-hinted", "jxm/v23-wrongonly"))]
    assert hinted
    assert all(not run.problems and run.left_out for run in hinted)
    statistics = compute_statistics(runs)
    assert statistics.problems == 94
    assert sum(run.problems for run in statistics.runs) == 160


def sides() -> dict[str, list[LoggedRun]]:
    """Three problems; right runs of A: 2, 1, 0 of two, of B: 2, 2, 1 of two, of C: 1, 1, 1 of one."""
    a = [logged("a1", ONCE, {"p": 1, "q": 1, "r": 2}), logged("a2", ONCE, {"p": 1, "q": 2, "r": 2})]
    b = [logged("b1", ONCE, {"p": 1, "q": 1, "r": 1}), logged("b2", ONCE, {"p": 1, "q": 1, "r": 2})]
    return {"A": a, "B": b, "C": [logged("c1", ONCE)]}


def test_configurations_are_compared_with_the_first_by_problem() -> None:
    table = compare_configurations(sides())
    assert table.problems == 3
    assert [(one.name, one.scores) for one in table.configurations] == [("A", (2, 1)), ("B", (3, 2)), ("C", (3,))]
    assert [one.score.mean for one in table.configurations] == pytest.approx([1.5, 2.5, 3])
    b, c = table.differences
    assert b.paired == paired_difference([1, 1, 0.5], [1, 0.5, 0])
    assert b.difference.mean == pytest.approx(1.0)
    assert (b.paired.better, b.paired.worse) == (2, 0)
    assert c.repeated is None


def test_repeated_runs_have_the_interval_of_the_t_test_of_their_scores() -> None:
    b = compare_configurations(sides()).differences[0]
    # Scores 2, 1 against 3, 2: difference 1, standard error (0.5 / 2 + 0.5 / 2) ** 0.5, t(2) = 4.302653.
    assert b.repeated is not None
    assert b.repeated.mean == pytest.approx(1.0)
    assert b.repeated.high - b.repeated.mean == pytest.approx(4.302653 * 0.5**0.5, abs=1e-5)


def test_the_spread_of_a_comparison_is_that_of_its_repeats() -> None:
    b, c = compare_configurations(sides()).differences
    assert b.spread.deviation == pytest.approx((0.5 + 0.5) ** 0.5 / 2**0.5)  # each side has one problem with variance 1/2
    assert c.spread.source == "2 runs"
    single = {name: runs[:1] for name, runs in sides().items()}
    assert "submitted 21 times" in compare_configurations(single).differences[0].spread.source


def test_comparisons_need_two_sides_with_common_problems() -> None:
    with pytest.raises(UserError, match="two configurations"):
        compare_configurations({"A": list(TWO)})
    other = logged("other", {"z": [1]})
    with pytest.raises(UserError, match="in common"):
        compare_configurations({"A": list(TWO), "B": [other]})


def test_runs_whose_problems_only_share_their_ids_are_refused() -> None:
    a, b = TWO
    other = replace(b, problems={**b.problems, "q": replace(b.problems["q"], truth=9)})
    for compute in (lambda: compute_statistics([a, other]), lambda: compare_configurations({"A": [a], "B": [other]})):
        with pytest.raises(UserError, match="problem q is 1 in one run and 9 in another"):
            compute()


def test_tables_are_aligned_markdown() -> None:
    assert markdown_table(("name", "k"), [("a|b", 1), ("long name", 22)]).splitlines() == [
        "| name      |   k |",
        "| --------- | --: |",
        r"| a\|b      |   1 |",
        "| long name |  22 |",
    ]


def test_markdown_and_json_hold_the_same_figures() -> None:
    statistics = compute_statistics(TWO)
    text = statistics_markdown(statistics)
    values = json.loads(json.dumps(plain_values(statistics)))
    assert values["estimates"][1]["pass_at"]["mean"] == pytest.approx(0.5)
    assert "50.0 [" in text
    for heading in ("Runs", "Attempts per problem", "Pairs of runs (1), 3 problems", "By prompt", "Lengths"):
        assert f"## {heading}\n" in text
    compared = comparison_markdown(compare_configurations(sides()))
    assert "## Against A" in compared
    assert "| B " in compared
