"""The presets: vLLM's flags and environment variables for a model family, each with its reason."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from aimo_solver.config import Config
from aimo_solver.server.machine import Gpu
from aimo_solver.server.speculation import Speculation

HOPPER = (9, 0)
_LONGEST_STEP = 1_024  # tokens of one step of gpt-oss; a long prompt takes several


GRAPH_FLAGS = ("--compilation-config", "--max-cudagraph-capture-size")


class Graphs(StrEnum):
    """Which CUDA graphs the server captures."""

    ALL = "all"
    FEWER = "fewer"  # of decode steps only, and of few lengths
    NONE = "none"  # nothing is compiled either


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjustments:
    """How a command line differs from its preset's after failed starts (`ladder`). None leaves a value as it is.

    Attributes:
        fork: the engine process may be forked.
        plugin: vLLM may load the solver's plugin.
        speculation: tokens may be drafted.
        dropped: names of flags that vLLM refused.
        steps: what was changed and why, in order, one line each.
    """

    memory_share: float | None = None
    context_tokens: int | None = None
    moe_backend: str | None = None
    graphs: Graphs = Graphs.ALL
    fork: bool = True
    plugin: bool = True
    speculation: bool = True
    dropped: frozenset[str] = frozenset()
    steps: tuple[str, ...] = ()

    @property
    def refused(self) -> frozenset[str]:
        """Names of the flags that are left out of the user's own arguments: vLLM refused them, or they undo an adjustment."""
        return self.dropped | (frozenset() if self.graphs is Graphs.ALL else frozenset(GRAPH_FLAGS))


UNADJUSTED = Adjustments()


@dataclass(frozen=True, slots=True)
class Flag:
    """One command-line flag; `value` is None for a flag that takes none."""

    name: str
    value: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable of the server."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetInput:
    """What the flags and variables of a server depend on.

    Attributes:
        slots: concurrent requests.
        speculation: how tokens are drafted; None if they are not. Failed starts may leave drafts out, not their sampling.
        longest: tokens of the longest prompt and answer together; failed starts may lower it.
        adjustments: what failed starts have changed.
    """

    config: Config
    slots: int
    gpus: tuple[Gpu, ...]
    speculation: Speculation | None
    longest: int
    adjustments: Adjustments = UNADJUSTED

    @property
    def context_tokens(self) -> int:
        """Longest prompt and answer together."""
        return self.adjustments.context_tokens or self.longest

    @property
    def drafting(self) -> Speculation | None:
        """The speculation; None once failed starts have dropped it."""
        return self.speculation if self.adjustments.speculation else None

    @property
    def step_tokens(self) -> int:
        """Tokens of one stream in a decode step: the one that is certain to be sampled, and the drafted ones."""
        return 1 + (self.drafting.tokens if self.drafting is not None else 0)


COMMON_VARIABLES = (
    Variable("HF_HUB_OFFLINE", "1", "the model is a local folder; asking the hub would wait for a timeout"),
    Variable("VLLM_NO_USAGE_STATS", "1", "no network"),
    Variable("VLLM_DO_NOT_TRACK", "1", "no network"),
    Variable("USE_TF", "0", "transformers would import the image's TensorFlow, if it saw it"),
    Variable("USE_FLAX", "0", "transformers would import the image's Flax, if it saw it"),
    Variable("NO_COLOR", "1", "`failures` reads the output; ipykernel sets FORCE_COLOR, which vLLM 0.32 follows"),
    Variable("TOKENIZERS_PARALLELISM", "false", "prompts are token ids; silences a warning about forks"),
)

_Settings = tuple[tuple[Flag, ...], tuple[Variable, ...]]


def common_flags(given: PresetInput) -> tuple[Flag, ...]:
    """Returns the flags of every preset."""
    return (
        Flag("--max-model-len", str(given.context_tokens), "longest prompt and answer together"),
        Flag("--enable-prefix-caching", None, "each turn's prompt is the previous one plus new tokens"),
        Flag("--enable-prompt-tokens-details", None, "reports the cached tokens of each request"),
        Flag("--generation-config", "vllm", "sampling is set per request, not by the model folder"),
        Flag("--disable-uvicorn-access-log", None, "one line per request adds nothing"),
    )


