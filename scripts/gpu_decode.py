"""Decode tables of gpt-oss-120b's shape on a GPU: which weights, how many experts per step, how deep the context.

`gpu_bench.py` runs these as stages. Each saves its table after every row, so a stage that is cut keeps what it has.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import aiohttp

from aimo_solver.config import Config, load_config
from aimo_solver.lab.bench.decode import bench_decode, probe_experts
from aimo_solver.lab.bench.decode_server import DecodeServer, Weights, read_start, server_options
from aimo_solver.lab.bench.table import BenchResult
from aimo_solver.log.writer import RunLog
from aimo_solver.solve.session import local_session

BEGAN = time.monotonic()
_PREFILL = 12_000  # tokens per second, at least
_SIZES = [*range(1, 17), 32, 64, 128, 256, 512, 1_024]
_FEWER_GRAPHS = [1, 2, 4, 8, 16, 24, 32, 64, 128, 256, 512, 1024]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to start the server.

    Attributes:
        server: options of `ServerConfig` that differ from the preset.
        arguments: flags after the preset's.
        environment: variables of the server.
        sampling: options of `SamplingConfig`.
    """

    name: str
    server: Mapping[str, Any] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)


def graphs(mode: str, sizes: Sequence[int], **more: Any) -> tuple[str, ...]:
    """The flag for CUDA graphs of these sizes, with `more` of vLLM's options of compilation."""
    return ("--compilation-config", json.dumps({"cudagraph_mode": mode, "cudagraph_capture_sizes": list(sizes), **more}))


BASE = Variant(name="preset")
FEWER_GRAPHS = Variant(name="graphs of 1, 2, 4, 8, 16, 24, ...", arguments=graphs("FULL_AND_PIECEWISE", _FEWER_GRAPHS))
VLLMS_EXPERTS = Variant(name="experts: Triton, 8 warps (vLLM's choice)", server={"expert_warps": 8})
VARIANTS = (
    VLLMS_EXPERTS,
    Variant(name="no async scheduling", arguments=("--no-async-scheduling",)),
    Variant(name="model runner V2", environment={"VLLM_USE_V2_MODEL_RUNNER": "1"}),
    Variant(name="KV cache: BF16", server={"kv_cache_dtype": "auto"}),
    Variant(name="experts: Triton, unfused", server={"moe_backend": "triton_unfused"}),
    Variant(name="graphs: whole steps only", arguments=graphs("FULL", _SIZES)),
    Variant(name="stream interval 1", arguments=("--stream-interval", "1")),
    Variant(name="blocks of 64 tokens", arguments=("--block-size", "64")),
    Variant(name="performance mode: interactivity", arguments=("--performance-mode", "interactivity")),
    Variant(name="graphs: decode steps only", arguments=graphs("FULL_DECODE_ONLY", _SIZES)),
    Variant(name="steps of up to 4,096 tokens", arguments=("--max-num-batched-tokens", "4096")),
    Variant(name="experts: FlashInfer CUTLASS", server={"moe_backend": "flashinfer_cutlass"}),
    Variant(name="experts: Humming", server={"moe_backend": "humming"}),
    Variant(name="dense products tuned", arguments=graphs("FULL_AND_PIECEWISE", _SIZES, compile_sizes=[8, 16])),
    Variant(name="experts: Marlin", server={"moe_backend": "marlin"}),
    Variant(name="attention: Triton", server={"attention_backend": "TRITON_ATTN"}),
)
"""The sweep, by how likely each is to change the preset; the last two were measured before."""


def configuration(
    variant: Variant, *, slots: int, weights: Weights, skew: float = 0.0, control: bool = False, tiny: bool = False
) -> Config:
    """The run's options: `slots` streams on these weights."""
    server = server_options("real" if tiny else weights, skew, control=control and not tiny)
    extra = [*variant.arguments, *server.get("extra_args", ())]
    values: dict[str, Any] = {
        "solver": {"slots": slots, "max_attempts": slots},
        "server": {**server, **variant.server, "extra_args": extra},
        "sampling": variant.sampling,
    }
    if tiny:
        values["kernels"] = {"size": slots}
    elif weights != "real":
        values["prompt"] = {"family": "harmony"}  # a shape has no chat template; this format takes the ids of any
    return load_config(values)


@asynccontextmanager
async def started(
    model: Path, out: Path, work: Path, config: Config, *, name: str, variant: Variant, weights: Weights, skew: float = 0.0
) -> AsyncIterator[DecodeServer]:
    """Starts a server; its log is copied to OUT/NAME.server.log at the end."""
    run = work / "runs" / name
    shutil.rmtree(run, ignore_errors=True)
    began = time.monotonic()
    try:
        with (
            RunLog.create(run, config=config, started=began) as log,
            mock.patch.dict(os.environ, variant.environment),  # the server inherits it
        ):
            async with local_session(model, config, log) as session:
                start = {"variant": variant.name, "ready_s": time.monotonic() - began, **read_start(run / "server.log")}
                server = await DecodeServer.of(session, start, weights, skew)
                print(f"{server.details['ready_s']:6.1f} s  {variant.name}: ready; {server.details}", flush=True)
                yield server
    finally:
        if (run / "server.log").exists():
            shutil.copy(run / "server.log", out / f"{name}.server.log")


