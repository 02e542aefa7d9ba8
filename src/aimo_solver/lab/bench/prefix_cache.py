"""Whether conversations that wait for a tool keep their prefix in the server's cache while others fill it.

Conversations grow concurrently, turn by turn, to lengths that add up to a share of the KV cache; then they continue for a few
turns at that size. Between two turns each waits as for a tool. The cached tokens of a turn are compared with all whole blocks
that its conversation had computed before, by how full the cache was.

Blocks of sliding-window layers that have left the window stay in vLLM's cache beside those that are still needed. They are
evicted in the order in which they became free, so a conversation that waits can lose its blocks to tokens that no request
will use; `VLLM_PREFIX_CACHE_RETENTION_INTERVAL` keeps only some of them.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from aimo_solver.lab.bench.decode import long_prompt
from aimo_solver.lab.bench.load import Lengths
from aimo_solver.lab.bench.loop import EndlessEngine, Target
from aimo_solver.lab.bench.table import BenchResult, Value
from aimo_solver.server.engine import CompletionRequest

DEPTHS = (30_000, 60_000)  # final length of a conversation, in tokens
WAIT_S = (0.01, 6.0)
BANDS = (0.5, 0.75, 0.9)  # of the KV cache, by the tokens of all conversations
_LONGEST_RESULT = 600
_LOST_TOKENS = 1_024  # a turn lost its prefix if it computes more again: one step of the gpt-oss preset


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRecord:
    """One turn but the first.

    Attributes:
        fill: tokens of all conversations when it began, as a share of the KV cache.
        whole: tokens in whole blocks that its conversation had computed before.
        cached: those that the server found in its cache.
        seconds: until the first token.
    """

    fill: float
    whole: int
    cached: int
    seconds: float

    @property
    def again(self) -> int:
        """Tokens computed again."""
        return max(0, self.whole - self.cached)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLoad:
    """What the conversations do.

    Attributes:
        kv_tokens: what the KV cache holds.
        conversations: how many run at the same time.
        share: of the KV cache that they fill in the end.
        depths: their lengths are drawn between these and scaled to the share.
        growing, steady: turns until a conversation has its final length, and turns after that.
        sampled: tokens per turn.
        wait_s: shortest and longest wait between two turns.
    """

    kv_tokens: int
    conversations: int = 16
    share: float = 0.95
    depths: tuple[int, int] = DEPTHS
    growing: int = 12
    steady: int = 4
    sampled: int = 64
    wait_s: tuple[float, float] = WAIT_S

    def ends(self, context_tokens: int) -> list[int]:
        """Returns the final length of each conversation, none so long that its last turns do not fit the context."""
        draw = random.Random(13)
        most = context_tokens * 15 / 16
        lengths = [draw.uniform(*self.depths) for _ in range(self.conversations)]
        for _ in lengths:
            factor = self.share * self.kv_tokens / sum(lengths)
            lengths = [min(most, length * factor) for length in lengths]
        return [int(length) for length in lengths]


async def bench_prefix_cache(
    target: Target,
    lengths: Lengths,
    load: CacheLoad,
    *,
    name: str = "prefix-cache",
    on_rows: Callable[[BenchResult], None] = lambda result: None,
) -> BenchResult:
    """Measures the cached tokens of conversations that grow and wait.

    Args:
        lengths: of the tool results in the turns at the final size.
        on_rows: called after each turn with the table so far.
    """
    ends = load.ends(target.context_tokens)
    grown = [0] * load.conversations
    records: list[TurnRecord] = []

    async def converse(engine: EndlessEngine, number: int) -> None:
        draw = random.Random(number)
        tokens: list[int] = []
        computed = 0
        for turn, more in enumerate(_insertions(target, lengths, load, number, ends[number])):
            tokens = [*tokens, *more]
            grown[number] = len(tokens)
            fill = sum(grown) / load.kv_tokens
            request = CompletionRequest(tokens=tokens, max_tokens=load.sampled, label=f"cache-{number}-{turn}")
            cached, new, first_s = await _turn(engine, request)
            if turn > 0 and cached is not None:
                records.append(TurnRecord(fill=fill, whole=target.whole_blocks(computed), cached=cached, seconds=first_s))
                on_rows(tabulate(name, records, kv_tokens=load.kv_tokens, ends=ends))
            tokens = [*tokens, *new]
            computed = len(tokens) - 1  # the last token was sampled but not fed back
            await asyncio.sleep(draw.uniform(*load.wait_s))

    async with (
        EndlessEngine(
            target.base_url, target.model, target.config.sampling, context_tokens=target.context_tokens, copies=target.copies
        ) as engine,
        asyncio.TaskGroup() as group,
    ):
        for number in range(load.conversations):
            group.create_task(converse(engine, number))
    return tabulate(name, records, kv_tokens=load.kv_tokens, ends=ends)


def _insertions(target: Target, lengths: Lengths, load: CacheLoad, number: int, end: int) -> Iterator[list[int]]:
    """Yields what a conversation gets before each of its turns: equal parts until it has its length, then tool results."""
    material = long_prompt(target, (1 << 24) + number, end)  # in no other measurement's prompts
    part = max(1, end // load.growing - load.sampled)
    for turn in range(load.growing):
        yield material[turn * part : (turn + 1) * part]
    results = lengths.draw(load.steady << 16, number)
    for turn in range(load.steady):
        yield material[: min(_LONGEST_RESULT, results[turn % len(results)].result)]


async def _turn(engine: EndlessEngine, request: CompletionRequest) -> tuple[int | None, list[int], float]:
    """Returns cached prompt tokens, sampled tokens, and seconds to the first of them."""
    began = time.perf_counter()
    first_s = 0.0
    cached: int | None = None
    sampled: list[int] = []
    async with aclosing(engine.stream(request)) as chunks:
        async for chunk in chunks:
            if chunk.token_ids and not sampled:
                first_s = time.perf_counter() - began
            sampled += chunk.token_ids
            cached = cached if chunk.cached_tokens is None else chunk.cached_tokens
    return cached, sampled, first_s


def tabulate(name: str, records: Sequence[TurnRecord], *, kv_tokens: int, ends: Sequence[int]) -> BenchResult:
    """Returns the table by how full the KV cache was. `ends` are the final lengths of the conversations."""
    rows: list[tuple[Value, ...]] = []
    for low, high in zip((0.0, *BANDS), (*BANDS, 1.0), strict=True):
        band = [record for record in records if low <= record.fill < high and record.whole]
        if band:
            lost = [record for record in band if record.again > _LOST_TOKENS]
            usual = statistics.median(record.seconds for record in band)
            seconds = sum(max(0.0, record.seconds - usual) for record in lost)
            shares = [min(1.0, record.cached / record.whole) for record in band]
            again = sum(record.again for record in band)
            span = f"{low:.0%} to {high:.0%}"
            rows.append((span, len(band), len(lost), min(shares), statistics.fmean(shares), again, seconds))
    return BenchResult(
        name=name,
        columns=("KV cache full", "turns", "lost", "cached, worst", "cached, mean", "tokens again", "seconds lost"),
        rows=tuple(rows),
        notes=(
            f"{len(ends)} conversations of {min(ends):,} to {max(ends):,} tokens in the end, KV cache of {kv_tokens:,} tokens",
            f"cached: of all whole blocks; lost: turns that computed more than {_LOST_TOKENS:,} tokens again; seconds lost: "
            "until their first tokens, beyond the median of the row",
        ),
        details={"kv_tokens": kv_tokens, "turns": [[r.fill, r.whole, r.cached, r.seconds] for r in records]},
    )