def _cpu(given: PresetInput) -> _Settings:
    flags = (
        Flag("--dtype", "float32", "exact on every CPU; models that run on a CPU are small"),
        Flag("--block-size", "32", "the smallest block; only whole blocks are cached"),
        Flag("--enforce-eager", None, "compiling takes longer than a small model runs"),
        Flag("--max-num-seqs", str(_round_up(given.slots)), "as many requests as run at the same time"),
    )
    threads = str(max(1, len(os.sched_getaffinity(0)) - 1))
    variables = (
        Variable("VLLM_CPU_KVCACHE_SPACE", "1", "GiB of KV cache; the default takes a large part of the memory"),
        Variable(
            "VLLM_ENABLE_V1_MULTIPROCESSING", "0", "engine and model in one process: two, which poll, take 1.6 times the CPU time"
        ),
        Variable("OMP_NUM_THREADS", threads, "a thread without a core of its own waits in loops: 2.5 times the CPU time"),
    )
    return flags, variables


def _gpu(given: PresetInput, *, memory_share: float, fp8_cache: bool) -> _Settings:
    sequences = _round_up(given.slots)
    flags = [
        Flag("--gpu-memory-utilization", f"{memory_share:.2f}", "the GPU is for vLLM alone; the rest becomes KV cache"),
        Flag("--max-num-seqs", str(sequences), "as many requests as run at the same time"),
        Flag("--max-num-batched-tokens", "4096", "a long tool result delays the other streams by only one short step"),
        Flag(
            "--max-cudagraph-capture-size",
            str(sequences * given.step_tokens),
            "graphs for the batch sizes that occur; capturing all 50 takes 92 s on an H200",
        ),
        Flag("--disable-cascade-attn", None, "attempts share a prompt, and older versions then decode without CUDA graphs"),
        Flag("--stream-interval", "8", "one chunk per 8 tokens means fewer messages; the last one is sent at once"),
        Flag("--no-enable-flashinfer-autotune", None, "no FlashInfer kernel is used, so there is nothing to tune"),
        Flag("--tensor-parallel-size", str(tensor_parallel(given)), "GPUs that share one copy of the model"),
    ]
    looked_up = given.drafting is not None and given.drafting.method == "ngram"  # in tokens that the scheduler has to wait for
    if not looked_up and given.adjustments.graphs is not Graphs.NONE:
        flags.append(Flag("--async-scheduling", None, "schedules the next step while this one runs"))
    if fp8_cache and given.gpus and min(gpu.capability for gpu in given.gpus) >= HOPPER:
        flags.append(Flag("--kv-cache-dtype", "fp8_e4m3", "twice the context in the same memory; native on Hopper"))
    variables = [
        Variable("VLLM_USE_FLASHINFER_SAMPLER", "0", "building FlashInfer's sampler took 126 s on an H200 and brought no speed"),
        Variable("VLLM_ENABLE_STARTUP_PLAN", "1", "later starts on the same GPU do not measure the memory again"),
    ]
    if given.adjustments.fork:
        variables.append(Variable("VLLM_WORKER_MULTIPROC_METHOD", "fork", "the engine process inherits the imports"))
    return tuple(flags), tuple(variables)


def _gpt_oss(given: PresetInput) -> _Settings:
    flags, variables = _gpu(given, memory_share=0.96, fp8_cache=True)
    sizes = _step_lengths(_round_up(given.slots), given.step_tokens)
    graphs = {"cudagraph_mode": "FULL_AND_PIECEWISE", "cudagraph_capture_sizes": sizes}
    own = (
        Flag("--max-num-batched-tokens", str(sizes[-1]), "no step is longer than the longest graph"),
        Flag(
            "--compilation-config",
            json.dumps(graphs, separators=(",", ":")),
            "every step is padded to a size captured at the start: the expert routing kernels are compiled for every 32 tokens "
            "of a step's length, and each new length would stop all streams for about a second; each number of streams up to 16 "
            "has its own, since padding takes experts too: 12 streams padded to 16 decoded at 0.85 of the speed on an H200",
        ),
    )
    replaced = {"--max-cudagraph-capture-size", *(flag.name for flag in own)}
    return (*(flag for flag in flags if flag.name not in replaced), *own), variables


