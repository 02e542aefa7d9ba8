"""The records of one attempt at one problem, and of drafted tokens."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from aimo_solver.problems import Answer


class FinishReason(StrEnum):
    """Why an attempt ended."""

    ANSWERED = "answered"  # by a final text of its own
    FORCED = "forced"  # by an answer that was asked for near a limit
    NO_ANSWER = "no_answer"  # by a final text without a usable answer
    BOXED = "boxed"  # by the first box that it wrote, with `attempt.stop_at_box`
    LOOP = "loop"  # it repeated itself, and again after it was told
    TURN_LIMIT = "turn_limit"
    TOKEN_LIMIT = "token_limit"  # the attempt's token budget or the context is used up
    DEADLINE = "deadline"
    CANCELLED = "cancelled"  # the problem was decided without it
    ENGINE_ERROR = "engine_error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt: the input of voters and stop rules, and a line of ``attempts.jsonl``.

    Attributes:
        index: order of starting within the problem, from 0.
        answer: None if it gave none that counts.
        entropy: mean over sampled tokens of the entropy in nats of the (top-k) next-token distribution; None if unknown.
        tail_entropy: median over the last window of tokens, nats; None if unknown.
        tokens: sampled tokens. prompt_tokens: length of the longest prompt. cached_tokens: cached by the server, in all prompts.
        lost_turns, lost_tokens, lost_s: turns whose prefix the server had lost; tokens that it computed again; estimated seconds.
        turns: model turns. malformed: turns that needed salvage or a complaint.
        tool_errors: calls that ended in an error, a timeout or a kill.
        seen_in_tool: the answer occurred in a tool's output.
        started_s, seconds: start, counted from the problem's start, and duration.
        tool_seconds: the part of `seconds` spent waiting for Python.
        prompt: name of the prompt variant.
        error: the last fault of the server or of Python, including one that the attempt survived.
        finish_order: 1 for the attempt that finished first, None if it did not finish by itself.
    """

    problem_id: str
    index: int
    answer: Answer | None
    finish_reason: FinishReason
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    lost_turns: int = 0
    lost_tokens: int = 0
    lost_s: float = 0.0
    turns: int = 0
    tool_calls: int = 0
    tool_errors: int = 0
    malformed: int = 0
    entropy: float | None = None
    tail_entropy: float | None = None
    seen_in_tool: bool = False
    started_s: float = 0.0
    seconds: float = 0.0
    tool_seconds: float = 0.0
    prompt: str = "tool"
    finish_order: int | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftCounts:
    """What a server has drafted since its start.

    Attributes:
        steps: in which a stream's drafted tokens were checked, summed over the streams.
        drafted, accepted: tokens. Each step samples one token besides those accepted.
    """

    steps: int
    drafted: int
    accepted: int

    @property
    def tokens_per_step(self) -> float:
        """Sampled tokens per stream and step, 1 without speculation."""
        return 1.0 + self.accepted / self.steps if self.steps else 1.0
