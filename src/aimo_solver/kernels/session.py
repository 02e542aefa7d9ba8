"""A leased Python session and the result of one call."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aimo_solver.errors import KernelError, PoolClosedError
from aimo_solver.kernels.channel import Reply
from aimo_solver.kernels.limits import Ending, KernelLimits, KillReason
from aimo_solver.kernels.process import KernelProcess, Outcome
from aimo_solver.kernels.text import cut_middle, render_terminal

_TEXT_CHARS = 200_000  # more than an unmodified kernel sends
_NAME_CHARS = 200
_STATE_LOST = "the session was restarted: what the cells before this one defined is gone"
_SUCCESSOR_S = 2.0  # wait for a new process, in a call that lost its own
_REPLAY_S = 1.0  # cells of a lost process are run again if they took no longer than this together


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionResult:
    """The result of one call.

    Attributes:
        stdout: what was printed, including standard error, in the order of writing.
        value: the last expression's value as a notebook shows it; None if there was none.
        error_name: class of the exception that ended the call; None if there was none or the process ended.
        traceback: trimmed; the last line is ``ErrorName: message``.
        timed_out: the time limit was reached.
        killed_for: why the process ended; None if it still runs.
        truncated: `stdout` is incomplete.
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
        """Whether the code did not run to its end."""
        return self.error_name is not None or self.timed_out or self.killed_for is not None

    def as_text(self, limit: int = 4_000) -> str:
        """Returns the text for the model: output, value, notes in square brackets, traceback.

        Output is cut first, then notes and traceback, each in the middle, to `limit` characters plus the notes on the cuts.
        """
        printed = "\n".join(part.rstrip("\n") for part in (self.stdout, self.value) if part)
        problems = "\n".join([*(f"[{note}]" for note in self.notes), *filter(None, [self.traceback])])
        problem_chars = min(len(problems), max(limit // 2, limit - len(printed)))
        parts = [cut_middle(printed, limit - problem_chars), cut_middle(problems, problem_chars)]
        return "\n".join(filter(None, parts)) or "[no output]"


class Kernel:
    """A Python session. If its process has to be killed, another one takes its place within the lease.

    Args:
        exchange: discards a process and returns a new one within the given seconds.
    """

    def __init__(
        self, process: KernelProcess, exchange: Callable[[KernelProcess, float], Awaitable[KernelProcess]], limits: KernelLimits
    ) -> None:
        self.process: KernelProcess | None = process
        self._exchange = exchange
        self._limits = limits
        self._cells: list[tuple[str, float]] = []  # those that ran to their end, with their durations
        self._lock = asyncio.Lock()
        self._replayed = False  # the cells were run again, and no call has succeeded since
        self._unusable = False  # a cancelled call may still run, or the process was discarded

    async def execute(self, code: str, timeout_s: float = 6.0) -> ExecutionResult:
        """Runs a cell. Calls of one lease run one after another.

        Takes at most `timeout_s`, including the replacement of a lost process, and in the worst case a few seconds more: the
        grace period, the time to kill the process, and `_SUCCESSOR_S` for a new process.

        Raises:
            PoolClosedError: the pool was closed.
            KernelStartError: a lost process could not be replaced. The next call tries again.
            LeaseTimeoutError: it could not be replaced in time.
            KernelError: the lease has ended.
        """
        async with self._lock:
            left, notes = timeout_s, list[str]()
            if self._unusable or not self._current().alive:
                began = time.monotonic()
                notes.append(await self._restart(timeout_s))
                left = max(0.0, began + timeout_s - time.monotonic())
            outcome = await self._call(code.encode("utf-8", "replace").decode(), left)
            if outcome.interrupted is not None:
                notes.append(self._describe_interrupt(outcome, left))
            elif outcome.ending is None:
                self._cells.append((code, outcome.seconds))
                self._replayed = False
            else:
                notes.append(_describe(outcome.ending))
            if outcome.ending is not None:
                notes.append(await self._try_restart())
            return _result(outcome, tuple(notes))

    def _current(self) -> KernelProcess:
        if self.process is None:
            raise KernelError("the lease of this kernel has ended")
        return self.process

    async def _call(self, code: str, timeout_s: float) -> Outcome:
        process = self._current()
        self._unusable = True  # in case this is cancelled
        outcome = await process.call(code, timeout_s)
        self._unusable = False
        return outcome

    async def _renew(self, timeout_s: float) -> None:
        process = self._current()
        self._unusable = True
        self.process = await self._exchange(process, timeout_s)
        self._unusable = False

    async def _try_restart(self) -> str:
        try:
            return await self._restart(_SUCCESSOR_S)
        except PoolClosedError:
            raise
        except KernelError:
            return "the session is lost, and Python is not available at the moment"

    async def _restart(self, timeout_s: float) -> str:
        """Gets a new process, runs the cells again if that is cheap, and returns a note about it."""
        await self._renew(timeout_s)
        cells, self._cells = self._cells, []
        if not cells:
            return "the session was restarted"
        if self._replayed:
            self._replayed = False
            return f"{_STATE_LOST}; they were not run again, because the session was lost again after they had been"
        if sum(seconds for _, seconds in cells) > _REPLAY_S:
            return _STATE_LOST
        for code, seconds in cells:
            outcome = await self._call(code, _REPLAY_S + seconds)
            if outcome.interrupted is not None or outcome.ending is not None:
                await self._renew(timeout_s)
                return _STATE_LOST
        self._cells = cells
        self._replayed = True
        return "the session was restarted, and the cells before this one were run again"

    def _describe_interrupt(self, outcome: Outcome, timeout_s: float) -> str:
        if outcome.interrupted is KillReason.OUTPUT:
            return f"stopped: it printed more than {self._limits.flood_bytes:,} bytes"
        return f"stopped at the time limit of {round(timeout_s, 2):g} s" + ("" if outcome.stdout else "; nothing was printed")


def _describe(ending: Ending) -> str:
    match ending.reason:
        case KillReason.EXIT:
            return f"the code ended the Python process ({ending.detail})"
        case KillReason.CRASH:
            return f"the Python process crashed ({ending.detail})"
        case KillReason.PROTOCOL:
            return f"the Python process was killed because of a communication error ({ending.detail})"
        case None:
            return f"the Python process was killed ({ending.detail})"
        case reason:
            return f"the Python process was killed: {reason} limit reached ({ending.detail})"


def _result(outcome: Outcome, notes: tuple[str, ...]) -> ExecutionResult:
    reply = outcome.reply or Reply()
    return ExecutionResult(
        stdout=render_terminal(outcome.stdout),
        value=None if reply.value is None else render_terminal(cut_middle(reply.value, _TEXT_CHARS)),
        error_name=None if reply.error_name is None else render_terminal(reply.error_name[:_NAME_CHARS]),
        traceback=None if reply.traceback is None else render_terminal(cut_middle(reply.traceback, _TEXT_CHARS)),
        timed_out=outcome.interrupted is KillReason.HANG,
        killed_for=outcome.ending.reason if outcome.ending else None,
        truncated=outcome.truncated,
        seconds=outcome.seconds,
        notes=notes,
    )
