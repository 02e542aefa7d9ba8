"""Model folders for measuring without a download: gpt-oss-120b's shape, with no weights or with random ones; Qwen3-14B's.

    python gpu_shapes.py FOLDER                 config and tokenizer only, for `--load-format dummy`
    python gpu_shapes.py FOLDER --layers 18     34 GB of random weights, half of the model's depth

The values are those of config.json of openai/gpt-oss-120b and Qwen/Qwen3-14B. `write_head` makes an EAGLE-3 head for gpt-oss, of
the shape of the public one that was trained on AIMO attempts, for the load format `aimo-random`.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import time
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY = 201_088
HIDDEN = 2_880
EXPERTS = 128
HEADS, KV_HEADS, HEAD_DIM = 64, 8, 64
LAYERS = 36
_NOISE_BYTES = 64 << 20


def config(layers: int) -> dict[str, object]:
    return {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": 200_002,
        "experts_per_token": 4,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initial_context_length": 4_096,
        "initializer_range": 0.02,
        "intermediate_size": HIDDEN,
        "layer_types": ["sliding_attention" if layer % 2 == 0 else "full_attention" for layer in range(layers)],
        "max_position_embeddings": 131_072,
        "model_type": "gpt_oss",
        "num_attention_heads": HEADS,
        "num_experts_per_tok": 4,
        "num_hidden_layers": layers,
        "num_key_value_heads": KV_HEADS,
        "num_local_experts": EXPERTS,
        "output_router_logits": False,
        "pad_token_id": 199_999,
        "quantization_config": {
            "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"],
            "quant_method": "mxfp4",
        },
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4_096,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": 150_000,
        "router_aux_loss_coef": 0.9,
        "sliding_window": 128,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": VOCABULARY,
    }


FP8_DYNAMIC: dict[str, object] = {
    "config_groups": {
        "group_0": {
            "format": "float-quantized",
            "input_activations": {"dynamic": True, "num_bits": 8, "strategy": "token", "symmetric": True, "type": "float"},
            "targets": ["Linear"],
            "weights": {"dynamic": False, "num_bits": 8, "strategy": "channel", "symmetric": True, "type": "float"},
        }
    },
    "format": "float-quantized",
    "ignore": ["lm_head"],
    "quant_method": "compressed-tensors",
    "quantization_status": "compressed",
}
"""The `quantization_config` that llm-compressor writes for FP8_DYNAMIC, without what is empty."""


def dense_config(quantization: Mapping[str, object] | None = None) -> dict[str, object]:
    """Qwen3-14B's config.json, with a `quantization_config` if one is given."""
    own = {} if quantization is None else {"quantization_config": dict(quantization)}
    return {
        **own,
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151_643,
        "eos_token_id": 151_645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 5_120,
        "initializer_range": 0.02,
        "intermediate_size": 17_408,
        "max_position_embeddings": 40_960,
        "max_window_layers": 40,
        "model_type": "qwen3",
        "num_attention_heads": 40,
        "num_hidden_layers": 40,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1_000_000,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 151_936,
    }


def tokenizer(vocabulary: int) -> dict[str, object]:
    """A tokenizer that knows every id: the measured conversations are sent and received as token ids."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": {f"t{number}": number for number in range(vocabulary)}, "unk_token": "t0"},
    }


def write_folder(folder: Path, values: Mapping[str, Any]) -> None:
    """Writes a model's folder without weights, from its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values, indent=1))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(values["vocab_size"])))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": f"t{values['eos_token_id']}"})
    )


