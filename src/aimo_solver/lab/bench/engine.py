"""What the agent loop costs: the same server, the same token budget, with the loop around it and without.

The bare engine is one HTTP request per stream whose bytes are read and thrown away. The loop is the real one, with real
kernels and a real run directory; only the model's turns are made up: each ends after a set number of tokens, in a tool
call or in the answer, whatever the tokens are. So it measures the same on real weights and on random ones.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

import aiohttp

from aimo_solver.lab.bench.loop import PROMPT_TOKENS, RESULT_TOKENS, EndlessEngine, Run, Target, new_prompt, run_loop
from aimo_solver.lab.bench.table import BenchResult, Value
from aimo_solver.server.client import CompletionRequest

__all__ = ["Target", "bench_engine"]

_ABORTS = 5
_WARM_TOKENS = 32


async def bench_engine(
    target: Target, *, streams: Sequence[int] = (1, 8, 16, 32), tokens: int = 2_000, turn_tokens: int = 500, rounds: int = 1
) -> BenchResult:
    """Measures every number of streams with `tokens` sampled tokens per stream, medians over `rounds`."""
    rows: list[tuple[Value, ...]] = []
    details: dict[str, Any] = {}
    serial = itertools.count()
    for count in streams:
        ways: dict[str, Callable[[int], Coroutine[Any, Any, Run]]] = {
            "bare": partial(_bare, target, count, None, serial),
            "bare, logprobs 0": partial(_bare, target, count, 0, serial),
            "bare, logprobs 5": partial(_bare, target, count, 5, serial),
            "loop": partial(run_loop, target, count, None, serial),
            "bare, turns": partial(_bare_turns, target, count, turn_tokens, serial),
            "loop, tools": partial(run_loop, target, count, turn_tokens, serial),
        }
        for measure in ways.values():  # whatever is still to be compiled for this number of streams
            await measure(_WARM_TOKENS)
        runs: dict[str, list[Run]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, measure in ways.items():
                runs[name].append(await measure(tokens))
        rates = {name: statistics.median(run.rate for run in done) for name, done in runs.items()}
        for name, done in runs.items():
            gaps = [gap for run in done for gap in run.gaps]
            covered = [share for run in done for share in run.covered]
            stalled = statistics.median(run.stalled for run in done)
            row = (
                count,
                name,
                rates[name],
                rates[name] / rates["bare"],
                stalled,
                *_gap_figures(gaps),
                min(covered, default=None),
            )
            rows.append(row)
            details[f"{count} {name}"] = {
                "rates": [run.rate for run in done],
                "seconds": [run.seconds for run in done],
                "stalled_s": [run.stalled for run in done],
            }
    aborts = [await _abort_seconds(target, max(streams), serial) for _ in range(_ABORTS)]
    details["abort_seconds"] = aborts
    return BenchResult(
        name="engine",
        columns=(
            "streams",
            "what",
            "tokens/s",
            "of bare",
            "stalled s",
            "tool to token ms, median",
            "95 %",
            "cached of whole blocks",
        ),
        rows=tuple(rows),
        notes=(
            f"{tokens} tokens per stream behind prompts of {PROMPT_TOKENS}, turns of {turn_tokens}; medians of {rounds} rounds",
            f"the loop asks for logprobs {target.config.sampling.top_logprobs}",
            f"at most {1e3 * max(aborts):.0f} ms from cancelling {max(streams)} streams to no running request, {_ABORTS} tries",
        ),
        details=details,
    )


def _gap_figures(gaps: Sequence[float]) -> tuple[float | None, float | None]:
    if len(gaps) < 2:
        return None, None
    return 1e3 * statistics.median(gaps), 1e3 * statistics.quantiles(gaps, n=20)[-1]


# --- the bare engine --------------------------------------------------------------------------------------------------


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


async def _bare(target: Target, streams: int, logprobs: int | None, serial: Iterator[int], tokens: int) -> Run:
    run = Run(tokens=streams * tokens)

    async def stream(session: aiohttp.ClientSession) -> None:
        body = _body(target, new_prompt(target, serial), tokens, logprobs)
        async with session.post(f"{target.base_url}/v1/completions", json=body) as response:
            response.raise_for_status()
            async for _ in response.content.iter_any():
                run.heard()

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        await run.time(stream(session) for _ in range(streams))
    return run


async def _bare_turns(target: Target, streams: int, turn_tokens: int, serial: Iterator[int], tokens: int) -> Run:
    """Turns one behind the other, as the loop has them, but with nothing between them."""
    turn_tokens = min(turn_tokens, max(1, tokens // 2))
    run = Run()

    async def stream(session: aiohttp.ClientSession) -> None:
        conversation = new_prompt(target, serial)
        for turn in range(max(1, tokens // turn_tokens)):
            body = _body(target, conversation, turn_tokens, None) | {"return_token_ids": True}
            asked = time.perf_counter()
            async with session.post(f"{target.base_url}/v1/completions", json=body) as response:
                response.raise_for_status()
                parts = [await response.content.readany()]
                if turn > 0:
                    run.gaps.append(time.perf_counter() - asked)
                run.heard()
                async for part in response.content.iter_any():
                    run.heard()
                    parts.append(part)
            sampled = [token for message in _messages(b"".join(parts)) for token in message["choices"][0]["token_ids"]]
            run.tokens += len(sampled)
            conversation += [*sampled, *sampled[:RESULT_TOKENS]]

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        await run.time(stream(session) for _ in range(streams))
    return run


def _messages(data: bytes) -> Iterator[dict[str, Any]]:
    for event in data.split(b"\n\n"):
        payload = event.removeprefix(b"data:").strip()
        if payload and payload != b"[DONE]":
            yield json.loads(payload)


# --- aborts -----------------------------------------------------------------------------------------------------------


async def _abort_seconds(target: Target, streams: int, serial: Iterator[int]) -> float:
    """From the cancelling of all streams to the server saying that nothing runs or waits."""
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
            if await engine.running_requests() == 0:
                return time.perf_counter() - began
            await asyncio.sleep(0.002)
