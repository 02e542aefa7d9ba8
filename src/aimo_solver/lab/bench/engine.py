"""Measures the cost of the agent loop: the same server and token budget, with the loop (`bench.loop`) and without.

The bare engine is one HTTP request per stream whose bytes are read and discarded.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import statistics
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

import aiohttp

from aimo_solver.lab.bench.load import Lengths, Turns, even_turns
from aimo_solver.lab.bench.loop import (
    PROMPT_TOKENS,
    RESULT_TOKENS,
    EndlessEngine,
    Measurement,
    Target,
    count_requests,
    new_prompt,
    run_loop,
)
from aimo_solver.lab.bench.table import BenchResult, Value
from aimo_solver.server.engine import CompletionRequest

_COLUMNS = ("streams", "what", "tokens/s", "of bare", "stalled s", "tool to token ms, median", "95 %", "cached of whole blocks")
_ABORTS = 5
_WARM_TOKENS = 32


async def bench_engine(
    target: Target, *, streams: Sequence[int] = (1, 8, 16, 32), tokens: int = 2_000, turn_tokens: int = 500, rounds: int = 1
) -> BenchResult:
    """Measures each number of streams with `tokens` sampled tokens per stream, medians over `rounds`."""
    rows: list[tuple[Value, ...]] = []
    details: dict[str, Any] = {}
    serial = itertools.count()
    for count in streams:
        one = [even_turns(tokens, tokens, 0)] * count
        many = [even_turns(tokens, min(turn_tokens, max(1, tokens // 2)), RESULT_TOKENS)] * count
        ways: _Ways = {
            "bare": (partial(_bare, target, None, serial), one),
            "bare, logprobs 0": (partial(_bare, target, 0, serial), one),
            "bare, logprobs 5": (partial(_bare, target, 5, serial), one),
            "loop": (partial(run_loop, target, serial), one),
            "bare, turns": (partial(_bare_turns, target, serial), many),
            "loop, tools": (partial(run_loop, target, serial), many),
        }
        measured = await _measure_all(ways, rounds)
        bare = statistics.median(one.rate for one in measured["bare"])
        rows += [(count, name, *_figures(own, bare)) for name, own in measured.items()]
        for name, own in measured.items():
            details[f"{count} {name}"] = {
                "rates": [one.rate for one in own],
                "seconds": [one.seconds for one in own],
                "stalled_s": [one.stalled for one in own],
            }
    aborts = [await _abort_seconds(target, max(streams), serial) for _ in range(_ABORTS)]
    return BenchResult(
        name="engine",
        columns=_COLUMNS,
        rows=tuple(rows),
        notes=(
            f"{tokens} tokens per stream after prompts of {PROMPT_TOKENS}, turns of {turn_tokens}; medians of {rounds} rounds",
            f"the loop asks for logprobs {target.config.sampling.top_logprobs}",
            f"at most {1e3 * max(aborts):.0f} ms from cancelling {max(streams)} streams to no running request, {_ABORTS} tries",
        ),
        details=details | {"abort_seconds": aborts},
    )


async def bench_load(
    target: Target,
    lengths: Lengths,
    *,
    streams: Sequence[int] = (8, 12, 16),
    tokens: int = 2_000,
    rounds: int = 1,
    on_rows: Callable[[BenchResult], None] = lambda result: None,
) -> BenchResult:
    """Measures the loop with turns and results as long as logged ones, against the bare engine, `tokens` tokens per stream.

    Args:
        on_rows: called after each number of streams with the table so far.
    """
    serial = itertools.count(1 << 20)  # prompts that no other measurement on this server has
    result = BenchResult(
        name="loop-routed",
        columns=_COLUMNS,
        rows=(),
        notes=(f"{tokens} tokens per stream, turns and results: {lengths.source}; medians of {rounds} rounds",),
    )
    for count in streams:
        one = [even_turns(tokens, tokens, 0)] * count
        drawn = [lengths.draw(tokens, seed) for seed in range(count)]
        ways: _Ways = {
            "bare": (partial(_bare, target, None, serial), one),
            "bare, turns": (partial(_bare_turns, target, serial), drawn),
            "loop, tools": (partial(run_loop, target, serial), drawn),
        }
        measured = await _measure_all(ways, rounds)
        bare = statistics.median(one.rate for one in measured["bare"])
        rows = ((count, name, *_figures(own, bare)) for name, own in measured.items())
        rates = {f"{count} {name}": [one.rate for one in own] for name, own in measured.items()}
        result = dataclasses.replace(result, rows=(*result.rows, *rows), details={**result.details, **rates})
        on_rows(result)
    return result


_Ways = dict[str, tuple[Callable[[Sequence[Turns]], Coroutine[Any, Any, Measurement]], Sequence[Turns]]]
"""What to measure by its name, and the turns of each stream."""


async def _measure_all(ways: _Ways, rounds: int) -> dict[str, list[Measurement]]:
    for measure, plans in ways.values():  # compiles what this number of streams still needs
        await measure([even_turns(_WARM_TOKENS, _WARM_TOKENS // 2, RESULT_TOKENS)] * len(plans))
    measured: dict[str, list[Measurement]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (measure, plans) in ways.items():
            measured[name].append(await measure(plans))
    return measured


def _figures(measured: Sequence[Measurement], bare: float) -> tuple[Value, ...]:
    rate = statistics.median(one.rate for one in measured)
    gaps = [1e3 * gap for one in measured for gap in one.gaps]
    median, late = (statistics.median(gaps), statistics.quantiles(gaps, n=20)[-1]) if len(gaps) > 1 else (None, None)
    covered = min((share for one in measured for share in one.covered), default=None)
    return rate, rate / bare, statistics.median(one.stalled for one in measured), median, late, covered


def _body(target: Target, prompt: Sequence[int], tokens: int, logprobs: int | None) -> dict[str, Any]:
    sampling = target.config.sampling
    body = {
        "model": target.model,
        "prompt": list(prompt),
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
    }
    return body if logprobs is None else body | {"logprobs": logprobs}


async def _bare(target: Target, logprobs: int | None, serial: Iterator[int], plans: Sequence[Turns]) -> Measurement:
    totals = [sum(turn.sampled for turn in turns) for turns in plans]
    measured = Measurement(tokens=sum(totals))

    async def stream(session: aiohttp.ClientSession, number: int, tokens: int) -> None:
        body = _body(target, new_prompt(target, serial), tokens, logprobs)
        url, headers = f"{target.base_url}/v1/completions", target.rank_header(number)
        async with session.post(url, json=body, headers=headers) as response:
            response.raise_for_status()
            async for _ in response.content.iter_any():
                measured.receive()

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        await measured.time(stream(session, number, tokens) for number, tokens in enumerate(totals))
    return measured


async def _bare_turns(target: Target, serial: Iterator[int], plans: Sequence[Turns]) -> Measurement:
    """Measures the turns of the loop one after another, with nothing between them."""
    measured = Measurement()

    async def stream(session: aiohttp.ClientSession, number: int, turns: Turns) -> None:
        conversation = new_prompt(target, serial)
        url, headers = f"{target.base_url}/v1/completions", target.rank_header(number)
        for count, turn in enumerate(turns):
            body = _body(target, conversation, turn.sampled, None) | {"return_token_ids": True}
            asked = time.perf_counter()
            async with session.post(url, json=body, headers=headers) as response:
                response.raise_for_status()
                parts = [await response.content.readany()]
                if count > 0:
                    measured.gaps.append(time.perf_counter() - asked)
                measured.receive()
                async for part in response.content.iter_any():
                    measured.receive()
                    parts.append(part)
            sampled = [token for message in _messages(b"".join(parts)) for token in message["choices"][0]["token_ids"]]
            measured.tokens += len(sampled)
            conversation += [*sampled, *itertools.islice(itertools.cycle(sampled), turn.result)]

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        await measured.time(stream(session, number, turns) for number, turns in enumerate(plans))
    return measured


def _messages(data: bytes) -> Iterator[dict[str, Any]]:
    for event in data.split(b"\n\n"):
        payload = event.removeprefix(b"data:").strip()
        if payload and payload != b"[DONE]":
            yield json.loads(payload)


async def _abort_seconds(target: Target, streams: int, serial: Iterator[int]) -> float:
    """Measures the time from cancelling all streams until the server reports no running or waiting request."""
    async with EndlessEngine(
        target.base_url, target.model, target.config.sampling, context_tokens=target.context_tokens
    ) as engine:
        started = asyncio.Semaphore(0)

        async def stream() -> None:
            room = target.context_tokens - PROMPT_TOKENS - 1
            async with aclosing(engine.stream(CompletionRequest(tokens=new_prompt(target, serial), max_tokens=room))) as chunks:
                async for _ in chunks:
                    started.release()

        tasks = [asyncio.create_task(stream()) for _ in range(streams)]
        for _ in tasks:
            await started.acquire()
        began = time.perf_counter()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while True:
            if await count_requests(engine.base_url) == 0:
                return time.perf_counter() - began
            await asyncio.sleep(0.002)
