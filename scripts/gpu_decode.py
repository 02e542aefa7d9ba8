"""Decode tables of gpt-oss-120b's shape on a GPU: which weights, how many experts per step, how deep the context.

`gpu_bench.py` runs these as stages. Each saves its table after every row, so a stage that is cut keeps what it has.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import json
import os
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from aimo_solver.config import Config, load_config
from aimo_solver.lab.bench.decode import BANDWIDTH, Shape, bench_decode, probe_experts
from aimo_solver.lab.bench.loop import Target
from aimo_solver.lab.bench.random_weights import LOAD_FORMAT, expected_experts
from aimo_solver.lab.bench.table import BenchResult
from aimo_solver.log.environment import describe_environment
from aimo_solver.log.writer import RunLog
from aimo_solver.server.machine import detect_gpus
from aimo_solver.solve.session import local_session

CONCENTRATED = "dummy"  # vLLM's own load format: every token takes the same experts


_FEWER_GRAPHS = [1, 2, 4, 8, 16, 24, 32, 64, 128, 256, 512, 1024]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to start the server.

    Attributes:
        server: options of `ServerConfig` that differ from the preset.
        arguments: flags behind the preset's.
        environment: variables of the server.
        sampling: options of `SamplingConfig`.
        chosen: what a server's log says that does the same anyway; where the preset's says it, the variant is not measured.
    """

    name: str
    server: Mapping[str, Any] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    chosen: str | None = None


def graphs(mode: str, sizes: Sequence[int]) -> tuple[str, ...]:
    """The flag for CUDA graphs of these sizes."""
    return ("--compilation-config", json.dumps({"cudagraph_mode": mode, "cudagraph_capture_sizes": list(sizes)}))


BASE = Variant(name="preset")
FEWER_GRAPHS = Variant(name="graphs of 1, 2, 4, 8, 16, 24, ...", arguments=graphs("FULL_AND_PIECEWISE", _FEWER_GRAPHS))
VARIANTS = (
    BASE,
    Variant(name="experts: Marlin", server={"moe_backend": "marlin"}, chosen="'MARLIN' Mxfp4"),
    Variant(name="experts: Triton", server={"moe_backend": "triton"}, chosen="'TRITON' Mxfp4"),
    Variant(name="attention: Triton", server={"attention_backend": "TRITON_ATTN"}, chosen="TRITON_ATTN attention"),
    Variant(name="attention: FlashAttention 3", server={"attention_backend": "FLASH_ATTN"}, chosen="FLASH_ATTN attention"),
    Variant(name="no async scheduling", arguments=("--no-async-scheduling",)),
    Variant(name="model runner V2", environment={"VLLM_USE_V2_MODEL_RUNNER": "1"}),
    Variant(name="KV cache: BF16", server={"kv_cache_dtype": "auto"}),
    Variant(name="experts: Triton, unfused", server={"moe_backend": "triton_unfused"}),
    Variant(name="stream interval 1", arguments=("--stream-interval", "1")),
    FEWER_GRAPHS,
    Variant(name="performance mode", arguments=("--performance-mode", "interactivity")),
)


def configuration(variant: Variant, *, slots: int, load_format: str | None, skew: float, tiny: bool) -> Config:
    """The run's options: `slots` streams on weights of `load_format`."""
    extra = list(variant.arguments)
    if load_format == LOAD_FORMAT:
        extra += ["--model-loader-extra-config", f'{{"skew": {skew}}}']
    # No restart: a fallback would be measured in place of what was asked for.
    server: dict[str, Any] = {**variant.server, "load_format": load_format, "extra_args": extra, "restarts": 0}
    values: dict[str, Any] = {"solver": {"slots": slots, "max_attempts": slots}, "server": server, "sampling": variant.sampling}
    if tiny:
        values["kernels"] = {"size": slots}
    return load_config(values)


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
    load_format: str | None = LOAD_FORMAT,
    skew: float = 0.0,
    experts: Mapping[int, float] | None = None,
    tiny: bool = False,
) -> BenchResult:
    """Starts one server and measures every number of streams at every depth.

    Args:
        experts: distinct experts per layer and step, as `routing` measured them; without, those of uniform routing.
    """
    config = configuration(variant, slots=max(streams), load_format=load_format, skew=skew, tiny=tiny)
    shape = Shape.read(model)
    if experts is None and load_format == LOAD_FORMAT:
        experts = {count: expected_experts(count, shape.experts, shape.experts_per_token) for count in streams}
    run = work / "runs" / name
    shutil.rmtree(run, ignore_errors=True)
    began = time.monotonic()
    try:
        with RunLog.create(run, config=config, environment=describe_environment(), started=began) as log:
            os.environ.update(variant.environment)  # a stage's process has one variant at a time; the server inherits it
            async with local_session(model, config, log) as session:
                booted = time.monotonic() - began
                assert session.plan is not None
                cache = session.plan.flag("--kv-cache-dtype")
                start = {"variant": variant.name, "ready_s": booted, **server_start(run / "server.log")}
                print(f"{booted:6.1f} s  {variant.name}: ready; {start}", flush=True)

                def made(result: BenchResult) -> BenchResult:
                    return dataclasses.replace(result, details={**result.details, **start})

                result = await bench_decode(
                    Target.of(session),
                    shape,
                    streams=streams,
                    depths=depths,
                    tokens=tokens,
                    distinct=experts,
                    kv_bytes=1 if cache is not None and str(cache.value).startswith("fp8") else 2,
                    kv_tokens=kv_tokens(run / "server.log"),
                    bandwidth=next((rate for gpu in detect_gpus() for key, rate in BANDWIDTH.items() if key in gpu.name), None),
                    progress=lambda line: print(f"{time.monotonic() - began:6.1f} s  {variant.name}: {line}", flush=True),
                    on_rows=lambda partial: made(partial).save(out / f"{name}.json"),
                )
    finally:
        for variable in variant.environment:
            os.environ.pop(variable, None)
        shutil.copy(run / "server.log", out / f"{name}.server.log")
    return made(result)