def head_config(model: Mapping[str, Any]) -> dict[str, object]:
    """An EAGLE-3 head's config.json for a model's: one Llama layer that takes three of the model's layers."""
    layers = int(model["num_hidden_layers"])
    copied = ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings")
    return {
        **{name: model[name] for name in copied},
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "attention_bias": False,
        "draft_vocab_size": min(32_000, int(model["vocab_size"]) // 4),
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, layers // 2 - 1, layers - 3], "use_aux_hidden_state": True},
        "hidden_act": "silu",
        "intermediate_size": 6 * int(model["hidden_size"]),
        "num_hidden_layers": 1,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def write_head(folder: Path, model: Path) -> None:
    """Writes the head of a model's folder; it has no weights."""
    folder.mkdir(parents=True, exist_ok=True)
    values = head_config(json.loads((model / "config.json").read_text()))
    (folder / "config.json").write_text(json.dumps(values, indent=1))


# --- weights ----------------------------------------------------------------------------------------------------------

Tensor = tuple[str, str, tuple[int, ...]]  # name, safetensors dtype, shape


def layer_tensors(layer: int) -> list[Tensor]:
    at = f"model.layers.{layer}"
    queries, keys = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    tensors: list[Tensor] = [
        (f"{at}.mlp.experts.gate_up_proj_blocks", "U8", (EXPERTS, 2 * HIDDEN, HIDDEN // 32, 16)),
        (f"{at}.mlp.experts.gate_up_proj_scales", "U8", (EXPERTS, 2 * HIDDEN, HIDDEN // 32)),
        (f"{at}.mlp.experts.gate_up_proj_bias", "BF16", (EXPERTS, 2 * HIDDEN)),
        (f"{at}.mlp.experts.down_proj_blocks", "U8", (EXPERTS, HIDDEN, HIDDEN // 32, 16)),
        (f"{at}.mlp.experts.down_proj_scales", "U8", (EXPERTS, HIDDEN, HIDDEN // 32)),
        (f"{at}.mlp.experts.down_proj_bias", "BF16", (EXPERTS, HIDDEN)),
        (f"{at}.mlp.router.weight", "BF16", (EXPERTS, HIDDEN)),
        (f"{at}.mlp.router.bias", "BF16", (EXPERTS,)),
        (f"{at}.self_attn.sinks", "BF16", (HEADS,)),
        (f"{at}.input_layernorm.weight", "BF16", (HIDDEN,)),
        (f"{at}.post_attention_layernorm.weight", "BF16", (HIDDEN,)),
        (f"{at}.self_attn.o_proj.weight", "BF16", (HIDDEN, queries)),
        (f"{at}.self_attn.o_proj.bias", "BF16", (HIDDEN,)),
    ]
    for name, rows in (("q", queries), ("k", keys), ("v", keys)):
        tensors += [
            (f"{at}.self_attn.{name}_proj.weight", "BF16", (rows, HIDDEN)),
            (f"{at}.self_attn.{name}_proj.bias", "BF16", (rows,)),
        ]
    return tensors


def ends() -> list[Tensor]:
    return [
        ("model.embed_tokens.weight", "BF16", (VOCABULARY, HIDDEN)),
        ("lm_head.weight", "BF16", (VOCABULARY, HIDDEN)),
        ("model.norm.weight", "BF16", (HIDDEN,)),
    ]


def noise(seed: int, kind: str) -> bytes:
    """Bytes of a kind of numbers that make a model whose routing spreads, as aimo_solver.lab.bench.random_weights explains."""
    draw = np.random.default_rng(seed)
    if kind == "scales":
        return draw.integers(118, 122, _NOISE_BYTES, np.uint8).tobytes()  # powers of two from 2^-9 to 2^-6
    if kind == "blocks":
        return draw.bytes(_NOISE_BYTES)
    if kind == "zeros":
        return bytes(_NOISE_BYTES)
    single = np.ones(_NOISE_BYTES // 2, np.float32)
    if kind == "weights":
        single = draw.standard_normal(_NOISE_BYTES // 2, np.float32) * np.float32(0.02)
    return (single.view(np.uint32) >> 16).astype(np.uint16).tobytes()  # bfloat16 is the upper half of a single


def kind_of(name: str) -> str:
    """The kind of noise that fills a tensor."""
    endings = {"_blocks": "blocks", "_scales": "scales", "bias": "zeros", "sinks": "zeros", "norm.weight": "ones"}
    return next((kind for ending, kind in endings.items() if name.endswith(ending)), "weights")


def write_shard(path: Path, tensors: list[Tensor], seed: int) -> int:
    """Writes one safetensors file; returns its size in bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, dtype, shape in tensors:
        size = int(np.prod(shape)) * (1 if dtype == "U8" else 2)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pools = {kind: memoryview(noise(seed, kind)) for kind in {kind_of(name) for name, *_ in tensors}}
    with path.open("wb", buffering=0) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, dtype, shape in tensors:
            left = int(np.prod(shape)) * (1 if dtype == "U8" else 2)
            pool = pools[kind_of(name)]
            start = zlib.crc32(name.encode()) % 1_000 * 64  # no two tensors begin with the same numbers
            while left:
                left -= file.write(pool[start : start + left])
                start = 0
        os.fsync(file.fileno())
    return at


def write_weights(folder: Path, layers: int) -> int:
    """Writes all shards in parallel, each with two layers or the embeddings; returns the bytes."""
    groups = [
        ends(),
        *(
            [tensor for layer in range(first, min(first + 2, layers)) for tensor in layer_tensors(layer)]
            for first in range(0, layers, 2)
        ),
    ]
    names = [f"model-{number + 1:05d}-of-{len(groups):05d}.safetensors" for number in range(len(groups))]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        sizes = list(pool.map(write_shard, [folder / name for name in names], groups, range(len(groups))))
    index = {tensor[0]: name for name, group in zip(names, groups, strict=True) for tensor in group}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": sum(sizes)}, "weight_map": index})
    )
    return sum(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, help="write random weights for this many layers")
    options = parser.parse_args()
    write_folder(options.folder, config(options.layers or LAYERS))
    if options.layers:
        began = time.monotonic()
        size = write_weights(options.folder, options.layers)
        print(f"{size / 1e9:.1f} GB of weights in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
