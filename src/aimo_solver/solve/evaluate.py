"""Many problems under one clock."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from aimo_solver.clock import RunClock
from aimo_solver.errors import EngineLost
from aimo_solver.policy.budget import Allotment, allot
from aimo_solver.policy.options import BudgetConfig
from aimo_solver.problems import Problem, ProblemResult


async def evaluate(
    solve: Callable[[Problem, Allotment], Awaitable[ProblemResult]],
    problems: Sequence[Problem],
    budget: BudgetConfig,
    clock: RunClock,
    *,
    parallel: int = 1,
    lost: Callable[[], str | None] = lambda: None,
) -> list[ProblemResult]:
    """Solves problems in their order, `parallel` at a time, each within the seconds that are allotted when it starts.

    Cancellation ends the problems in progress; the run log holds those that finished.

    Args:
        solve: `Solver.solve`.
        lost: returns why no more problems can be solved; None while they can.

    Raises:
        EngineLost: the server was lost before the last problem started; the run can be resumed.
        ExceptionGroup: the defects that ended problems, after all other problems.
    """
    results: dict[str, ProblemResult] = {}
    waiting = list(reversed(problems))
    defects: list[Exception] = []

    async def worker() -> None:
        while waiting and lost() is None:
            problem = waiting.pop()
            allotment = allot(clock.left_s, len(waiting), budget, parallel=parallel)
            try:
                results[problem.id] = await solve(problem, allotment)
            except Exception as defect:  # noqa: BLE001 (raised when the other problems are done)
                defects.append(defect)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(parallel, len(problems))):
            group.create_task(worker())
    if defects:
        raise ExceptionGroup("problems that a defect ended", defects)
    if waiting:
        raise EngineLost(f"{lost()}; {len(waiting)} problems are open; continue with --resume")
    return [results[problem.id] for problem in problems]
