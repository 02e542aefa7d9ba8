"""The command `prompts`: what a model is told."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from aimo_solver.chat.families import load_chat_format
from aimo_solver.chat.variants import PromptVariant, prompt_variants
from aimo_solver.cli.common import EMBEDDED_MODEL, ConfigFile, ModelPath, Settings, console, guarded
from aimo_solver.config import Config, load_config
from aimo_solver.errors import ConfigError, ModelError

_PROBLEM = "Find the remainder when $2^{100}$ is divided by $7$."


@guarded
def prompts_command(
    model: ModelPath = EMBEDDED_MODEL,
    variant: Annotated[list[str] | None, typer.Option(help="only this variant; repeatable; default: all")] = None,
    problem: Annotated[str, typer.Option(help="the problem to show them with")] = _PROBLEM,
    config_file: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Lists the prompt variants, and prints the exact text that a model gets from each."""
    if not model.is_dir():
        raise ModelError(model, "no such folder; --model takes the folder of a Hugging Face model")
    config = load_config(model, config_file, settings=settings or ())
    variants = prompt_variants(config.prompt)
    unknown = [name for name in variant or () if name not in variants]
    if unknown:
        raise ConfigError("--variant", f"there is no variant {unknown[0]}; known: {', '.join(variants)}")
    chat = load_chat_format(model, config.prompt.family)
    chosen = [one for name, one in variants.items() if not variant or name in variant]
    prompts = {one.name: chat.prompt(one.fill(problem, config)) for one in chosen}
    title = escape(f"{model.resolve().name}: family {chat.name}")
    table = Table("variant", "attempts", "tokens", "tool", "effort", "sampling", title=title)
    for one in chosen:
        table.add_row(escape(one.name), _share(one, config), str(len(prompts[one.name])), *_settings(one, chat.name, config))
    console.print(table)
    for name, tokens in prompts.items():
        print(f"\n----- {name}, {len(tokens)} tokens -----\n{chat.decode(tokens)}")


def _share(variant: PromptVariant, config: Config) -> str:
    mix = config.prompt.mix
    return f"{mix[variant.name] / sum(mix.values()):.0%}" if variant.name in mix else "-"


def _settings(variant: PromptVariant, family: str, config: Config) -> tuple[str, str, str]:
    sampling = variant.sampling(config.sampling)
    values = {name: getattr(sampling, name) for name in ("temperature", "top_p", "min_p", "top_k")}
    return (
        "yes" if variant.tool else "no",
        (variant.reasoning_effort or config.prompt.reasoning_effort) if family == "harmony" else "-",
        " ".join(f"{name}={value:g}" for name, value in values.items()),
    )
