"""Stages of `gpu_bench.py` about boots: imports, compile caches, reading files, and what runs concurrently."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu_common import (
    BEGAN,
    POCKET,
    ROOT,
    WORK,
    archive,
    console,
    make_config,
    shape_folder,
    stage,
)

# --- what the machine is ----------------------------------------------------------------------------------------------


@stage
def machine(out: Path, tiny: bool) -> Any:
    """Measures imports, the first time from the disk, then from memory; prints versions and the disk."""
    from aimo_solver.lab.bench.table import BenchResult

    def seconds(code: str) -> float:
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return time.monotonic() - began

    for command in (["nvidia-smi"], ["lscpu"], ["free", "-g"], ["df", "-h", "/tmp"], ["uname", "-a"]):
        with contextlib.suppress(FileNotFoundError):
            print("\n".join(subprocess.run(command, capture_output=True, text=True).stdout.splitlines()[:16]))
    rows = []
    for what, code in (
        ("nothing", "pass"),
        ("torch", "import torch"),
        ("vLLM's server", "import vllm.entrypoints.openai.api_server"),
        ("the library", f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r}); import aimo_solver.solve.session"),
    ):
        rows.append((what, seconds(code), seconds(code)))
    return BenchResult(name="machine", columns=("import of", "first s", "again s"), rows=tuple(rows))


# --- boot -------------------------------------------------------------------------------------------------------------


def _boot(out: Path, tiny: bool, name: str, model: Path, caches: Path | None, **server: Any) -> Any:
    """Boots once as a run does; the seconds count from the start of this process."""
    from aimo_solver.lab.bench import boot as bench_boot
    from aimo_solver.lab.bench.table import BenchResult
    from aimo_solver.server import compile_cache

    if caches is not None:
        os.environ.update(compile_cache.cache_environment(caches))
    run = WORK / "runs" / name
    shutil.rmtree(run, ignore_errors=True)
    stages = asyncio.run(bench_boot.boot_side_by_side(model, make_config(tiny, **server), run, began=BEGAN))
    shutil.copy(run / "server.log", out / f"{name}.server.log")
    rows = [(stage.name, stage.start, stage.end, stage.end - stage.start) for stage in stages]
    return BenchResult(
        name=name,
        columns=("stage", "start s", "end s", "seconds"),
        rows=tuple(rows),
        details={"server": milestones(run / "server.log"), "total_s": stages[-1].end},
        notes=tuple(f"{seconds:6.1f} s  {text}" for seconds, text in milestones(run / "server.log")),
    )


def milestones(log: Path) -> list[tuple[float, str]]:
    """Returns the lines of a vLLM log that show the progress of a start, with seconds since its first line."""
    wanted = re.compile(
        r"vLLM API server version|Initializing a V1|world_size|Starting to load|Loading weights took|Model loading took|"
        r"torch.compile took|Directly load|AOT|Dynamo bytecode|KV cache size|Graph capturing|init engine|startup plan|"
        r"Starting vLLM|Application startup|We must use|fork|backend|warm",
        re.IGNORECASE,
    )
    first = None
    found = []
    for line in log.read_text(errors="replace").splitlines():
        stamp = re.search(r"\b\d\d-\d\d (\d\d):(\d\d):(\d\d)\b", line)
        if stamp is None:
            continue
        at = int(stamp[1]) * 3600 + int(stamp[2]) * 60 + int(stamp[3])
        first = at if first is None else first
        if wanted.search(line):
            found.append(((at - first) % 86_400.0, line[stamp.end() :].strip()[:160]))
    return found


@stage
def boot_cold(out: Path, tiny: bool) -> Any:
    """Boots without any compile cache; packs what was compiled."""
    from aimo_solver.server.compile_cache import default_root

    shutil.rmtree(default_root(), ignore_errors=True)
    result = _boot(out, tiny, "boot-cold", shape_folder(tiny), default_root(), load_format="dummy")
    _pack(tiny)
    return result


def _pack(tiny: bool) -> None:
    from aimo_solver.server.compile_cache import default_root, make_stamp, pack_cache
    from aimo_solver.server.launch import plan_launch

    root = default_root()
    stamp = make_stamp(plan_launch(shape_folder(tiny), make_config(tiny, load_format="dummy")), root)
    if tiny:
        (root / "x").mkdir(parents=True, exist_ok=True)
        (root / "x" / "y").write_text("nothing is compiled on a CPU")
    began = time.monotonic()
    size = pack_cache(stamp, archive())
    print(f"packed {size / 1e6:.1f} MB in {time.monotonic() - began:.1f} s")


@stage
def boot_second(out: Path, tiny: bool) -> Any:
    """Boots after boot-cold, with its compile caches."""
    from aimo_solver.server import compile_cache

    return _boot(out, tiny, "boot-second", shape_folder(tiny), compile_cache.default_root(), load_format="dummy")


@stage
def boot_shipped(out: Path, tiny: bool) -> Any:
    """Boots with only the packed cache, as the notebook does."""
    from aimo_solver.server.compile_cache import default_root

    shutil.rmtree(default_root(), ignore_errors=True)
    return _boot(out, tiny, "boot-shipped", shape_folder(tiny), None, load_format="dummy", compile_cache=str(archive()))


@stage
def evict(out: Path, tiny: bool) -> Any:
    """Evicts all installed packages from the page cache: the next stage reads them from the disk, as a fresh machine does."""
    from aimo_solver.lab.bench.readahead import resident_bytes
    from aimo_solver.server.machine import package_folder

    sites = {folder.parent for name in ("vllm", "torch") if (folder := package_folder(name)) is not None}
    files = [file for site in sites for file in site.rglob("*") if file.is_file() and not file.is_symlink()]
    before = sum(map(resident_bytes, files))
    for file in files:
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    left = sum(map(resident_bytes, files))
    return {"files": len(files), "bytes_in_memory_before": before, "bytes_in_memory_after": left}


@stage
def boot_spawn(out: Path, tiny: bool) -> Any:
    """Boots as boot-shipped does, but the engine process repeats the imports."""
    from aimo_solver.server.flags import Adjustments
    from aimo_solver.server.launch import LaunchPlan, plan_launch
    from aimo_solver.solve import session

    def plan_spawned(*args: Any) -> LaunchPlan:
        return dataclasses.replace(plan_launch(*args), adjustments=Adjustments(fork=False))

    session.plan_launch = plan_spawned  # type: ignore[assignment, attr-defined]
    return _boot(out, tiny, "boot-spawn", shape_folder(tiny), None, load_format="dummy", compile_cache=str(archive()))


@stage
def boot_sequence(out: Path, tiny: bool) -> Any:
    """Runs the boot stages one after another and side by side, with only the shipped cache."""
    from aimo_solver.lab.bench.boot import bench_boot
    from aimo_solver.server.compile_cache import default_root

    shutil.rmtree(default_root(), ignore_errors=True)
    folder = WORK / "runs" / "boot-sequence"
    shutil.rmtree(folder, ignore_errors=True)
    config = make_config(tiny, load_format="dummy", compile_cache=str(archive()))
    return asyncio.run(bench_boot(shape_folder(tiny), config, folder))


# --- real files -------------------------------------------------------------------------------------------------------


def _weights(tiny: bool) -> Path:
    return POCKET if tiny else WORK / "gpt-oss-half"


@stage
def files(out: Path, tiny: bool) -> Any:
    """Writes 34 GB of random weights in gpt-oss's architecture."""
    import gpu_shapes

    if not tiny:
        gpu_shapes.write_folder(_weights(tiny), gpu_shapes.config(gpu_shapes.LAYERS // 2))
        began = time.monotonic()
        size = gpu_shapes.write_weights(_weights(tiny), gpu_shapes.LAYERS // 2)
        print(f"{size / 1e9:.1f} GB in {time.monotonic() - began:.1f} s")


@stage
def readahead(out: Path, tiny: bool) -> Any:
    """Compares read-ahead with other readers on half of the files, and repeats it on all of them when warm."""
    from aimo_solver.lab.bench.boot import weight_files
    from aimo_solver.lab.bench.readahead import bench_read_ahead
    from aimo_solver.server.readahead import read_ahead

    every = weight_files(_weights(tiny))
    result = bench_read_ahead(every[: max(1, len(every) // 2)], limit_bytes=100 << 30)
    for number in ("the rest", "warm", "warm"):
        print(number, read_ahead(every, limit_bytes=100 << 30))
    return result


@stage
def boot_files(out: Path, tiny: bool) -> Any:
    """Reads cold files and starts the server, one after another and side by side; a first boot fills the compile caches."""
    from aimo_solver.lab.bench.boot import bench_boot
    from aimo_solver.server import compile_cache

    os.environ.update(compile_cache.cache_environment(compile_cache.default_root()))
    fill = _boot(out, tiny, "boot-files-fill", _weights(tiny), None)
    fill.show(console())
    folder = WORK / "runs" / "boot-files"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        return asyncio.run(bench_boot(_weights(tiny), make_config(tiny), folder, cold_files=True))
    finally:
        for log in folder.rglob("server.log"):
            shutil.copy(log, out / f"boot-files.{log.parent.name}.server.log")
