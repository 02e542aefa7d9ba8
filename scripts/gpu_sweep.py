"""Stages of `gpu_bench.py` about decoding that each start a server; `gpu_served.py` has those that share one."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

from aimo_solver.errors import AimoError
from gpu_common import (
    BEGAN,
    LEFT_S,
    POCKET,
    SLOTS,
    VARIANT_S,
    WORK,
    archive,
    make_config,
    shape_folder,
    stage,
)

_HALF_CACHE = 505_000  # tokens: 16 conversations of 30,000


@stage
def engine(out: Path, tiny: bool) -> Any:
    """Compares the agent loop with the bare engine."""
    from aimo_solver.lab.bench.engine import bench_engine
    from aimo_solver.lab.bench.loop import Target
    from aimo_solver.log.writer import RunLog
    from aimo_solver.solve.session import local_session

    model = shape_folder(tiny)
    config = make_config(tiny, load_format="dummy", compile_cache=str(archive()) if archive().exists() else None)
    run = WORK / "runs" / "engine"
    shutil.rmtree(run, ignore_errors=True)

    async def measure() -> Any:
        log = RunLog.create(run, config=config, started=BEGAN)
        async with local_session(model, config, log) as session:
            target = Target.of(session)
            if tiny:
                return await bench_engine(target, streams=(1, 2), tokens=100, turn_tokens=50)
            return await bench_engine(target, streams=(SLOTS, SLOTS // 2), tokens=1_200, turn_tokens=400, rounds=2)

    try:
        return asyncio.run(measure())
    finally:
        shutil.copy(run / "server.log", out / "engine.server.log")


def _decode(out: Path, tiny: bool, name: str, **options: Any) -> Any:
    import gpu_decode

    if tiny:
        options |= {"streams": (1, 2), "depths": (100,), "tokens": 40}
    return asyncio.run(gpu_decode.table(shape_folder(tiny), out, WORK, name=name, tiny=tiny, **options))


@stage
def routing(out: Path, tiny: bool) -> Any:
    """Distinct experts per layer and step with random weights, for several skews."""
    import gpu_decode

    if tiny:
        return "the embedded model is no mixture of experts"
    return asyncio.run(gpu_decode.routing(shape_folder(tiny), out, WORK, name="routing", skews=(0.0, 1.0), streams=(1, 4, 8, 16)))


@stage
def experts(out: Path, tiny: bool) -> Any:
    """Expert products of one layer alone, with 4 and 8 warps per block, for 1 to 1,024 tokens."""
    import gpu_experts

    return "needs a GPU" if tiny else gpu_experts.compare()


@stage
def decode_vllms_experts(out: Path, tiny: bool) -> Any:
    """Streams by depth with 8 warps per block of the experts' kernels, as vLLM chooses; `decode-wide` has the preset's 4."""
    import gpu_decode

    streams, variant = (1, 4, 8, 12, 16, 24, 32), gpu_decode.VLLMS_EXPERTS
    return _decode(out, tiny, "decode-vllms-experts", streams=streams, depths=(1_000, 16_000), tokens=384, variant=variant)


@stage
def decode_fewer_graphs(out: Path, tiny: bool) -> Any:
    """Streams by depth with graphs for fewer numbers of streams, as vLLM captures them by default."""
    import gpu_decode

    variant = gpu_decode.FEWER_GRAPHS if not tiny else gpu_decode.BASE
    streams = (4, 5, 8, 12, 16, 20)
    return _decode(out, tiny, "decode-fewer-graphs", streams=streams, depths=(1_000, 16_000), tokens=384, variant=variant)


@stage
def decode_dummy(out: Path, tiny: bool) -> Any:
    """Streams by depth with vLLM's dummy weights, where every token takes the same experts."""
    return _decode(out, tiny, "decode-dummy", streams=(1, 8, 16, 32), depths=(1_000, 16_000), weights="dummy", tokens=384)


@stage
def prefix_cache_sparse(out: Path, tiny: bool) -> Any:
    """The stage prefix-cache with fewer blocks of sliding windows kept: those before every 512th token."""
    import gpu_decode

    environment = {} if tiny else {"VLLM_PREFIX_CACHE_RETENTION_INTERVAL": "512"}
    _prefix_cache(out, tiny, gpu_decode.Variant(name="windows kept every 512 tokens", environment=environment), suffix="-sparse")


@stage
def prefix_cache_full(out: Path, tiny: bool) -> Any:
    """The stage prefix-cache with half of its KV cache, which is 95 % full after a minute; other servers may run beside it."""
    import gpu_decode

    variant = gpu_decode.Variant(name="half of the KV cache", server={} if tiny else {"memory_share": 0.7})
    _prefix_cache(out, tiny, variant, suffix="-full", kv_tokens=_HALF_CACHE)


