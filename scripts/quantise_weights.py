"""The part of `quantise.py` that needs llm-compressor, run by the interpreter that has it (requirements-quantise.txt).

    python quantise_weights.py MODEL OUT fp8
    python quantise_weights.py MODEL OUT w4a16 --calibration rows.json

OUT gets the quantised weights and config.json. The head keeps its precision.
"""

from __future__ import annotations

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")  # models and data are local files

_IGNORED = ["lm_head"]
_GROUPS = (128, 64, 32)  # weights that share a scale, as vLLM's kernels for 4 bits take them


class Scheme(StrEnum):
    FP8 = "fp8"
    W4A16 = "w4a16"


def quantise(
    model: Path,
    out: Path,
    scheme: Scheme,
    calibration: Annotated[Path | None, typer.Option(help="JSON list of rows of token ids; w4a16 needs it")] = None,
) -> None:
    """Writes a model's quantised weights."""
    try:
        from llmcompressor import oneshot
    except ImportError as error:
        raise typer.BadParameter(f"this Python has no llm-compressor ({error}); install requirements-quantise.txt") from None

    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    data: dict[str, Any] = {}
    if calibration is not None:
        rows = json.loads(calibration.read_text(encoding="utf-8"))
        data = {"dataset": Dataset.from_dict({"input_ids": rows}), "num_calibration_samples": len(rows)}
    oneshot(model=network, recipe=_recipe(network, scheme), shuffle_calibration_samples=False, **data)
    network.save_pretrained(out, save_compressed=True)


def _recipe(network: Any, scheme: Scheme) -> Any:
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    if scheme is Scheme.FP8:
        return QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=_IGNORED)
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": group_size(network)}
    return GPTQModifier(config_groups={"group_0": {"targets": ["Linear"], "weights": weights}}, ignore=_IGNORED)


def group_size(network: Any) -> int:
    """Returns the largest group of weights that divides the inputs of all quantised layers.

    Raises:
        typer.BadParameter: there is none.
    """
    import torch

    layers = {name: module for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)}
    widths = {module.in_features for name, module in layers.items() if name not in _IGNORED}
    for size in _GROUPS:
        if all(width % size == 0 for width in widths):
            return size
    raise typer.BadParameter(f"layers with {sorted(widths)} inputs have no common group of {_GROUPS} weights; quantise to fp8")


if __name__ == "__main__":
    typer.run(quantise)
