"""Options that have to agree. `Config` checks them whenever one is made, before anything is started."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from aimo_solver.errors import ConfigError
from aimo_solver.kernel_limits import UIDS_PER_POOL

if TYPE_CHECKING:
    from aimo_solver.config import Config

MOST_KERNELS = UIDS_PER_POOL // 2
"""Of one pool, spares included; the other half of its user ids is for kernels that are ending."""

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
"""vLLM's flags that have an option, which more than the server's command line follows."""


def check(config: Config) -> None:
    """Does nothing if the options of a configuration agree.

    Raises:
        ConfigError: the first that do not, both named, with what to do.
    """
    for option, problem in _problems(config):
        raise ConfigError(option, problem)


def check_context(config: Config, context_tokens: int) -> None:
    """The same for a model's context, which is known when the model is.

    Raises:
        ConfigError: the context holds little more than an answer.
    """
    keep = config.attempt.answer_tokens
    if 2 * keep > context_tokens:
        problem = f"keeps {keep} of the context's {context_tokens} tokens (server.context_tokens) for the answer; lower it"
        raise ConfigError("attempt.answer_tokens", problem)


def _problems(config: Config) -> Iterator[tuple[str, str]]:
    solver, kernels, server, selection, budget = config.solver, config.kernels, config.server, config.selection, config.budget
    if solver.slots > solver.max_attempts:
        yield "solver.slots", f"{solver.slots} is more than solver.max_attempts ({solver.max_attempts}); lower it, or raise that"
    size = kernels.size or solver.streams
    if size < solver.streams:
        yield (
            "kernels.size",
            f"{size} kernels are fewer than the {solver.streams} attempts side by side "
            "(solver.slots times solver.parallel); leave kernels.size out, and it follows",
        )
    if size + kernels.spares > MOST_KERNELS:
        yield (
            "kernels.spares",
            f"{kernels.spares} spares and {size} kernels (kernels.size, or solver.slots times solver.parallel) are more than "
            f"{MOST_KERNELS}; lower one of them",
        )
    if kernels.pool_memory_mb is not None and kernels.memory_mb > kernels.pool_memory_mb:
        all_mb = kernels.pool_memory_mb
        yield "kernels.memory_mb", f"one kernel's {kernels.memory_mb} MB is more than all have (kernels.pool_memory_mb, {all_mb})"
    if server.context_tokens is not None:
        check_context(config, server.context_tokens)
    if server.speculative != "none" and config.sampling.min_p > 0:
        yield "sampling.min_p", f"vLLM refuses it with server.speculative={server.speculative}; set sampling.min_p=0"
    if (server.draft_model is not None) != (server.speculative in ("eagle", "draft")):
        yield (
            "server.draft_model",
            f"{server.draft_model} does not go with server.speculative={server.speculative}; eagle and draft need a model, "
            "the others take none",
        )
    if {selection.select, selection.verify} != {"off"} and selection.least_s > budget.cap_s:
        yield (
            "selection.least_s",
            f"{selection.least_s:g} s is more than any problem gets (budget.cap_s, {budget.cap_s:g}); lower it",
        )
    if budget.rule == "clamp" and budget.reserve_s > budget.cap_s:
        yield (
            "budget.reserve_s",
            f"{budget.reserve_s:g} s for each is more than budget.cap_s ({budget.cap_s:g}); raise budget.cap_s",
        )
    for equal, of in config.voting.consistency:
        if equal > of:
            yield "voting.consistency", f"{equal} equal answers of {of} cannot be; write (k, n) with k up to n"
    for argument in server.extra_args:
        flag = argument.partition("=")[0]
        if flag in _OPTION_OF:
            yield "server.extra_args", f"{flag} has an option of its own; set {_OPTION_OF[flag]} instead"
