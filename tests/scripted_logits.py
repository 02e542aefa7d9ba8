"""A logits processor for vLLM that makes the model sample the tokens listed in the request, with the real sampler and cache.

Loaded by the server's option ``--logits-processors tests.scripted_logits:Scripted``; a request passes its tokens as
``vllm_xargs={"script": [...]}``.
"""

from __future__ import annotations

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor, RequestLogitsProcessor


class Scripted(AdapterLogitsProcessor):  # type: ignore[misc]
    """Forces the tokens of a request's script; ignores requests without one."""

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
