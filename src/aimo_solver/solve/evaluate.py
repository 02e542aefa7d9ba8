"""Problems in a row, or several side by side, under one clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from aimo_solver.clock import RunClock
from aimo_solver.errors import EngineLost
from aimo_solver.log.writer import ProblemResult
from aimo_solver.options import BudgetConfig
from aimo_solver.policy.budget import Allotment, Clock, allot
from aimo_solver.problems import Problem


class Solves(Protocol):
    """What an evaluation needs of a solver."""

    async def solve(self, problem: Problem, allotment: Allotment) -> ProblemResult: ...


async def evaluate(
    solver: Solves,
    problems: Sequence[Problem],
    budget: BudgetConfig,
    clock: RunClock,
    *,
    parallel: int = 1,
    lost: Callable[[], str | None] = lambda: None,
) -> list[ProblemResult]:
    """Results in the order of `problems`. Each problem's seconds are allotted when it starts.

    Cancelling it cancels the problems under way; those finished are in the run log already.

    Args:
        lost: tells why nothing can be solved any more, None while something can.

    Raises:
        EngineLost: it was lost before the last problem began; the run can be resumed.
        ExceptionGroup: problems that a defect ended, when all others have had their turn.
    """
    results: dict[str, ProblemResult] = {}
    waiting = list(reversed(problems))
    defects: list[Exception] = []

    async def worker() -> None:
        while waiting and lost() is None:
            problem = waiting.pop()
            allotment = allot(Clock(clock.left_s, len(waiting), parallel), budget)
            try:
                results[problem.id] = await solver.solve(problem, allotment)
            except Exception as defect:  # noqa: BLE001 (raised when the other problems are done)
                defects.append(defect)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(parallel, len(problems))):
            group.create_task(worker())
    if defects:
        raise ExceptionGroup("problems that a defect ended", defects)
    if waiting:
        raise EngineLost(f"{lost()}; {len(waiting)} problems are open, --resume goes on with them")
    return [results[problem.id] for problem in problems]
