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
        time_limit_s: seconds of an attempt at most; None means as many as its problem has.
        stop_loops: an attempt that repeats itself (policy/loops.py) is told so, and the second time asked for its answer.
        stop_at_box: the first closed box with an answer ends the attempt, also within its thinking or code.
        least_thinking: an answer within the first so many sampled tokens is questioned once ("Wait"); 0 never does.
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
        slots: attempts that run side by side.
        max_attempts: attempts in total; if more than `slots`, a slot that becomes free takes the next attempt while the
            problem is undecided.
        parallel: problems solved side by side; Kaggle's gateway asks one at a time.
        grow: a problem gets 12 or 16 attempts side by side where the time left and the speed measured so far allow it
            (policy/pace.py). The server and the kernels are then prepared for 16.
    """

    slots: Count = 8
    max_attempts: Count = 8
    parallel: Count = 1
    grow: bool = False

    @property
    def most_slots(self) -> int:
        """Attempts side by side at one problem at most."""
        return LARGER_PLANS[-1].slots if self.grow else self.slots

    @property
    def streams(self) -> int:
        """Attempts side by side over all problems at most; the server and the kernel pool are sized for it."""
        return self.most_slots * self.parallel
