"""Ends a turn early while it is sampled: at a loop, or at a boxed answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aimo_solver.answers import Reading, last_box, read_answer
from aimo_solver.chat.turns import ChatFormat
from aimo_solver.policy.loops import LoopDetector
from aimo_solver.problems import Answer
from aimo_solver.results import FinishReason
from aimo_solver.solve.options import AttemptConfig

_BOX = "\\boxed{"
_STEP = 16  # tokens between two searches for a box
_REACH = 128  # tokens in which a box must open and close


def last_closed_box(text: str) -> str | None:
    """Returns the last box of an unfinished text; None if its brace is not closed."""
    start = text.rfind(_BOX)
    inside = last_box(text[start:]) if start >= 0 else None
    return None if inside is None else f"{_BOX}{inside}}}"


class TurnGuard:
    """Checks the sampled tokens of one attempt for loops and boxed answers, as its options say.

    Attributes:
        boxed: the answer in the box that ended the turn.
    """

    def __init__(self, options: AttemptConfig, chat: ChatFormat, read: Callable[[str], Reading] = read_answer) -> None:
        """`read` reads the answer in a text."""
        self.boxed: Answer | None = None
        self._chat = chat
        self._read = read
        self._loops = LoopDetector() if options.stop_loops else None
        self._stop_at_box = options.stop_at_box
        self._recent: list[int] = []
        self._unread = 0

    def add(self, tokens: Sequence[int], *, ended: bool = False) -> FinishReason | None:
        """Returns why the turn should end after these tokens; None if it may go on.

        `ended` means that no tokens follow, so that the last few are searched too.
        """
        if self._stop_at_box:
            self._recent += tokens
            self._unread += len(tokens)
            if self._unread >= _STEP or (ended and self._unread):
                self.boxed = self._read_box()
        if self.boxed is not None:
            return FinishReason.BOXED
        return FinishReason.LOOP if self._loops is not None and self._loops.add(tokens) else None

    def forget_loop(self) -> None:
        """Restarts the search for loops, after the model was told of one."""
        if self._loops is not None:
            self._loops.forget()

    def _read_box(self) -> Answer | None:
        """Returns the answer in the last box of the recent tokens, if it is closed."""
        del self._recent[: -(_REACH + self._unread)]
        self._unread = 0
        box = last_closed_box(self._chat.decode(self._recent))
        return None if box is None else self._read(box).answer