async def table(
    model: Path,
    out: Path,
    work: Path,
    *,
    name: str,
    streams: Sequence[int],
    depths: Sequence[int],
    tokens: int = 512,
    variant: Variant = BASE,
    weights: Weights = "random",
    skew: float = 0.0,
    tiny: bool = False,
) -> BenchResult:
    """Starts one server and measures every number of streams at every depth."""
    config = configuration(variant, slots=max(streams), weights=weights, skew=skew, tiny=tiny)
    async with started(model, out, work, config, name=name, variant=variant, weights=weights, skew=skew) as server:
        return await server.measure(
            streams=streams,
            depths=depths,
            tokens=tokens,
            progress=progress(variant.name),
            on_rows=lambda partial: partial.save(out / f"{name}.json"),
        )


def progress(name: str) -> Callable[[str], None]:
    """Returns a function that prints lines with the seconds since this process began."""
    return lambda line: print(f"{time.monotonic() - BEGAN:6.1f} s  {name}: {line}", flush=True)


async def routing(
    model: Path, out: Path, work: Path, *, name: str, skews: Sequence[float], streams: Sequence[int]
) -> BenchResult:
    """Distinct experts per layer and step for each skew, as the server itself reports them; saved after each skew."""
    result = BenchResult(name=name, columns=("skew", "streams", "experts per layer", "expected"), rows=())
    for skew in skews:
        # Marlin, as the Triton experts choose experts inside their kernels, which the server does not see, and compile them
        # again for each length of a step without graphs. Neither graphs nor compilation change what the router says.
        arguments = ("--enable-return-routed-experts", "--enforce-eager")
        variant = Variant(name=f"skew {skew:g}", server={"moe_backend": "marlin"}, arguments=arguments)
        config = configuration(variant, slots=max(streams), weights="random", skew=skew)
        one = f"{name}-{skew:g}"
        async with started(model, out, work, config, name=one, variant=variant, weights="random", skew=skew) as server:
            taken = await probe_experts(server.target, streams)
            rows = [*result.rows, *((skew, count, taken.get(count), server.experts(count)) for count in streams)]
        result = dataclasses.replace(result, rows=tuple(rows))
        result.save(out / f"{name}.json")
    return result


async def profile(model: Path, out: Path, work: Path, *, name: str, streams: int, depth: int) -> BenchResult:
    """Kernels of decode steps, from torch's profiler: calls, milliseconds and share of each in an average step."""
    traces = work / "traces"
    shutil.rmtree(traces, ignore_errors=True)
    options = {
        "profiler": "torch",
        "torch_profiler_dir": str(traces),
        "torch_profiler_with_stack": False,
        "torch_profiler_dump_cuda_time_total": False,
        "ignore_frontend": True,
    }
    variant = Variant(name="profile", arguments=("--profiler-config", json.dumps(options)))
    config = configuration(variant, slots=streams, weights="random")
    async with started(model, out, work, config, name=name, variant=variant, weights="random") as server:
        target = server.target
        decoding = asyncio.create_task(bench_decode(target, server.shape, streams=(streams,), depths=(depth,), tokens=1_500))
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=100)) as http:
            await asyncio.sleep(5.0 + streams * depth / _PREFILL)  # all streams decode by then
            for pause, verb in ((0.4, "start"), (0.0, "stop")):
                async with http.post(f"{target.base_url}/{verb}_profile") as response:
                    response.raise_for_status()
                await asyncio.sleep(pause)
        decoding.cancel()
        await asyncio.gather(decoding, return_exceptions=True)
    trace = max(traces.glob("*.json.gz"), key=lambda path: path.stat().st_size)
    if trace.stat().st_size < 8 << 20:
        shutil.copy(trace, out / f"{name}.trace.json.gz")
    return kernels(json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"], streams=streams)


_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}


def kernels(events: Sequence[Mapping[str, Any]], *, streams: int) -> BenchResult:
    """The table of `profile`: kernels and copies of a trace's whole steps, the one that takes longest first."""
    annotations = [event for event in events if str(event.get("name", "")).startswith("execute_")]
    steps = [event for event in annotations if event["cat"] == "gpu_user_annotation"] or annotations
    device = sorted((e for e in events if e.get("cat") in _DEVICE), key=lambda event: event["ts"])
    began, ended = device[0]["ts"], max(event["ts"] + event["dur"] for event in device)
    if len(steps) > 2:  # the first and the last may be cut
        starts = sorted(event["ts"] for event in steps)
        began, ended = starts[1], starts[-1]
        device = [event for event in device if began <= event["ts"] < ended]
    count = max(1, len(steps) - 2)
    busy, until = 0.0, began
    total: dict[str, list[float]] = {}
    for event in device:
        end = event["ts"] + event["dur"]
        busy += max(0.0, end - max(until, event["ts"]))
        until = max(until, end)
        total.setdefault(str(event["name"])[:110], []).append(event["dur"])
    span = ended - began
    rows = [
        (name, len(took) / count, sum(took) / count / 1e3, sum(took) / span)
        for name, took in sorted(total.items(), key=lambda item: -sum(item[1]))
    ]
    return BenchResult(
        name="profile",
        columns=("kernel", "calls per step", "ms per step", "share"),
        rows=tuple(rows[:60]),
        notes=(
            f"{count} steps of {streams} streams, {span / count / 1e3:.3f} ms each, kernels run for {busy / span:.1%} of them",
        ),
        details={"steps": count, "step_ms": span / count / 1e3, "busy": busy / span, "kernels per step": len(device) / count},
    )
