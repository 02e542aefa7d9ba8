"""The one clock of a run: when everything ends, and what is left until then."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from aimo_solver.options import BudgetConfig


@dataclass(frozen=True, slots=True)
class RunClock:
    """The one clock of a run.

    Attributes:
        now: seconds that only grow, like `time.monotonic`; setting the machine's date does not move it.
        limit: time of `now` at which everything is over.
        end: `limit` less the margin; after it no problem gets a second more.
    """

    now: Callable[[], float]
    limit: float
    end: float

    @classmethod
    def begin(cls, budget: BudgetConfig, now: Callable[[], float], started: float) -> RunClock:
        """The clock of a run that started at `started`. A margin larger than a tenth of a short limit is cut to that."""
        limit = started + budget.time_limit_s
        return cls(now, limit, limit - min(budget.margin_s, budget.time_limit_s / 10))

    @property
    def left_s(self) -> float:
        return max(0.0, self.end - self.now())


def process_age_s() -> float:
    """Seconds since this process was started.

    Both times are read from the same clock at once, so a date that is set later does not matter. Some sandboxes report
    no start time, which would make the process look decades old: a value before this machine's boot counts as 0, as does
    one that cannot be read.
    """
    try:
        created, booted = psutil.Process().create_time(), psutil.boot_time()
    except (OSError, psutil.Error):
        return 0.0
    return max(0.0, time.time() - created) if created >= booted > 0 else 0.0
