"""The one clock of a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from aimo_solver.policy.options import BudgetConfig


@dataclass(frozen=True, slots=True)
class RunClock:
    """The end of a run and the time left until then.

    Attributes:
        now: a monotonic clock, seconds; changes of the date do not affect it.
        limit: time of `now` at which the run is over.
        end: `limit` less the margin; problems get no time after it.
    """

    now: Callable[[], float]
    limit: float
    end: float

    @classmethod
    def begin(cls, budget: BudgetConfig, now: Callable[[], float], started: float) -> RunClock:
        """Makes the clock of a run that started at `started`. The margin is at most a tenth of the time limit."""
        limit = started + budget.time_limit_s
        return cls(now, limit, limit - min(budget.margin_s, budget.time_limit_s / 10))

    @property
    def left_s(self) -> float:
        return max(0.0, self.end - self.now())


def process_age_s() -> float:
    """Returns the seconds since this process started; 0 if that is unknown.

    Both times are read from one clock at once, so later changes of the date do not matter. Some sandboxes report no start
    time, so that the process seems decades old: a start before this machine's boot counts as unknown.
    """
    try:
        created, booted = psutil.Process().create_time(), psutil.boot_time()
    except (OSError, psutil.Error):
        return 0.0
    return max(0.0, time.time() - created) if created >= booted > 0 else 0.0
