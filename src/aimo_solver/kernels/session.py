"""A leased Python session and the record of one call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aimo_solver.errors import KernelError, LeaseTimeoutError, PoolClosedError
from aimo_solver.kernels.channel import Reply
from aimo_solver.kernels.limits import KernelLimits, KillReason
from aimo_solver.kernels.process import Ending, KernelProcess, Outcome
from aimo_solver.kernels.terminal import rendered

_TEXT_CHARS = 200_000  # more than a kernel sends by itself
_NAME_CHARS = 200
_GONE = "the session was restarted: what the cells before this one defined is gone"
_SUCCESSOR_S = 2.0  # how long a call that lost its process waits for the next one


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionResult:
    """What one call did.

    Attributes:
        stdout: what was printed, standard error included, in the order it was written.
        value: the last expression's value as a notebook shows it; None if there was none.
        error_name: class of the exception that ended the call; None if none did or the process was lost.
        traceback: trimmed, ending in ``ErrorName: message``.
        timed_out: the time limit was reached.
        killed_for: why the process is gone; None if it lives on.
        truncated: `stdout` is not all that was printed.
        seconds: from the call to its reply.
        notes: remarks for the model, one line each.
    """

    stdout: str
    value: str | None
    error_name: str | None
    traceback: str | None
    timed_out: bool
    killed_for: KillReason | None
    truncated: bool
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """The code did not run to its end."""
        return self.error_name is not None or self.timed_out or self.killed_for is not None

    def as_text(self, limit: int = 8_000) -> str:
        """What the model is shown: output, value, notes in square brackets, traceback.

        Cut in the middle to `limit` characters and the notes that say so; output gives way before notes and traceback.
        """
        told = "\n".join(part.rstrip("\n") for part in (self.stdout, self.value) if part)
        went_wrong = "\n".join([*(f"[{note}]" for note in self.notes), *filter(None, [self.traceback])])
        for_wrong = min(len(went_wrong), max(limit // 2, limit - len(told)))
        parts = [cut_middle(told, limit - for_wrong), cut_middle(went_wrong, for_wrong)]
        return "\n".join(filter(None, parts)) or "[no output]"


def cut_middle(text: str, limit: int) -> str:
    """Head and tail of a text, `limit` characters in all, with a note between them; the text itself if it is no longer."""
    if len(text) <= limit:
        return text
    head = limit // 2
    tail = limit - head
    return f"{text[:head]}\n[... {len(text) - limit:,} characters left out ...]\n{text[len(text) - tail :]}"


@asynccontextmanager
async def within(timeout_s: float | None) -> AsyncIterator[None]:
    """Bounds a wait for a kernel; raises LeaseTimeoutError."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise LeaseTimeoutError(timeout_s or 0.0) from None


