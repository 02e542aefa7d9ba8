"""The measurement of a dense model in BF16 and FP8: its servers, what a step reads, and the table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from aimo_solver.chat.families import load_chat_format
from aimo_solver.lab.bench.decode import Shape
from aimo_solver.lab.bench.random_weights import draw
from aimo_solver.server.launch import plan_launch
from tests.conftest import H100, ROOT

sys.path.insert(0, str(ROOT / "scripts"))

import gpu_decode
import gpu_dense
import gpu_shapes


def test_every_server_can_be_planned(tmp_path: Path) -> None:
    for server in gpu_dense.SERVERS:
        config = gpu_decode.configuration(server.variant, slots=16, weights=server.weights)
        planned = plan_launch(server.folder(tmp_path), config, gpus=(H100,))
        assert planned.context_tokens == 40_960
        assert (planned.flag("--quantization") is not None) == (server.name == "FP8 by vLLM at load")
        assert load_chat_format(planned.model, config.prompt.family).decode([151_935]) is not None  # a shape has no template


def test_a_step_in_fp8_reads_half_of_the_layers_and_the_whole_head(tmp_path: Path) -> None:
    bf16, fp8 = (Shape.read(server.folder(tmp_path)) for server in gpu_dense.SERVERS[:2])
    read = [shape.step_bytes(distinct_experts=1, streams=0, depth=0, kv_bytes=1) for shape in (bf16, fp8)]
    head = 2 * 5_120 * 151_936
    assert read[0] / 2 == pytest.approx(14.8e9 - 5_120 * 151_936, rel=0.01)  # parameters, as published, less the embedding
    assert read[1] - head == pytest.approx((read[0] - head) / 2)


@pytest.mark.parametrize(
    ("quantization", "bits"),
    [
        ({"quant_method": "mxfp4"}, (4.25, 16.0)),
        ({"quant_method": "fp8"}, (8.0, 8.0)),
        ({}, (16.0, 16.0)),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 128}}}},
            (4.125, 4.125),
        ),
    ],
)
def test_bits_of_a_weight_are_read_from_the_models_configuration(
    tmp_path: Path, quantization: dict[str, object], bits: tuple[float, float]
) -> None:
    values = {**gpu_shapes.dense_config(), "quantization_config": quantization}
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    shape = Shape.read(tmp_path)
    assert (shape.expert_bits, shape.attention_bits) == bits


@pytest.mark.slow
def test_fp8_weights_and_their_scales_have_the_deviation_of_a_fresh_model() -> None:
    import torch  # takes seconds

    weight = torch.zeros((256, 256), dtype=torch.float8_e4m3fn)
    scale = torch.zeros((256, 1))
    draw("model.layers.0.mlp.down_proj.weight", weight, skew=0.0, seed=1)
    draw("model.layers.0.mlp.down_proj.weight_scale", scale, skew=0.0, seed=1)
    whole = weight.float() * scale
    assert whole.std().item() == pytest.approx(0.02, rel=0.05)
    assert weight.float().abs().max() > 200


def test_each_speed_is_compared_with_bf16_at_the_same_depth_and_streams() -> None:
    def table(rate: float) -> dict[str, object]:
        row = {
            "depth": 1_000,
            "streams": 8,
            "tokens/s": rate,
            "ms per step": 8e3 / rate,
            "GB per step": 1.0,
            "of bandwidth": None,
        }
        return {"details": {"ready_s": 60.0}, "results": [row]}

    failed = {"details": {"error": "it ended\nand much more"}, "results": []}
    rows = gpu_dense.rows_of({"BF16": table(800.0), "FP8": table(1_200.0), "another": failed})
    assert rows[0][:5] == ("BF16", 1_000, 8, 800.0, 1.0)
    assert rows[1][:5] == ("FP8", 1_000, 8, 1_200.0, 1.5)
    assert rows[2] == ("another: it ended", *[None] * 8)
