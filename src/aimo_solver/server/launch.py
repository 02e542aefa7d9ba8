"""The launch plan of a vLLM server: how it is started, from the configuration, the model folder and the machine.

A preset is chosen without importing vLLM. Its flags are checked against the source of the installed vLLM: a flag that this
version lacks is left out.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aimo_solver.config import Config
from aimo_solver.errors import ConfigError, ModelError
from aimo_solver.server.client import VllmEngine
from aimo_solver.server.flags import HOPPER, Flag, PresetInput, Variable, planned_settings, tensor_parallel
from aimo_solver.server.inside.experts import WARPS
from aimo_solver.server.machine import Gpu, detect_gpus, installed_flags
from aimo_solver.server.options import ServerConfig
from aimo_solver.server.plugin import python_path, write_plugin
from aimo_solver.server.process import ServerCommand, free_port
from aimo_solver.server.speculation import plan_speculation, read_model_config
from aimo_solver.server.wheels import NOTHING_TO_INSTALL, SERVER_MODULE, Installation

_CONTEXT = 65_536
_LONG_CONTEXT = 81_920  # saved two or three attempts at the hardest problem in public runs of gpt-oss-120b
_H100_BYTES = 79 << 30
_CACHE_TOKENS = 733_808  # of gpt-oss-120b on an H100 with 80 GB, measured with 0.96 of its memory, an FP8 cache and vLLM 0.26
_VALUE = re.compile(r"-?\d|[^-]")  # how a flag's value begins
_MOST_GPUS = 64  # largest number of GPUs that a message suggests


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPlan(PresetInput):
    """How one server is started.

    Attributes:
        preset: a name in `PRESETS`.
        vocabulary: token ids below it are valid.
        wheels: the environment in which vLLM is installed.
        known_flags: flags of the installed vLLM; None keeps every flag.
        port: on the loopback interface.
        cache_variables: where compiled code is kept.
        plugin: folder of the plugin for vLLM; None if the server does not load it.
        served_name: the model's name in requests.
    """

    model: Path
    preset: str
    vocabulary: int
    wheels: Installation
    known_flags: frozenset[str] | None
    port: int
    seed: int
    cache_variables: tuple[Variable, ...] = ()
    plugin: Path | None = None
    served_name: str = "model"

    @property
    def flags(self) -> tuple[Flag, ...]:
        return planned_settings(self.preset, self)[0]

    @property
    def variables(self) -> tuple[Variable, ...]:
        return (*planned_settings(self.preset, self)[1], *self.cache_variables)

    @property
    def command(self) -> ServerCommand:
        """The command line for the installed vLLM; the user's own arguments come last."""
        args = [str(self.wheels.python), "-m", SERVER_MODULE, "--model", str(self.model)]
        args += ["--served-model-name", self.served_name, "--host", "127.0.0.1", "--port", str(self.port)]
        for flag in self.flags:
            if self._is_known(flag):
                args += [flag.name] if flag.value is None else [flag.name, flag.value]
        args += ["--seed", str(self.seed), *without_flags(self.config.server.extra_args, self.adjustments.refused)]
        variables = {**self.wheels.variables, **{variable.name: variable.value for variable in self.variables}}
        if self.plugin is not None and self.adjustments.plugin:
            variables["PYTHONPATH"] = python_path(self.plugin, variables)
        return ServerCommand(tuple(args), variables)

    @property
    def arguments(self) -> tuple[str, ...]:
        """What a compile cache depends on: all flags, as a vLLM that knows every flag would accept them."""
        parts = (part for flag in self.flags for part in (flag.name, flag.value) if part is not None)
        return (*parts, *self.config.server.extra_args)

    @property
    def dropped(self) -> tuple[Flag, ...]:
        """Flags that the installed vLLM lacks."""
        return tuple(flag for flag in self.flags if not self._is_known(flag))

    def flag(self, name: str) -> Flag | None:
        """Returns the flag of that name, None if there is none."""
        return next((flag for flag in self.flags if flag.name == name), None)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def engine(self) -> VllmEngine:
        """Returns a client of the server."""
        return VllmEngine(
            self.url,
            self.served_name,
            self.config.sampling,
            context_tokens=self.context_tokens,
            copies=self.config.server.data_parallel,
            speculates=self.speculation is not None,
        )

    def _is_known(self, flag: Flag) -> bool:
        return self.known_flags is None or not self.known_flags.isdisjoint((flag.name, flag.name.replace("--no-", "--", 1)))


