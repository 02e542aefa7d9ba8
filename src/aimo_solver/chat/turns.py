"""The vocabulary of chat formats: the turns of a model, and what each family of models implements.

An attempt only appends: prompt + sampled + inserted + sampled + ... Sampled tokens are never rendered or tokenised again, so
the server's prefix cache covers the whole conversation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from aimo_solver.chat.prompts import TIME_UP, Prompt

MAX_CALLS = 8
"""Calls read from one turn. Real turns hold one or two; a model that repeats itself writes thousands."""


@dataclass(frozen=True, slots=True)
class ToolCalls:
    """A turn with tool calls.

    Attributes:
        codes: Python to run, exactly as the model wrote it; empty if the turn stopped without a call and continues after
            ``tool_results(sampled, ())``, for instance at a fence that closes something other than Python.
        salvaged: what was repaired, None if nothing.
        left_out: calls beyond the first `MAX_CALLS`; they are neither read nor run, and their number is reported to the model.
    """

    codes: tuple[str, ...]
    salvaged: str | None = None
    left_out: int = 0

    @classmethod
    def first_of(cls, codes: Sequence[str], salvaged: str | None) -> ToolCalls:
        """Makes a turn that calls the first `MAX_CALLS` of `codes`."""
        return cls(tuple(codes[:MAX_CALLS]), salvaged, max(0, len(codes) - MAX_CALLS))


@dataclass(frozen=True, slots=True)
class FinalText:
    """A turn that ends the attempt. `text` is the final part, without the reasoning."""

    text: str
    salvaged: str | None = None


@dataclass(frozen=True, slots=True)
class Malformed:
    """Any other turn. `reason` is one sentence for the model about what was wrong."""

    reason: str


Turn = ToolCalls | FinalText | Malformed


class ChatFormat(Protocol):
    """One family of models. Stateless: all attempts share one object.

    `sampled` is always the token ids of the last turn as returned by the server, with the stop token if there was one.
    """

    name: str
    stop_token_ids: tuple[int, ...]
    stop_strings: tuple[str, ...]  # the engine stops after one of these; () for most families

    def prompt(self, prompt: Prompt) -> list[int]:
        """Returns the tokens of a new conversation, up to the beginning of the model's first turn."""

    def parse(self, sampled: Sequence[int]) -> Turn:
        """Reads a turn that ended by itself. Never raises."""

    def tool_results(self, sampled: Sequence[int], outputs: Sequence[str]) -> list[int]:
        """Returns the tokens to append after a turn with calls: one output per call, and the opening of the next turn."""

    def complaint(self, sampled: Sequence[int], reason: str) -> list[int]:
        """Returns the tokens to append after a turn that cannot be the last one: what was wrong, and the next turn's opening."""

    def ask_answer(self, sampled: Sequence[int], why: str = TIME_UP) -> list[int]:
        r"""Returns the tokens that make the model write its final answer now; they end with an opened ``\boxed{``.

        The tokens state the reason `why`, such as `prompts.TIME_UP`, unless the final text has begun.
        `sampled` may end anywhere. It is empty if a tool's result or a complaint was appended last.
        """

    def answer_text(self, sampled: Sequence[int]) -> str:
        """Returns the final text sampled after `ask_answer`, with the part that `ask_answer` wrote."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of any tokens, special ones included, for logs."""
