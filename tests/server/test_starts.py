"""What a boot takes over from earlier boots of the same run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aimo_solver.config import Config
from aimo_solver.errors import ServerStartError
from aimo_solver.server import launch
from aimo_solver.server.failures import Failure, FailureCause
from aimo_solver.server.flags import Adjustments
from aimo_solver.server.ladder import next_plan
from aimo_solver.server.launch import LaunchPlan, plan_launch
from aimo_solver.server.process import ServerCommand, ServerProcess
from aimo_solver.server.supervisor import StartHistory, Supervisor
from tests.conftest import H100, MODEL

LOWER = Failure(FailureCause.LOADING_MEMORY)


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> LaunchPlan:
    monkeypatch.setattr(launch, "installed_flags", lambda path: None)
    return plan_launch(MODEL, Config(), gpus=(H100,))


class Starts:
    """Starts that succeed from the `number`-th on; no process runs."""

    def __init__(self, number: int) -> None:
        self.commands: list[ServerCommand] = []
        self._number = number

    async def start(self, server: ServerProcess, healthy: Callable[[], Awaitable[bool]], timeout_s: float) -> None:
        self.commands.append(server.command)
        if len(self.commands) < self._number:
            raise ServerStartError("ended", server.command.args, 1, ["torch.OutOfMemoryError: CUDA out of memory"])


async def boot(history: StartHistory, plan: LaunchPlan, starts: Starts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ServerProcess, "start", lambda *arguments: starts.start(*arguments))
    monkeypatch.setattr(ServerProcess, "alive", True)

    def ignore(kind: str, **values: Any) -> None: ...

    async with plan.engine() as engine:
        first = history.first_plan(plan)
        supervisor = Supervisor(first, engine, Path("/dev/null"), ignore, pause_s=0.0)
        try:
            await history.start(supervisor)
        finally:
            await supervisor.stop()


async def test_what_served_is_the_next_boots_first_start(plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    history = StartHistory()
    await boot(history, plan, Starts(2), monkeypatch)
    assert history.first_plan(plan) == next_plan(plan, LOWER, last=False, port=1)
    assert history.adjustments.steps == history.first_plan(plan).adjustments.steps != ()


def test_a_first_boot_keeps_the_adjustments_of_its_plan(plan: LaunchPlan) -> None:
    spawned = replace(plan, adjustments=Adjustments(fork=False))
    assert StartHistory().first_plan(spawned) == spawned


async def test_a_boot_that_failed_is_repeated_with_the_first_command_and_the_last_that_fits_with_the_safest(
    plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_s = 1_000.0
    history = StartHistory(lambda: left_s)
    starts = Starts(99)
    with pytest.raises(ServerStartError):
        await boot(history, plan, starts, monkeypatch)
    assert len(starts.commands) == 1 + plan.config.server.restarts
    assert history.first_plan(plan) == plan
    left_s = 0.0
    assert "--enforce-eager" in history.first_plan(plan).command.args
