"""How a vLLM server is started for a model on a machine: every flag with the reason for it.

A preset is chosen without importing vLLM, and its command line is checked against the source of the vLLM that is
installed: a flag that version does not know is replaced by its former spelling or dropped, and reported.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aimo_solver.errors import ModelError
from aimo_solver.options import ServerConfig
from aimo_solver.server.flags import COMMON_VARIABLES, PRESETS, Flag, Variable, Wish, chosen_flags, common_flags
from aimo_solver.server.machine import Machine

_LONGEST_CONTEXT = 65_536
_LEAST_CONTEXT = 16_384
_LEAST_SHARE = 0.5  # of the GPU's memory; it is not lowered further


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
        if share is not None and share.value is not None and float(share.value) > _LEAST_SHARE:
            lower = f"{max(_LEAST_SHARE, float(share.value) - 0.06):.2f}"
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


def choose(model_dir: Path, server: ServerConfig, *, slots: int, machine: Machine) -> Preset:
    """The preset for a model: the one `server.preset` names, or the one that fits, with the user's options on top.

    Args:
        slots: requests that run side by side.

    Raises:
        ModelError: the folder holds no readable config.json.
    """
    model = _read_config(model_dir)
    name = server.preset if server.preset != "auto" else _fitting(model, machine)
    text = model.get("text_config", model)
    longest = int(text.get("max_position_embeddings") or _LONGEST_CONTEXT)
    context = server.context_tokens or min(longest, _LONGEST_CONTEXT)
    wish = Wish(server, slots, machine, context)
    flags, variables = PRESETS[name](wish)
    flags = _merged((*common_flags(wish), *flags), chosen_flags(wish))
    return Preset(
        name=name,
        flags=flags,
        variables=(*COMMON_VARIABLES, *variables),
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
