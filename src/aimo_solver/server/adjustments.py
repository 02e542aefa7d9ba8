"""What failed starts have changed about a server's command line; pure values, decided by `ladder` and applied by `flags`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

GRAPH_FLAGS = ("--compilation-config", "--max-cudagraph-capture-size", "--cuda-graph-sizes")
_VALUE = re.compile(r"-?\d|[^-]")  # how a flag's value begins


class Graphs(StrEnum):
    """Which CUDA graphs the server captures."""

    ALL = "all"
    FEWER = "fewer"  # of decode steps only, and of few lengths
    NONE = "none"  # nothing is compiled either


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjustments:
    """How a command line differs from its preset's after failed starts (`ladder`). None leaves a value as it is.

    Attributes:
        fork: the engine process may be forked.
        speculation: tokens may be drafted.
        dropped: names of flags that vLLM refused.
        steps: what was changed and why, in order, one line each.
    """

    memory_share: float | None = None
    context_tokens: int | None = None
    moe_backend: str | None = None
    graphs: Graphs = Graphs.ALL
    fork: bool = True
    speculation: bool = True
    dropped: frozenset[str] = frozenset()
    steps: tuple[str, ...] = ()

    @property
    def refused(self) -> frozenset[str]:
        """Names of the flags that are left out of the user's own arguments: they are refused, or undo an adjustment."""
        return self.dropped | (frozenset() if self.graphs is Graphs.ALL else frozenset(GRAPH_FLAGS))


UNADJUSTED = Adjustments()


def without_flags(args: Sequence[str], names: frozenset[str]) -> tuple[str, ...]:
    """Returns command-line arguments without the flags of these names and their values."""
    kept: list[str] = []
    dropping = False
    for arg in args:
        if not (dropping and _VALUE.match(arg)):
            dropping = arg.partition("=")[0].replace("_", "-") in names
            if not dropping:
                kept.append(arg)
    return tuple(kept)