class Kernel:
    """A Python session. It outlives its process: one that had to be killed is replaced within the lease.

    Args:
        process: the one to begin with.
        exchange: gives a process up and takes a fresh one, within so many seconds.
    """

    def __init__(
        self, process: KernelProcess, exchange: Callable[[KernelProcess, float], Awaitable[KernelProcess]], limits: KernelLimits
    ) -> None:
        self.process: KernelProcess | None = process
        self._exchange = exchange
        self._limits = limits
        self._cells: list[tuple[str, float]] = []  # those that ended by themselves, with their seconds
        self._lock = asyncio.Lock()
        self._rebuilt = False  # the cells were run again, and no call has succeeded since
        self._abandoned = False  # a cancelled call may still run, or the process was given up

    async def execute(self, code: str, timeout_s: float = 6.0) -> ExecutionResult:
        """Runs a cell. Calls of one lease wait for each other.

        Takes `timeout_s`, a fresh process for a lost one included, and in the worst case a few seconds more: the grace period,
        the killing, and `_SUCCESSOR_S` for a successor.

        Raises:
            PoolClosedError: the pool was closed meanwhile.
            KernelStartError: a lost process has no successor. The next call asks for one again.
            LeaseTimeoutError: it has none in time.
            KernelError: the lease is over.
        """
        async with self._lock:
            left, notes = timeout_s, list[str]()
            process = self._held()
            if self._abandoned or not process.alive:
                began = time.monotonic()
                process, note = await self._replace(process, timeout_s)
                left = max(0.0, began + timeout_s - time.monotonic())
                notes.append(note)
            self._abandoned = True
            outcome = await process.call(code.encode("utf-8", "replace").decode(), left)
            self._abandoned = False
            if outcome.interrupted is not None:
                notes.append(self._interruption(outcome, left))
            if outcome.ending is None:
                if outcome.interrupted is None:
                    self._cells.append((code, outcome.seconds))
                    self._rebuilt = False
            else:
                if outcome.interrupted is None:
                    notes.append(_obituary(outcome.ending))
                notes.append(await self._succeed(process))
            return _result(outcome, tuple(notes))

    def _held(self) -> KernelProcess:
        if self.process is None:
            raise KernelError("the lease of this kernel is over")
        return self.process

    async def _succeed(self, process: KernelProcess) -> str:
        try:
            return (await self._replace(process, _SUCCESSOR_S))[1]
        except PoolClosedError:
            raise
        except KernelError:
            return "the session is lost, and Python is not available at the moment"

    async def _replace(self, process: KernelProcess, timeout_s: float) -> tuple[KernelProcess, str]:
        """A fresh process, with the session built up again if that is cheap, and the note that says so."""
        self._abandoned = True
        process = self.process = await self._exchange(process, timeout_s)
        self._abandoned = False
        cells, self._cells = self._cells, []
        if not cells:
            return process, "the session was restarted"
        if self._rebuilt:
            self._rebuilt = False
            return process, f"{_GONE}; they were not run again, as the session was lost after them once more"
        if sum(seconds for _, seconds in cells) <= self._limits.replay_s:
            for code, seconds in cells:
                self._abandoned = True
                outcome = await process.call(code, self._limits.replay_s + seconds)
                if outcome.interrupted is not None or outcome.ending is not None:
                    process = self.process = await self._exchange(process, timeout_s)
                    self._abandoned = False
                    break
                self._abandoned = False
            else:
                self._cells = cells
                self._rebuilt = True
                return process, "the session was restarted, and the cells before this one were run again"
        return process, _GONE

    def _interruption(self, outcome: Outcome, timeout_s: float) -> str:
        if outcome.interrupted is KillReason.OUTPUT:
            return f"stopped: it printed more than {self._limits.flood_bytes:,} bytes"
        return f"stopped at the time limit of {round(timeout_s, 2):g} s" + ("" if outcome.stdout else "; nothing was printed")


def _obituary(ending: Ending) -> str:
    match ending.reason:
        case KillReason.EXIT:
            return f"the code ended the Python process ({ending.detail})"
        case KillReason.CRASH:
            return f"the Python process crashed ({ending.detail})"
        case KillReason.PROTOCOL:
            return f"the Python process was killed, because it could not be talked to ({ending.detail})"
        case None:
            return f"the Python process was killed ({ending.detail})"
        case reason:
            return f"the Python process was killed: {reason} limit reached ({ending.detail})"


def _result(outcome: Outcome, notes: tuple[str, ...]) -> ExecutionResult:
    reply = outcome.reply or Reply(value=None, error_name=None, traceback=None)
    return ExecutionResult(
        stdout=rendered(outcome.stdout),
        value=None if reply.value is None else rendered(cut_middle(reply.value, _TEXT_CHARS)),
        error_name=None if reply.error_name is None else rendered(reply.error_name[:_NAME_CHARS]),
        traceback=None if reply.traceback is None else rendered(cut_middle(reply.traceback, _TEXT_CHARS)),
        timed_out=outcome.interrupted is KillReason.HANG,
        killed_for=outcome.ending.reason if outcome.ending else None,
        truncated=outcome.truncated,
        seconds=outcome.seconds,
        notes=notes,
    )
