"""Decode speed by the number of streams and the depth of their context, compared with what the memory bandwidth allows.

A decode step reads every weight that it uses once, and each stream's KV cache; of a mixture of experts, only the experts that the
step's tokens take. `Shape.step_bytes` adds that up from the model's configuration; a row's share of the bandwidth is those bytes
over the step's time and the GPU's bandwidth.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import aiohttp
import numpy as np

from aimo_solver.lab.bench.loop import Target
from aimo_solver.lab.bench.random_weights import distinct_experts
from aimo_solver.lab.bench.table import BenchResult, Value
from aimo_solver.server.speculation import read_model_config

STREAMS = (1, 4, 8, 12, 16, 24, 32)
DEPTHS = (1_000, 16_000, 32_000, 60_000)  # tokens; gpt-oss-120b's attempts use 33,600 on average, 58,600 at the 90 % quantile

_ROOM = 30  # times the tokens to count, which streams may sample while others are still being prefilled

BANDWIDTH = {"H100": 3.35e12, "H200": 4.8e12, "A100": 2.0e12}
"""Bytes per second by a part of the GPU's name, from NVIDIA's data sheets (SXM modules)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a decode step reads of a model, from its config.json.

    Attributes:
        layers, hidden, intermediate, vocabulary: sizes; `intermediate` is one expert's.
        experts, experts_per_token: of each layer; 1 and 1 for a dense model.
        heads, kv_heads, head_dim: of attention.
        expert_bits, attention_bits: bits of one weight of the experts (a dense model's MLP) and of attention's projections,
            scales included; 4.25 for MXFP4.
        window: tokens that a sliding-window layer looks back.
        sliding_layers: how many layers slide.
    """

    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    experts: int
    experts_per_token: int
    heads: int
    kv_heads: int
    head_dim: int
    expert_bits: float
    attention_bits: float
    window: int
    sliding_layers: int

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The shape of a model's folder."""
        values = read_model_config(folder)
        values = values.get("text_config", values)
        expert_bits, attention_bits = _weight_bits(values.get("quantization_config") or {})
        heads = int(values["num_attention_heads"])
        layer_types = values.get("layer_types") or []
        return cls(
            layers=int(values["num_hidden_layers"]),
            hidden=int(values["hidden_size"]),
            intermediate=int(values.get("moe_intermediate_size") or values["intermediate_size"]),
            vocabulary=int(values["vocab_size"]),
            experts=int(values.get("num_local_experts") or values.get("num_experts") or 1),
            experts_per_token=int(values.get("num_experts_per_tok") or 1),
            heads=heads,
            kv_heads=int(values.get("num_key_value_heads") or heads),
            head_dim=int(values.get("head_dim") or values["hidden_size"] // heads),
            expert_bits=expert_bits,
            attention_bits=attention_bits,
            window=int(values.get("sliding_window") or 0),
            sliding_layers=sum(kind == "sliding_attention" for kind in layer_types),
        )

    def step_bytes(self, *, distinct_experts: float, streams: int, depth: int, kv_bytes: int) -> float:
        """Bytes that one decode step has to read.

        Args:
            distinct_experts: of a layer, taken by any of the step's tokens.
            depth: tokens of context of each stream.
            kv_bytes: of one value in the KV cache: 1 for FP8, 2 for BF16.
        """
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        expert = 3 * self.hidden * self.intermediate * self.expert_bits / 8
        attention = self.hidden * (2 * queries + 2 * keys) * self.attention_bits / 8
        router = 2 * self.hidden * self.experts if self.experts > 1 else 0
        head = 2 * self.hidden * self.vocabulary
        seen = (self.layers - self.sliding_layers) * depth + self.sliding_layers * min(depth, self.window)
        return self.layers * (distinct_experts * expert + attention + router) + head + streams * seen * 2 * keys * kv_bytes


def _weight_bits(quantization: Mapping[str, Any]) -> tuple[float, float]:
    """Returns the bits of one weight of the experts and of attention, from a model's `quantization_config`; 16 if unknown."""
    method = quantization.get("quant_method")
    if method == "mxfp4":
        return 4.25, 16.0
    if method == "compressed-tensors":
        weights = next(iter(quantization["config_groups"].values()))["weights"]
        bits = weights["num_bits"] + (16 / weights["group_size"] if weights.get("group_size") else 0.0)
        return bits, bits
    return (8.0, 8.0) if method == "fp8" else (16.0, 16.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Steady decoding, measured from the last stream's first token, while all streams decode."""

    tokens: int
    seconds: float
    streams: int

    @property
    def rate(self) -> float:
        """Tokens per second over all streams."""
        return self.tokens / self.seconds

    @property
    def step_ms(self) -> float:
        """Milliseconds per step, if every stream gets one token per step."""
        return 1e3 * self.streams / self.rate


async def bench_decode(
    target: Target,
    shape: Shape,
    *,
    streams: Sequence[int] = STREAMS,
    depths: Sequence[int] = DEPTHS,
    tokens: int = 256,
    distinct: Mapping[int, float] | None = None,
    kv_bytes: int = 1,
    kv_tokens: int | None = None,
    bandwidth: float | None = None,
    progress: Callable[[str], None] | None = None,
    on_rows: Callable[[BenchResult], None] | None = None,
) -> BenchResult:
    """Measures every number of streams at every depth, `tokens` sampled tokens per stream.

    Args:
        distinct: experts per layer and step, by streams; without it that column, the bytes and the share stay empty.
        kv_tokens: what the KV cache holds; rows that do not fit are left out, and a note says so.
        bandwidth: the GPU's, in bytes per second.
        on_rows: called after each row with the table so far.
    """

    def made() -> BenchResult:
        notes = [f"{tokens} tokens per stream, counted while all streams decode"]
        if left_out:
            notes.append(f"left out, more than the context or the KV cache holds: {', '.join(left_out)}")
        return BenchResult(
            name="decode",
            columns=("depth", "streams", "tokens/s", "ms per step", "experts per layer", "GB per step", "of bandwidth"),
            rows=tuple(rows[key] for key in sorted(rows)),
            notes=tuple(notes),
            details={"kv_tokens": kv_tokens, "bandwidth": bandwidth},
        )

    rows: dict[tuple[int, int], tuple[Value, ...]] = {}
    left_out: list[str] = []
    for depth in sorted(depths):
        for count in sorted(streams, reverse=True):  # the largest first: the others find their prompts cached
            if depth + tokens > target.context_tokens or (kv_tokens and count * (depth + tokens) > kv_tokens):
                left_out.append(f"{count} x {depth:,}")
                continue
            pace = await _pace(target, count, depth, tokens)
            experts = 1.0 if shape.experts == 1 else (distinct or {}).get(count)
            read = None
            if experts is not None:
                read = shape.step_bytes(distinct_experts=experts, streams=count, depth=depth + tokens // 2, kv_bytes=kv_bytes)
            rows[depth, count] = (depth, count, pace.rate, pace.step_ms, experts, *_share(read, pace, bandwidth))
            if progress is not None:
                progress(f"{depth:,} tokens deep, {count} streams: {pace.rate:,.0f} tokens/s")
            if on_rows is not None:
                on_rows(made())
    return made()


def _share(read: float | None, pace: Pace, bandwidth: float | None) -> tuple[Value, Value]:
    """Returns GB per step and the share of the bandwidth that reading them takes; None where unknown."""
    if read is None:
        return None, None
    return read / 1e9, None if bandwidth is None else read / (pace.step_ms / 1e3) / bandwidth


async def _pace(target: Target, streams: int, depth: int, tokens: int) -> Pace:
    """Decodes `streams` concurrent streams until each has sampled `tokens` tokens on average since the last one began."""
    began: float | None = None
    ended = 0.0
    counted = 0
    waiting = streams
    done = asyncio.Event()

    async def stream(session: aiohttp.ClientSession, number: int) -> None:
        nonlocal began, ended, counted, waiting
        room = min(target.context_tokens - depth - 1, _ROOM * tokens)  # cancelled long before
        body = _body(target, long_prompt(target, number, depth), room) | {"stream": True, "return_token_ids": True}
        first = True
        url, headers = f"{target.base_url}/v1/completions", target.rank_header(number)
        async with session.post(url, json=body, headers=headers) as response:
            response.raise_for_status()
            async for line in response.content:
                payload = line.removeprefix(b"data:").strip()
                if not payload or payload == b"[DONE]":
                    continue
                if began is not None:
                    counted += len(json.loads(payload)["choices"][0]["token_ids"] or ())
                    ended = time.perf_counter()
                    if counted >= streams * tokens:
                        done.set()
                elif first:
                    waiting -= 1
                    if waiting == 0:
                        began = time.perf_counter()
                first = False
        raise ValueError(f"a stream came to the end of its context before {streams} streams had sampled {tokens} tokens each")

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        tasks = [asyncio.create_task(stream(session, number)) for number in range(streams)]
        finished = asyncio.create_task(done.wait())
        try:
            await asyncio.wait([*tasks, finished], return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for running in (*tasks, finished):
                running.cancel()
            await asyncio.gather(*tasks, finished, return_exceptions=True)
    assert began is not None
    return Pace(tokens=counted, seconds=ended - began, streams=streams)


async def probe_experts(target: Target, streams: Sequence[int], *, tokens: int = 64, depth: int = 300) -> dict[int, float]:
    """Returns the distinct experts per layer and step by the number of streams, {} if the server returns no routing.

    vLLM returns it if it was started with ``--enable-return-routed-experts``.
    """
    count = max(streams)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:

        async def routing(number: int) -> np.ndarray | None:
            body = _body(target, long_prompt(target, number, depth), tokens)
            async with session.post(f"{target.base_url}/v1/completions", json=body) as response:
                response.raise_for_status()
                encoded = (await response.json())["choices"][0].get("routed_experts")
            return None if encoded is None else np.load(io.BytesIO(base64.b64decode(encoded)))[-tokens + 1 :]

        routed = [taken for taken in await asyncio.gather(*map(routing, range(count))) if taken is not None]
    return {number: distinct_experts(routed, number) for number in streams} if len(routed) == count else {}


def long_prompt(target: Target, number: int, depth: int) -> list[int]:
    """Returns the first `depth` tokens of a sequence unique to the stream, so that deeper prompts find shallower ones cached."""
    draw = random.Random(number)
    return [draw.randrange(target.vocabulary) for _ in range(depth)]


def _body(target: Target, prompt: Sequence[int], tokens: int) -> dict[str, Any]:
    return {
        "model": target.model,
        "prompt": list(prompt),
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": target.config.sampling.temperature,
        "top_p": target.config.sampling.top_p,
    }
