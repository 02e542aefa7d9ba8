"""A vLLM plugin: the Triton kernels of MXFP4 experts (gpt-oss) run with 4 warps per block on Hopper GPUs, not with vLLM's 8.

The number of warps decides how vLLM lays out the experts' scales, and the layout decides the kernels' blocks: 128 outputs with 4
warps, 256 with 8. For 1 to 1,024 tokens, the two products of a layer take 0.84 to 0.89 of the time with 4 warps; the results are
the same to the last bit (docs/benchmarks.md). vLLM has no option for it, only a default in its source.
"""

from __future__ import annotations

import logging
from typing import Any

WARPS = 4
_THEIRS = 8

log = logging.getLogger("vllm.aimo_experts")  # below vLLM's own logger, so that the line reaches the server's log


def set_warps() -> None:
    """Sets the default in this process; vLLM calls it in each of its processes.

    A vLLM whose source is different stays as it is.
    """
    try:
        from vllm.model_executor.layers.quantization.utils import mxfp4_utils
    except Exception as error:  # noqa: BLE001 - vLLM does not catch what a plugin raises: the server would end
        log.warning("MXFP4 experts: warps per block unchanged (%r)", error)
        return
    lay_out: Any = getattr(mxfp4_utils, "_swizzle_mxfp4", None)
    if getattr(lay_out, "__defaults__", None) != (_THEIRS,):
        log.warning("MXFP4 experts: warps per block unchanged (this vLLM chooses them in another way)")
        return
    lay_out.__defaults__ = (WARPS,)
    log.info("MXFP4 experts: %d warps per block", WARPS)
