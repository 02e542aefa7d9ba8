"""Whether conversations that wait for a tool keep their prefix in the server's cache while others fill it.

Conversations grow side by side, turn by turn, to lengths that add up to a share of the KV cache; then they go on for a few turns
at that size. Between two turns each waits as for a tool. The cached tokens of a turn are compared with all whole blocks that
its conversation had computed before, by how full the cache was.

Blocks of sliding-window layers that have left the window stay in vLLM's cache beside those that are still needed. They are
evicted in the order in which they became free, so a conversation that waits can lose its blocks to tokens that nobody will
ask for; `VLLM_PREFIX_CACHE_RETENTION_INTERVAL` keeps only some of them.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from aimo_solver.lab.bench.decode import long_prompt
from aimo_solver.lab.bench.load import Lengths
from aimo_solver.lab.bench.loop import EndlessEngine, Target
from aimo_solver.lab.bench.table import BenchResult, Value
from aimo_solver.server.client import CompletionRequest

DEPTHS = (30_000, 60_000)  # tokens of a conversation in the end
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


async def bench_prefix_cache(
    target: Target,
    lengths: Lengths,
    *,
    kv_tokens: int,
    conversations: int = 16,
    share: float = 0.95,
    depths: tuple[int, int] = DEPTHS,
    growing: int = 12,
    steady: int = 4,
    sampled: int = 64,
    wait_s: tuple[float, float] = WAIT_S,
    name: str = "prefix-cache",
    on_rows: Callable[[BenchResult], None] = lambda result: None,
) -> BenchResult:
    """Measures `conversations` conversations, drawn between `depths` and scaled until they add up to `share` of the KV cache.

    Args:
        lengths: of the tool results in the turns at the final size.
        kv_tokens: what the KV cache holds.
        growing, steady: turns until a conversation has its final length, and turns after that.
        sampled: tokens per turn.
        on_rows: called after each turn with the table so far.
    """
    draw = random.Random(13)
    ends = _scaled([draw.uniform(*depths) for _ in range(conversations)], share * kv_tokens, target.context_tokens * 15 // 16)
    grown = [0] * conversations
    records: list[TurnRecord] = []

    def made() -> BenchResult:
        return tabulate(name, records, kv_tokens=kv_tokens, ends=[int(end) for end in ends])

    async def converse(engine: EndlessEngine, number: int) -> None:
        own = random.Random(number)
        material = long_prompt(target, (1 << 24) + number, int(ends[number]))  # in no other measurement's prompts
        tokens: list[int] = []
        computed = 0
        results = [turn.result for turn in lengths.draw(steady * 4_096, number)][:steady]
        for turn in range(growing + steady):
            if turn < growing:
                wanted = int(ends[number] * (turn + 1) / growing) - sampled
                tokens += material[len(tokens) : max(wanted, len(tokens) + 1)]
            else:
                tokens += material[: min(_LONGEST_RESULT, results[(turn - growing) % len(results)])]
            grown[number] = len(tokens)
            fill = sum(grown) / kv_tokens
            request = CompletionRequest(tokens=tokens, max_tokens=sampled, label=f"cache-{number}-{turn}")
            cached, new, first_s = await _turn(engine, request)
            whole = target.whole_blocks(computed)
            if turn > 0 and cached is not None:
                records.append(TurnRecord(fill=fill, whole=whole, cached=cached, seconds=first_s))
                on_rows(made())
            tokens = [*tokens, *new]
            computed = len(tokens) - 1  # the last token was sampled but not fed back
            grown[number] = len(tokens)
            await asyncio.sleep(own.uniform(*wait_s))

    async with (
        EndlessEngine(
            target.base_url, target.model, target.config.sampling, context_tokens=target.context_tokens, copies=target.copies
        ) as engine,
        asyncio.TaskGroup() as group,
    ):
        for number in range(conversations):
            group.create_task(converse(engine, number))
    return made()


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


def _scaled(lengths: Sequence[float], total: float, most: int) -> list[float]:
    """Lengths in the same proportions with that total, none above `most`."""
    scaled = list(lengths)
    for _ in range(len(scaled)):
        factor = total / sum(scaled)
        scaled = [min(float(most), length * factor) for length in scaled]
    return scaled


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
