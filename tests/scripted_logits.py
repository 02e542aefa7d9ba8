"""Runs inside vLLM: makes a model sample the very tokens that a request asks for, through the real sampler and cache.

Loaded by the server's option ``--logits-processors tests.scripted_logits:Scripted``; a request carries its tokens as
``vllm_xargs={"script": [...]}``.
"""

from __future__ import annotations

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor, RequestLogitsProcessor


class Scripted(AdapterLogitsProcessor):
    """Leaves requests without a script alone."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> RequestLogitsProcessor | None:
        script = (params.extra_args or {}).get("script")
        if not script:
            return None

        def force(output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
            token = int(script[min(len(output_ids), len(script) - 1)])
            forced = torch.full_like(logits, float("-inf"))
            forced[token] = 0.0
            return forced

        return force
