"""Keeps a vLLM server up: one that died, hangs or does not answer is replaced."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from aimo_solver.errors import ServerDiedError, ServerError, ServerStartError
from aimo_solver.server.process import Server, ServerCommand

_POLL_S = 0.25
_LOOK_S = 2.0  # between two looks at an idle server
_PATIENCE_S = 5.0  # for its answer
_LONGEST_PAUSE_S = 30.0  # between two starts that fail

log = logging.getLogger(__name__)


class Progress(Protocol):
    """What tells a hung server from a busy or an idle one; `engine.VllmEngine`.

    Attributes:
        tokens_streamed, running: all tokens so far, and requests under way.
        faults: how often the server was lost; the supervisor counts.
        lost: why no server will come any more; the supervisor sets it.
    """

    tokens_streamed: int
    running: int
    faults: int
    lost: ServerError | None

    async def ready(self) -> bool:
        """True if a fresh server can be used."""
        ...

    async def answers(self, timeout_s: float) -> bool:
        """True if a server that no request runs on would answer one."""
        ...


class Supervisor:
    """Keeps one server up, with a bounded number of restarts. Attempts wait meanwhile (`Engine.wait_ready`)."""

    def __init__(
        self,
        commands: Sequence[ServerCommand],
        log_path: Path | None,
        progress: Progress,
        *,
        start_timeout_s: float,
        stall_s: float,
        restarts: int,
        on_event: Callable[..., None],
        pause_s: float = 1.0,
    ) -> None:
        """`on_event(kind, **values)` gets every start, fault and restart.

        Args:
            commands: from the fastest to the safest. A server that served and died is started once more as it was; then, and
                after a start that failed, comes the next command, and the last one as often as restarts are left.
            log_path: where the server's output goes.
            stall_s: a server that gives no sign of life for so many seconds is replaced.
            restarts: how often a server that failed is started again, until `refill`.
            pause_s: after a start that failed; doubled from one to the next.
        """
        self._commands = tuple(commands)
        self._log_path = log_path
        self._progress = progress
        self._start_timeout_s = start_timeout_s
        self._stall_s = stall_s
        self._restarts = restarts
        self._on_event = on_event
        self._pause_s = pause_s
        self._left = restarts
        self._step = 0
        self._repeated = False
        self._tokens_at_start = 0
        self._watcher: asyncio.Task[None] | None = None
        self.server = Server(self._commands[0], log_path)

    async def start(self) -> None:
        """Returns when the server is ready, and watches it from then on.

        Raises:
            ServerStartError: no command came up.
        """
        await self._bring_up()
        self._watcher = asyncio.create_task(self._watch(), name="server-watcher")

    def refill(self) -> None:
        """Gives all restarts back; for a run to call after every problem that ended well."""
        self._left = self._restarts
        self._repeated = False

    async def stop(self) -> None:
        """Ends the watching and the server."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
            self._watcher = None
        await self.server.stop()

    async def _bring_up(self) -> None:
        pause_s = self._pause_s
        while True:
            command = self._commands[self._step]
            self.server = Server(command, self._log_path)
            self._tell("server_starting", command=" ".join(command.args))
            started = time.monotonic()
            try:
                await self.server.start(self._progress.ready, self._start_timeout_s)
            except ServerStartError as error:
                seconds = time.monotonic() - started
                self._tell("server_start_failed", error=str(error), seconds=seconds)
                if self._left == 0:
                    raise
            else:
                self._tokens_at_start = self._progress.tokens_streamed
                self._tell("server_ready", pid=self.server.pid, seconds=time.monotonic() - started)
                return
            self._left -= 1
            self._next_command()
            await asyncio.sleep(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)

    def _next_command(self) -> None:
        self._step = min(self._step + 1, len(self._commands) - 1)
        self._repeated = False

    async def _watch(self) -> None:
        while self._progress.lost is None:
            try:
                await self._replace(await self._fault())
            except ServerStartError as error:
                self._progress.lost = error
            except Exception:  # noqa: BLE001 - whatever it was, a server must be watched; a defect here is told, not died of
                self._tell("server_watch_failed", error=traceback.format_exc())
                await asyncio.sleep(self._pause_s)

    async def _fault(self) -> str:
        """Waits until something is wrong with the server; says what.

        A sign of life is a token, or an answer while nothing runs: then no token is due.
        """
        tokens, silent_s, looked, before = -1, 0.0, -_LOOK_S, time.monotonic()
        while True:
            await asyncio.sleep(_POLL_S)
            if not self.server.alive:
                return "the vLLM server died"
            now = time.monotonic()
            # A solver that was stopped itself, or busy, has not listened: that time is not the server's silence.
            silent_s += min(now - before, _PATIENCE_S)
            before = now
            if self._progress.tokens_streamed != tokens:
                tokens, silent_s = self._progress.tokens_streamed, 0.0
            elif self._progress.running == 0 and now - looked >= min(_LOOK_S, self._stall_s / 4):
                looked = now
                if await self._progress.answers(min(_PATIENCE_S, self._stall_s)):
                    silent_s = 0.0
            if silent_s >= self._stall_s:
                what = "gave no token while requests ran" if self._progress.running else "did not answer"
                return f"the vLLM server {what} for {self._stall_s:.0f} s"

    async def _replace(self, problem: str) -> None:
        """Ends the server and brings up another one.

        Raises:
            ServerStartError: no other one came up.
        """
        self._progress.faults += 1
        await self.server.stop(grace_s=0.0)
        error = self.server.error(ServerDiedError, problem)
        self._tell("server_fault", error=str(error), restarts_left=self._left)
        if self._left == 0:
            self._progress.lost = error
            return
        self._left -= 1
        if self._progress.tokens_streamed > self._tokens_at_start and not self._repeated:
            self._repeated = True
        else:
            self._next_command()
        await self._bring_up()

    def _tell(self, kind: str, **values: object) -> None:
        try:
            self._on_event(kind, **values)
        except Exception:
            log.exception("%s could not be told", kind)
