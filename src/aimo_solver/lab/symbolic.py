r"""Symbolic answers: equal values get the same text, so that votes and verdicts compare texts.

math-verify compares two values. It runs in kernels of its own: answers are text of a model, and LaTeX such as ``9^{9^{9^9}}``
keeps a process busy forever. A comparison that takes too long or fails means "not equal".

Numbers are compared exactly; a decimal fraction equals a value with the same first `DIGITS` decimals. math-verify ignores units,
the signs of degree and percent and the base of a number (``4343_6``), and does not read ``i`` as the imaginary unit.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from types import TracebackType
from typing import Self

from aimo_solver.errors import KernelError
from aimo_solver.kernels.limits import KernelLimits
from aimo_solver.kernels.pool import KernelPool
from aimo_solver.kernels.session import Kernel
from aimo_solver.lab.extras import load_extra
from aimo_solver.problems import Problem
from aimo_solver.results import Attempt

DIGITS = 12
_START_S = 30.0
_LIMITS = KernelLimits(memory_mb=2_048, cpu_s=1_000_000)  # one kernel makes all comparisons of a run
_CELL = """
import logging
from math_verify import LatexExtractionConfig, parse, verify
logging.disable()
values = [parse(f"${{text}}$", extraction_config=[LatexExtractionConfig()], parsing_timeout=None) for text in {texts!r}]
any(verify(a, b, float_rounding={digits}, timeout_seconds=None) for a, b in (values, values[::-1]))
"""


class SymbolicAnswers(AbstractAsyncContextManager["SymbolicAnswers"]):
    """Unifies the answers of attempts during a run.

    Args:
        on_event: called with ``comparison_failed``, the two texts and ``error`` for a comparison without a result.
        comparison_s: longest comparison of two answers.
        answer_s: longest time for all comparisons of one answer; what is not compared by then counts as not equal.

    Raises:
        UserError: math-verify is not installed.
    """

    def __init__(
        self,
        on_event: Callable[..., object] = lambda kind, **values: None,
        *,
        comparison_s: float = 4.0,
        answer_s: float = 10.0,
    ) -> None:
        load_extra("math_verify", "pip install 'aimo-solver[symbolic]'")
        self._pool = KernelPool(1, 1, _LIMITS, preload=("math_verify",), on_event=on_event)
        self._on_event = on_event
        self._comparison_s = comparison_s
        self._answer_s = answer_s
        self._known: dict[str, list[str]] = {}  # different answers by problem, the true one first
        self._lock = asyncio.Lock()
        self._lease = AsyncExitStack()
        self._kernel: Kernel | None = None  # kept until a comparison fails: the first one in a kernel takes up to a second

    async def __aenter__(self) -> Self:
        await self._pool.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._lease.aclose()
        await self._pool.close()

    async def unify(self, problem: Problem, attempt: Attempt) -> Attempt:
        """Returns the attempt with the text of the first equal answer to the problem, which is the true one if it is right."""
        if attempt.answer is None:
            return attempt
        answer = str(attempt.answer)
        known = self._known.setdefault(problem.id, [] if problem.truth is None else [str(problem.truth)])
        async with self._lock:
            equal = await self._find(answer, known)
            known += [answer] if equal is None else []
        return replace(attempt, answer=equal or answer)

    async def _find(self, answer: str, known: Sequence[str]) -> str | None:
        """Returns the known answer that equals this one; None if there is none."""
        end = time.monotonic() + self._answer_s
        if answer in known:
            return answer
        for other in known:
            if await self.are_equal(answer, other, end - time.monotonic()):
                return other
        return None

    async def are_equal(self, one: str, other: str, left_s: float = math.inf) -> bool:
        """Whether two LaTeX texts are known to have the same value. Not for concurrent use."""
        try:
            if left_s <= 0:
                raise KernelError("no time was left")
            if self._kernel is None:
                self._kernel = await self._lease.enter_async_context(self._pool.lease(_START_S))
                await self._kernel.execute(_CELL.format(texts=["(1,2]", r"\frac{1}{2}"], digits=DIGITS), _START_S)
            result = await self._kernel.execute(_CELL.format(texts=[other, one], digits=DIGITS), min(self._comparison_s, left_s))
            if result.failed:
                raise KernelError(result.as_text())
        except KernelError as error:
            self._on_event("comparison_failed", answers=[one, other], error=str(error))
            self._kernel = None
            await self._lease.aclose()
            return False
        return result.value == "True"
