"""Random weights that route, and what a decode step has to read."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aimo_solver.lab.bench.decode import Pace, Shape
from aimo_solver.lab.bench.random_weights import SCALES, RoutingControl, distinct_experts, draw, expected_experts, skew_of
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

import gpu_decode
import gpu_shapes

MXFP4_BYTES = 4.25 / 8
uses_torch = pytest.mark.slow  # its import takes seconds; not at the top, since every worker of pytest imports this module


def drawn(name: str, shape: tuple[int, ...], dtype: str = "float32", skew: float = 0.0) -> Any:
    import torch

    parameter = torch.full(shape, 7, dtype=getattr(torch, dtype))
    draw(name, parameter, skew=skew, seed=1)
    return parameter


@uses_torch
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.0.input_layernorm.weight"])
def test_norms_are_one(name: str) -> None:
    assert (drawn(name, (64,)) == 1).all()


@uses_torch
@pytest.mark.parametrize("name", ["model.layers.0.mlp.router.weight", "lm_head.weight"])
def test_weights_have_the_deviation_of_a_fresh_model(name: str) -> None:
    assert drawn(name, (256, 256)).std().item() == pytest.approx(0.02, rel=0.05)


@uses_torch
@pytest.mark.parametrize("name", ["model.layers.0.self_attn.o_proj.bias", "model.layers.0.mlp.router.bias", "x.attn.sinks"])
def test_biases_are_zero(name: str) -> None:
    assert (drawn(name, (128,)) == 0).all()


@uses_torch
def test_a_skew_is_the_deviation_of_the_routers_bias() -> None:
    assert drawn("model.layers.0.mlp.router.bias", (20_000,), skew=1.5).std().item() == pytest.approx(1.5, rel=0.05)
    assert (drawn("model.layers.0.self_attn.o_proj.bias", (128,), skew=1.5) == 0).all()


@uses_torch
def test_the_skew_of_a_running_server_changes_in_place() -> None:
    import torch  # takes seconds

    model = torch.nn.ModuleDict({"router": torch.nn.Linear(4, 64), "mlp": torch.nn.Linear(4, 64)})
    layers = torch.nn.ModuleDict({"layer": model})
    before = {name: parameter.clone() for name, parameter in layers.named_parameters()}
    bias = layers.get_parameter("layer.router.bias")

    class Worker(RoutingControl):
        def get_model(self) -> torch.nn.Module:
            return layers

    Worker().redraw_routing(100.0)
    assert layers.get_parameter("layer.router.bias") is bias
    assert bias.std().item() > 50
    changed = {name for name, parameter in layers.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {"layer.router.bias"}


def test_expert_blocks_take_every_value_and_scales_stay_small() -> None:
    blocks = drawn("model.layers.0.mlp.experts.w13_weight", (64, 256), "uint8")
    scales = drawn("model.layers.0.mlp.experts.w13_weight_scale", (64, 256), "uint8")
    assert set(blocks.flatten().tolist()) == set(range(256))
    assert set(scales.flatten().tolist()) == {118, 119, 120, 121}


@uses_torch
def test_the_same_name_draws_the_same_values() -> None:
    assert drawn("a.weight", (32, 32)).equal(drawn("a.weight", (32, 32)))
    assert not drawn("a.weight", (32, 32)).equal(drawn("b.weight", (32, 32)))


@pytest.mark.parametrize("options", [{"skew": -1}, {"skew": float("nan")}, {"scew": 1}])
def test_impossible_options_of_the_load_format_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="skew"):
        skew_of(options)


def test_vllm_finds_the_load_format_by_its_plugin_interface() -> None:
    points = importlib.metadata.entry_points(group="vllm.general_plugins")
    assert "aimo_solver.lab.bench.random_weights:register" in {point.value for point in points}


def test_uniform_routing_of_many_tokens_gives_the_expected_number_of_experts() -> None:
    random = np.random.default_rng(1)
    routed = [
        np.stack([[random.choice(128, 4, replace=False) for _ in range(3)] for _ in range(40)]).astype(np.uint8)
        for _ in range(16)
    ]
    assert distinct_experts(routed, 8) == pytest.approx(expected_experts(8, 128, 4), rel=0.02)
    assert distinct_experts(routed, 16) == pytest.approx(expected_experts(16, 128, 4), rel=0.02)


def test_tokens_that_all_take_the_same_experts_touch_no_others() -> None:
    routed = [np.tile(np.arange(4, dtype=np.uint8), (10, 2, 1)) for _ in range(8)]
    assert distinct_experts(routed, 8) == 4


def test_expected_experts_of_gpt_oss() -> None:
    assert [round(expected_experts(streams, 128, 4)) for streams in (1, 8, 16, 32)] == [4, 29, 51, 82]


@uses_torch
def test_weights_in_files_route_as_those_of_the_load_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from safetensors.torch import load_file

    small = {"HIDDEN": 64, "EXPERTS": 8, "HEADS": 2, "KV_HEADS": 1, "VOCABULARY": 100, "_NOISE_BYTES": 1 << 17}
    for name, value in small.items():
        monkeypatch.setattr(gpu_shapes, name, value)
    gpu_shapes.write_weights(tmp_path, 2)
    tensors = load_file(tmp_path / "model-00002-of-00002.safetensors")
    router = tensors["model.layers.0.mlp.router.weight"].float()
    assert float(router.std()) == pytest.approx(0.02, rel=0.1)
    assert not torch.equal(router, tensors["model.layers.1.mlp.router.weight"].float())
    assert bool((tensors["model.layers.0.input_layernorm.weight"] == 1).all())
    assert not bool(tensors["model.layers.0.mlp.router.bias"].any())
    assert int(tensors["model.layers.0.mlp.experts.down_proj_scales"].min()) in range(*SCALES)


@pytest.fixture
def shape(tmp_path: Path) -> Shape:
    (tmp_path / "config.json").write_text(json.dumps(gpu_shapes.config(gpu_shapes.LAYERS)), encoding="utf-8")
    return Shape.read(tmp_path)


def test_all_experts_of_gpt_oss_have_its_published_size(shape: Shape) -> None:
    without = shape.step_bytes(distinct_experts=0, streams=0, depth=0, kv_bytes=1)
    experts = shape.step_bytes(distinct_experts=128, streams=0, depth=0, kv_bytes=1) - without
    assert experts == pytest.approx(36 * 128 * 3 * 2_880 * 2_880 * MXFP4_BYTES)
    assert experts / MXFP4_BYTES == pytest.approx(114.7e9, rel=0.01)  # of 116.8e9 parameters in all


def test_a_sliding_layer_reads_no_more_than_its_window(shape: Shape) -> None:
    def cache(depth: int) -> float:
        return shape.step_bytes(distinct_experts=4, streams=1, depth=depth, kv_bytes=1) - shape.step_bytes(
            distinct_experts=4, streams=1, depth=0, kv_bytes=1
        )

    per_token = 2 * 8 * 64
    assert cache(100) == 36 * 100 * per_token
    assert cache(16_000) == 18 * (16_000 + 128) * per_token


def test_a_step_gives_each_stream_one_token() -> None:
    assert Pace(tokens=800, seconds=1.0, streams=8).step_ms == pytest.approx(10.0)


def test_a_profile_counts_whole_steps_and_the_time_without_a_kernel() -> None:
    def event(cat: str, name: str, ts: float, dur: float) -> dict[str, object]:
        return {"cat": cat, "name": name, "ts": ts, "dur": dur}

    events = [event("gpu_user_annotation", "execute_context_0(0)_generation_8(8)", 1_000.0 * step, 900.0) for step in range(4)]
    for step in range(4):
        events += [event("kernel", "experts", 1_000.0 * step, 600.0), event("gpu_memcpy", "copy", 1_000.0 * step + 600, 200.0)]
    table = gpu_decode.kernels(events, streams=8)
    assert [row[0] for row in table.rows] == ["experts", "copy"]
    assert [row[1] for row in table.rows] == [1.0, 1.0]
    assert [row[2] for row in table.rows] == pytest.approx([0.6, 0.2])  # ms per step
    assert [row[3] for row in table.rows] == pytest.approx([0.6, 0.2])
    assert table.details["steps"] == 2
    assert table.details["busy"] == pytest.approx(0.8)
