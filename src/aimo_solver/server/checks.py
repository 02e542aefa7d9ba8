"""Checks of a machine, a model and a server, each with a verdict and what to do: for `aimo-solver doctor` and the notebook."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil

from aimo_solver.policy.options import BudgetConfig
from aimo_solver.server.launch import LaunchPlan
from aimo_solver.server.machine import Gpu, cuda_version, difference, recorded_versions, running_versions
from aimo_solver.server.speculation import read_model_config
from aimo_solver.server.wheels import Installation

# Minimum major version of the driver by the major version of CUDA (NVIDIA's table "CUDA Toolkit and Minimum Driver Versions").
_DRIVERS = {"11": 450, "12": 525, "13": 580}
_OVERHEAD = 3.5e9  # bytes per GPU for activations and graphs: what gpt-oss-120b leaves of an H100 besides weights and KV cache
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt")
_CLOCK_S = 0.2
_NEEDED_DISK = 1 << 30


class Health(StrEnum):
    """The outcome of a check."""

    OK = "ok"
    WARNING = "warning"  # it works, with less speed or safety
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Check:
    """One check: what was looked at, what was found, and what to do about it ("" if nothing)."""

    name: str
    health: Health
    finding: str
    advice: str = ""


def format_checks(checks: Iterable[Check]) -> str:
    """Returns one line for each check, and its advice below it."""
    lines = []
    for check in checks:
        lines.append(f"{check.health:8} {check.name:9} {check.finding}")
        if check.advice:
            lines.append(f"{'':8} {'':9} -> {check.advice}")
    return "\n".join(lines)


def gpu_check(gpus: Sequence[Gpu], path: Sequence[str] | None = None) -> Check:
    """Checks the GPUs and their driver against the CUDA version of the torch on `path`."""
    if not gpus:
        if any(Path("/dev").glob("nvidia[0-9]*")):
            advice = "reinstall the driver, or restart the machine"
            return Check("GPU", Health.BROKEN, "there is one, but nvidia-smi lists none", advice)
        return Check("GPU", Health.WARNING, "none: the server runs on the CPU", "on Kaggle: Settings, Accelerator, GPU H100")
    first, cuda = gpus[0], cuda_version(path)
    found = f"{len(gpus)} x {first.name}, {first.memory_bytes / 2**30:.1f} GiB, driver {first.driver}"
    least = _DRIVERS.get(cuda.partition(".")[0], 0)
    if cuda and int("0" + first.driver.partition(".")[0]) < least:
        return Check("GPU", Health.BROKEN, found, f"CUDA {cuda} needs driver {least} or newer; install a vLLM for an older CUDA")
    return Check("GPU", Health.OK, found)


def versions_check(wheels: Installation, gpus: Sequence[Gpu] = ()) -> Check:
    """Names the versions of Python, torch and vLLM without importing them; warns if the wheels were tested with others."""
    versions = running_versions(wheels.path, gpus)
    found = f"Python {versions.python}, vLLM {versions.vllm or '-'}, torch {versions.torch or '-'}, CUDA {versions.cuda or '-'}"
    found += ", beside the image's packages" if wheels.overlay else ""
    different = difference(recorded_versions(), versions)
    if different is not None:
        return Check("versions", Health.WARNING, found, f"{different}; build the wheels on this image if vLLM fails")
    return Check("versions", Health.OK if versions.vllm else Health.WARNING, found)


def vllm_check(wheels: Installation) -> Check:
    """Imports vLLM with the Python that the server will run on."""
    problem, versions = wheels.import_problem(), running_versions(wheels.path, ())
    if problem is not None:
        advice = "pip install -e '.[gpu]', or make without a GPU; on Kaggle build the wheels again"
        return Check("vLLM", Health.BROKEN, f"cannot be imported by {wheels.python}: {problem[:300]}", advice)
    found = f"{versions.vllm} imports, with torch {versions.torch} and CUDA {versions.cuda or '-'}, in {wheels.python}"
    return Check("vLLM", Health.OK, found)


def flags_check(plan: LaunchPlan) -> Check:
    """Names the flags of a launch that the installed vLLM lacks."""
    names = ", ".join(flag.name for flag in plan.dropped)
    if names:
        found = f"left out, unknown to this vLLM: {names}"
        return Check("flags", Health.WARNING, found, "use a vLLM version of docs/versions.md")
    return Check("flags", Health.OK, "this vLLM has every flag" if plan.known_flags else "no vLLM to check them against")


def weights_check(plan: LaunchPlan) -> Check:
    """Checks that the weights are there and fit: on the GPUs, or twice in free memory on a CPU (float32); page cache too."""
    if missing := _missing_weights(plan.model):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        return Check("weights", Health.BROKEN, f"{missing[0]}{more} not in {plan.model}", "copy the model's whole folder")
    size, free = _weights_bytes(plan.model), psutil.virtual_memory().available
    room = sum(gpu.memory_bytes for gpu in plan.gpus) * _memory_share(plan) if plan.gpus else free / 2
    found = f"{size / 1e9:.1f} GB, of {room / 1e9:.1f} GB on {'the GPU' if plan.gpus else 'the CPU'}"
    if size > room:
        return Check("weights", Health.BROKEN, found, "use a smaller or quantised model, or more GPUs")
    if size > free:
        found += f"; {free / 1e9:.1f} GB of memory are free"
        return Check("weights", Health.WARNING, found, "the start reads them without a page cache")
    return Check("weights", Health.OK, found)


def disk_check() -> Check:
    """Checks that a GiB is free for the run's log and for temporary files."""
    free = {place: shutil.disk_usage(place).free for place in (Path.cwd(), Path(tempfile.gettempdir()))}
    found = ", ".join(f"{size / 1e9:.1f} GB free in {place}" for place, size in free.items())
    if min(free.values()) < _NEEDED_DISK:
        return Check("disk", Health.WARNING, found, "free a GB: a run goes on without its log when the disk is full")
    return Check("disk", Health.OK, found)


