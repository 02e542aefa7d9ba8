"""The wheels notebook with the real pip and uv, with small wheels in place of vLLM's and the index."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import pytest

from aimo_solver.server.machine import Versions, recorded_versions
from tests.conftest import ROOT
from tests.server.test_wheels import make_uv, make_wheel

sys.path.insert(0, str(ROOT / "notebook" / "wheels"))
import build_wheels

pytestmark = pytest.mark.slow

# A vLLM that can do what the trial asks for.
VLLM = """
import json, os, sys
from pathlib import Path
from types import SimpleNamespace as Of
import torch

SamplingParams = Of

class LLM:
    def __init__(self, model, **options):
        self.layers = json.loads(Path(model, "config.json").read_text())["num_hidden_layers"]
        if os.environ["BREAKS"]:
            raise RuntimeError("no kernel image is available")

    def generate(self, prompts, sampling):
        return [Of(outputs=[Of(token_ids=[0] * sampling.max_tokens)]) for _ in prompts]
"""


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes its wheels from, and a machine with a GPU."""
    index = tmp_path / "index"
    make_wheel(index, "vllm", "vllm/__init__", VLLM, needs="torch")
    make_wheel(index, "torch", "torch/version", "cuda: str = '13.0'")
    make_uv(index)
    monkeypatch.setattr(build_wheels, "INSTALLER", "uv")
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\necho 580.1\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PATH", f"{smi.parent}:/usr/bin:/bin")
    monkeypatch.setenv("BREAKS", "")
    monkeypatch.setattr(build_wheels, "_IMPORT", "import vllm")
    return index


@pytest.mark.parametrize("breaks", ["", "yes"], ids=["serves", "does not start"])
def test_wheels_are_tried_where_there_is_a_gpu(
    breaks: str, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BREAKS", breaks)
    folder = tmp_path / "wheels"
    assert build_wheels.main(folder, ["vllm"], "torch==1.0") == (1 if breaks else 0)
    assert {path.name for path in folder.glob("*.whl")} == {path.name for path in index.iterdir()}
    verdict = capfd.readouterr().out.splitlines()[-1]
    assert verdict.startswith("VERDICT: BROKEN: " if breaks else "VERDICT: OK: 3 wheels")
    assert ("served a tiny model on this GPU (driver 580.1)" in verdict) is not bool(breaks)
    recorded = recorded_versions(folder)
    assert recorded == Versions(platform.python_version(), vllm="1.0", torch="1.0", cuda="13.0", driver="580.1")


def test_wheels_that_cannot_be_imported_are_broken_without_a_gpu_too(
    index: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bin" / "nvidia-smi").unlink()
    make_wheel(index, "vllm", "vllm/__init__", "import polars  # of this environment")
    assert build_wheels.main(tmp_path / "wheels", ["vllm"], "") == 1
    captured = capfd.readouterr()
    assert "No module named 'polars'" in captured.err
    assert captured.out.splitlines()[-1].startswith("VERDICT: BROKEN: ")


def test_every_package_is_pinned_once_and_the_docs_name_the_version() -> None:
    names = [pin.partition("==")[0] for pin in build_wheels.PINS.split()]
    assert len(names) == len(set(names)) > 150
    assert all(pin.count("==") == 1 for pin in build_wheels.PINS.split())
    row = next(line for line in (ROOT / "docs" / "versions.md").read_text().splitlines() if "in the wheels" in line)
    assert f"| {build_wheels.VLLM} |" in row
    assert json.dumps(build_wheels.VLLM.rpartition(".")[0])[1:-1] in (ROOT / "README.md").read_text()
