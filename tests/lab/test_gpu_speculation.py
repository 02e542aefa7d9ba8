"""The measurement of speculation with a head of random weights: its servers, the head, and the table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from aimo_solver.server.launch import plan_launch
from tests.conftest import H100, ROOT

sys.path.insert(0, str(ROOT / "scripts"))

import gpu_decode
import gpu_shapes
import gpu_speculation


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(gpu_shapes.config(gpu_shapes.LAYERS)), encoding="utf-8")
    gpu_shapes.write_head(tmp_path / "head", folder)
    return folder


def test_the_head_has_the_public_heads_shape(model: Path) -> None:
    head = json.loads((model.parent / "head" / "config.json").read_text())
    sizes = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    assert [head[name] for name in sizes] == [1, 2_880, 17_280, 64, 8]
    assert head["draft_vocab_size"] == 32_000
    assert head["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [1, 17, 33]


def test_every_server_of_the_measurement_can_be_planned(model: Path) -> None:
    for variant in gpu_speculation.variants(model.parent / "head"):
        config = gpu_decode.configuration(variant, slots=16, weights="random")
        planned = plan_launch(model, config, gpus=(H100,))
        drafting = json.loads(getattr(planned.flag("--speculative-config"), "value", ""))
        assert drafting["method"] == "eagle3"
        assert drafting["rejection_sample_method"] == "synthetic"
        lengths, rates = drafting["synthetic_acceptance_length"], drafting.get("synthetic_acceptance_rates")
        assert (lengths is None) != (rates is None)  # vLLM takes exactly one of them
        assert rates is not None or 1 <= lengths <= drafting["num_speculative_tokens"] + 1


def test_the_break_even_is_how_much_longer_a_step_takes() -> None:
    none = {"details": {"ready_s": 50.0, "accepted": []}, "results": [{"streams": 8, "tokens/s": 800.0}]}
    drafting = {"details": {"ready_s": 60.0, "accepted": [2.4, 2.6]}, "results": [{"streams": 8, "tokens/s": 1_000.0}]}
    rows = gpu_speculation.rows_of({"none": none, "drafting": drafting})
    assert rows[0] == ("none", 8, 800.0, 1.0, 1.0, 10.0, 1.0, 50.0)
    assert rows[1] == ("drafting", 8, 1_000.0, 1.25, 2.5, 20.0, 2.0, 60.0)


def test_a_server_that_failed_keeps_its_reason_in_the_table() -> None:
    none = {"details": {"ready_s": 50.0, "accepted": []}, "results": [{"streams": 8, "tokens/s": 800.0}]}
    failed = {"details": {"error": "unknown method"}, "results": []}
    assert gpu_speculation.rows_of({"none": none, "x": failed})[1][0] == "x: unknown method"


def test_tokens_per_step_are_read_from_vllms_log(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text("INFO SpecDecoding metrics: Mean acceptance length: 2.48, Accepted throughput: 3 tokens/s\nINFO other\n")
    assert gpu_speculation.acceptance_lengths(log) == [2.48]
