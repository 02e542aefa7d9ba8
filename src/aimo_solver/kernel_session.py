"""A leased Python session and the record of one call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aimo_solver.errors import KernelError
from aimo_solver.kernel_limits import KernelLimits, KillReason
from aimo_solver.kernel_process import Ending, KernelProcess, Outcome


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


class Kernel:
    """A Python session. It outlives its process: one that had to be killed is replaced within the lease.

    Args:
        process: the one to begin with.
        exchange: gives a process up and takes a fresh one.
    """

    def __init__(
        self, process: KernelProcess, exchange: Callable[[KernelProcess], Awaitable[KernelProcess]], limits: KernelLimits
    ) -> None:
        self.process: KernelProcess | None = process
        self._exchange = exchange
        self._limits = limits
        self._cells: list[tuple[str, float]] = []  # those that ended by themselves, with their seconds
        self._lock = asyncio.Lock()
        self._abandoned = False  # a cancelled call may still run

    async def execute(self, code: str, timeout_s: float = 6.0) -> ExecutionResult:
        """Runs a cell. Calls of one lease wait for each other.

        Raises:
            PoolClosedError: the pool was closed meanwhile.
            KernelStartError: a lost process has no successor.
            KernelError: the lease is over.
        """
        async with self._lock:
            process = self._held()
            notes: list[str] = []
            if self._abandoned or not process.alive:
                process, note = await self._replace(process)
                notes.append(note)
            self._abandoned = True
            outcome = await process.call(code.encode("utf-8", "replace").decode(), timeout_s)
            self._abandoned = False
            if outcome.interrupted is not None:
                notes.append(self._interruption(outcome, timeout_s))
            if outcome.ending is None:
                if outcome.interrupted is None:
                    self._cells.append((code, outcome.seconds))
            else:
                if outcome.interrupted is None:
                    notes.append(_obituary(outcome.ending))
                notes.append((await self._replace(process))[1])
            return _result(outcome, tuple(notes))

    def _held(self) -> KernelProcess:
        if self.process is None:
            raise KernelError("the lease of this kernel is over")
        return self.process

    async def _replace(self, process: KernelProcess) -> tuple[KernelProcess, str]:
        """A fresh process, with the session built up again if that is cheap, and the note that says so."""
        process = self.process = await self._exchange(process)
        self._abandoned = False
        cells, self._cells = self._cells, []
        if not cells:
            return process, "the session was restarted"
        if sum(seconds for _, seconds in cells) <= self._limits.replay_s:
            for code, seconds in cells:
                outcome = await process.call(code, self._limits.replay_s + seconds)
                if outcome.interrupted is not None or outcome.ending is not None:
                    process = self.process = await self._exchange(process)
                    break
            else:
                self._cells = cells
                return process, "the session was restarted, and the cells before this one were run again"
        return process, "the session was restarted: what the cells before this one defined is gone"

    def _interruption(self, outcome: Outcome, timeout_s: float) -> str:
        if outcome.interrupted is KillReason.OUTPUT:
            return f"stopped: it printed more than {self._limits.flood_bytes:,} bytes"
        return f"stopped at the time limit of {timeout_s:g} s" + ("" if outcome.stdout else "; nothing was printed")


def _obituary(ending: Ending) -> str:
    match ending.reason:
        case KillReason.EXIT:
            return f"the code ended the Python process ({ending.detail})"
        case KillReason.CRASH:
            return f"the Python process crashed ({ending.detail})"
        case None:
            return f"the Python process was killed ({ending.detail})"
        case reason:
            return f"the Python process was killed: {reason} limit reached ({ending.detail})"


def _result(outcome: Outcome, notes: tuple[str, ...]) -> ExecutionResult:
    reply = outcome.reply or {}
    return ExecutionResult(
        stdout=outcome.stdout,
        value=reply.get("value"),
        error_name=reply.get("ename") if reply.get("status") == "error" else None,
        traceback="\n".join(reply.get("traceback") or ()) or None,
        timed_out=outcome.interrupted is KillReason.HANG,
        killed_for=outcome.ending.reason if outcome.ending else None,
        truncated=outcome.truncated,
        seconds=outcome.seconds,
        notes=notes,
    )