def _step_lengths(streams: int, per_stream: int) -> list[int]:
    """Returns the lengths of steps that get a graph: of decode steps and, doubling up to the longest step, of all others.

    Decode steps are those of every number of streams up to 16, then of every fourth. All lengths are multiples of
    `per_stream`: vLLM rounds others up to one, and drops the longest if that makes it longer than the longest step.
    """
    counts = [*range(1, min(streams, 16) + 1), *range(20, streams + 1, 4)]
    longest = _LONGEST_STEP // per_stream
    while counts[-1] < longest:
        counts.append(min(longest, 1 << counts[-1].bit_length()))
    return [count * per_stream for count in counts]


def _gemma(given: PresetInput) -> _Settings:
    flags, variables = _gpu(given, memory_share=0.95, fp8_cache=True)
    text_only = Flag("--limit-mm-per-prompt", '{"image":0,"video":0,"audio":0}', "text only; reserves no memory for images")
    return (*flags, text_only), variables


PRESETS: Mapping[str, Callable[[PresetInput], _Settings]] = {
    "gpt-oss-120b": _gpt_oss,
    "gemma-4-31b": _gemma,
    "qwen3": partial(_gpu, memory_share=0.95, fp8_cache=True),
    "generic": partial(_gpu, memory_share=0.92, fp8_cache=False),
    "cpu": _cpu,
}


def planned_settings(preset: str, given: PresetInput) -> _Settings:
    """Returns the flags and variables of a preset, with the user's options and the adjustments on top."""
    flags, variables = PRESETS[preset](given)
    merged = merge_flags(common_flags(given), flags, user_flags(given))
    adjustments = given.adjustments
    if adjustments.graphs is not Graphs.ALL and any(flag.name in GRAPH_FLAGS for flag in merged):
        merged = merge_flags((flag for flag in merged if flag.name not in GRAPH_FLAGS), (_fewer_graphs(given),))
    kept = (flag for flag in merged if flag.name not in adjustments.dropped)
    return tuple(kept), (*COMMON_VARIABLES, *variables)


def _fewer_graphs(given: PresetInput) -> Flag:
    if given.adjustments.graphs is Graphs.NONE:
        return Flag("--enforce-eager", None, "a start failed: no graphs, no compilation")
    sizes = [given.step_tokens << power for power in range((_round_up(given.slots) - 1).bit_length() + 1)]
    graphs = {"cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": sizes}
    return Flag("--compilation-config", json.dumps(graphs, separators=(",", ":")), "a start failed: graphs take memory")


def merge_flags(*layers: Iterable[Flag]) -> tuple[Flag, ...]:
    """Returns all flags; later ones replace earlier ones of the same name, in their place."""
    return tuple({flag.name: flag for layer in layers for flag in layer}.values())


def user_flags(given: PresetInput) -> tuple[Flag, ...]:
    """Returns what the user set, on top of any preset."""
    server, chosen = given.config.server, "set by the user"
    values = {
        "--gpu-memory-utilization": given.adjustments.memory_share or server.memory_share,
        "--kv-cache-dtype": server.kv_cache_dtype,
        "--attention-backend": server.attention_backend,
        "--moe-backend": given.adjustments.moe_backend or server.moe_backend,
        "--quantization": server.quantization,
        "--load-format": server.load_format,
        "--data-parallel-size": server.data_parallel if server.data_parallel > 1 else None,
    }
    flags = [Flag(name, str(value), chosen) for name, value in values.items() if value is not None]
    if given.drafting is not None:
        flags.append(Flag("--speculative-config", given.drafting.as_json(), chosen))
    return tuple(flags)


def tensor_parallel(given: PresetInput) -> int:
    """Returns the GPUs that share one copy of the model."""
    server = given.config.server
    if server.tensor_parallel is not None:
        return server.tensor_parallel
    # One copy over all GPUs: 1.24 to 1.40 times the speed of two copies on two H200s (docs/benchmarks.md).
    share = max(1, len(given.gpus) // server.data_parallel)
    return 1 << (share.bit_length() - 1)


def _round_up(slots: int) -> int:
    return -(-slots // 8) * 8
