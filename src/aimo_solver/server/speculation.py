"""Speculative decoding: a draft proposes tokens, and the model checks them in one step.

Tokens are still sampled from the model's own distribution, so only the speed changes. `plan_speculation` chooses the method from
the draft's files and checks that they fit the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from aimo_solver.config import Config
from aimo_solver.errors import ConfigError, ModelError
from aimo_solver.options import SamplingConfig

Method = Literal["ngram", "eagle", "eagle3", "draft_model"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """How tokens are drafted.

    Attributes:
        method: vLLM's name for it.
        tokens: drafted per stream and step.
        draft: folder of the draft; None for n-grams, which are looked up in the context.
        options: further fields of vLLM's ``--speculative-config``.
    """

    method: Method
    tokens: int
    draft: Path | None
    options: Mapping[str, Any]

    def as_json(self) -> str:
        """Returns the value of ``--speculative-config``."""
        config: dict[str, Any] = {"method": self.method, "num_speculative_tokens": self.tokens}
        if self.draft is None:
            config |= {"prompt_lookup_max": 4, "prompt_lookup_min": 2}
        else:
            config["model"] = str(self.draft)
        return json.dumps({**config, **self.options}, sort_keys=True)


def plan_speculation(config: Config, model_config: Mapping[str, Any], streams: int, *, on_gpu: bool = True) -> Speculation | None:
    """Returns how tokens are drafted under these options; None if none are.

    Args:
        model_config: the model's config.json.
        streams: concurrent requests.

    Raises:
        ModelError: the draft's folder cannot be used, or does not fit the model.
        ConfigError: vLLM's CPU build would sample wrong tokens.
    """
    server = config.server
    text = model_config.get("text_config") or model_config
    method: Method | None = "ngram" if server.speculative == "ngram" else None
    draft = None
    if server.draft_model is not None and server.speculative in ("auto", "eagle", "draft"):
        draft = Path(server.draft_model).absolute()
        draft_config = read_model_config(draft)
        method = _METHODS.get(server.speculative) or _method_of(draft_config)
        _check_draft(draft, method, draft_config, text, weights=server.load_format is None)
    if method is None:
        return None
    variants = (variant.temperature or 0.0 for variant in config.prompt.variants.values())
    if not on_gpu and max((config.sampling.temperature, *variants)) > 0:
        # Its expand_kernel_impl (0.32, cpu_triton_utils.py) converts temperature and top_p to integers and drops the result:
        # with the embedded model 1 % of the drafted tokens were accepted, and the answers were wrong.
        problem = "vLLM's CPU build samples wrong tokens under speculation; set sampling.temperature=0, or leave the draft out"
        raise ConfigError("server.speculative", problem)
    experts = int(text.get("num_local_experts") or text.get("num_experts") or 1)
    tokens = server.speculative_tokens or draft_length(streams, experts, int(text.get("num_experts_per_tok") or 1))
    return Speculation(method=method, tokens=tokens, draft=draft, options=server.speculative_options)


def read_model_config(folder: Path) -> Mapping[str, Any]:
    """Returns a model folder's config.json.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(folder, "has no config.json; give the folder that holds all the model's files") from None
    except (OSError, ValueError) as error:
        raise ModelError(folder, f"config.json cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise ModelError(folder, "config.json holds no JSON object")
    return config


def draft_length(streams: int, experts: int, experts_per_token: int) -> int:
    """Returns how many tokens to draft per step where the user sets none: 3, or 2 where each brings many more experts to read.

    EAGLE-3 heads are trained for a few steps, and public measurements use 3. The bounds follow from a cost model of a step in
    tests/server/test_speculation.py; a dense model reads the same weights in every step.
    """
    return 2 if 1 / 16 <= streams * experts_per_token / experts <= 3 / 8 else 3


def without_min_p(sampling: SamplingConfig) -> SamplingConfig:
    """Returns sampling with `top_p` in place of `min_p`, which vLLM does not support with speculation.

    vLLM 0.26 and 0.32 answer 400 to a request with min_p under speculation.

    min_p = m drops tokens less likely than m times the most likely one. Once that one has more than 1 / (1 + m), all others
    together have less than m times as much, and only it is left. top_p = 1 / (1 + m) does the same above the same probability,
    and drops at most m / (1 + m) of the distribution elsewhere: 2 % for m = 0.02. docs/benchmarks.md compares what both
    drop, and gives the cost of finding the nucleus: 2 of 19 ms per step of 8 streams of gpt-oss-120b.
    """
    return replace(sampling, min_p=0.0, top_p=min(sampling.top_p, 1.0 / (1.0 + sampling.min_p)))


_METHODS: Mapping[str, Method] = {"eagle": "eagle3", "draft": "draft_model"}


def _method_of(config: Mapping[str, Any]) -> Method:
    names = " ".join(str(name) for name in config.get("architectures") or ()).lower()
    if "eagle3" in names or config.get("draft_vocab_size") or config.get("speculators_model_type") == "eagle3":
        return "eagle3"
    return "eagle" if "eagle" in names or config.get("eagle_config") else "draft_model"


def _check_draft(draft: Path, method: Method, config: Mapping[str, Any], model: Mapping[str, Any], *, weights: bool) -> None:
    """Raises ModelError if the draft cannot serve that model. `weights`: whether its folder has to hold them."""
    layer = config.get("transformer_layer_config") or config.get("text_config") or config  # the first in the speculators' format
    vocabulary = int(model.get("vocab_size") or 0)
    problem = None
    if weights and not any(file.suffix in (".safetensors", ".bin", ".pt") for file in draft.iterdir()):
        problem = "holds no weights (*.safetensors); copy the draft's whole folder"
    elif method == "draft_model" and int(layer.get("vocab_size") or 0) != vocabulary:
        problem = f"has a vocabulary of {layer.get('vocab_size')} tokens and the model {vocabulary}; a draft model needs the same"
    elif method != "draft_model":
        problem = _head_problem(config, layer, model, vocabulary)
    if problem is not None:
        raise ModelError(draft, f"as a draft: {problem}")


def _head_problem(config: Mapping[str, Any], layer: Mapping[str, Any], model: Mapping[str, Any], vocabulary: int) -> str | None:
    """Returns why an EAGLE head does not fit; None if it does."""
    drafts = int(config.get("draft_vocab_size") or layer.get("vocab_size") or 0)
    if drafts > vocabulary:
        return f"drafts from {drafts} tokens, and the model has {vocabulary}; take a head trained for this model"
    hidden = int(config.get("target_hidden_size") or layer.get("hidden_size") or 0)
    if hidden != int(model.get("hidden_size") or 0):
        there = model.get("hidden_size")
        return f"is for hidden states of {hidden} values, and the model's have {there}; take a head of this model"
    eagle = config.get("eagle_config") or {}
    taken = config.get("eagle_aux_hidden_state_layer_ids") or eagle.get("eagle_aux_hidden_state_layer_ids") or ()
    layers = int(model.get("num_hidden_layers") or 0)
    if any(not 0 <= int(number) <= layers for number in taken):
        named = ", ".join(map(str, taken))
        return f"takes hidden states of layers {named}, and the model has {layers}; take a head of this model"
    return None
