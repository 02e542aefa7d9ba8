"""Compares two runs on the same problems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aimo_solver.lab.report.data import ProblemReport, RunReport, Verdict
from aimo_solver.lab.statistics import Interval, paired_difference
from aimo_solver.problems import Answer


@dataclass(frozen=True, slots=True)
class ProblemPair:
    """A problem in both runs; None for a run without it."""

    id: str
    truth: Answer | None
    sides: tuple[ProblemReport | None, ProblemReport | None]

    @property
    def differs(self) -> bool:
        a, b = self.sides
        return a is not None and b is not None and a.verdict != b.verdict and Verdict.RIGHT in (a.verdict, b.verdict)


@dataclass(frozen=True, slots=True)
class Comparison:
    """B against A, on the `pairs` problems with known truth that ended in both.

    Attributes:
        difference: accuracy of B minus accuracy of A, by `statistics.paired_difference`; zero without any problem.
        p_value: of the sign test over the problems on which the runs differ; 1 if there are none.
        changed: options that differ, as (name, value in A, value in B).
    """

    pairs: int
    both: int
    only_a: int
    only_b: int
    neither: int
    difference: Interval
    p_value: float
    changed: tuple[tuple[str, Any, Any], ...]
    rows: tuple[ProblemPair, ...]

    @property
    def reading(self) -> str:
        """The conclusion from the interval."""
        if self.difference.low > 0:
            return "The interval lies above zero: B is better on these problems."
        if self.difference.high < 0:
            return "The interval lies below zero: A is better on these problems."
        return "The interval contains zero: these problems show no significant difference."


def compare(a: RunReport, b: RunReport) -> Comparison:
    """Pairs the problems of two runs by id."""
    first = {problem.id: problem for problem in a.problems}
    second = {problem.id: problem for problem in b.problems}
    rows = []
    for problem_id in first | second:
        sides = (first.get(problem_id), second.get(problem_id))
        truths = [side.record.truth for side in sides if side is not None and side.record.truth is not None]
        rows.append(ProblemPair(problem_id, truths[0] if truths else None, sides))
    outcomes = [(one.verdict is Verdict.RIGHT, two.verdict is Verdict.RIGHT) for one, two in map(_known, rows) if one and two]
    only_a, only_b = outcomes.count((True, False)), outcomes.count((False, True))
    paired = paired_difference([two for _, two in outcomes], [one for one, _ in outcomes]) if outcomes else None
    return Comparison(
        pairs=len(outcomes),
        both=outcomes.count((True, True)),
        only_a=only_a,
        only_b=only_b,
        neither=outcomes.count((False, False)),
        difference=paired.interval if paired else Interval(0.0, 0.0, 0.0),
        p_value=paired.p_value if paired else 1.0,
        changed=_changed(a.run.config, b.run.config),
        rows=tuple(rows),
    )


def _known(row: ProblemPair) -> tuple[ProblemReport | None, ProblemReport | None]:
    a, b = (None if side is None or side.verdict in (Verdict.OPEN, Verdict.UNKNOWN) else side for side in row.sides)
    return a, b


def _changed(a: Any, b: Any) -> tuple[tuple[str, Any, Any], ...]:
    found = []
    for section in a.keys() | b.keys():
        one, two = a.get(section, {}), b.get(section, {})
        names = [name for name in one.keys() | two.keys() if one.get(name) != two.get(name)]
        found += [(f"{section}.{name}", one.get(name), two.get(name)) for name in names]
    return tuple(sorted(found, key=lambda item: item[0]))
