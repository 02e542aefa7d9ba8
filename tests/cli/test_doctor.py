"""`aimo-solver doctor`, without the import of vLLM, which takes seconds."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aimo_solver.cli.main import app
from aimo_solver.kernels.pool import KernelPool
from aimo_solver.server.checks import Check, Health
from aimo_solver.solve import doctor
from tests.conftest import MODEL

CHECKS = ["machine", "GPU", "vLLM", "model", "flags", "weights", "KV cache", "kernels", "disk", "clock"]


@pytest.fixture(autouse=True)
def imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aimo_solver.server.checks.vllm_check", lambda wheels: Check("vLLM", Health.OK, "0.26.0"))
    monkeypatch.setattr(doctor, "detect_gpus", lambda *_: ())
    monkeypatch.setattr("aimo_solver.server.launch.detect_gpus", lambda *_: ())


@pytest.mark.kernels
def test_doctor_checks_everything() -> None:
    done = CliRunner().invoke(app, ["doctor", "--model", str(MODEL)])
    assert done.exit_code == 0, done.output
    lines = [line for line in done.output.splitlines() if not line.startswith(" ")]
    assert [line[9:18].strip() for line in lines] == CHECKS
    assert "family gemma" in done.output


@pytest.mark.kernels
def test_what_is_broken_gives_exit_code_one_and_says_what_to_do(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["doctor", "--model", str(tmp_path / "nothing"), "--json"])
    assert done.exit_code == 1
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert checks["model"]["health"] == "broken"
    assert "no such folder" in checks["model"]["finding"]
    assert "--model takes the folder" in checks["model"]["advice"]
    assert checks["kernels"]["health"] != "broken"


def test_a_kernel_that_does_not_start_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aimo_solver.kernels.spawner.Spawner.spawn", None)  # calling it raises
    monkeypatch.setattr("aimo_solver.kernels.pool.PATIENCE_S", 0.1)
    done = CliRunner().invoke(app, ["doctor", "--model", str(MODEL)])
    assert done.exit_code == 1
    assert "no kernel starts" in done.output


@pytest.mark.kernels
@pytest.mark.parametrize(
    ("cell", "found"),
    [("raise OSError('no thread is left')", "OSError: no thread is left"), ("print(41)", "41")],
)
def test_a_kernel_that_starts_and_cannot_run_python_is_broken(monkeypatch: pytest.MonkeyPatch, cell: str, found: str) -> None:
    monkeypatch.setattr(doctor, "_CELL", cell)

    async def check() -> Check:
        async with KernelPool(size=1, spares=0) as pool:
            return await doctor.try_kernel(pool)

    made = asyncio.run(check())
    assert (made.health, made.finding) == (Health.BROKEN, f"a kernel starts and fails: {found}")
