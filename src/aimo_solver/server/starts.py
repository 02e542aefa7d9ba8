"""What a run keeps about its server's starts from one boot to the next."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from aimo_solver.errors import ServerStartError
from aimo_solver.server.failures import Failure, FailureCause
from aimo_solver.server.ladder import safest
from aimo_solver.server.launch import LaunchPlan
from aimo_solver.server.supervisor import Supervisor


class StartHistory:
    """Begins a boot with the adjustments that served before, and the last boot that fits into the clock with the safest flags.

    A boot whose server never came up leaves no adjustments: what failed then may be gone, such as memory that another process
    took or a mount that came late.
    """

    def __init__(self, left_s: Callable[[], float] = lambda: float("inf")) -> None:
        """`left_s` returns the seconds that the run has left."""
        self.left_s = left_s
        self._failed_s = 0.0  # that the last boot needed to fail
        self._supervisor: Supervisor[LaunchPlan] | None = None

    def first_plan(self, plan: LaunchPlan) -> LaunchPlan:
        """Returns the plan of a boot's first start."""
        if self._supervisor is not None and self._supervisor.served is not None:
            plan = replace(plan, adjustments=self._supervisor.served.adjustments)
        if self.left_s() < 2 * self._failed_s:
            plan = safest(plan, Failure(FailureCause.UNKNOWN))
        return plan

    async def start(self, supervisor: Supervisor[LaunchPlan]) -> None:
        """Starts a server, and notes how that ended.

        Raises:
            ServerStartError: it did not come up.
        """
        began = time.monotonic()
        try:
            await supervisor.start()
        except ServerStartError:
            self._failed_s = time.monotonic() - began
            raise
        self._supervisor, self._failed_s = supervisor, 0.0
