"""A vLLM load format that fills a model with random weights whose routing spreads over the experts as a trained model's does.

    vllm serve FOLDER --load-format aimo-random --model-loader-extra-config '{"skew": 0.0}'

vLLM's own ``--load-format dummy`` draws every parameter, norms included, from +-0.001. What reaches a router is then so small
that its bias decides, every token of a layer takes the same experts, and a decode step reads far fewer weights than a trained
model's step. Here norms are 1, every weight and router is drawn from N(0, 0.02), biases are 0, and the blocks of MXFP4 experts
are random with scales from 2^-9 to 2^-6. FP8 weights use the range of their type, with scales that make them N(0, 0.02) too.
Nothing is read from disk: weights are drawn on the device, parameter by parameter, from a seed and the parameter's name.

`skew` is the standard deviation of the routers' bias, in logits; without it a router's logits have a deviation of about 1. 0
spreads tokens evenly, larger values concentrate them on fewer experts.

vLLM finds the format through its plugin interface: the entry point ``vllm.general_plugins`` in pyproject.toml names `register`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LOAD_FORMAT = "aimo-random"
DEVIATION = 0.02
_FP8_DEVIATION = 64.0  # of the stored values, which end at 448
_LAYERS = 360  # simulated
SCALES = (118, 122)  # biased exponents of MXFP4 scales, the second exclusive: 2^-9 to 2^-6


def register() -> None:
    """Registers the load format; vLLM calls it in each of its processes."""
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    @register_model_loader(LOAD_FORMAT)
    class RandomWeightsLoader(BaseModelLoader):  # type: ignore[misc] # vLLM has no types for it
        def __init__(self, load_config: Any) -> None:
            super().__init__(load_config)
            self.skew = skew_of(load_config.model_loader_extra_config)

        def download_model(self, model_config: Any) -> None:
            pass  # there is nothing to download

        def load_weights(self, model: Any, model_config: Any) -> None:
            for name, parameter in model.named_parameters():
                draw(name, parameter.data, skew=self.skew, seed=model_config.seed or 0)
            if hasattr(model, "draft_id_to_target_id"):
                # An EAGLE-3 head. Reading weights from files sets this; without it, vLLM takes the model's own head instead,
                # six times as wide. The map of token ids, drawn as zeros, is the identity.
                model.has_own_lm_head = True


class RoutingControl:
    """Methods of vLLM's workers (``--worker-extension-cls``), called through its route ``/collective_rpc``."""

    def redraw_routing(self, skew: float) -> None:
        """Draws the routers' bias again, in place, so that captured graphs use it."""
        for name, parameter in self.get_model().named_parameters():  # type: ignore[attr-defined] # of the worker
            if is_router(name) and name.endswith("bias"):
                draw(name, parameter.data, skew=skew, seed=0)


def is_router(name: str) -> bool:
    """Returns whether a parameter belongs to a layer's choice of experts."""
    return ".router." in name or ".gate." in name


def skew_of(options: Mapping[str, Any]) -> float:
    """The `skew` among a loader's extra options.

    Raises:
        ValueError: another option, or a skew that is not a number from 0 up.
    """
    if unknown := set(options) - {"skew"}:
        raise ValueError(f"--load-format {LOAD_FORMAT} has one option, skew; got {', '.join(sorted(unknown))}")
    skew = float(options.get("skew", 0.0))
    if not 0 <= skew < math.inf:
        raise ValueError(f"skew has to be a number from 0 up, got {skew}")
    return skew


def draw(name: str, parameter: Any, *, skew: float, seed: int) -> None:
    """Fills one parameter (a `torch.Tensor`) in place, by its name and its type."""
    import torch

    generator = torch.Generator(device=parameter.device).manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    router = is_router(name)
    if parameter.dtype == torch.uint8:
        parameter.random_(*SCALES if "scale" in name else (0, 256), generator=generator)
    elif not parameter.is_floating_point():
        parameter.zero_()
    elif parameter.dtype == torch.float8_e4m3fn:  # has no generator of its own
        wide = torch.empty_like(parameter, dtype=torch.float32).normal_(0.0, _FP8_DEVIATION, generator=generator)
        parameter.copy_(wide.clamp_(-448.0, 448.0))
    elif name.endswith("weight_scale"):
        parameter.fill_(DEVIATION / _FP8_DEVIATION)
    elif "norm" in name and name.endswith("weight"):
        parameter.fill_(1.0)
    elif name.endswith("bias") and router and skew > 0:
        parameter.normal_(0.0, skew, generator=generator)
    elif name.endswith(("bias", "sinks")):
        parameter.zero_()
    else:
        parameter.normal_(0.0, DEVIATION, generator=generator)


def distinct_experts(routed: Sequence[np.ndarray], streams: int) -> float:
    """The mean number of experts that one step of `streams` streams reads in a layer.

    Args:
        routed: for each sequence, the experts its tokens took, as (tokens, layers, experts per token).

    Raises:
        ValueError: fewer sequences than streams.
    """
    if len(routed) < streams:
        raise ValueError(f"{streams} streams need as many sequences, got {len(routed)}")
    steps = min(len(tokens) for tokens in routed)
    counts = [
        len(np.unique(np.concatenate([tokens[-steps:][step, layer] for tokens in group])))
        for start in range(0, len(routed) - streams + 1, streams)
        for group in [routed[start : start + streams]]
        for step in range(steps)
        for layer in range(routed[0].shape[1])
    ]
    return float(np.mean(counts))


def expected_experts(streams: int, experts: int, per_token: int, *, skew: float = 0.0) -> float:
    """Returns the distinct experts of a layer and step to expect if each token takes `per_token` of `experts`.

    Without skew n (1 - (1 - k/n)^streams), with it the mean of a simulation with logits of deviation 1.
    """
    if skew == 0:
        return experts * (1.0 - (1.0 - per_token / experts) ** streams)
    draw = np.random.default_rng(0)
    bias = draw.normal(0.0, skew, (_LAYERS, 1, experts))
    logits = draw.normal(0.0, 1.0, (_LAYERS, streams, experts)) + bias
    taken = np.argpartition(-logits, per_token, axis=2)[:, :, :per_token].reshape(_LAYERS, -1)
    return float(np.mean([len(np.unique(layer)) for layer in taken]))
