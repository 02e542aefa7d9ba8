"""Stages that measure a server of gpt-oss-120b's shape with weights that route; those of one group share one server.

`gpu_bench.py` runs them. Each saves its table after every row, so that a stage that is cut keeps what it has.
"""

from __future__ import annotations

import asyncio
import itertools
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from aimo_solver.errors import AimoError
from aimo_solver.lab.bench.decode_server import DecodeServer, Weights
from aimo_solver.lab.bench.engine import bench_load
from aimo_solver.lab.bench.load import Lengths, even_turns
from aimo_solver.lab.bench.loop import run_loop
from aimo_solver.lab.bench.prefix_cache import CacheLoad, bench_prefix_cache
from aimo_solver.lab.bench.table import BenchResult, Value
from gpu_decode import BASE, Variant, configuration, graphs, progress, started

ROOT = Path(__file__).resolve().parent.parent
SLOTS = 32
KV_TOKENS = 1_060_000  # 16 streams of 60,000, or 32 of 32,000; an H100 holds 733,808, an H200 four million
_KV_BYTES_PER_TOKEN = 18 * 2 * 8 * 64  # of the 18 layers without a window, FP8
_PEAK = 940 / 813  # tokens/s of 8 streams: the peak of public logs, over weights that route uniformly, on an H100
_ALL_THE_SAME = 100.0  # the skew with which every token takes the same experts
_STREAMS = (1, 4, 8, 12, 16, 24, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a stage gets: a running server, where to save, and whether to measure next to nothing."""

    name: str
    server: DecodeServer
    out: Path
    tiny: bool

    def save(self, result: BenchResult) -> None:
        result.save(self.out / f"{self.name}.json")

    async def decode(self, streams: Sequence[int], depths: Sequence[int], tokens: int = 384) -> BenchResult:
        if self.tiny:
            streams, depths, tokens = (1, 2), (100,), 40
        return await self.server.measure(
            streams=streams, depths=depths, tokens=tokens, name=self.name, progress=progress(self.name), on_rows=self.save
        )


Measure = Callable[[Job], Awaitable[BenchResult]]
MEASURES: dict[str, Measure] = {}
LIMIT_S = {
    "decode": 200,
    "decode-wide": 200,
    "decode-deep": 240,
    "loop-routed": 200,
    "decode-skewed": 90,
    "decode-concentrated": 60,
    "prefix-cache": 240,
}


def measure(function: Measure) -> Measure:
    MEASURES[getattr(function, "__name__", "").replace("_", "-")] = function
    return function


@measure
async def decode(job: Job) -> BenchResult:
    """8 and 16 streams, 1,000, 16,000 and 60,000 deep."""
    return await job.decode((8, 16), (1_000, 16_000, 60_000))


@measure
async def decode_wide(job: Job) -> BenchResult:
    """1 to 32 streams, 1,000 and 16,000 deep."""
    return await job.decode(_STREAMS, (1_000, 16_000))


@measure
async def decode_deep(job: Job) -> BenchResult:
    """1 to 32 streams, 32,000 and 60,000 deep, as far as they fit."""
    return await job.decode(_STREAMS, (32_000, 60_000))


@measure
async def decode_skewed(job: Job) -> BenchResult:
    """8 and 16 streams with the skew that gives 8 streams the speed of public logs' peaks, over uniform routing."""
    if job.tiny:
        return await job.decode((8, 16), (1_000,))
    uniform = await _rate(job.server)
    searched = [[0.0, uniform]]
    low, high, skew = 0.0, 2.0, 0.85
    try:
        for _ in range(5):
            rate = await _rate(await job.server.set_skew(skew))
            searched.append([skew, rate])
            low, high = (skew, high) if rate < _PEAK * uniform else (low, skew)
            skew = (low + high) / 2
        chosen = min(searched[1:], key=lambda pair: abs(pair[1] / uniform - _PEAK))[0]
        skewed = replace(job, server=await job.server.set_skew(chosen))
        result = await skewed.decode((8, 16), (1_000, 16_000))
    finally:
        await job.server.set_skew(0.0)
    notes = (*result.notes, f"skew {chosen:g}, searched for {_PEAK:.3f} times the speed of uniform routing at 8 streams")
    return replace(result, notes=notes, details={**result.details, "searched": searched})


async def _rate(server: DecodeServer) -> float:
    """Tokens per second of 8 streams, 1,000 deep."""
    result = await server.measure(streams=(8,), depths=(1_000,), tokens=256)
    return float(result.rows[0][2] or 0.0)


@measure
async def decode_concentrated(job: Job) -> BenchResult:
    """8 and 16 streams when every token takes the same experts, as with vLLM's dummy weights."""
    if job.tiny:
        return await job.decode((8, 16), (1_000,))
    try:
        same = replace(job, server=await job.server.set_skew(_ALL_THE_SAME))
        return await same.decode((8, 16), (1_000, 16_000))
    finally:
        await job.server.set_skew(0.0)


@measure
async def loop_routed(job: Job) -> BenchResult:
    """The agent loop against the bare engine with turns as long as logged ones."""
    streams, tokens = ((2,), 100) if job.tiny else ((8, 16, 12), 1_200)
    return await bench_load(job.server.target, Lengths.read(_attempts()), streams=streams, tokens=tokens, on_rows=job.save)


@measure
async def prefix_cache(job: Job) -> BenchResult:
    """Cached tokens of 16 conversations that wait for tools while they fill the KV cache."""
    lengths = Lengths.read(_attempts())
    await job.server.post("reset_prefix_cache")
    load = CacheLoad(kv_tokens=job.server.kv_tokens or KV_TOKENS)
    if job.tiny:
        load = CacheLoad(
            kv_tokens=6_000, conversations=2, depths=(1_000, 2_000), growing=3, steady=2, sampled=8, wait_s=(0.01, 0.1)
        )
    return await bench_prefix_cache(job.server.target, lengths, load, name=job.name, on_rows=job.save)


def _attempts() -> Path | None:
    """The logged attempts to draw lengths from, if they are there."""
    places = (ROOT / "shared", ROOT.parent / "shared")
    return next((path for place in places if (path := place / "harmony" / "attempts.npz").exists()), None)


async def run(
    names: Sequence[str],
    model: Path,
    out: Path,
    work: Path,
    *,
    tiny: bool,
    until: float,
    variant: Variant = BASE,
    suffix: str = "",
    kv_tokens: int = KV_TOKENS,
) -> None:
    """Starts one server and measures one stage after another, until `until` on the monotonic clock.

    A stage that fails or is cut does not end the others. `suffix` is appended to the names of the files.
    """
    limit = () if tiny else ("--kv-cache-memory-bytes", str(kv_tokens * _KV_BYTES_PER_TOKEN))
    variant = replace(
        variant,
        arguments=(*variant.arguments, *limit),
        environment={**variant.environment, "VLLM_SERVER_DEV_MODE": "1"},
    )
    config = configuration(variant, slots=2 if tiny else SLOTS, weights="random", control=True, tiny=tiny)
    async with started(model, out, work, config, name=f"{names[0]}{suffix}", variant=variant, weights=_weights(tiny)) as server:
        for name in names:
            job = Job(name=name + suffix, server=server, out=out, tiny=tiny)
            left = until - time.monotonic()
            if left < 10:
                print(f"-- {job.name}: no time left", flush=True)
                continue
            try:
                async with asyncio.timeout(min(left, LIMIT_S.get(name, 60))):
                    result = await MEASURES[name](job)
            except TimeoutError:
                print(f"-- {job.name}: cut short", flush=True)
            except Exception:  # noqa: BLE001 (the other stages can be measured; the traceback is in the log)
                print(f"-- {job.name}: failed\n{traceback.format_exc()}", flush=True)
            else:
                job.save(result)
                result.show(Console(width=200))


def _weights(tiny: bool) -> Weights:
    return "real" if tiny else "random"


# --- two GPUs ---------------------------------------------------------------------------------------------------------

# NVLink multicast stays off: it is not available in every virtual machine, and two GPUs gain little from it.
_NO_MULTICAST = {
    "NCCL_NVLS_ENABLE": "0",
    "NVSHMEM_DISABLE_NVLS": "1",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "VLLM_ALLREDUCE_USE_SYMM_MEM": "0",
    "VLLM_ALLREDUCE_USE_FLASHINFER": "0",
}
_PASSES = {"fuse_allreduce_rms": False, "enable_sp": False, "fuse_gemm_comms": False}
_SIZES = [*range(1, 17), 20, 24, 28, 32, 64, 128, 256, 512, 1_024]
PARALLEL = tuple(
    Variant(
        name=name,
        server=server,
        arguments=graphs("FULL_AND_PIECEWISE", _SIZES, pass_config=_PASSES),
        environment=_NO_MULTICAST,
    )
    for name, server in (
        ("tensor parallel 2", {"tensor_parallel": 2}),
        ("tensor parallel 2, 8 warps", {"tensor_parallel": 2, "expert_warps": 8}),
        ("data parallel 2", {"tensor_parallel": 1, "data_parallel": 2}),
    )
)


async def parallel(model: Path, out: Path, work: Path, *, tiny: bool) -> BenchResult:
    """Two GPUs, shared by one copy of the model or with one each: speed, start, and the cached tokens of an attempt's turns."""
    columns = ("variant", "ready s", "streams", "depth", "tokens/s", "ms per step", "cached, worst", "cached, mean")
    result = BenchResult(name="parallel", columns=columns, rows=())
    for number, variant in enumerate((BASE,) if tiny else PARALLEL):
        config = configuration(variant, slots=2 if tiny else SLOTS, weights="random", tiny=tiny)
        name = f"parallel-{number}"
        try:
            async with started(model, out, work, config, name=name, variant=variant, weights=_weights(tiny)) as server:
                job = Job(name=name, server=server, out=out, tiny=tiny)
                table = await job.decode((16, 32), (1_000, 16_000), tokens=256)
                ready = server.details["ready_s"]
                rows: list[tuple[Value, ...]] = [
                    (variant.name, ready, streams, depth, rate, step_ms, None, None)
                    for depth, streams, rate, step_ms, *_ in table.rows
                ]
                rows += [(what, ready, *found) for what, found in await _cached_turns(variant.name, server, 2 if tiny else 16)]
        except AimoError as error:  # the other one is measured
            rows = [(f"{variant.name}: {str(error)[:400]}", *[None] * (len(columns) - 1))]
        result = replace(result, rows=(*result.rows, *rows))
        result.save(out / "parallel.json")
    return result


async def _cached_turns(name: str, server: DecodeServer, streams: int) -> list[tuple[str, tuple[Value, ...]]]:
    """The share of whole blocks that the turns of an attempt found cached; with several copies also without pinning them."""
    targets = {f"{name}, agent loop": server.target}
    if server.target.copies > 1:
        targets[f"{name}, agent loop, not pinned"] = replace(server.target, copies=1)
    found: list[tuple[str, tuple[Value, ...]]] = []
    for number, (what, target) in enumerate(targets.items()):
        plans = [even_turns(400, 100, 60)] * streams
        measured = await run_loop(target, itertools.count((2 + number) << 20), plans)
        covered = measured.covered
        mean = sum(covered) / len(covered) if covered else None
        found.append((what, (streams, None, measured.rate, None, min(covered, default=None), mean)))
    return found
