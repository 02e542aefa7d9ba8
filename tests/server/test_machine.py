"""Which GPUs a machine has, by fake trees and fake executables."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from aimo_solver.config import Config
from aimo_solver.server import launch, machine
from aimo_solver.server.launch import plan_launch
from aimo_solver.server.machine import Gpu, detect_gpus, parse_gpus
from tests.conftest import H100, MODEL

L4 = Gpu("NVIDIA L4", 23_034 << 20, (8, 9), "580.1")
LINES = "NVIDIA H100 80GB HBM3, 81559, 9.0, 580.1\\nNVIDIA L4, 23034, 8.9, 580.1\\n"
PYNVML = """
class Memory: total = 85520809984
def nvmlInit(): {init}
def nvmlDeviceGetCount(): return 1
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetMemoryInfo(gpu): return Memory
def nvmlDeviceGetCudaComputeCapability(gpu): return (9, 0)
def nvmlDeviceGetName(gpu): return "NVIDIA H100 80GB HBM3"
def nvmlSystemGetDriverVersion(): return "580.1"
"""


class Machine:
    """A tree of device files, a folder of executables, and a folder of packages; all empty at first."""

    def __init__(self, folder: Path) -> None:
        self.root, self.bin, self.packages = (folder / name for name in ("root", "bin", "packages"))
        self.bin.mkdir()

    def gpus(self) -> tuple[Gpu, ...]:
        return detect_gpus([str(self.packages)], self.root)

    def add_smi(self, script: str) -> None:
        (self.bin / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / "nvidia-smi").chmod(0o755)

    def add_nvml(self, init: str) -> None:
        """As vLLM brings it."""
        (self.packages / "vllm" / "third_party").mkdir(parents=True)
        (self.packages / "vllm" / "__init__.py").touch()
        (self.packages / "vllm" / "third_party" / "pynvml.py").write_text(PYNVML.format(init=init))

    def add_device(self, minor: int) -> None:
        (self.root / "dev").mkdir(parents=True, exist_ok=True)
        (self.root / "dev" / f"nvidia{minor}").touch()

    def add_information(self, place: str, minor: int, name: str) -> None:
        folder = self.root / "proc/driver/nvidia/gpus" / place
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: \t\t {name}\nIRQ:   \t\t 10\nDevice Minor: \t {minor}\n")


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(machine, "_NVML_S", 5.0)
    monkeypatch.setattr(machine, "_SMI_S", 0.1)
    box = Machine(tmp_path)
    monkeypatch.setenv("PATH", f"{box.bin}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return box


def test_lines_of_csv_are_read_and_messages_are_not() -> None:
    answer = "NVIDIA H100 80GB HBM3, 81559, 9.0, 580.1\nUnable to determine the device handle\nNVIDIA L4, 23034, 8.9, 580.1\n"
    assert parse_gpus(answer) == (H100, L4)


def test_a_machine_without_device_files_and_nvidia_smi_has_no_gpu(box: Machine) -> None:
    (box.root / "dev").mkdir(parents=True)
    (box.root / "dev" / "nvidiactl").touch()
    assert box.gpus() == ()


def test_hidden_gpus_are_not_detected(box: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    box.add_smi(f"printf '{LINES}'")
    for setting, expected in (("", ()), ("1", (L4,)), ("1,0", (L4, H100)), ("0,9,1", (H100,)), ("-1", ())):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
        assert box.gpus() == expected
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert box.gpus() == (H100, L4)


def test_nvml_answers_where_nvidia_smi_hangs(box: Machine) -> None:
    box.add_device(0)
    box.add_smi("exec sleep 60")
    box.add_nvml("pass")
    assert box.gpus() == (H100,)


@pytest.mark.parametrize("init", ["raise RuntimeError", "import time; time.sleep(60)"])
def test_nvidia_smi_answers_where_nvml_fails_or_hangs(box: Machine, monkeypatch: pytest.MonkeyPatch, init: str) -> None:
    monkeypatch.setattr(machine, "_NVML_S", 0.1)
    box.add_device(0)
    box.add_nvml(init)
    box.add_smi(f"printf '{LINES}'")
    assert box.gpus() == (H100, L4)


@pytest.mark.slow  # the limit leaves time to start a shell beside other work
def test_an_nvidia_smi_that_hangs_once_is_asked_again(box: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_SMI_S", 1.0)
    box.add_smi(f"[ -e {tmp_path}/asked ] && printf '{LINES}' && exit; touch {tmp_path}/asked; exec sleep 60")
    assert box.gpus() == (H100, L4)


def test_a_gpu_whose_details_cannot_be_read_still_gets_a_gpus_preset(
    box: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    box.add_device(3)
    box.add_information("0000:19:00.0", 0, "NVIDIA L4")  # of the host, not of this container
    box.add_information("0000:62:00.0", 3, "NVIDIA H100 80GB HBM3")
    with caplog.at_level(logging.WARNING):
        gpus = box.gpus()
    assert gpus == (Gpu("NVIDIA H100 80GB HBM3", 0, (0, 0), ""),)
    assert "by their files there are 1 GPUs" in caplog.text
    monkeypatch.setattr(launch, "detect_gpus", lambda path: gpus)
    plan = plan_launch(MODEL, Config())
    assert plan.preset == "generic"
    assert plan.flag("--kv-cache-dtype") is None  # native on Hopper only


def test_the_drivers_files_count_where_no_device_file_is_visible(box: Machine) -> None:
    box.add_information("0000:62:00.0", 5, "NVIDIA H100 80GB HBM3")
    assert [gpu.name for gpu in box.gpus()] == ["NVIDIA H100 80GB HBM3"]
