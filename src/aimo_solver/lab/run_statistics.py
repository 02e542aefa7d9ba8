"""Statistics of any number of runs of one configuration: pass@k, maj@k, scores, their spread, and what goes with right answers.

Problems are the independent units: every interval is clustered by problem, and covers the choice of the problems as well as the
luck of the attempts. Attempts that were cancelled when their problem was decided have no known outcome. They are counted, but
belong to no estimate; `KEstimate.bounds` says how much they could change one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import ceil
from statistics import fmean, median, stdev

import numpy as np

from aimo_solver.lab.estimators import Outcomes, count_outcomes, is_cancelled, majority_at_k, pass_at_k
from aimo_solver.lab.power import Spread, measure_spread
from aimo_solver.lab.runs import Key, LoggedProblem, LoggedRun, check_truths, common_problems, right_answers
from aimo_solver.lab.statistics import Interval, clustered_share
from aimo_solver.results import Attempt

_ENOUGH = 0.9  # share of the problems that must have k attempts for k to be shown by default
_QUANTITIES: Mapping[str, Callable[[Attempt], float]] = {
    "tokens": lambda attempt: attempt.tokens,
    "turns": lambda attempt: attempt.turns,
    "seconds": lambda attempt: attempt.seconds,
}


@dataclass(frozen=True, slots=True)
class KEstimate:
    """What k attempts at a problem give, over the problems with at least k attempts that ended.

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
class Part:
    """Some of the attempts.

    Attributes:
        name: of a prompt variant, finish reason or family of tool error.
        attempts, cancelled, silent: all; those without a known outcome; those that ended without an answer.
        right: share of right ones among those that ended; None if none gave an answer.
        tokens, seconds: medians of the attempts for which they are logged; None if for none.
    """

    name: str
    attempts: int
    cancelled: int
    silent: int
    right: Interval | None
    tokens: float | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Length:
    """The distribution of a quantity ("tokens", "turns", "seconds") over attempts of one outcome."""

    outcome: str
    quantity: str
    attempts: int
    mean: float
    low: float  # 10 % of the attempts are shorter
    median: float
    high: float  # 10 % are longer


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
class _Tried:
    """An attempt, and whether its answer is the true one."""

    attempt: Attempt
    right: bool

    @property
    def cancelled(self) -> bool:
        return is_cancelled(self.attempt)


@dataclass(frozen=True, slots=True)
class RunStatistics:
    """Everything; `agreement` is None for a single run, `by_error` is empty without trajectories."""

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
    tried = [_Tried(a, a.answer == one.truth) for run in runs for one in run.problems.values() for a in one.attempts]
    return RunStatistics(
        runs=tuple(map(_score, runs)),
        problems=len(sets),
        accuracy=clustered_share([fmean(one.right for one in own) for own in sets.values()]),
        estimates=tuple(estimates),
        by_prompt=_parts(_grouped(tried, lambda one: one.attempt.prompt)),
        by_finish=_parts(_grouped(tried, lambda one: one.attempt.finish_reason.replace("_", " "))),
        by_error=_parts(_by_error(runs, errors)),
        lengths=tuple(_lengths(tried)),
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


def _grouped(tried: Sequence[_Tried], name: Callable[[_Tried], str]) -> dict[str, list[_Tried]]:
    groups: dict[str, list[_Tried]] = {}
    for one in tried:
        groups.setdefault(name(one), []).append(one)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))


def _by_error(runs: Sequence[LoggedRun], errors: Sequence[Mapping[Key, Counter[str]]]) -> dict[str, list[_Tried]]:
    """Attempts that called Python, by family of error; an attempt belongs to each family that it met."""
    groups: dict[str, list[_Tried]] = {"none": []}
    for run, found in zip(runs, errors, strict=False):
        for problem in run.problems.values():
            for attempt in problem.attempts:
                families = found.get((attempt.problem_id, attempt.index))
                if attempt.tool_calls and families is not None:
                    for family in families or ("none",):
                        groups.setdefault(family, []).append(_Tried(attempt, attempt.answer == problem.truth))
    return dict(sorted(groups.items(), key=lambda item: (item[0] != "none", -len(item[1]))))


def _parts(groups: Mapping[str, Sequence[_Tried]]) -> tuple[Part, ...]:
    return tuple(_part(name, tried) for name, tried in groups.items() if tried)


def _part(name: str, tried: Sequence[_Tried]) -> Part:
    ended = [one for one in tried if not one.cancelled]
    counts = Counter(one.attempt.problem_id for one in ended)
    hits = Counter(one.attempt.problem_id for one in ended if one.right)
    silent = sum(one.attempt.answer is None for one in ended)
    return Part(
        name=name,
        attempts=len(tried),
        cancelled=len(tried) - len(ended),
        silent=silent,
        right=clustered_share([hits[problem] for problem in counts], list(counts.values())) if len(ended) > silent else None,
        tokens=_median([one.attempt.tokens for one in tried]),
        seconds=_median([one.attempt.seconds for one in tried]),
    )


def _median(values: Iterable[float]) -> float | None:
    logged = [value for value in values if value > 0]
    return median(logged) if logged else None


def _outcome(one: _Tried) -> str:
    if one.attempt.answer is None:
        return "cancelled" if one.cancelled else "no answer"
    return "right" if one.right else "wrong"


def _lengths(tried: Sequence[_Tried]) -> Iterable[Length]:
    groups = _grouped(tried, _outcome)
    for outcome in ("right", "wrong", "no answer", "cancelled"):
        for quantity, value_of in _QUANTITIES.items():
            # A CSV may lack turns or seconds.
            values = [value for one in groups.get(outcome, ()) if (value := value_of(one.attempt)) > 0]
            if values:
                low, middle, high = np.quantile(values, (0.1, 0.5, 0.9)).tolist()
                yield Length(outcome, quantity, len(values), fmean(values), low, middle, high)


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
