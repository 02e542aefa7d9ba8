"""What each preset sets: vLLM's flags and environment variables, each with the reason for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aimo_solver.options import ServerConfig
from aimo_solver.server.machine import Machine

_HOPPER = (9, 0)
_LONGEST_STEP = 1_024  # tokens of one step of gpt-oss; a long prompt takes several


@dataclass(frozen=True, slots=True)
class Flag:
    """One command-line flag.

    Attributes:
        value: None for a flag that takes none.
        former: spelling in older versions, tried when `name` is unknown.
    """

    name: str
    value: str | None
    reason: str
    former: str | None = None


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable of the server."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True, slots=True)
class Wish:
    """What a preset is made for."""

    server: ServerConfig
    slots: int
    machine: Machine
    context: int


COMMON_VARIABLES = (
    Variable("HF_HUB_OFFLINE", "1", "the model is a local folder; a look at the hub would wait for a time-out"),
    Variable("VLLM_NO_USAGE_STATS", "1", "no network"),
    Variable("VLLM_DO_NOT_TRACK", "1", "no network"),
    Variable("TOKENIZERS_PARALLELISM", "false", "prompts come as tokens; silences a warning about forks"),
)

_Made = tuple[tuple[Flag, ...], tuple[Variable, ...]]


def common_flags(wish: Wish) -> tuple[Flag, ...]:
    return (
        Flag("--max-model-len", str(wish.context), "longest prompt and answer together"),
        Flag("--enable-prefix-caching", None, "each turn's prompt is the one before plus new tokens"),
        Flag("--enable-prompt-tokens-details", None, "reports the cached tokens of each request"),
        Flag("--generation-config", "vllm", "sampling is set per request, not by the model folder"),
        Flag("--disable-uvicorn-access-log", None, "a line per request says nothing new"),
    )


def _cpu(wish: Wish) -> _Made:
    flags = (
        Flag("--dtype", "float32", "exact on every CPU; models that run on one are small"),
        Flag("--block-size", "32", "the smallest block: prefix caching counts whole blocks"),
        Flag("--enforce-eager", None, "compiling takes longer than a small model runs"),
        Flag("--max-num-seqs", str(_rounded(wish.slots)), "as many requests as run side by side"),
    )
    variables = (Variable("VLLM_CPU_KVCACHE_SPACE", "1", "GiB of KV cache; the default takes a large part of the memory"),)
    return flags, variables


def _gpu(wish: Wish, memory_share: float, *, fp8_cache: bool) -> _Made:
    per_step = 1 + (wish.server.speculative_tokens if wish.server.speculative != "none" else 0)
    sequences = _rounded(wish.slots)
    flags = [
        Flag("--gpu-memory-utilization", f"{memory_share:.2f}", "the GPU is ours alone; what is over becomes KV cache"),
        Flag("--max-num-seqs", str(sequences), "as many requests as run side by side"),
        Flag("--max-num-batched-tokens", "4096", "a long tool result delays the other streams by one short step only"),
        Flag(
            "--max-cudagraph-capture-size",
            str(sequences * per_step),
            "graphs for the batch sizes that occur; all 50 of them would take 92 s to capture on an H200",
            former="--cuda-graph-sizes",
        ),
        Flag("--disable-cascade-attn", None, "attempts share their prompt; older versions then decode without CUDA graphs"),
        Flag("--stream-interval", "8", "a chunk per 8 tokens: fewer messages for server and client; the last comes at once"),
        Flag("--no-enable-flashinfer-autotune", None, "none of FlashInfer's kernels is used, so there is nothing to tune"),
        Flag("--tensor-parallel-size", str(_tensor_parallel(wish)), "GPUs that share one copy of the model"),
    ]
    if wish.server.speculative == "none":
        flags.append(Flag("--async-scheduling", None, "schedules the next step while this one runs"))
    if fp8_cache and wish.machine.gpus and min(gpu.capability for gpu in wish.machine.gpus) >= _HOPPER:
        flags.append(Flag("--kv-cache-dtype", "fp8_e4m3", "twice the context in the same memory; Hopper reads it natively"))
    variables = (
        Variable("VLLM_USE_FLASHINFER_SAMPLER", "0", "building FlashInfer's sampler took 126 s on an H200, and brings nothing"),
        Variable("VLLM_WORKER_MULTIPROC_METHOD", "fork", "the engine's process inherits the imports instead of repeating them"),
        Variable("VLLM_ENABLE_STARTUP_PLAN", "1", "a later start on the same GPU need not measure the memory again"),
    )
    return tuple(flags), variables


def _gpt_oss(wish: Wish) -> _Made:
    flags, variables = _gpu(wish, 0.96, fp8_cache=True)
    decode = next(int(flag.value or 0) for flag in flags if flag.name == "--max-cudagraph-capture-size")
    sizes = [1, 2, 4, *range(8, decode + 1, 8)]
    while sizes[-1] < _LONGEST_STEP:
        sizes.append(min(_LONGEST_STEP, 1 << sizes[-1].bit_length()))
    graphs = {"cudagraph_mode": "FULL_AND_PIECEWISE", "cudagraph_capture_sizes": sizes}
    own = (
        Flag("--max-num-batched-tokens", str(sizes[-1]), "no step is longer than the longest graph"),
        Flag(
            "--compilation-config",
            json.dumps(graphs, separators=(",", ":")),
            "every step is padded to a size that was captured at the start: the routing kernels of the experts are compiled "
            "anew for every 32 tokens of a step's length, and each new length would stop all streams for about a second",
        ),
    )
    replaced = {"--max-cudagraph-capture-size", *(flag.name for flag in own)}
    return (*(flag for flag in flags if flag.name not in replaced), *own), variables


def _gemma(wish: Wish) -> _Made:
    flags, variables = _gpu(wish, 0.95, fp8_cache=True)
    text_only = Flag("--limit-mm-per-prompt", '{"image":0,"video":0,"audio":0}', "text only: no room kept for pictures")
    return (*flags, text_only), variables


def _qwen3(wish: Wish) -> _Made:
    return _gpu(wish, 0.95, fp8_cache=True)


def _generic(wish: Wish) -> _Made:
    return _gpu(wish, 0.92, fp8_cache=False)


PRESETS: Mapping[str, Callable[[Wish], _Made]] = {
    "gpt-oss-120b": _gpt_oss,
    "gemma-4-31b": _gemma,
    "qwen3": _qwen3,
    "generic": _generic,
    "cpu": _cpu,
}


def chosen_flags(wish: Wish) -> tuple[Flag, ...]:
    """What the user set, on top of any preset."""
    server = wish.server
    chosen = "the user's choice"
    values = {
        "--gpu-memory-utilization": server.memory_share,
        "--kv-cache-dtype": server.kv_cache_dtype,
        "--attention-backend": server.attention_backend,
        "--moe-backend": server.moe_backend,
        "--quantization": server.quantization,
        "--load-format": server.load_format,
        "--data-parallel-size": server.data_parallel if server.data_parallel > 1 else None,
    }
    flags = [Flag(name, str(value), chosen) for name, value in values.items() if value is not None]
    if server.speculative != "none":
        flags.append(Flag("--speculative-config", _speculation(server), chosen))
    return tuple(flags)


def _speculation(server: ServerConfig) -> str:
    config: dict[str, Any] = {"num_speculative_tokens": server.speculative_tokens}
    if server.speculative == "ngram":
        config |= {"method": "ngram", "prompt_lookup_max": 4, "prompt_lookup_min": 2}
    else:
        config |= {"model": server.draft_model, "method": "eagle3" if server.speculative == "eagle" else "draft_model"}
    return json.dumps(config, sort_keys=True)


def _tensor_parallel(wish: Wish) -> int:
    if wish.server.tensor_parallel is not None:
        return wish.server.tensor_parallel
    # One copy over all GPUs: several copies would split the prefix cache that an attempt's turns live on.
    share = max(1, len(wish.machine.gpus) // wish.server.data_parallel)
    return 1 << (share.bit_length() - 1)


def _rounded(slots: int) -> int:
    return -(-slots // 8) * 8
