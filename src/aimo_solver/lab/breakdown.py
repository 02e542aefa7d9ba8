"""Attempts by group, such as prompt or finish reason: how often right, how long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

from aimo_solver.lab.estimators import is_cancelled
from aimo_solver.lab.runs import Key, LoggedRun
from aimo_solver.lab.statistics import Interval, clustered_share
from aimo_solver.results import Attempt

_QUANTITIES: Mapping[str, Callable[[Attempt], float]] = {
    "tokens": lambda attempt: attempt.tokens,
    "turns": lambda attempt: attempt.turns,
    "seconds": lambda attempt: attempt.seconds,
}


@dataclass(frozen=True, slots=True)
class ScoredAttempt:
    """An attempt, and whether its answer is the true one."""

    attempt: Attempt
    right: bool

    @property
    def cancelled(self) -> bool:
        return is_cancelled(self.attempt)


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


def score_attempts(runs: Sequence[LoggedRun]) -> list[ScoredAttempt]:
    """Returns all attempts of the runs."""
    return [ScoredAttempt(a, a.answer == one.truth) for run in runs for one in run.problems.values() for a in one.attempts]


def parts_by(scored: Sequence[ScoredAttempt], name: Callable[[Attempt], str]) -> tuple[Part, ...]:
    """Groups attempts by a name, the largest group first."""
    return _parts(_grouped(scored, lambda one: name(one.attempt)))


def parts_by_error(runs: Sequence[LoggedRun], errors: Sequence[Mapping[Key, Counter[str]]]) -> tuple[Part, ...]:
    """Groups attempts that called Python by family of error; an attempt belongs to each family that it met."""
    groups: dict[str, list[ScoredAttempt]] = {"none": []}
    for run, found in zip(runs, errors, strict=False):
        for problem in run.problems.values():
            for attempt in problem.attempts:
                families = found.get((attempt.problem_id, attempt.index))
                if attempt.tool_calls and families is not None:
                    for family in families or ("none",):
                        groups.setdefault(family, []).append(ScoredAttempt(attempt, attempt.answer == problem.truth))
    return _parts(dict(sorted(groups.items(), key=lambda item: (item[0] != "none", -len(item[1])))))


def measure_lengths(scored: Sequence[ScoredAttempt]) -> Iterator[Length]:
    """Yields the distributions of tokens, turns and seconds by outcome."""
    groups = _grouped(scored, _outcome)
    for outcome in ("right", "wrong", "no answer", "cancelled"):
        for quantity, value_of in _QUANTITIES.items():
            # A CSV may lack turns or seconds.
            values = [value for one in groups.get(outcome, ()) if (value := value_of(one.attempt)) > 0]
            if values:
                low, middle, high = np.quantile(values, (0.1, 0.5, 0.9)).tolist()
                yield Length(outcome, quantity, len(values), fmean(values), low, middle, high)


def _grouped(scored: Sequence[ScoredAttempt], name: Callable[[ScoredAttempt], str]) -> dict[str, list[ScoredAttempt]]:
    groups: dict[str, list[ScoredAttempt]] = {}
    for one in scored:
        groups.setdefault(name(one), []).append(one)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))


def _parts(groups: Mapping[str, Sequence[ScoredAttempt]]) -> tuple[Part, ...]:
    return tuple(_part(name, scored) for name, scored in groups.items() if scored)


def _part(name: str, scored: Sequence[ScoredAttempt]) -> Part:
    ended = [one for one in scored if not one.cancelled]
    counts = Counter(one.attempt.problem_id for one in ended)
    hits = Counter(one.attempt.problem_id for one in ended if one.right)
    silent = sum(one.attempt.answer is None for one in ended)
    return Part(
        name=name,
        attempts=len(scored),
        cancelled=len(scored) - len(ended),
        silent=silent,
        right=clustered_share([hits[problem] for problem in counts], list(counts.values())) if len(ended) > silent else None,
        tokens=_median([one.attempt.tokens for one in scored]),
        seconds=_median([one.attempt.seconds for one in scored]),
    )


def _median(values: Iterable[float]) -> float | None:
    logged = [value for value in values if value > 0]
    return median(logged) if logged else None


def _outcome(one: ScoredAttempt) -> str:
    if one.attempt.answer is None:
        return "cancelled" if one.cancelled else "no answer"
    return "right" if one.right else "wrong"
