"""Decode tables of gpt-oss-120b's shape on a GPU: which weights, how many experts per step, how deep the context.

`gpu_bench.py` runs these as stages. Each saves its table after every row, so a stage that is cut keeps what it has.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to start the server.

    Attributes:
        server: options of `ServerConfig` that differ from the preset.
        arguments: flags behind the preset's.
    """

    name: str
    server: Mapping[str, Any] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()


BASE = Variant(name="preset")
VARIANTS = (
    BASE,
    Variant(name="experts: Triton", server={"moe_backend": "triton"}),
    Variant(name="experts: Marlin", server={"moe_backend": "marlin"}),
    Variant(name="attention: FlashAttention 3", server={"attention_backend": "FLASH_ATTN"}),
    Variant(name="attention: Triton", server={"attention_backend": "TRITON_ATTN"}),
    Variant(name="KV cache: BF16", server={"kv_cache_dtype": "auto"}),
    Variant(name="no async scheduling", arguments=("--no-async-scheduling",)),
    Variant(name="stream interval 1", arguments=("--stream-interval", "1")),
    Variant(name="performance mode", arguments=("--performance-mode", "interactivity")),
    Variant(name="graphs of whole steps only", arguments=("--compilation-config.cudagraph_mode", "FULL")),
)


def configuration(variant: Variant, *, slots: int, load_format: str | None, skew: float, tiny: bool) -> Config:
    """The run's options: `slots` streams on weights of `load_format`."""
    extra = list(variant.arguments)
    if load_format == LOAD_FORMAT:
        extra += ["--model-loader-extra-config", f'{{"skew": {skew}}}']
    # No restart: a fallback would be measured in place of what was asked for.
    server: dict[str, Any] = {**variant.server, "load_format": load_format, "extra_args": extra, "restarts": 0}
    values: dict[str, Any] = {"solver": {"slots": slots, "max_attempts": slots}, "server": server}
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
            async with local_session(model, config, log) as session:
                booted = time.monotonic() - began
                assert session.plan is not None
                cache = session.plan.flag("--kv-cache-dtype")
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
                    on_rows=lambda partial: partial.save(out / f"{name}.json"),
                )
    finally:
        shutil.copy(run / "server.log", out / f"{name}.server.log")
    print(f"{variant.name}: the server was ready after {booted:.0f} s", flush=True)
    return result


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
    """Distinct experts per layer and step for each skew, as the server itself reports them."""
    shape = Shape.read(model)
    rows = []
    for skew in skews:
        # Graphs and compilation change no routing, and would take longer than the measurement.
        variant = Variant(name=f"skew {skew:g}", arguments=("--enable-return-routed-experts", "--enforce-eager"))
        config = configuration(variant, slots=max(streams), load_format=load_format, skew=skew, tiny=tiny)
        run = work / "runs" / f"{name}-{skew:g}"
        shutil.rmtree(run, ignore_errors=True)
        try:
            with RunLog.create(run, config=config, environment=describe_environment(), started=time.monotonic()) as log:
                async with local_session(model, config, log) as session:
                    taken = await probe_experts(Target.of(session), streams)
        finally:
            shutil.copy(run / "server.log", out / f"{name}-{skew:g}.server.log")
        rows += [
            (skew, count, taken.get(count), expected_experts(count, shape.experts, shape.experts_per_token)) for count in streams
        ]
        print(f"skew {skew:g}: {taken}", flush=True)
    return BenchResult(name=name, columns=("skew", "streams", "experts per layer", "uniform"), rows=tuple(rows))


def kv_tokens(log: Path) -> int | None:
    """What vLLM says that its KV cache holds; None if it says nothing."""
    found = re.search(r"GPU KV cache size: ([\d,]+) tokens", log.read_text(encoding="utf-8", errors="replace"))
    return None if found is None else int(found[1].replace(",", ""))
