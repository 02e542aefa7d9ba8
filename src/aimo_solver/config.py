"""The configuration of a run: `Config`, the function that reads it, and the rules between options.

Defaults come first, then what the model folder recommends (``aimo.toml``), then the user's TOML file or settings, then single
``section.option=value`` settings.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, field
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from aimo_solver.chat.options import BuiltInVariant, PromptConfig, VariantConfig
from aimo_solver.errors import ConfigError
from aimo_solver.kernels.options import MOST_KERNELS, KernelConfig
from aimo_solver.options import STRICT, AnswersConfig, SamplingConfig
from aimo_solver.policy.options import LARGER_PLANS, BudgetConfig, Plan, SelectionConfig, VotingConfig
from aimo_solver.server.options import ServerConfig
from aimo_solver.solve.options import AttemptConfig, SolverConfig

_MODEL_OPTIONS = "aimo.toml"  # in a model folder: the options recommended for that model


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Config:
    """All options of a run."""

    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    attempt: AttemptConfig = field(default_factory=AttemptConfig)
    answers: AnswersConfig = field(default_factory=AnswersConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    kernels: KernelConfig = field(default_factory=KernelConfig)
    voting: VotingConfig = field(default_factory=VotingConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    server: ServerConfig = field(default_factory=ServerConfig)

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Config:
        for option, problem in _contradictions(self):
            raise ConfigError(option, problem)
        return self

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plans that a problem may get, by slots."""
        solver = self.solver
        smallest = Plan(solver.slots, solver.max_attempts, self.voting.equal)
        return (smallest, *(LARGER_PLANS if solver.grow else ()))

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values for a JSON file."""
        return asdict(self)


def load_config(*layers: Path | Mapping[str, Any] | None, settings: Sequence[str] = ()) -> Config:
    """Reads a configuration: the defaults, then `layers` in turn, then `settings`. A later value replaces an earlier one.

    Prompt variants of several layers are merged, field by field.

    Args:
        layers: mappings of sections to options, TOML files, or model folders, whose ``aimo.toml`` is read if there is one.
            None is skipped.
        settings: single options as ``section.option=value``.

    Raises:
        ConfigError: a file cannot be read, or an option is unknown or invalid, or options contradict each other.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        for section, chosen in _sections(layer).items():
            if not isinstance(chosen, Mapping):
                raise ConfigError(section, "is not an option; options belong in sections, for instance [solver]")
            _merge(values, {section: chosen})
    for setting in settings:
        name, equals, text = setting.partition("=")
        parts = name.strip().split(".")
        if not equals or len(parts) < 2 or not all(parts):
            raise ConfigError(setting, "write it as section.option=value, for instance solver.slots=16")
        value = _toml_value(text.strip())
        for part in reversed(parts):
            value = {part: value}
        _merge(values, value)
    return _validated(values)


