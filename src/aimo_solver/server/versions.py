"""The versions that vLLM runs on, compared with those that its wheels were tried on (`notebook/wheels/build_wheels.py`)."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from aimo_solver.paths import KAGGLE_INPUT, find_wheels
from aimo_solver.server.machine import Gpu, cuda_version, installed_version, installed_vllm

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Versions:
    """What vLLM runs on, with the CUDA that torch was built for; "" is unknown, as the driver is on a machine without a GPU."""

    python: str = ""
    vllm: str = ""
    torch: str = ""
    cuda: str = ""
    driver: str = ""


def running_versions(path: Sequence[str], gpus: Sequence[Gpu]) -> Versions:
    """Returns the versions of this machine, with the packages on `path`."""
    return Versions(
        python=platform.python_version(),
        vllm=installed_vllm(path),
        torch=installed_version("torch", path).partition("+")[0],
        cuda=cuda_version(path),
        driver=gpus[0].driver if gpus else "",
    )


def recorded_versions(root: Path = KAGGLE_INPUT) -> Versions | None:
    """Returns the versions in `versions.json` beside the wheels below `root`; None if there is none, or it cannot be read."""
    file = next((file for folder in find_wheels(root) if (file := folder / "versions.json").is_file()), None)
    if file is None:
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        return Versions(**{field.name: str(values.get(field.name, "")) for field in fields(Versions)})
    except (OSError, ValueError, AttributeError) as error:
        log.warning("%s cannot be read: %s", file, error)
        return None


def difference(recorded: Versions | None, running: Versions) -> str | None:
    """Returns in one line what differs, None if nothing does. What is unknown on either side is not compared."""
    here, there = asdict(running), asdict(recorded or Versions())
    different = [name for name in here if here[name] and there[name] and here[name] != there[name]]
    parts = (f"{name} {here[name]} here, {there[name]} where the wheels were tried" for name in different)
    return "; ".join(parts) or None