async def routing(
    model: Path,
    out: Path,
    work: Path,
    *,
    name: str,
    skews: Sequence[float],
    streams: Sequence[int],
    load_format: str | None,
    tiny: bool,
) -> BenchResult:
    """Distinct experts per layer and step for each skew, as the server itself reports them; saved after each skew."""
    shape = Shape.read(model)
    result = BenchResult(name=name, columns=("skew", "streams", "experts per layer", "uniform"), rows=())
    for skew in skews:
        # Marlin, as the Triton experts choose experts inside their kernels, which the server does not see, and compile them
        # anew for each length of a step without graphs. Neither graphs nor compilation change what the router says.
        arguments = ("--enable-return-routed-experts", "--enforce-eager")
        variant = Variant(name=f"skew {skew:g}", server={"moe_backend": "marlin"}, arguments=arguments)
        config = configuration(variant, slots=max(streams), load_format=load_format, skew=skew, tiny=tiny)
        run = work / "runs" / f"{name}-{skew:g}"
        shutil.rmtree(run, ignore_errors=True)
        began = time.monotonic()
        try:
            with RunLog.create(run, config=config, environment=describe_environment(), started=began) as log:
                async with local_session(model, config, log) as session:
                    print(f"{time.monotonic() - began:6.1f} s  skew {skew:g}: ready", flush=True)
                    taken = await probe_experts(Target.of(session), streams)
        finally:
            shutil.copy(run / "server.log", out / f"{name}-{skew:g}.server.log")
        uniform = {count: expected_experts(count, shape.experts, shape.experts_per_token) for count in streams}
        rows = [*result.rows, *((skew, count, taken.get(count), uniform[count]) for count in streams)]
        result = dataclasses.replace(result, rows=tuple(rows))
        result.save(out / f"{name}.json")
        print(f"{time.monotonic() - began:6.1f} s  skew {skew:g}: {taken}", flush=True)
    return result


async def profile(model: Path, out: Path, work: Path, *, streams: int, depth: int) -> BenchResult:
    """Kernels of decode steps, from torch's profiler: calls, milliseconds and share of each in the mean step."""
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
    config = configuration(variant, slots=streams, load_format=LOAD_FORMAT, skew=0.0, tiny=False)
    run = work / "runs" / "profile"
    shutil.rmtree(run, ignore_errors=True)
    try:
        with RunLog.create(run, config=config, environment=describe_environment(), started=time.monotonic()) as log:
            async with local_session(model, config, log) as session:
                target = Target.of(session)
                decoding = asyncio.create_task(
                    bench_decode(target, Shape.read(model), streams=(streams,), depths=(depth,), tokens=1_500)
                )
                async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=100)) as http:
                    await asyncio.sleep(5.0)  # all streams decode by then
                    for pause, verb in ((0.4, "start"), (0.0, "stop")):
                        async with http.post(f"{target.base_url}/{verb}_profile") as response:
                            response.raise_for_status()
                        await asyncio.sleep(pause)
                decoding.cancel()
                await asyncio.gather(decoding, return_exceptions=True)
    finally:
        shutil.copy(run / "server.log", out / "profile.server.log")
    trace = max(traces.glob("*.json.gz"), key=lambda path: path.stat().st_size)
    if trace.stat().st_size < 8 << 20:
        shutil.copy(trace, out / "profile.trace.json.gz")
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


def server_start(log: Path) -> dict[str, Any]:
    """What a server's log says about its graphs and backends."""
    text = log.read_text(encoding="utf-8", errors="replace")
    graphs = re.findall(r"Graph capturing finished in ([\d.]+) secs, took ([\d.-]+) GiB", text)
    backends = re.findall(r"Using \S+ (?:attention backend|Mxfp4 MoE backend)", text)
    return {
        "graphs_s": float(graphs[-1][0]) if graphs else None,
        "graphs_gib": float(graphs[-1][1]) if graphs else None,
        "backends": sorted(set(backends)),
    }


def kv_tokens(log: Path) -> int | None:
    """What vLLM says that its KV cache holds; None if it says nothing."""
    found = re.search(r"GPU KV cache size: ([\d,]+) tokens", log.read_text(encoding="utf-8", errors="replace"))
    return None if found is None else int(found[1].replace(",", ""))
