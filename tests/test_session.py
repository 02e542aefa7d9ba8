"""The server of a session: which vLLM it runs, and with which compile cache."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

from aimo_solver import jitcache
from aimo_solver.config import Config, ServerConfig
from aimo_solver.machine import Gpu, Machine
from aimo_solver.presets import choose
from aimo_solver.runlog import NullLog
from aimo_solver.session import _server
from aimo_solver.wheels import NOTHING_TO_INSTALL, Installation
from tests.conftest import MODEL

H100 = Machine((Gpu("NVIDIA H100 80GB HBM3", 81_559 << 20, (9, 0), "580.1"),), 16)


@pytest.fixture
def wheels(tmp_path: Path) -> Installation:
    """An environment with a vLLM, a torch and flags that are not this Python's."""
    installation = Installation(tmp_path / "aimo-wheels")
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(installation.environment)}))
    for name, version in (("vllm", "99.1"), ("torch", "99.2")):
        (packages / name).mkdir(parents=True)
        (packages / name / "__init__.py").touch()
        info = packages / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (packages / "torch" / "version.py").write_text("cuda: str | None = '99.3'\n")
    (packages / "vllm" / "engine").mkdir()
    (packages / "vllm" / "engine" / "arg_utils.py").write_text('"--model", "--port", "--max-model-len"')
    return installation


@pytest.mark.parametrize("fits", [True, False])
def test_the_compile_cache_is_compared_with_what_the_wheels_brought(wheels: Installation, tmp_path: Path, fits: bool) -> None:
    root = tmp_path / "jit"
    (root / "vllm").mkdir(parents=True)
    (root / "vllm" / "compiled").write_text("graph")
    archive = tmp_path / "x.aimocache"
    config = Config(server=ServerConfig(jit_cache=str(archive)))
    preset = choose(MODEL, config.server, slots=2, machine=H100)
    path = wheels.path if fits else NOTHING_TO_INSTALL.path
    made = jitcache.stamp(H100, root, MODEL, preset.arguments, Path(path[0]) / "vllm", path)
    jitcache.pack(made, archive)
    shutil.rmtree(root)
    cache = jitcache.shipped(config.server.jit_cache, MODEL, preset, H100, wheels.path)
    _, supervisor = _server(MODEL, config, NullLog(), preset, wheels, cache)
    assert (supervisor.server.command.env.get("VLLM_CACHE_ROOT") == str(root / "vllm")) is fits
    assert (root / "vllm" / "compiled").exists() is fits


def test_the_command_heeds_the_vllm_of_the_wheels(wheels: Installation) -> None:
    preset = choose(MODEL, ServerConfig(), slots=2, machine=H100)
    _, supervisor = _server(MODEL, Config(), NullLog(), preset, wheels, {})
    args = supervisor.server.command.args
    assert args[0] == str(wheels.python) != sys.executable
    flags = {arg for arg in args if arg.startswith("--")}
    assert flags == {"--model", "--served-model-name", "--host", "--port", "--max-model-len", "--seed"}