def _prefix_cache(out: Path, tiny: bool, variant: Any, **options: Any) -> None:
    import gpu_served

    until, model = BEGAN + LEFT_S - 5, shape_folder(tiny)
    asyncio.run(gpu_served.run(["prefix-cache"], model, out, WORK, tiny=tiny, until=until, variant=variant, **options))


@stage
def parallel(out: Path, tiny: bool) -> Any:
    """Tensor parallel against data parallel on two GPUs."""
    import gpu_served

    return asyncio.run(gpu_served.parallel(shape_folder(tiny), out, WORK, tiny=tiny))


@stage
def dense(out: Path, tiny: bool) -> Any:
    """A dense model's whole shape (Qwen3-14B) in BF16 and FP8: 8 and 16 streams, 1,000 and 16,000 tokens deep.

    Servers that OUT has are not started again, so the stage can be repeated until it is complete.
    """
    import gpu_dense

    return gpu_dense.compare(out, WORK, until=BEGAN + LEFT_S, tiny=tiny)


@stage
def decode_speculation(out: Path, tiny: bool) -> Any:
    """Speculation with a head of random weights: 1, 8 and 16 streams, 1.5 to 3 tokens accepted per step at random.

    Servers that OUT has are not started again, so the stage can be repeated until it is complete.
    """
    import gpu_shapes
    import gpu_speculation

    head = WORK / "eagle3-head"
    gpu_shapes.write_head(head, shape_folder(tiny))
    streams = (1, 2) if tiny else (1, 8, 16)
    until = BEGAN + LEFT_S
    return asyncio.run(
        gpu_speculation.speculation(
            shape_folder(tiny), head, out, WORK, streams=streams, until=until, least_s=VARIANT_S, tiny=tiny
        )
    )


@stage
def speculation_sampled(out: Path, tiny: bool) -> Any:
    """The embedded model at temperature 1 with its draft and without: right attempts, and the distribution of sampled tokens."""
    import gpu_sampling

    return asyncio.run(gpu_sampling.compare(out, WORK, POCKET, tiny=tiny))


@stage
def profile(out: Path, tiny: bool) -> Any:
    """Kernels of one decode step of 8 streams, 1,000 tokens deep, uniform routing."""
    return _profile(out, tiny, "profile", depth=1_000)


@stage
def profile_deep(out: Path, tiny: bool) -> Any:
    """Kernels of one decode step of 8 streams, 16,000 tokens deep, uniform routing."""
    return _profile(out, tiny, "profile-deep", depth=16_000)


def _profile(out: Path, tiny: bool, name: str, *, depth: int) -> Any:
    import gpu_decode

    if tiny:
        return "needs a GPU"
    return asyncio.run(gpu_decode.profile(shape_folder(tiny), out, WORK, name=name, streams=8, depth=depth))


@stage
def sweep(out: Path, tiny: bool) -> Any:
    """One server after another, each with one option changed: 8 and 16 streams, 1,000 tokens deep, uniform routing.

    Variants that OUT has are not measured again, and none is started without time for it. The preset's own speed is that of
    the stage decode.
    """
    import gpu_decode
    from aimo_solver.lab.bench.table import BenchResult

    columns = ("variant", "streams", "tokens/s", "ms per step", "of bandwidth", "ready s")
    result = BenchResult(name="sweep", columns=columns, rows=_swept("preset", out / "decode.json"))
    for variant in (gpu_decode.BASE,) if tiny else gpu_decode.VARIANTS:
        name = "sweep-" + re.sub(r"\W+", "-", variant.name.lower())
        saved = out / f"{name}.json"
        if not saved.exists() or not _whole(saved):
            if time.monotonic() - BEGAN > LEFT_S - VARIANT_S:
                break
            try:
                _decode(out, tiny, name, streams=(8, 16), depths=(1_000,), tokens=384, variant=variant).save(saved)
            except AimoError as error:  # a variant that this version of vLLM does not know; the others are measured
                saved.write_text(json.dumps({"details": {"error": str(error)[:400]}, "results": []}))
        result = dataclasses.replace(result, rows=(*result.rows, *_swept(variant.name, saved)))
        result.save(out / "sweep.json")
    return result


def _swept(name: str, saved: Path) -> tuple[tuple[Any, ...], ...]:
    """The sweep's rows of one server; none if it was not measured."""
    table = json.loads(saved.read_text()) if saved.exists() else {"results": [], "details": {}}
    details = table["details"]
    if "error" in details:
        return ((f"{name}: {details['error']}", None, None, None, None, None),)
    return tuple(
        (name, row["streams"], row["tokens/s"], row["ms per step"], row["of bandwidth"], details["ready_s"])
        for row in table["results"]
        if row["depth"] == 1_000
    )


def _whole(saved: Path) -> bool:
    table = json.loads(saved.read_text())
    return len(table["results"]) == 2 or "error" in table["details"]
