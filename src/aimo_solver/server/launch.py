"""The launch plan of a vLLM server: how it is started, from the configuration, the model folder and the machine.

A preset is chosen without importing vLLM. Its flags are checked against the source of the installed vLLM: a flag that this
version lacks is replaced by its former name, or dropped.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aimo_solver.config import Config
from aimo_solver.errors import ModelError
from aimo_solver.server.client import VllmEngine
from aimo_solver.server.flags import (
    COMMON_VARIABLES,
    FALLBACKS,
    PRESETS,
    Flag,
    PresetInput,
    Variable,
    common_flags,
    longest_context,
    tensor_parallel,
    user_flags,
)
from aimo_solver.server.machine import Gpu, detect_gpus, installed_flags, installed_vllm
from aimo_solver.server.process import ServerCommand, free_port
from aimo_solver.server.sharding import check_sharding
from aimo_solver.server.speculation import Speculation, plan_speculation, read_model_config
from aimo_solver.server.wheels import NOTHING_TO_INSTALL, Installation

SERVED_NAME = "model"
_LEAST_CONTEXT = 16_384
_LEAST_SHARE = 0.5  # of the GPU's memory; it is not lowered further


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPlan:
    """How one server is started.

    Attributes:
        preset: a name in `PRESETS`.
        context_tokens: longest prompt and answer together.
        vocabulary: token ids below it are valid.
        slots: requests that run side by side.
        speculation: how tokens are drafted; None if they are not. Fallbacks draft none, but are sampled in the same way.
        wheels: the environment in which vLLM is installed.
        known_flags: flags of the installed vLLM; None keeps every flag.
        port: on the loopback interface.
        served_name: the model's name in requests.
    """

    model: Path
    config: Config
    gpus: tuple[Gpu, ...]
    preset: str
    flags: tuple[Flag, ...]
    variables: tuple[Variable, ...]
    context_tokens: int
    vocabulary: int
    slots: int
    speculation: Speculation | None
    wheels: Installation
    known_flags: frozenset[str] | None
    port: int
    seed: int
    served_name: str = SERVED_NAME

    @property
    def command(self) -> ServerCommand:
        """The command line for the installed vLLM; the user's own arguments come last."""
        args = [str(self.wheels.python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model)]
        args += ["--served-model-name", self.served_name, "--host", "127.0.0.1", "--port", str(self.port)]
        for flag in self.flags:
            name = self._known_name(flag)
            if name is not None:
                args += [name] if flag.value is None else [name, flag.value]
        args += ["--seed", str(self.seed), *self.config.server.extra_args]
        return ServerCommand(tuple(args), {variable.name: variable.value for variable in self.variables})

    @property
    def commands(self) -> tuple[ServerCommand, ...]:
        """The command and its fallbacks, from the fastest to the safest."""
        return (self.command, *(self.fallback(number).command for number in range(1, FALLBACKS + 1)))

    @property
    def arguments(self) -> tuple[str, ...]:
        """What a compile cache depends on: all flags, as a vLLM that knows every flag would accept them."""
        parts = (part for flag in self.flags for part in (flag.name, flag.value) if part is not None)
        return (*parts, *self.config.server.extra_args)

    @property
    def dropped(self) -> tuple[Flag, ...]:
        """Flags that the installed vLLM lacks."""
        return tuple(flag for flag in self.flags if self._known_name(flag) is None)

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

    def fallback(self, number: int = FALLBACKS) -> LaunchPlan:
        """Returns the plan after a failure: less memory, and only flags and variables whose `fallbacks` include this one.

        The last also has no CUDA graphs, no torch.compile and three quarters of the context, for a server that failed while
        starting. A server that served well until it died needs only the first.
        """
        context = self.context_tokens
        added = []
        share = self.flag("--gpu-memory-utilization")
        if share is not None and share.value is not None and float(share.value) > _LEAST_SHARE:
            lower = f"{max(_LEAST_SHARE, float(share.value) - 0.06):.2f}"
            added.append(Flag("--gpu-memory-utilization", lower, "the last start failed: leave memory to other processes"))
        if number == FALLBACKS:
            added.append(Flag("--enforce-eager", None, "the last start failed: no graphs, no compilation"))
            context = max(min(context, _LEAST_CONTEXT), context * 3 // 4)
            added.append(Flag("--max-model-len", str(context), "the last start failed: a smaller KV cache is enough"))
        kept = (flag for flag in self.flags if flag.fallbacks >= number)
        variables = tuple(variable for variable in self.variables if variable.fallbacks >= number)
        return replace(self, flags=_merge_flags(kept, added), variables=variables, context_tokens=context)

    def _known_name(self, flag: Flag) -> str | None:
        for name in (flag.name, flag.former):
            if name is not None and (
                self.known_flags is None or name in self.known_flags or name.replace("--no-", "--", 1) in self.known_flags
            ):
                return name
        return None


def plan_launch(
    model: Path,
    config: Config,
    wheels: Installation = NOTHING_TO_INSTALL,
    *,
    slots: int | None = None,
    gpus: tuple[Gpu, ...] | None = None,
) -> LaunchPlan:
    """Plans the start of a server with the preset that `server.preset` names or that fits, and the user's options on top.

    Args:
        slots: requests that run side by side, `solver.streams` by default.
        gpus: those of this machine by default.

    Raises:
        ModelError: the folder has no readable config.json, or the draft does not fit the model.
        ConfigError: the model does not divide among the GPUs.
    """
    hf_config = read_model_config(model)
    text = hf_config.get("text_config", hf_config)
    gpus = detect_gpus() if gpus is None else gpus
    preset = config.server.preset if config.server.preset != "auto" else _fitting_preset(hf_config, on_gpu=bool(gpus))
    slots = slots or config.solver.streams
    speculation = plan_speculation(config.server, hf_config, slots)
    longest = longest_context(preset, config.server, slots, gpus, drafts=speculation is not None)
    given = PresetInput(
        server=config.server,
        slots=slots,
        gpus=gpus,
        context_tokens=config.server.context_tokens or min(longest, int(text.get("max_position_embeddings") or longest)),
        speculation=speculation,
        vllm=installed_vllm(wheels.path),
    )
    flags, variables = PRESETS[preset](given)
    check_sharding(text, config.server, tensor_parallel(given), len(gpus))
    return LaunchPlan(
        model=model,
        config=config,
        gpus=gpus,
        preset=preset,
        flags=_merge_flags(common_flags(given), flags, user_flags(given)),
        variables=(*COMMON_VARIABLES, *variables),
        context_tokens=given.context_tokens,
        vocabulary=int(text.get("vocab_size") or 1),
        slots=given.slots,
        speculation=speculation,
        wheels=wheels,
        known_flags=installed_flags(wheels.path),
        port=free_port(),
        seed=config.sampling.seed if config.sampling.seed is not None else secrets.randbelow(2**31),
    )


def check_model(model: Path) -> None:
    """Raises ModelError, with what to do, if the folder cannot hold a model that vLLM serves."""
    if not model.is_dir():
        raise ModelError(model, "no such folder; --model takes the folder of a Hugging Face model")
    read_model_config(model)
    if not (model / "tokenizer.json").is_file():
        raise ModelError(model, "has no tokenizer.json; copy the model's whole folder")


def _fitting_preset(hf_config: Mapping[str, Any], *, on_gpu: bool) -> str:
    if not on_gpu:
        return "cpu"
    kind = str(hf_config.get("model_type", ""))
    for prefix, name in (("gpt_oss", "gpt-oss-120b"), ("gemma", "gemma-4-31b"), ("qwen", "qwen3")):
        if kind.startswith(prefix):
            return name
    return "generic"


def _merge_flags(*layers: Iterable[Flag]) -> tuple[Flag, ...]:
    """Later flags replace earlier ones of the same name, in their place."""
    return tuple({flag.name: flag for layer in layers for flag in layer}.values())
