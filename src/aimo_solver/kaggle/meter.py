"""What the server did while a problem was solved: its speed, its caches, its restarts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aimo_solver.problems import ProblemResult
from aimo_solver.server.client import VllmEngine
from aimo_solver.server.completions import read_metrics

_SAMPLE_S = 2.0  # the KV cache is full only while attempts run, so it is read meanwhile


@dataclass(frozen=True, slots=True)
class CacheUse:
    """What a server reports about its caches, over all copies of the model.

    Attributes:
        kv_share: the part of the KV cache that running requests take, 0..1.
        prompts, cached: tokens of all prompts so far, and of those the ones found in the prefix cache.
    """

    kv_share: float = 0.0
    prompts: float = 0.0
    cached: float = 0.0


def read_cache_use(metrics: str) -> CacheUse:
    """Reads the answer of `/metrics`; what is missing there counts as 0."""
    values = read_metrics(metrics)
    shares = values.get("kv_cache_usage_perc", [0.0])
    prompts, cached = (sum(values.get(f"prefix_cache_{name}", ())) for name in ("queries", "hits"))
    return CacheUse(sum(shares) / len(shares), prompts, cached)


class ServerMeter:
    """The `Meter` of a vLLM server, whose metrics are read every two seconds. Problems are solved one at a time."""

    def __init__(self, engine: VllmEngine) -> None:
        self._engine = engine
        self._faults = engine.faults
        self._latest = self._first = CacheUse()
        self._largest_share = 0.0

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Reads the metrics while the block runs."""
        task = asyncio.create_task(self._watch(), name="meter")
        try:
            yield
        finally:
            task.cancel()

    def begin(self) -> None:
        """Starts to measure another problem."""
        self._faults = self._engine.faults
        self._first = self._latest
        self._largest_share = 0.0

    def describe(self, result: ProblemResult) -> str:
        """See `Meter.describe`."""
        prompts = self._latest.prompts - self._first.prompts
        cached = self._latest.cached - self._first.cached
        hits = f", {cached / prompts:.0%} of the prompts cached" if prompts > 0 else ""
        speed = f"{result.tokens / max(result.seconds, 1e-3):,.0f} tok/s"
        return f"{speed}, KV cache up to {self._largest_share:.0%}{hits}, {self._engine.faults - self._faults} restarts"

    async def _watch(self) -> None:
        while True:
            text = await self._engine.metrics()
            if text:
                use = read_cache_use(text)
                if use.prompts < self._first.prompts:  # another server, which counts from 0
                    self._first = CacheUse()
                self._latest = use
                self._largest_share = max(self._largest_share, use.kv_share)
            await asyncio.sleep(_SAMPLE_S)
