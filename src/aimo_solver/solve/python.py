"""Python for one attempt: a session that is leased on first use, the calls in it, and their counts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Protocol

from aimo_solver.chat.prompts import NO_PYTHON, NO_SESSION, NOT_RUN, SESSION_LOST
from aimo_solver.errors import KernelError, PoolClosedError
from aimo_solver.kernels.options import KernelConfig
from aimo_solver.kernels.session import ExecutionResult
from aimo_solver.log.trajectory import TrajectoryWriter
from aimo_solver.problems import Answer

_PATIENCE_S = 20.0  # longest wait for a session; a kernel starts in less than a second
_OVERRUN_S = 20.0  # a call past its limit: 11 s until it is killed, and the time to replace its session
_MOST_MISSES = 3  # leases that failed in a row, after which Python counts as lost for good
_INTEGER = re.compile(r"(?<![\d.])\d{1,5}(?!\d|\.\d)")


class PythonSession(Protocol):
    """The part of `kernels.session.Kernel` that an attempt uses."""

    async def execute(self, code: str, timeout_s: float) -> ExecutionResult: ...


class PythonPool(Protocol):
    """The part of `kernels.pool.KernelPool` that an attempt uses."""

    def lease(self, timeout_s: float | None) -> AbstractAsyncContextManager[PythonSession]: ...


class LeasedPython:
    """Runs the calls of one attempt.

    Attributes:
        calls: calls so far; errors: those that ended in an error, a timeout or a kill.
        seconds: time spent in calls, including the wait for a session.
        fault: why the last call got no result; None if it got one.
    """

    def __init__(self, pool: PythonPool, options: KernelConfig, clock: Callable[[], float], trajectory: TrajectoryWriter) -> None:
        self.calls = 0
        self.errors = 0
        self.seconds = 0.0
        self.fault: str | None = None
        self._pool = pool
        self._options = options
        self._clock = clock
        self._trajectory = trajectory
        self._seen: set[str] = set()  # integers in outputs
        self._patience_s = _PATIENCE_S
        self._misses = 0
        self._lease = AsyncExitStack()
        self._session: PythonSession | None = None

    def has_printed(self, answer: Answer | None) -> bool:
        """Returns whether an integer occurred in an output."""
        return str(answer) in self._seen

    async def run(self, code: str, *, until: float, grace_s: float) -> str:
        """Runs one call; returns its output, or a note on why there is none, for the model.

        The call is interrupted at `until`, by the clock; one that ends slowly after that is abandoned `grace_s` later.
        """
        started = self._clock()
        left = until - started
        if left <= 0:
            return NOT_RUN
        self.calls += 1
        self.fault, error_name, timed_out = None, None, False
        try:
            most = _PATIENCE_S + self._options.timeout_s + _OVERRUN_S
            async with asyncio.timeout(min(left, most) + grace_s):
                result = await self._execute(code, until)
            output, error_name, timed_out = result.as_text(self._options.output_chars), result.error_name, result.timed_out
            self.errors += result.failed
            self._seen.update(_INTEGER.findall(output))
        except (KernelError, TimeoutError) as fault:
            output, error_name = self._describe(fault), type(fault).__name__
            self.fault = f"{error_name}: {fault}"
            await self.release()
        seconds = self._clock() - started
        self.seconds += seconds
        self._trajectory.write_tool_call(code, output, seconds=seconds, error_name=error_name, timed_out=timed_out)
        return output

    async def release(self) -> None:
        """Ends the lease of the session. Does nothing if there is none."""
        self._session = None
        await self._lease.aclose()

    async def _execute(self, code: str, until: float) -> ExecutionResult:
        session = await self._acquire(until - self._clock())
        return await session.execute(code, timeout_s=min(self._options.timeout_s, max(0.0, until - self._clock())))

    async def _acquire(self, left_s: float) -> PythonSession:
        """Returns the session with the definitions of earlier calls, or leases a new one within `left_s`.

        A failed wait halves the next one, so an attempt that gets no session loses at most twice `_PATIENCE_S`.

        Raises:
            KernelError: kernels do not start, or none was free in time.
        """
        if self._session is None:
            patience_s, self._patience_s = self._patience_s, self._patience_s / 2
            self._misses += 1
            self._session = await self._lease.enter_async_context(self._pool.lease(min(patience_s, left_s)))
            self._misses, self._patience_s = 0, patience_s
        return self._session

    def _describe(self, fault: Exception) -> str:
        """Returns the note for the model on a call without a result."""
        if isinstance(fault, PoolClosedError) or self._misses >= _MOST_MISSES:
            return NO_PYTHON
        return NO_SESSION if self._session is None else SESSION_LOST
