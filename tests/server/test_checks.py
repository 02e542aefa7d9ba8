"""The checks of a machine, a model and a server."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from aimo_solver.config import Config
from aimo_solver.policy.options import BudgetConfig
from aimo_solver.server import checks
from aimo_solver.server.checks import Check, Health, clock_check, estimate_kv_tokens, gpu_check, kv_check, weights_check
from aimo_solver.server.launch import LaunchPlan, plan_launch
from aimo_solver.server.machine import Gpu
from aimo_solver.server.wheels import Installation
from tests.conftest import H100

GPT_OSS: dict[str, Any] = {
    "model_type": "gpt_oss",
    "num_hidden_layers": 36,
    "layer_types": ["sliding_attention", "full_attention"] * 18,
    "sliding_window": 128,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "hidden_size": 2880,
    "max_position_embeddings": 131_072,
    "vocab_size": 201_088,
}


def plan(folder: Path, config: dict[str, Any], gigabytes: float, gpus: tuple[Gpu, ...] = (H100,)) -> LaunchPlan:
    (folder / "config.json").write_text(json.dumps(config))
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(int(gigabytes * 1e9))  # a sparse file
    return plan_launch(folder, Config(), gpus=gpus)


def test_the_estimate_of_the_kv_cache_is_that_of_a_real_server_within_two_percent(tmp_path: Path) -> None:
    assert estimate_kv_tokens(plan(tmp_path, GPT_OSS, 65.2), 8) == pytest.approx(733_808, rel=0.02)


def test_layers_without_types_keep_every_token_in_two_bytes(tmp_path: Path) -> None:
    shapes = {"num_hidden_layers": 10, "num_attention_heads": 8, "hidden_size": 1024}
    tokens = estimate_kv_tokens(plan(tmp_path, shapes, 10.0), 8)
    assert tokens == int((H100.memory_bytes * 0.92 - 3.5e9 - 10e9) / (2 * 8 * 128 * 2 * 10))


def test_shapes_that_are_missing_give_no_estimate(tmp_path: Path) -> None:
    assert estimate_kv_tokens(plan(tmp_path, {"model_type": "strange"}, 1.0), 8) is None


@pytest.mark.parametrize("odd", [{"num_attention_heads": None}, {"num_attention_heads": 0}, {"num_hidden_layers": "2"}])
def test_shapes_that_make_no_sense_give_no_estimate(tmp_path: Path, odd: dict[str, Any]) -> None:
    shapes = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "text_config": None}
    assert estimate_kv_tokens(plan(tmp_path, shapes, 1.0), 8) is not None
    assert estimate_kv_tokens(plan(tmp_path, shapes | odd, 1.0), 8) is None


def test_weights_that_are_not_there_are_broken(tmp_path: Path) -> None:
    made = plan(tmp_path, GPT_OSS, 1.0)
    names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict(zip("abc", names, strict=True))}))
    (tmp_path / names[0]).touch()
    check = weights_check(made)
    assert (check.health, check.finding) == (Health.BROKEN, f"{names[1]} and 1 more not in {tmp_path}")
    index.write_text("[]")
    assert weights_check(made).health is not Health.BROKEN
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    assert weights_check(made).finding == f"*.safetensors not in {tmp_path}"


@pytest.mark.parametrize(
    ("tokens", "health"),
    [(800_000, Health.OK), (40_000, Health.OK), (39_000, Health.WARNING), (9_999, Health.BROKEN), (None, Health.OK)],
)
def test_a_kv_cache_is_compared_with_half_a_context_for_each_attempt(tokens: int | None, health: Health) -> None:
    assert kv_check(tokens, 8, 10_000).health is health


@pytest.mark.parametrize(("gigabytes", "health"), [(65.2, Health.OK), (90.0, Health.BROKEN)])
def test_weights_that_do_not_fit_the_gpu_are_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gigabytes: float, health: Health
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 10**12}))
    assert weights_check(plan(tmp_path, GPT_OSS, gigabytes)).health is health


@pytest.mark.parametrize(
    ("cuda", "driver", "health"),
    [("13.0", "580.65.06", Health.OK), ("13.0", "570.1", Health.BROKEN), ("12.8", "570.1", Health.OK), ("", "1", Health.OK)],
)
def test_a_driver_that_is_too_old_for_cuda_is_broken(
    monkeypatch: pytest.MonkeyPatch, cuda: str, driver: str, health: Health
) -> None:
    monkeypatch.setattr(checks, "cuda_version", lambda path: cuda)
    assert gpu_check([replace(H100, driver=driver)]).health is health


def test_a_clock_whose_date_jumps_is_a_warning() -> None:
    dates = iter([0.0, 3_600.0])
    check = clock_check(BudgetConfig(), wall=lambda: next(dates))
    assert check.health is Health.WARNING
    assert "3600.00 s in 0.2" in check.finding


def test_a_python_without_vllm_is_broken_with_its_error(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    (tmp_path / "bin" / "python").chmod(0o755)
    check = checks.vllm_check(Installation(tmp_path))
    assert check.health is Health.BROKEN
    assert "ModuleNotFoundError: No module named 'vllm'" in check.finding
    assert checks.vllm_check(Installation(tmp_path / "nothing")).health is Health.BROKEN


def test_advice_stands_below_its_check() -> None:
    text = checks.format_checks([Check("GPU", Health.OK, "1 x H100"), Check("disk", Health.WARNING, "0.1 GB", "free a GB")])
    assert text.splitlines() == ["ok       GPU       1 x H100", "warning  disk      0.1 GB", " " * 19 + "-> free a GB"]