def kv_check(tokens: int | None, streams: int, context: int, *, estimated: bool = False) -> Check:
    """Compares a KV cache with what attempts need, half a context each; less than one context cannot be served.

    Attempts are of all lengths at any moment, so half a context each is what a run of long attempts needs. With less,
    vLLM evicts the prefixes of conversations that wait for Python, and computes them again.
    """
    if tokens is None:
        return Check("KV cache", Health.OK, "size unknown")
    about = "about " if estimated else ""
    found = f"{about}{tokens:,} tokens, {tokens // streams:,} for each of {streams} attempts (context {context:,})"
    if tokens < context:
        return Check("KV cache", Health.BROKEN, found, "lower server.context_tokens, or use a smaller model")
    if 2 * tokens < streams * context:
        fitting = max(1, 2 * tokens // context)
        advice = f"lower solver.slots or solver.parallel to {fitting} attempts, or server.context_tokens"
        return Check("KV cache", Health.WARNING, found, advice)
    return Check("KV cache", Health.OK, found)


def estimate_kv_tokens(plan: LaunchPlan, streams: int) -> int | None:
    """Estimates how many tokens the KV cache holds; None if ``config.json`` lacks the shapes.

    A layer takes 2 (key and value) x key-value heads x head dimension x bytes of an element for each token. Layers of full
    attention keep every token, layers with a sliding window keep the window of each stream, other layers (linear attention)
    nothing. The cache has the GPUs' memory x memory share - weights - 3.5 GB for activations and graphs on each GPU. For
    gpt-oss-120b (65.2 GB) on an H100 (0.96, FP8) that gives 726,000 tokens; vLLM 0.26 reported 733,808. On a CPU it is the GiB
    of VLLM_CPU_KVCACHE_SPACE.
    """
    config = read_model_config(plan.model)
    text: Mapping[str, Any] = config.get("text_config") or config
    try:
        heads = text.get("num_key_value_heads") or text["num_attention_heads"]
        width = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
        layers = text.get("layer_types") or ["full_attention"] * text["num_hidden_layers"]
    except (KeyError, TypeError, ZeroDivisionError):
        return None
    dtype = plan.flag("--kv-cache-dtype")
    element = 4 if not plan.gpus else 1 if dtype is not None and str(dtype.value).startswith("fp8") else 2
    layer = 2 * heads * width * element
    if plan.gpus:
        memory = sum(gpu.memory_bytes * _memory_share(plan) - _OVERHEAD for gpu in plan.gpus) - _weights_bytes(plan.model)
    else:
        memory = float(next((one.value for one in plan.variables if one.name == "VLLM_CPU_KVCACHE_SPACE"), 4)) * 2**30
    memory -= streams * layers.count("sliding_attention") * (text.get("sliding_window") or 0) * layer
    return max(0, int(memory / (max(1, layers.count("full_attention")) * layer)))


def clock_check(budget: BudgetConfig, wall: Callable[[], float] = time.time) -> Check:
    """Checks that the monotonic clock, by which a run is timed, advances as the date does; names the time limit."""
    before = time.monotonic(), wall()
    time.sleep(_CLOCK_S)
    elapsed, passed = time.monotonic() - before[0], wall() - before[1]
    limit = f"{budget.time_limit_s:,.0f} s for {budget.problems} problems, at most {budget.cap_s:.0f} s each"
    if abs(elapsed - passed) > _CLOCK_S / 2:
        found = f"{limit}; the date moved by {passed:.2f} s in {elapsed:.2f} s"
        return Check("clock", Health.WARNING, found, "the date is being changed; a run is timed by the monotonic clock anyway")
    return Check("clock", Health.OK, limit)


def _memory_share(plan: LaunchPlan) -> float:
    share = plan.flag("--gpu-memory-utilization")
    return float(share.value or 0.9) if share is not None else 0.9  # vLLM's default


def _missing_weights(model: Path) -> list[str]:
    """Returns the files that the model's index names and its folder lacks; without any weights the pattern of their names."""
    try:
        index = json.loads((model / "model.safetensors.index.json").read_text(encoding="utf-8"))
        names = {str(name) for name in index["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # vLLM reads the files without an index too
        names = set()
    there = any(file for pattern in _WEIGHTS for file in model.glob(pattern))
    return sorted(name for name in names if not (model / name).is_file()) or ([] if there else [_WEIGHTS[0]])


def _weights_bytes(model: Path) -> int:
    return sum(file.stat().st_size for file in model.glob("*.safetensors"))
