"""Problems in sequence and in parallel, with a scripted solver."""

from __future__ import annotations

import asyncio

import pytest

from aimo_solver.clock import RunClock
from aimo_solver.errors import EngineLost
from aimo_solver.policy.budget import Allotment
from aimo_solver.policy.options import BudgetConfig
from aimo_solver.problems import Problem, ProblemResult
from aimo_solver.solve.evaluate import evaluate

PROBLEMS = [Problem(f"p{number}", "?") for number in range(6)]
BUDGET = BudgetConfig(problems=6)
CLOCK = RunClock.begin(BUDGET, lambda: 0.0, 0.0)


class Script:
    """Fails at the problem `defect`; loses its server at the end of `last`."""

    def __init__(self, defect: str = "", last: str = "") -> None:
        self.defect, self.last = defect, last
        self.lost: str | None = None
        self.solved: list[str] = []

    async def solve(self, problem: Problem, allotment: Allotment) -> ProblemResult:
        await asyncio.sleep(0)
        if problem.id == self.defect:
            raise ZeroDivisionError("in the vote")
        self.lost = "no restarts are left" if problem.id == self.last else self.lost
        self.solved.append(problem.id)
        return ProblemResult(problem_id=problem.id, answer=1, reason="scripted")


@pytest.mark.parametrize("parallel", [1, 3])
async def test_a_defect_in_one_problem_is_raised_after_all_others_are_solved(parallel: int) -> None:
    script = Script(defect="p1")
    with pytest.raises(ExceptionGroup) as caught:
        await evaluate(script.solve, PROBLEMS, BUDGET, CLOCK, parallel=parallel)
    assert sorted(script.solved) == ["p0", "p2", "p3", "p4", "p5"]
    assert [str(defect) for defect in caught.value.exceptions] == ["in the vote"]


async def test_no_problem_starts_after_the_server_is_lost() -> None:
    script = Script(last="p3")
    with pytest.raises(EngineLost, match="no restarts are left; 2 problems are open; continue with --resume"):
        await evaluate(script.solve, PROBLEMS, BUDGET, CLOCK, lost=lambda: script.lost)
    assert script.solved == ["p0", "p1", "p2", "p3"]


async def test_losing_the_server_during_the_last_problem_raises_nothing() -> None:
    script = Script(last="p5")
    assert len(await evaluate(script.solve, PROBLEMS, BUDGET, CLOCK, lost=lambda: script.lost)) == 6