def _merge(values: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Adds a later layer to `values`; only mappings are merged, and a mix replaces the earlier one."""
    for name, value in layer.items():
        if isinstance(value, Mapping) and name != "mix":
            if not isinstance(values.get(name), dict):
                values[name] = {}
            _merge(values[name], value)
        else:
            values[name] = value


def _sections(layer: Path | Mapping[str, Any] | None) -> Mapping[str, Any]:
    if not isinstance(layer, Path):
        return layer or {}
    path = layer
    try:
        if layer.is_dir():
            path = layer / _MODEL_OPTIONS
            if not path.is_file():
                return {}
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(str(path), "no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(str(path), f"cannot be read as TOML: {error}") from None


def _validated(values: Mapping[str, Any]) -> Config:
    try:
        return TypeAdapter(Config).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"]]
        name = ".".join(place) or "config"
        if first["type"] == "unexpected_keyword_argument":
            raise ConfigError(name, f"unknown; known here: {', '.join(_options(place[:-1]))}") from None
        message = first["msg"].removeprefix("Value error, ")
        shown = "" if isinstance(first["input"], (dict, list)) else f" (got {first['input']!r})"
        raise ConfigError(name, f"{message[0].lower()}{message[1:]}{shown}") from None


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word is a string


def _options(sections: Sequence[str]) -> list[str]:
    here: Any = Config()
    for section in sections:
        here = VariantConfig() if isinstance(here, Mapping) else getattr(here, section)
    return list(here.__dataclass_fields__)


def check_context(config: Config, context_tokens: int) -> None:
    """Checks the options that depend on the context length, which may follow from the model.

    Raises:
        ConfigError: the context holds little more than the final answer.
    """
    keep = config.attempt.answer_tokens
    if 2 * keep > context_tokens:
        problem = f"keeps {keep} of the context's {context_tokens} tokens (server.context_tokens) for the answer; lower it"
        raise ConfigError("attempt.answer_tokens", problem)


_OPTION_OF = {
    "--max-model-len": "server.context_tokens",
    "--gpu-memory-utilization": "server.memory_share",
    "--kv-cache-dtype": "server.kv_cache_dtype",
    "--attention-backend": "server.attention_backend",
    "--moe-backend": "server.moe_backend",
    "--quantization": "server.quantization",
    "--load-format": "server.load_format",
    "--tensor-parallel-size": "server.tensor_parallel",
    "--data-parallel-size": "server.data_parallel",
    "--speculative-config": "server.speculative",
}
"""vLLM flags that must be set by option, because more than the command line depends on them."""


def _contradictions(config: Config) -> Iterator[tuple[str, str]]:
    """Yields an option and what is wrong with it."""
    yield from _size_problems(config)
    if config.solver.grow:
        yield from _growth_problems(config)
    yield from _server_problems(config)
    yield from _answer_problems(config)
    selection, budget = config.selection, config.budget
    if {selection.select, selection.verify} != {"off"} and selection.least_s > budget.cap_s:
        yield "selection.least_s", f"{selection.least_s:g} s are more than any problem gets (budget.cap_s, {budget.cap_s:g})"
    if budget.rule == "clamp" and budget.reserve_s > budget.cap_s:
        yield "budget.reserve_s", f"{budget.reserve_s:g} s are more than budget.cap_s ({budget.cap_s:g}); raise that"
    names = [*get_args(BuiltInVariant), *config.prompt.variants]
    for name in config.prompt.mix:
        if name not in names:
            yield "prompt.mix", f"there is no variant {name}; known: {', '.join(dict.fromkeys(names))}"


def _streams(config: Config) -> str:
    return f"{config.solver.streams} attempts at the same time (solver.slots times solver.parallel; 16 with solver.grow)"


def _size_problems(config: Config) -> Iterator[tuple[str, str]]:
    solver, kernels = config.solver, config.kernels
    if solver.slots > solver.max_attempts:
        yield "solver.slots", f"{solver.slots} is more than solver.max_attempts ({solver.max_attempts}); lower it, or raise that"
    size = kernels.size or solver.streams
    if size < solver.streams:
        yield "kernels.size", f"{size} kernels are too few for {_streams(config)}; leave kernels.size out to derive it"
    if size + kernels.spares > MOST_KERNELS:
        kernels_of = "kernels.size, by default solver.slots times solver.parallel"
        yield "kernels.spares", f"{kernels.spares} spares and {size} kernels ({kernels_of}) are more than {MOST_KERNELS}"
    if kernels.pool_memory_mb is not None and kernels.memory_mb > kernels.pool_memory_mb:
        pool_mb = kernels.pool_memory_mb
        yield "kernels.memory_mb", f"{kernels.memory_mb} MB per kernel are more than kernels.pool_memory_mb ({pool_mb}) for all"


def _growth_problems(config: Config) -> Iterator[tuple[str, str]]:
    first, voting = LARGER_PLANS[0], config.voting
    if config.solver.slots >= first.slots:
        problem = f"starts below {first.slots} slots"
        yield "solver.grow", f"{problem}; lower solver.slots ({config.solver.slots}), or leave solver.grow out"
    if config.solver.parallel > 1:
        yield "solver.grow", f"measures one problem at a time; set solver.parallel=1 (it is {config.solver.parallel})"
    if voting.stop != "equal" or voting.equal > first.equal:
        problem = f"needs voting.stop=equal with voting.equal up to {first.equal}"
        yield "solver.grow", f"{problem} (they are {voting.stop} and {voting.equal}), which grow with the slots"


def _server_problems(config: Config) -> Iterator[tuple[str, str]]:
    server = config.server
    if server.context_tokens is not None:
        check_context(config, server.context_tokens)
    if server.draft_model is None and server.speculative in ("eagle", "draft"):
        yield "server.draft_model", f"server.speculative={server.speculative} needs one; name its folder"
    if server.draft_model is not None and server.speculative == "ngram":
        yield "server.draft_model", "n-grams need none; leave it out, or set server.speculative=auto"
    for argument, following in pairwise((*server.extra_args, "")):
        flag, _, value = argument.partition("=")
        if flag in _OPTION_OF:
            yield "server.extra_args", f"{flag} has its own option; set {_OPTION_OF[flag]} instead"
        sequences = value or following
        if flag == "--max-num-seqs" and sequences.isdecimal() and int(sequences) < config.solver.streams:
            yield "server.extra_args", f"{flag} {sequences} is too few for {_streams(config)}; leave it out to derive it"


def _answer_problems(config: Config) -> Iterator[tuple[str, str]]:
    answers, voting = config.answers, config.voting
    lowest, highest = answers.range
    if lowest > highest:
        yield "answers.range", f"[{lowest}, {highest}] is empty; write [smallest, largest]"
    if answers.kind == "symbolic" and voting.voter == "proximity":
        yield "voting.voter", "proximity compares numbers; choose another for answers.kind=symbolic"
    if answers.kind == "symbolic" and answers.modulus is not None:
        yield "answers.modulus", "symbolic answers have no remainder; leave it out"
    for equal, of in voting.consistency:
        if equal > of:
            yield "voting.consistency", f"{equal} equal answers of {of} are impossible; write (k, n) with k up to n"
