"""The solver's plugin for vLLM: which servers load it, and what it changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from aimo_solver.config import load_config
from aimo_solver.server import launch
from aimo_solver.server.flags import Adjustments
from aimo_solver.server.inside import experts
from aimo_solver.server.launch import LaunchPlan, plan_launch
from aimo_solver.server.machine import Gpu
from aimo_solver.server.wheels import Installation
from tests.conftest import H100

MXFP4 = "vllm.model_executor.layers.quantization.utils.mxfp4_utils"
BLACKWELL = Gpu("NVIDIA B200", 183_359 << 20, (10, 0), "580.1")

# As vLLM's processes do: plugins first, then the weights are laid out.
LOAD = f"""
from vllm.plugins import load_general_plugins
load_general_plugins()
from {MXFP4} import _swizzle_mxfp4
print("RESULT", _swizzle_mxfp4.__defaults__)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(launch, "installed_flags", lambda path: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def plan(folder: Path, kind: str = "gpt_oss", *, gpus: tuple[Gpu, ...] = (H100,), **server: object) -> LaunchPlan:
    (folder / "config.json").write_text(json.dumps({"model_type": kind, "max_position_embeddings": 131_072}))
    return plan_launch(folder, load_config({"server": server}), slots=8, gpus=gpus)


def python_path(plan: LaunchPlan) -> list[str]:
    return plan.command.env.get("PYTHONPATH", "").split(os.pathsep)


@pytest.mark.slow
def test_vllm_finds_the_plugin_and_lays_out_experts_for_four_warps(tmp_path: Path) -> None:
    environment = {**os.environ, **plan(tmp_path).command.env}
    done = subprocess.run([sys.executable, "-c", LOAD], env=environment, capture_output=True, text=True, check=True)
    assert f"RESULT ({experts.WARPS},)" in done.stdout


@pytest.mark.parametrize(("theirs", "then"), [(8, experts.WARPS), (16, 16)])
def test_only_the_default_that_is_known_is_changed(monkeypatch: pytest.MonkeyPatch, theirs: int, then: int) -> None:
    def lay_out(weights: object, scales: object, num_warps: int = theirs) -> None: ...

    package, module = ModuleType(MXFP4.rpartition(".")[0]), ModuleType(MXFP4)
    monkeypatch.setattr(package, "mxfp4_utils", module, raising=False)
    monkeypatch.setattr(module, "_swizzle_mxfp4", lay_out, raising=False)
    for name in (package.__name__, module.__name__):
        monkeypatch.setitem(sys.modules, name, package if name == package.__name__ else module)
    experts.set_warps()
    assert lay_out.__defaults__ == (then,)


class _Broken(ModuleType):
    def __getattr__(self, name: str) -> object:
        raise RuntimeError("this build has no CUDA")


@pytest.mark.parametrize("package", [None, _Broken(MXFP4.rpartition(".")[0])])
def test_a_vllm_whose_module_cannot_be_imported_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, package: ModuleType | None
) -> None:
    monkeypatch.setitem(sys.modules, MXFP4.rpartition(".")[0], package)
    experts.set_warps()
    assert "unchanged" in caplog.text


def test_the_plugin_comes_before_what_the_environment_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/theirs")
    found = plan(tmp_path)
    assert python_path(found) == [str(found.plugin), "/theirs"]


def test_an_environment_of_vllms_own_sees_nothing_but_the_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/theirs")
    found = replace(plan(tmp_path), wheels=Installation(environment=tmp_path))
    assert python_path(found) == [str(found.plugin)]


@pytest.mark.parametrize(
    ("kind", "gpus", "server"),
    [
        ("gpt_oss", (BLACKWELL,), {}),
        ("gpt_oss", (), {}),
        ("qwen3", (H100,), {}),
        ("gpt_oss", (H100, BLACKWELL), {"expert_warps": 4}),
        ("gpt_oss", (H100, H100), {"data_parallel": 2}),
        ("gpt_oss", (H100, H100, H100, H100), {}),
        ("gpt_oss", (H100,), {"expert_warps": 8}),
        ("gpt_oss", (H100,), {"moe_backend": "marlin"}),
    ],
)
def test_other_servers_load_no_plugin(tmp_path: Path, kind: str, gpus: tuple[Gpu, ...], server: dict[str, object]) -> None:
    found = plan(tmp_path, kind, gpus=gpus, **server)
    assert found.plugin is None
    assert "PYTHONPATH" not in found.command.env


def test_two_gpus_that_share_one_copy_load_it(tmp_path: Path) -> None:
    assert plan(tmp_path, gpus=(H100, H100)).plugin is not None


def test_more_gpus_load_it_if_asked_to(tmp_path: Path) -> None:
    assert plan(tmp_path, gpus=(H100,) * 4, expert_warps=4).plugin is not None


def test_a_failed_start_can_leave_the_plugin_out(tmp_path: Path) -> None:
    found = replace(plan(tmp_path), adjustments=Adjustments(plugin=False))
    assert "PYTHONPATH" not in found.command.env


def test_a_cache_that_cannot_be_written_leaves_the_plugin_out(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.write_text("a file where the folder should be")
    assert plan(tmp_path).plugin is None
    assert "without the solver's plugin" in caplog.text


def test_a_user_without_a_home_folder_gets_no_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert plan(tmp_path).plugin is None
    assert "without the solver's plugin" in caplog.text


def test_a_damaged_plugin_is_written_again(tmp_path: Path) -> None:
    folder = plan(tmp_path).plugin
    assert folder is not None
    module = folder / "aimo_experts.py"
    module.write_bytes(b"\xff\xfe")
    assert plan(tmp_path).plugin == folder
    assert module.read_text() == Path(experts.__file__).read_text()
