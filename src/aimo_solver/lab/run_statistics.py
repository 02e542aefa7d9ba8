"""Statistics of any number of runs of one configuration: pass@k, maj@k, scores, their spread, and correlates of right answers.

Problems are the independent units: every interval is clustered by problem, and covers the choice of the problems as well as the
luck of the attempts. Attempts that were cancelled when their problem was decided have no known outcome. They are counted, but
enter no estimate; `KEstimate.bounds` says how much they could change one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import ceil
from statistics import fmean, stdev

from aimo_solver.lab.breakdown import Length, Part, measure_lengths, parts_by, parts_by_error, score_attempts
from aimo_solver.lab.estimators import Outcomes, count_outcomes, is_cancelled, majority_at_k, pass_at_k
from aimo_solver.lab.power import Spread, measure_spread
from aimo_solver.lab.runs import Key, LoggedProblem, LoggedRun, check_truths, common_problems, right_answers
from aimo_solver.lab.statistics import Interval, clustered_share

_ENOUGH = 0.9  # share of the problems that must have k attempts for k to be shown by default


@dataclass(frozen=True, slots=True)
class KEstimate:
    """What k attempts at a problem yield, over the problems with at least k attempts that ended.

    Attributes:
        pass_at: probability that one of k attempts is right.
        bounds: of pass@k, if all cancelled attempts were wrong, or all right.
        majority_at: probability that the most frequent answer of k attempts is right.
        average_at: share of right attempts among the first k that a run started at a problem, over runs that started k; None if
            there are none, or all were cancelled.
        problems: with k attempts that ended.
    """

    k: int
    pass_at: Interval
    bounds: tuple[float, float]
    majority_at: Interval
    average_at: Interval | None
    problems: int


@dataclass(frozen=True, slots=True)
class RunScore:
    """The answers of one run. `attempts` has all its attempts, `cancelled` those without a known outcome."""

    name: str
    problems: int
    right: int
    accuracy: Interval
    attempts: int
    cancelled: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Agreement:
    """Pairs of runs on the problems that all runs have in common; shares of problems, averaged over the pairs.

    Attributes:
        two_run: score of a problem that is run twice: both right 1, one right 0.5.
        scores: standard deviation of the runs' scores on these problems, right answers.
        spread: the same from the variances of the problems, which is more precise with few runs.
    """

    problems: int
    pairs: int
    same_answer: Interval
    both_right: Interval
    one_right: Interval
    neither_right: Interval
    two_run: Interval
    scores: float
    spread: Spread


@dataclass(frozen=True, slots=True)
class RunStatistics:
    """All statistics; `agreement` is None for a single run, `by_error` is empty without trajectories."""

    runs: tuple[RunScore, ...]
    problems: int
    accuracy: Interval
    estimates: tuple[KEstimate, ...]
    by_prompt: tuple[Part, ...]
    by_finish: tuple[Part, ...]
    by_error: tuple[Part, ...]
    lengths: tuple[Length, ...]
    agreement: Agreement | None
    warnings: tuple[str, ...]


def compute_statistics(
    runs: Sequence[LoggedRun], errors: Sequence[Mapping[Key, Counter[str]]] = (), ks: Sequence[int] = ()
) -> RunStatistics:
    """Computes the statistics of the runs, at least one problem in all.

    Args:
        errors: `runs.read_tool_errors` of each run.
        ks: attempts per problem to estimate for; by default powers of two that nine in ten problems have.

    Raises:
        UserError: the runs are on different problems with the same ids.
    """
    check_truths(runs)
    left_out = sum(run.left_out for run in runs)
    errors = [found for run, found in zip(runs, errors, strict=False) if run.problems]
    runs = [run for run in runs if run.problems]
    sets = _by_problem(runs)
    outcomes = [count_outcomes((a for one in own for a in one.attempts), own[0].truth) for own in sets.values()]
    estimates = [estimate for k in ks or _default_ks(outcomes) if (estimate := _estimate(k, list(sets.values()), outcomes))]
    missing = sorted({*ks} - {estimate.k for estimate in estimates})
    scored = score_attempts(runs)
    return RunStatistics(
        runs=tuple(map(_score, runs)),
        problems=len(sets),
        accuracy=clustered_share([fmean(one.right for one in own) for own in sets.values()]),
        estimates=tuple(estimates),
        by_prompt=parts_by(scored, lambda attempt: attempt.prompt),
        by_finish=parts_by(scored, lambda attempt: attempt.finish_reason.replace("_", " ")),
        by_error=parts_by_error(runs, errors),
        lengths=tuple(measure_lengths(scored)),
        agreement=_agreement(runs) if len(runs) > 1 else None,
        warnings=tuple(_warnings(runs, outcomes, estimates, left_out, missing)),
    )


def _by_problem(runs: Sequence[LoggedRun]) -> dict[str, list[LoggedProblem]]:
    sets: dict[str, list[LoggedProblem]] = {}
    for run in runs:
        for problem in run.problems.values():
            sets.setdefault(problem.problem_id, []).append(problem)
    return sets


def _default_ks(outcomes: Sequence[Outcomes]) -> list[int]:
    ended = sorted((one.ended for one in outcomes), reverse=True)
    most = max(1, ended[ceil(_ENOUGH * len(ended)) - 1])
    return [2**power for power in range(most.bit_length())]


def _estimate(k: int, sets: Sequence[Sequence[LoggedProblem]], outcomes: Sequence[Outcomes]) -> KEstimate | None:
    known = [one for one in outcomes if one.ended >= k]
    started = [one for one in outcomes if one.ended + one.cancelled >= k]
    if not known:
        return None
    first = [[a for one in own if len(one.attempts) >= k for a in one.attempts[:k] if not is_cancelled(a)] for own in sets]
    right = [sum(a.answer == own[0].truth for a in kept) for kept, own in zip(first, sets, strict=True)]
    averages = [hits / len(kept) for hits, kept in zip(right, first, strict=True) if kept]
    return KEstimate(
        k=k,
        pass_at=clustered_share([pass_at_k(one.right, one.ended, k) for one in known]),
        bounds=(
            fmean(pass_at_k(one.right, one.ended + one.cancelled, k) for one in started),
            fmean(pass_at_k(one.right + one.cancelled, one.ended + one.cancelled, k) for one in started),
        ),
        majority_at=clustered_share([majority_at_k(one, k) for one in known]),
        average_at=clustered_share(averages) if averages else None,
        problems=len(known),
    )


def _score(run: LoggedRun) -> RunScore:
    attempts = run.attempts
    return RunScore(
        name=run.name,
        problems=len(run.problems),
        right=run.right,
        accuracy=clustered_share([problem.right for problem in run.problems.values()]),
        attempts=len(attempts),
        cancelled=sum(map(is_cancelled, attempts)),
        tokens=sum(attempt.tokens for attempt in attempts),
    )


def _agreement(runs: Sequence[LoggedRun]) -> Agreement | None:
    common = common_problems(runs)
    if not common:
        return None
    pairs = list(combinations(runs, 2))
    sides = [[(a.problems[name], b.problems[name]) for a, b in pairs] for name in common]
    rights = [[a.right + b.right for a, b in problem] for problem in sides]
    outcomes = right_answers(runs, common)
    return Agreement(
        problems=len(common),
        pairs=len(pairs),
        same_answer=clustered_share([fmean(a.answer == b.answer for a, b in problem) for problem in sides]),
        both_right=clustered_share([fmean(count == 2 for count in own) for own in rights]),
        one_right=clustered_share([fmean(count == 1 for count in own) for own in rights]),
        neither_right=clustered_share([fmean(count == 0 for count in own) for own in rights]),
        two_run=clustered_share([fmean(own) / 2 for own in rights]),
        scores=stdev(outcomes.sum(axis=1).tolist()),
        spread=measure_spread(outcomes, f"{len(runs)} runs"),
    )


def _warnings(
    runs: Sequence[LoggedRun], outcomes: Sequence[Outcomes], estimates: Sequence[KEstimate], left_out: int, missing: Sequence[int]
) -> Iterable[str]:
    cancelled = sum(one.cancelled for one in outcomes)
    if cancelled:
        total = cancelled + sum(one.ended for one in outcomes)
        touched = sum(one.cancelled > 0 for one in outcomes)
        yield (
            f"{cancelled} of {total} attempts, at {touched} of {len(outcomes)} problems, were cancelled by an early stop. "
            "pass@k, maj@k and avg@k count the attempts that ended, which are the faster ones; bounds: pass@k if all cancelled "
            "attempts were wrong, or all right. A run with voting.stop=never and max_attempts=slots has no such bias."
        )
    for k in missing:
        yield f"No problem has {k} attempts that ended."
    short = [estimate for estimate in estimates if estimate.problems < len(outcomes)]
    if short:
        listed = ", ".join(f"{len(outcomes) - estimate.problems} at k = {estimate.k}" for estimate in short)
        yield f"Problems with fewer than k attempts are left out ({listed}); after an early stop these are mostly the easy ones."
    if len({_without_seed(run) for run in runs}) > 1:
        yield "The runs differ in more than their seed, and are pooled here; use compare for what the options change."
    names = [frozenset(run.problems) for run in runs]
    if len(set(names)) > 1:
        yield "The runs are not on the same problems; agreement and spread are those of the problems that all have."
    if left_out:
        yield f"{left_out} problems are left out: not ended, answer unknown, or not fit for counting right answers."


def _without_seed(run: LoggedRun) -> str:
    sections = {name: {key: value for key, value in options.items() if key != "seed"} for name, options in run.config.items()}
    return repr(sections)
