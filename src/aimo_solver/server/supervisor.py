"""Supervises a vLLM server: restarts one that died, hangs or does not answer, and keeps what served for later boots."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from aimo_solver.errors import ServerError, ServerSpawnError, ServerStartError
from aimo_solver.server.client import VllmEngine
from aimo_solver.server.failures import Failure, FailureCause, read_failure
from aimo_solver.server.flags import UNADJUSTED, Adjustments
from aimo_solver.server.ladder import next_plan, safest
from aimo_solver.server.launch import LaunchPlan
from aimo_solver.server.process import ServerProcess, free_port

_POLL_S = 0.25
_PROBE_S = 2.0  # between two probes of an idle server
_ANSWER_S = 5.0  # for the answer to one
_LONGEST_PAUSE_S = 30.0  # between two starts that fail

log = logging.getLogger(__name__)


class Supervisor:
    """Keeps one server running, with a bounded number of restarts. Attempts wait meanwhile (`Engine.wait_ready`).

    It counts the engine's `faults`, and sets its `lost` when no restart is left.

    Attributes:
        plan: how the last start was made.
        served: how the last successful start was made; None before there is one.
        server: the last one started.
    """

    def __init__(
        self, plan: LaunchPlan, engine: VllmEngine, log_path: Path | None, on_event: Callable[..., None], *, pause_s: float = 1.0
    ) -> None:
        """Prepares a server; `start` starts it.

        Args:
            plan: how the first start is made. A server that served and died is first restarted in the same way. After that,
                and after a start that failed, comes what `next_plan` returns, and the last restart takes the safest flags.
            engine: a client of the server; follows it to another port.
            log_path: where the server's output goes.
            on_event: called as `on_event(kind, **values)` at every start, fault and restart.
            pause_s: pause after the first failed start; doubled after each further one.
        """
        self.plan = plan
        self.served: LaunchPlan | None = None
        self.server = ServerProcess(plan.command, log_path)
        self._options = plan.config.server
        self._engine = engine
        self._log_path = log_path
        self._on_event = on_event
        self._pause_s = pause_s
        self._tokens_at_start = 0
        self._watcher: asyncio.Task[None] | None = None
        self._restarts_left = self._options.restarts
        self._repeated = False

    async def start(self) -> None:
        """Starts the server; returns when it is ready. From then on it is watched.

        Raises:
            ServerStartError: no command brought the server up.
        """
        await self._bring_up()
        self._watcher = asyncio.create_task(self._watch(), name="server-watcher")

    def refill(self) -> None:
        """Gives all restarts back. Called after every problem that ended well."""
        self._restarts_left = self._options.restarts
        self._repeated = False

    async def stop(self) -> None:
        """Stops watching, and stops the server."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
            self._watcher = None
        await self.server.stop()

    async def _bring_up(self) -> None:
        pause_s = self._pause_s
        while True:
            command = self.plan.command
            self._engine.base_url = self.plan.url
            self.server = ServerProcess(command, self._log_path)
            self._report("server_starting", command=" ".join(command.args))
            started = time.monotonic()
            try:
                await self.server.start(self._engine.ready, self._options.start_timeout_s)
            except ServerStartError as error:
                spawned = not isinstance(error, ServerSpawnError)
                failure = read_failure(error.log_tail, error.exit_code) if spawned else Failure(FailureCause.NOT_STARTED)
                seconds = time.monotonic() - started
                self._report("server_start_failed", cause=failure.cause.value, error=str(error), seconds=seconds)
                # Without vLLM no command helps: the next boot takes other packages (`Installation.renewed`).
                if self._restarts_left == 0 or failure.cause is FailureCause.IMPORT:
                    raise
            else:
                self.served = self.plan
                self._tokens_at_start = self._engine.tokens_streamed
                self._report("server_ready", pid=self.server.pid, seconds=time.monotonic() - started)
                return
            self._adjust(failure)
            await asyncio.sleep(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)

    def _adjust(self, failure: Failure) -> None:
        """Uses one restart, with what can help against the failure."""
        self._restarts_left -= 1
        self._repeated = False
        last = self._restarts_left == 0
        before, self.plan = self.plan, next_plan(self.plan, failure, last=last, port=free_port())
        steps = self.plan.adjustments.steps[len(before.adjustments.steps) :]
        step = "; ".join(steps) or f"nothing is left to change ({failure.cause})"
        self._report("server_adjusted", step=step, line=failure.line)

    async def _watch(self) -> None:
        while self._engine.lost is None:
            try:
                await self._replace(await self._wait_for_fault())
            except ServerStartError as error:
                self._engine.lost = error
            except Exception:  # noqa: BLE001 - the server must stay watched; a defect here is reported instead
                self._report("server_watch_failed", error=traceback.format_exc())
                await asyncio.sleep(self._pause_s)

    async def _wait_for_fault(self) -> str:
        """Returns what is wrong with the server as soon as something is.

        A sign of life is a token, or an answer to a probe while no request runs.
        """
        stall_s = self._options.stall_s
        tokens, silent_s, probed, before = -1, 0.0, -_PROBE_S, time.monotonic()
        while True:
            await asyncio.sleep(_POLL_S)
            if not self.server.alive:
                return "the vLLM server died"
            now = time.monotonic()
            # While the solver itself was stopped or busy, it read nothing: little of that time counts as silence.
            silent_s += min(now - before, _ANSWER_S)
            before = now
            if self._engine.tokens_streamed != tokens:
                tokens, silent_s = self._engine.tokens_streamed, 0.0
            elif self._engine.running == 0 and now - probed >= min(_PROBE_S, stall_s / 4):
                probed = now
                if await self._engine.answers(min(_ANSWER_S, stall_s)):
                    silent_s = 0.0
            if silent_s >= stall_s:
                what = "gave no token while requests ran" if self._engine.running else "did not answer"
                return f"the vLLM server {what} for {stall_s:.0f} s"

    async def _replace(self, problem: str) -> None:
        """Stops the server and starts another one.

        Raises:
            ServerStartError: no other one came up.
        """
        self._engine.faults += 1
        hung = self.server.alive
        await self.server.stop(grace_s=0.0)
        error = self.server.error(ServerError, problem)
        self._report("server_fault", error=str(error), restarts_left=self._restarts_left)
        if self._restarts_left == 0:
            self._engine.lost = error
            return
        if self._engine.tokens_streamed > self._tokens_at_start and not self._repeated:
            self._restarts_left -= 1
            self._repeated = True
        else:
            self._adjust(read_failure(error.log_tail, None if hung else error.exit_code))
        await self._bring_up()

    def _report(self, kind: str, **values: object) -> None:
        try:
            self._on_event(kind, **values)
        except Exception:  # of the observer; supervision goes on
            log.exception("the event %s could not be reported", kind)


class StartHistory:
    """The starts of a run: a boot begins with the adjustments that served before, plus the safest flags if time is short.

    A boot whose server never came up leaves no adjustments: what failed then may be gone, such as memory that another process
    took or a mount that appeared late.
    """

    def __init__(self, left_s: Callable[[], float] = lambda: float("inf")) -> None:
        """`left_s` returns the seconds that the run has left."""
        self.left_s = left_s
        self._failed_s = 0.0  # how long the last boot took to fail
        self._supervisor: Supervisor | None = None

    @property
    def adjustments(self) -> Adjustments:
        """What failed starts had changed about the server that served last."""
        served = None if self._supervisor is None else self._supervisor.served
        return UNADJUSTED if served is None else served.adjustments

    def first_plan(self, plan: LaunchPlan) -> LaunchPlan:
        """Returns the plan of a boot's first start."""
        if self._supervisor is not None:
            plan = replace(plan, adjustments=self.adjustments)
        if self.left_s() < 2 * self._failed_s:
            plan = safest(plan, Failure(FailureCause.UNKNOWN))
        return plan

    async def start(self, supervisor: Supervisor) -> None:
        """Starts a server, and records how that ended.

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
