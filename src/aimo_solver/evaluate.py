"""Problems in a row, or several side by side, under one clock."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aimo_solver.budget import Clock, allot
from aimo_solver.clock import RunClock
from aimo_solver.config import BudgetConfig
from aimo_solver.problems import Problem
from aimo_solver.runlog import ProblemResult
from aimo_solver.solver import Solver


async def evaluate(
    solver: Solver, problems: Sequence[Problem], budget: BudgetConfig, clock: RunClock, *, parallel: int = 1
) -> list[ProblemResult]:
    """Results in the order of `problems`. Each problem's seconds are allotted when it starts.

    Cancelling it cancels the problems under way; those finished are in the run log already.
    """
    results: dict[str, ProblemResult] = {}
    waiting = list(reversed(problems))

    async def worker() -> None:
        while waiting:
            problem = waiting.pop()
            allotment = allot(Clock(clock.left_s, len(waiting), parallel), budget)
            results[problem.id] = await solver.solve(problem, allotment)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(parallel, len(problems))):
            group.create_task(worker())
    return [results[problem.id] for problem in problems]
