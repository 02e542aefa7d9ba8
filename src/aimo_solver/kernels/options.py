"""Options of the kernels."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from aimo_solver.options import STRICT, Count, Positive

MOST_KERNELS = 128
"""In one pool, including spares; `kernels.limits` reserves as many user ids again for kernels that are ending."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class KernelConfig:
    """The Python sessions of the model's code.

    Attributes:
        size: most sessions at the same time; None means one for each running attempt.
        spares: additional kernels kept warm.
        timeout_s: time limit of a call; 12 s instead of 6 s gained nothing in public runs.
        output_chars: longest output shown to the model; longer output is cut in the middle with a note. The upper bound exists
            because output is tokenised on the event loop: 20 to 180 ms for 100,000 characters.
        memory_mb: most memory that a kernel may use beyond that of a fresh one.
        pool_memory_mb: most memory of all kernels together; None means half of the machine's memory.
        preload: modules imported before kernels are forked, besides numpy, sympy and mpmath; missing ones are skipped.
    """

    size: Count | None = None
    spares: Annotated[int, Field(ge=0)] = 4
    timeout_s: Positive = 6.0
    output_chars: Annotated[int, Field(ge=1, le=50_000)] = 4_000
    memory_mb: Count = 4_096
    pool_memory_mb: Count | None = None
    preload: tuple[str, ...] = ()
