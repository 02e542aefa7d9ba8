"""The vocabulary of chat formats: what a model's turn can be, and how a family of models is prompted and understood.

The attempt only ever appends: prompt + sampled + format's own tokens + sampled + ... Nothing that was sampled is
rendered or tokenised again, so the server's prefix cache holds the whole conversation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

MAX_CALLS = 8
"""Calls that are read from one turn. Real turns hold one or two; a model that repeats itself writes thousands."""
ReasoningEffort = Literal["low", "medium", "high"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """Python code the model wants to run, exactly as it wrote it."""

    code: str


@dataclass(frozen=True, slots=True)
class ToolCalls:
    """A turn that calls the tool, once or several times in a row.

    Attributes:
        calls: may be empty: the turn paused where it need not have (a fence that was not Python's closing one), and goes
            on after ``tool_results(sampled, ())``.
        salvaged: what was broken and mended while reading the turn, None if nothing.
        left_out: how many calls follow these, beyond `MAX_CALLS`. They are neither read nor run, and the model is told.
    """

    calls: tuple[ToolCall, ...]
    salvaged: str | None = None
    left_out: int = 0

    @classmethod
    def first_of(cls, codes: Sequence[str], salvaged: str | None) -> ToolCalls:
        """The first `MAX_CALLS` of some codes."""
        return cls(tuple(ToolCall(code) for code in codes[:MAX_CALLS]), salvaged, max(0, len(codes) - MAX_CALLS))


@dataclass(frozen=True, slots=True)
class FinalText:
    """A turn that ends the attempt. `text` holds the final part only, without the reasoning."""

    text: str
    salvaged: str | None = None


@dataclass(frozen=True, slots=True)
class Malformed:
    """A turn that is neither. `reason` is one line for the model, saying what was wrong."""

    reason: str


Turn = ToolCalls | FinalText | Malformed


class ChatFormat(Protocol):
    """One family of models. Without state: one object serves all attempts side by side.

    `sampled` is always the token ids of the last turn as the server returned them, the stop token included if there was
    one. `cut` says that the turn ended by length, not by a stop token or stop string.
    """

    name: str
    stop_token_ids: tuple[int, ...]
    stop_strings: tuple[str, ...]  # the engine stops after one of these; () for most families

    def prompt(self, system: str, user: str, *, tools: bool) -> list[int]:
        """The tokens of a conversation's beginning, up to where the model starts to write."""
        ...

    def parse(self, sampled: Sequence[int], *, cut: bool) -> Turn:
        """What the model's turn means. Never raises on any token sequence."""
        ...

    def tool_results(self, sampled: Sequence[int], outputs: Sequence[str]) -> list[int]:
        """Tokens to append after `sampled` that carry one output per call and let the model go on."""
        ...

    def complaint(self, sampled: Sequence[int], reason: str) -> list[int]:
        """Tokens to append after a malformed turn that tell the model what was wrong and let it go on."""
        ...

    def ask_answer(self, sampled: Sequence[int]) -> list[int]:
        """Tokens to append (even in the middle of a cut turn) that make the model write its final answer now.

        `sampled` is empty when the last thing appended was a tool's result or a complaint. The tokens end inside the
        final text, right after an opened ``\\boxed{`` where the family allows it.
        """
        ...

    def answer_text(self, sampled: Sequence[int]) -> str:
        """The text sampled after `ask_answer`, what `ask_answer` itself opened included."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Readable text of any tokens, special ones included, for logs."""
        ...
