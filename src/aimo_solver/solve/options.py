"""Options of attempts: their limits, and how many a problem gets."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from aimo_solver.options import STRICT, Count, NonNegative, Positive
from aimo_solver.policy.options import LARGER_PLANS


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AttemptConfig:
    """Limits of one attempt.

    Attributes:
        max_turns: model turns, with tool calls between them.
        max_tokens: sampled tokens over all turns; None means as many as the context holds.
        answer_tokens, answer_s: tokens and seconds reserved for asking for the answer near a limit.
        time_limit_s: most seconds of an attempt; None means as many as its problem has.
        stop_loops: an attempt that repeats itself (policy/loops.py) is told so, and asked for its answer the second time.
        stop_at_box: the first closed box with an answer ends the attempt, even in its thinking or code.
        least_thinking: an answer within this many sampled tokens is questioned once ("Wait"); 0 questions none.
    """

    max_turns: Count = 128
    max_tokens: Count | None = None
    answer_tokens: Count = 512
    answer_s: NonNegative = 15.0
    time_limit_s: Positive | None = None
    stop_loops: bool = False
    stop_at_box: bool = False
    least_thinking: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SolverConfig:
    """How many attempts a problem gets.

    Attributes:
        slots: attempts of one problem that run at the same time.
        max_attempts: attempts in total; if more than `slots`, a slot that becomes free takes the next attempt while the
            problem is undecided.
        parallel: problems solved at the same time; Kaggle's gateway asks one at a time.
        grow: a problem gets 12 or 16 concurrent attempts where the time left and the speed measured so far allow it
            (policy/pace.py). The server and the kernels are then prepared for 16.
    """

    slots: Count = 8
    max_attempts: Count = 8
    parallel: Count = 1
    grow: bool = False

    @property
    def most_slots(self) -> int:
        """Most concurrent attempts at one problem."""
        return LARGER_PLANS[-1].slots if self.grow else self.slots

    @property
    def streams(self) -> int:
        """Most concurrent attempts over all problems; the server and the kernel pool are sized for it."""
        return self.most_slots * self.parallel