def plan_launch(
    model: Path,
    config: Config,
    wheels: Installation = NOTHING_TO_INSTALL,
    *,
    slots: int | None = None,
    gpus: tuple[Gpu, ...] | None = None,
) -> LaunchPlan:
    """Plans the start of a server with the preset that `server.preset` names or that fits, and the user's options on top.

    Where the server takes the solver's plugin, its files are written.

    Args:
        slots: concurrent requests, `solver.streams` by default.
        gpus: those of this machine by default.

    Raises:
        ModelError: the folder has no readable config.json, or the draft does not fit the model.
        ConfigError: the model does not divide among the GPUs.
    """
    hf_config = read_model_config(model)
    text = hf_config.get("text_config") or hf_config
    gpus = detect_gpus(wheels.path) if gpus is None else gpus
    preset = config.server.preset if config.server.preset != "auto" else _fitting_preset(hf_config, on_gpu=bool(gpus))
    slots = slots or config.solver.streams
    speculation = plan_speculation(config, hf_config, slots, on_gpu=bool(gpus))
    longest = _longest_context(preset, config.server, slots, gpus, drafts=speculation is not None)
    plan = LaunchPlan(
        model=model,
        config=config,
        preset=preset,
        slots=slots,
        gpus=gpus,
        longest=config.server.context_tokens or min(longest, int(text.get("max_position_embeddings") or longest)),
        speculation=speculation,
        vocabulary=int(text.get("vocab_size") or 1),
        wheels=wheels,
        known_flags=installed_flags(wheels.path),
        port=free_port(),
        seed=config.sampling.seed if config.sampling.seed is not None else secrets.randbelow(2**31),
        plugin=write_plugin() if _takes_plugin(preset, config.server, gpus) else None,
    )
    _check_sharding(text, plan)
    return plan


def check_model(model: Path) -> None:
    """Raises ModelError, with what to do, if the folder cannot hold a model that vLLM serves."""
    if not model.is_dir():
        raise ModelError(model, "no such folder; --model takes the folder of a Hugging Face model")
    read_model_config(model)
    if not (model / "tokenizer.json").is_file():
        raise ModelError(model, "has no tokenizer.json; copy the model's whole folder")


def _longest_context(preset: str, server: ServerConfig, slots: int, gpus: Sequence[Gpu], *, drafts: bool) -> int:
    """Returns the context of a model that takes any length, in tokens: longer where the KV cache holds it for all slots at once.

    Args:
        drafts: whether a draft takes memory, too.
    """
    large = all(gpu.capability >= HOPPER and gpu.memory_bytes >= _H100_BYTES for gpu in gpus) and bool(gpus)
    as_measured = (preset, server.memory_share, server.kv_cache_dtype, drafts) == ("gpt-oss-120b", None, None, False)
    return _LONG_CONTEXT if large and as_measured and slots * _LONG_CONTEXT <= _CACHE_TOKENS else _CONTEXT


def _takes_plugin(preset: str, server: ServerConfig, gpus: Sequence[Gpu]) -> bool:
    hopper = bool(gpus) and all(gpu.capability == HOPPER for gpu in gpus)
    measured = len(gpus) <= 2 and server.data_parallel == 1
    wanted = server.expert_warps == WARPS or (server.expert_warps is None and measured)
    return preset == "gpt-oss-120b" and hopper and wanted and server.moe_backend in (None, "triton")


def _fitting_preset(hf_config: Mapping[str, Any], *, on_gpu: bool) -> str:
    if not on_gpu:
        return "cpu"
    kind = str(hf_config.get("model_type", ""))
    for prefix, name in (("gpt_oss", "gpt-oss-120b"), ("gemma", "gemma-4-31b"), ("qwen", "qwen3")):
        if kind.startswith(prefix):
            return name
    return "generic"


def _check_sharding(text: Mapping[str, Any], plan: LaunchPlan) -> None:
    """Checks the number of GPUs, and that heads and experts divide among them, as vLLM requires.

    Key-value heads may also be copied to several GPUs each. With expert parallelism (`--enable-expert-parallel` among
    `server.extra_args`) whole experts are spread over all GPUs; otherwise each GPU has a part of every expert.

    Args:
        text: config.json of the language model.
    """
    each, copies, gpus = tensor_parallel(plan), plan.config.server.data_parallel, len(plan.gpus)
    heads = int(text.get("num_attention_heads") or 0)
    kv_heads = int(text.get("num_key_value_heads") or heads)
    experts = int(text.get("num_local_experts") or text.get("num_experts") or 0)
    problem = None
    if gpus and each * copies > gpus:
        most = f"{gpus // copies} at most, or fewer server.data_parallel"
        problem = f"{each} GPUs for each of {copies} copies, but this machine has {gpus}; {most}"
    elif not _divides(each, heads, kv_heads):
        fitting = ", ".join(str(number) for number in range(1, _MOST_GPUS + 1) if _divides(number, heads, kv_heads))
        problem = f"{heads} attention heads and {kv_heads} key-value heads do not divide among {each} GPUs; {fitting} would"
    elif "--enable-expert-parallel" in plan.config.server.extra_args and experts % (each * copies):
        fitting = ", ".join(str(number) for number in range(1, _MOST_GPUS + 1) if experts % number == 0)
        problem = f"{experts} experts do not divide among {each} x {copies} GPUs; {fitting} GPUs in all would"
    if problem is not None:
        raise ConfigError("server.tensor_parallel", problem)


def _divides(gpus: int, heads: int, kv_heads: int) -> bool:
    return heads % gpus == 0 and (kv_heads % gpus == 0 or gpus % kv_heads == 0)


def without_flags(args: Sequence[str], names: frozenset[str]) -> tuple[str, ...]:
    """Returns command-line arguments without the flags of these names and their values."""
    kept: list[str] = []
    dropping = False
    for arg in args:
        if not (dropping and _VALUE.match(arg)):
            dropping = arg.partition("=")[0].replace("_", "-") in names
            if not dropping:
                kept.append(arg)
    return tuple(kept)
