"""How a vLLM server is started for a model on a machine: every flag with the reason for it.

A preset is chosen without importing vLLM, and its command line is checked against the source of the vLLM that is
installed: a flag that version does not know is replaced by its former spelling or dropped, and reported.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aimo_solver.config import ServerConfig
from aimo_solver.errors import ConfigError, ModelError
from aimo_solver.machine import Machine

_HOPPER = (9, 0)
_LONGEST_CONTEXT = 65_536
_LEAST_CONTEXT = 16_384


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """How a server is started.

    Attributes:
        name: one of `PRESETS`.
        context_tokens: longest prompt and answer together.
        vocabulary: number of tokens that the model knows.
        extra_args: the user's own, last on the command line.
    """

    name: str
    flags: tuple[Flag, ...]
    variables: tuple[Variable, ...]
    context_tokens: int
    vocabulary: int
    extra_args: tuple[str, ...] = ()

    @property
    def arguments(self) -> tuple[str, ...]:
        """All flags as they would stand on the command line of a server that knows them."""
        parts = (part for flag in self.flags for part in (flag.name, flag.value) if part is not None)
        return (*parts, *self.extra_args)

    def flag(self, name: str) -> Flag | None:
        """The flag of that name, None if the preset has none."""
        return next((flag for flag in self.flags if flag.name == name), None)

    def safe(self, *, eager: bool = True) -> Preset:
        """For a start after a failure: less memory, no speculation, no overlapped scheduling, no forked processes.

        With `eager` also without CUDA graphs and torch.compile and with three quarters of the context: for a server
        that failed while starting. A server that served well until it died needs no more than the first part.
        """
        leave_out = {"--async-scheduling", "--speculative-config"}
        context = self.context_tokens
        added = []
        share = self.flag("--gpu-memory-utilization")
        if share is not None and share.value is not None:
            lower = f"{max(0.5, float(share.value) - 0.06):.2f}"
            added.append(Flag("--gpu-memory-utilization", lower, "the start before failed: leave memory to others"))
        if eager:
            leave_out |= {"--max-cudagraph-capture-size", "--compilation-config"}
            added.append(Flag("--enforce-eager", None, "the start before failed: no graphs, no compilation"))
            context = max(min(context, _LEAST_CONTEXT), context * 3 // 4)
            added.append(Flag("--max-model-len", str(context), "the start before failed: a smaller cache will do"))
        kept = tuple(flag for flag in self.flags if flag.name not in leave_out)
        variables = tuple(variable for variable in self.variables if variable.value != "fork")
        return replace(self, flags=_merged(kept, added), variables=variables, context_tokens=context)


@dataclass(frozen=True, slots=True)
class Command:
    """A command line for the installed vLLM.

    Attributes:
        args: the program and its arguments.
        env: variables to add to the environment.
        dropped: flags that the installed vLLM does not know.
    """

    args: tuple[str, ...]
    env: Mapping[str, str]
    dropped: tuple[Flag, ...]


@dataclass(frozen=True, slots=True)
class _Wish:
    """What a preset is made from."""

    model: Mapping[str, Any]
    server: ServerConfig
    slots: int
    machine: Machine
    context: int


def choose(model_dir: Path, server: ServerConfig, *, slots: int, machine: Machine) -> Preset:
    """The preset for a model: the one `server.preset` names, or the one that fits, with the user's options on top.

    Args:
        slots: requests that run side by side.

    Raises:
        ModelError: the folder holds no readable config.json.
        ConfigError: no preset of that name.
    """
    model = _read_config(model_dir)
    if server.preset not in ("auto", *PRESETS):
        raise ConfigError("server.preset", f"no preset {server.preset!r}; known: auto, {', '.join(PRESETS)}")
    name = server.preset if server.preset != "auto" else _fitting(model, machine)
    text = model.get("text_config", model)
    longest = int(text.get("max_position_embeddings") or _LONGEST_CONTEXT)
    context = server.context_tokens or min(longest, _LONGEST_CONTEXT)
    wish = _Wish(model, server, slots, machine, context)
    flags, variables = PRESETS[name](wish)
    flags = _merged((*_common_flags(wish), *flags), _chosen_flags(wish))
    return Preset(
        name=name,
        flags=flags,
        variables=(*_COMMON_VARIABLES, *variables),
        context_tokens=context,
        vocabulary=int(text.get("vocab_size") or 1),
        extra_args=server.extra_args,
    )


def command(
    preset: Preset,
    model_dir: Path,
    port: int,
    served_name: str,
    known_flags: frozenset[str] | None,
    python: Path = Path(sys.executable),
) -> Command:
    """The command line that starts the preset.

    Args:
        known_flags: what `installed_flags` says; None keeps every flag.
        python: the interpreter that finds vLLM.
    """
    args = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model_dir)]
    args += ["--served-model-name", served_name, "--host", "127.0.0.1", "--port", str(port)]
    dropped = []
    for flag in preset.flags:
        names = [name for name in (flag.name, flag.former) if name is not None and _knows(known_flags, name)]
        if not names:
            dropped.append(flag)
            continue
        args += [names[0]] if flag.value is None else [names[0], flag.value]
    args += preset.extra_args
    return Command(tuple(args), {variable.name: variable.value for variable in preset.variables}, tuple(dropped))


def _knows(known: frozenset[str] | None, name: str) -> bool:
    return known is None or name in known or (name.startswith("--no-") and f"--{name.removeprefix('--no-')}" in known)


def _merged(flags: Sequence[Flag], changes: Sequence[Flag]) -> tuple[Flag, ...]:
    by_name = {flag.name: flag for flag in flags}
    by_name.update((flag.name, flag) for flag in changes)
    return tuple(by_name.values())


def _read_config(model_dir: Path) -> Mapping[str, Any]:
    try:
        config = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(model_dir, "has no config.json; give the folder that holds the model's files") from None
    except (OSError, ValueError) as error:
        raise ModelError(model_dir, f"config.json cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise ModelError(model_dir, "config.json holds no object")
    return config


def _fitting(model: Mapping[str, Any], machine: Machine) -> str:
    if not machine.gpus:
        return "cpu"
    kind = str(model.get("model_type", ""))
    for prefix, name in (("gpt_oss", "gpt-oss-120b"), ("gemma", "gemma-4-31b"), ("qwen", "qwen3")):
        if kind.startswith(prefix):
            return name
    return "generic"


# --- what each preset sets --------------------------------------------------------------------------------------------

_COMMON_VARIABLES = (
    Variable("HF_HUB_OFFLINE", "1", "the model is a local folder; a look at the hub would wait for a time-out"),
    Variable("VLLM_NO_USAGE_STATS", "1", "no network"),
    Variable("VLLM_DO_NOT_TRACK", "1", "no network"),
    Variable("TOKENIZERS_PARALLELISM", "false", "prompts come as tokens; silences a warning about forks"),
)

_Made = tuple[tuple[Flag, ...], tuple[Variable, ...]]


def _common_flags(wish: _Wish) -> tuple[Flag, ...]:
    return (
        Flag("--max-model-len", str(wish.context), "longest prompt and answer together"),
        Flag("--enable-prefix-caching", None, "each turn's prompt is the one before plus new tokens"),
        Flag("--enable-prompt-tokens-details", None, "reports the cached tokens of each request"),
        Flag("--generation-config", "vllm", "sampling is set per request, not by the model folder"),
        Flag("--disable-uvicorn-access-log", None, "a line per request says nothing new"),
    )


def _cpu(wish: _Wish) -> _Made:
    flags = (
        Flag("--dtype", "float32", "exact on every CPU; models that run on one are small"),
        Flag("--block-size", "32", "the smallest block: prefix caching counts whole blocks"),
        Flag("--enforce-eager", None, "compiling takes longer than a small model runs"),
        Flag("--max-num-seqs", str(_rounded(wish.slots)), "as many requests as run side by side"),
    )
    variables = (Variable("VLLM_CPU_KVCACHE_SPACE", "1", "GiB of KV cache; the default takes a large part of the memory"),)
    return flags, variables


def _gpu(wish: _Wish, memory_share: float, *, fp8_cache: bool) -> _Made:
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


def _gpt_oss(wish: _Wish) -> _Made:
    flags, variables = _gpu(wish, 0.96, fp8_cache=True)
    reason = "graphs for pure decode steps only: a step that also reads a tool's result is longer than any graph"
    return (*flags, Flag("--compilation-config", '{"cudagraph_mode":"FULL_DECODE_ONLY"}', reason)), variables


def _gemma(wish: _Wish) -> _Made:
    flags, variables = _gpu(wish, 0.95, fp8_cache=True)
    text_only = Flag("--limit-mm-per-prompt", '{"image":0,"video":0,"audio":0}', "text only: no room kept for pictures")
    return (*flags, text_only), variables


def _qwen3(wish: _Wish) -> _Made:
    return _gpu(wish, 0.95, fp8_cache=True)


def _generic(wish: _Wish) -> _Made:
    return _gpu(wish, 0.92, fp8_cache=False)


PRESETS: Mapping[str, Callable[[_Wish], _Made]] = {
    "gpt-oss-120b": _gpt_oss,
    "gemma-4-31b": _gemma,
    "qwen3": _qwen3,
    "generic": _generic,
    "cpu": _cpu,
}


def _chosen_flags(wish: _Wish) -> tuple[Flag, ...]:
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


def _tensor_parallel(wish: _Wish) -> int:
    if wish.server.tensor_parallel is not None:
        return wish.server.tensor_parallel
    # One copy over all GPUs: several copies would split the prefix cache that an attempt's turns live on.
    share = max(1, len(wish.machine.gpus) // wish.server.data_parallel)
    return 1 << (share.bit_length() - 1)


def _rounded(slots: int) -> int:
    return -(-slots // 8) * 8
