"""What an attempt uses of a model server: a request for one turn, the messages of its stream, and the engine that serves it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from aimo_solver.options import SamplingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """One turn to be sampled.

    Attributes:
        tokens: the prompt, token ids.
        max_tokens: most tokens to sample.
        sampling: None means the engine's own.
        label: CONVERSATION-TURN; names the request in the server's log.
    """

    tokens: Sequence[int]
    max_tokens: int
    stop_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    sampling: SamplingConfig | None = None
    label: str = ""

    @property
    def conversation(self) -> str:
        """The label without the turn."""
        return self.label.rpartition("-")[0]


@dataclass(frozen=True, slots=True)
class Chunk:
    """One message of a stream.

    Attributes:
        token_ids: newly sampled tokens, a stop token included.
        entropies: nats, one per token; empty if the server sent no log-probabilities.
        finish: "stop" or "length" on the turn's last tokens, else None.
        cached_tokens: prompt tokens found in the prefix cache; on the last message only, if the server reports it.
    """

    token_ids: tuple[int, ...]
    entropies: tuple[float, ...] = ()
    finish: Literal["stop", "length"] | None = None
    cached_tokens: int | None = None


class Engine(Protocol):
    """A model that samples turns, as an attempt uses it.

    Attributes:
        context_tokens: longest prompt and answer together; a restarted server may have less.
        faults: how often the server was lost or replaced so far.
    """

    @property
    def context_tokens(self) -> int: ...

    @property
    def faults(self) -> int: ...

    def stream(self, request: CompletionRequest) -> AsyncGenerator[Chunk, None]:
        """Samples one turn. Closing the generator frees the server's slot at once.

        Raises:
            EngineUnavailable: no answer, or the stream broke off; the chunks received before are valid.
            ContextExceeded: the request does not fit the context, which is in `context_tokens` now if the server names it.
            EngineRejected: the server refused the request for another reason.
        """
        ...

    async def wait_ready(self) -> None:
        """Returns when the server answers again; `context_tokens` is then that of the running server.

        Raises:
            EngineLost: it never will.
        """
        ...
