"""Groups of attempts, and the logged attempts of public runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from aimo_solver.lab.records import Group, Use
from aimo_solver.problems import Answer
from aimo_solver.results import Attempt, FinishReason
from tests.simulated_run import ATTEMPTS

PUBLIC = ATTEMPTS
public = pytest.mark.skipif(not PUBLIC.exists(), reason="the public records are not here")


def make_attempt(index: int, answer: Answer | None, **values: Any) -> Attempt:
    reason = FinishReason.ANSWERED if answer is not None else FinishReason.NO_ANSWER
    fields: dict[str, Any] = {"problem_id": "p", "finish_reason": reason}
    return Attempt(index=index, answer=answer, **fields | values)


def make_group(ended: Sequence[Attempt], **values: Any) -> Group:
    fields: dict[str, Any] = {"run": "r", "model": "m", "problem_id": "p", "truth": 1, "cut": (), "timed": True}
    return Group(ended=tuple(ended), **fields | {"use": Use.ACCURACY | Use.STOPPING} | values)


def group(answers: Sequence[int | None], **values: Any) -> Group:
    """Attempt i ends after 10 (i + 1) seconds and 100 (i + 1) tokens."""
    return make_group(
        [
            make_attempt(i, answer, tokens=100 * (i + 1), seconds=10.0 * (i + 1), finish_order=i + 1)
            for i, answer in enumerate(answers)
        ],
        **values,
    )


def six_groups(**values: Any) -> list[Group]:
    """Six problems in two runs, with truth 1 and five attempts each; the later problems have votes for 2."""
    return [
        group([1 + (i * number) % 2 for i in range(5)], problem_id=str(number), run=f"run{number % 2}", **values)
        for number in range(6)
    ]
