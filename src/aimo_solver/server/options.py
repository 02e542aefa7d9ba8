"""Options of the vLLM server."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from aimo_solver.options import STRICT, Count, Positive, Share


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ServerConfig:
    """The local vLLM server. None leaves an option to the preset.

    Attributes:
        preset: name of a set of flags (`server.flags`); "auto" chooses by the model and the machine.
        context_tokens: longest prompt and answer together; by default at most 65,536, or 81,920 for gpt-oss where the KV cache
            holds it for all slots.
        memory_share: share of the GPU's memory that vLLM takes.
        kv_cache_dtype, attention_backend, moe_backend, quantization, load_format: vLLM's names.
        expert_warps: warps per block of the Triton kernels of gpt-oss's experts on Hopper GPUs. By default 4 on one GPU and
            on two that share one copy, and vLLM's own choice, 8, elsewhere, where 4 was not measured. A plugin sets 4
            (server/inside/experts.py); where the variable VLLM_PLUGINS is set, it has to list aimo_experts.
        tensor_parallel, data_parallel: GPUs per copy of the model, and copies. The turns of an attempt stay on one.
        speculative: how tokens are drafted. "auto" picks the method that fits `draft_model`, and drafts nothing without one;
            "eagle" (an EAGLE-3 head) and "draft" (a smaller model) need one too. `sampling.min_p`, which vLLM rejects under
            speculation, becomes a top_p of 1 / (1 + min_p) (server/speculation.py), also in prompt variants.
        draft_model: folder of the draft.
        speculative_tokens: tokens drafted per step; None chooses 2 or 3 by slots and experts.
        speculative_options: further fields of vLLM's --speculative-config, such as {draft_sample_method = "probabilistic"}.
        compile_cache: a packed compile cache (`aimo-solver cache pack`) that is put in place before the start.
        start_timeout_s: longest wait for the server to become ready.
        stall_s: the server counts as hung after this many seconds without a token while requests run.
        restarts: how often a failed server is started again; reset after every problem that ended well.
        extra_args: appended to the command line unchanged.
    """

    preset: Literal["auto", "gpt-oss-120b", "gemma-4-31b", "qwen3", "generic", "cpu"] = "auto"
    context_tokens: Count | None = None
    memory_share: Share | None = None
    kv_cache_dtype: str | None = None
    attention_backend: str | None = None
    moe_backend: str | None = None
    quantization: str | None = None
    load_format: str | None = None
    expert_warps: Literal[4, 8] | None = None
    tensor_parallel: Count | None = None
    data_parallel: Count = 1
    speculative: Literal["auto", "none", "ngram", "eagle", "draft"] = "auto"
    draft_model: str | None = None
    speculative_tokens: Count | None = None
    speculative_options: dict[str, Any] = field(default_factory=dict)
    compile_cache: str | None = None
    start_timeout_s: Positive = 900.0
    stall_s: Positive = 60.0
    restarts: Annotated[int, Field(ge=0)] = 3
    extra_args: tuple[str, ...] = ()
