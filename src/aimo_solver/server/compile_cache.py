"""The compile cache of a vLLM server, made once on the target GPU and shipped with the notebook.

A first start compiles for a minute or more (torch.compile, Triton, FlashInfer); a later one finds the results on disk. A
packed cache carries a stamp of the GPU and the versions that it was made with, and is ignored elsewhere.
"""

from __future__ import annotations

import json
import logging
import platform
import tarfile
import tempfile
import time
import zlib
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from aimo_solver.errors import CacheError
from aimo_solver.options import STRICT
from aimo_solver.paths import cache_home
from aimo_solver.server.flags import Variable
from aimo_solver.server.launch import LaunchPlan
from aimo_solver.server.machine import cuda_version, installed_version, installed_vllm, package_folder

# Kaggle unpacks archives with the usual endings on upload, and FlashInfer's files would lose their modification
# times, by which it decides what is up to date.
ARCHIVE_SUFFIX = ".aimocache"
_STAMP_NAME = "stamp.json"
_MUST_MATCH = ("gpu", "cuda", "python", "torch", "triton", "vllm", "flashinfer")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class Stamp:
    """What a cache was made with.

    Attributes:
        gpu, cuda, python, torch, triton, vllm, flashinfer: have to be the same where it is used; "" if not installed.
        driver: for information only.
        root: the folder that the cache was made in and has to be put in: Triton stores absolute paths.
        package, model, args: vLLM's folder, the model's, and the server's flags. They are part of the key of torch.compile's
            results, which are made again if one differs.
    """

    gpu: str
    cuda: str
    python: str
    torch: str
    triton: str
    vllm: str
    flashinfer: str
    driver: str
    root: str
    package: str
    model: str
    args: tuple[str, ...]


def default_root() -> Path:
    """Returns the folder of the compile cache; `XDG_CACHE_HOME` moves it."""
    return cache_home() / "jit"


def cache_environment(root: Path) -> dict[str, str]:
    """Returns the variables that make vLLM and its compilers keep everything below `root`."""
    return {
        "VLLM_CACHE_ROOT": str(root / "vllm"),
        "TRITON_CACHE_DIR": str(root / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(root / "inductor"),
        "FLASHINFER_WORKSPACE_BASE": str(root / "flashinfer"),
        "DG_JIT_CACHE_DIR": str(root / "deep_gemm"),
        "CUDA_CACHE_PATH": str(root / "cuda"),
    }


def with_cache(plan: LaunchPlan, root: Path) -> LaunchPlan:
    """Returns a plan whose server keeps what it compiles below `root`."""
    variables = (Variable(name, value, "the compile cache") for name, value in cache_environment(root).items())
    return replace(plan, cache_variables=tuple(variables))


def make_stamp(plan: LaunchPlan, root: Path) -> Stamp:
    """Returns the stamp of a cache that the plan's vLLM makes in `root` on the plan's GPUs."""
    gpus, path = plan.gpus, plan.wheels.path
    return Stamp(
        gpu=f"{len(gpus)} x {gpus[0].name}" if gpus else "none",
        cuda=cuda_version(path),
        python=".".join(platform.python_version_tuple()[:2]),
        torch=installed_version("torch", path),
        triton=installed_version("triton", path),
        vllm=installed_vllm(path),
        flashinfer=installed_version("flashinfer-python", path),
        driver=gpus[0].driver if gpus else "",
        root=str(root),
        package=str(package_folder("vllm", path) or Path()),
        model=str(plan.model),
        args=plan.arguments,
    )


def read_stamp(archive: Path) -> Stamp:
    """Reads the stamp of a packed cache.

    Raises:
        CacheError: the file is not a packed cache.
    """
    try:
        with tarfile.open(archive, "r|gz") as tar:
            first = tar.next()
            file = tar.extractfile(first) if first is not None and first.name == _STAMP_NAME else None
            if file is None:
                raise ValueError("it does not begin with a stamp")
            return TypeAdapter(Stamp).validate_json(file.read())
    except ValidationError:
        raise CacheError(f"{archive} is not a packed compile cache: its stamp has other fields") from None
    except (OSError, tarfile.TarError, EOFError, zlib.error, ValueError) as error:
        raise CacheError(f"{archive} is not a packed compile cache: {error}") from None


def place_cache(archive: Path, here: Stamp) -> Path | None:
    """Unpacks a cache to the folder that it was made in, and returns that folder.

    Returns None, with a warning in the log, if the cache does not fit `here` or cannot be unpacked: vLLM then compiles.
    """
    began = time.monotonic()
    try:
        made = read_stamp(archive)
        for name in _MUST_MATCH:
            theirs, ours = getattr(made, name), getattr(here, name)
            if theirs != ours:
                raise CacheError(f"made with {name} {theirs or 'nothing'}, here is {ours or 'nothing'}")
        root = Path(made.root)
        root.parent.mkdir(parents=True, exist_ok=True)
        # First into another folder: half a kernel from a damaged archive would be worse than none.
        with tempfile.TemporaryDirectory(dir=root.parent, prefix=f"{root.name}-") as unpacked:
            with tarfile.open(archive, "r|gz") as tar:
                tar.extractall(unpacked, filter=_cache_member)
            placed = _move_files(Path(unpacked), root)
    except (CacheError, OSError, tarfile.TarError, EOFError, zlib.error) as error:
        log.warning("compile cache %s ignored: %s", archive, error)
        return None
    log.info("compile cache: %d files in place after %.1f s", placed, time.monotonic() - began)
    for name in ("package", "model", "args"):
        if getattr(made, name) != getattr(here, name):
            log.info("compile cache: made with another %s, so torch.compile's part is made again", name)
    return root


def add_cache(plan: LaunchPlan, *, fill: bool = True) -> LaunchPlan:
    """Returns the plan with the cache that `server.compile_cache` names, if it fits, or else with one that the server fills.

    With `fill` false, the plan is returned as it is if no cache fits.

    Raises:
        OSError: there is no folder for it.
    """
    shipped = plan.config.server.compile_cache
    root = None if shipped is None else place_cache(Path(shipped), make_stamp(plan, default_root()))
    if root is None and fill:
        root = default_root()
        root.mkdir(parents=True, exist_ok=True)
    return plan if root is None else with_cache(plan, root)


def pack_cache(stamp: Stamp, archive: Path) -> int:
    """Packs the cache below `stamp.root` into one file; returns its size in bytes.

    Raises:
        CacheError: there is nothing to pack, or the archive cannot be written.
    """
    root = Path(stamp.root)
    files = sorted(file for file in root.rglob("*") if file.is_file() and not file.name.endswith((".lock", ".tmp")))
    if not files:
        raise CacheError(f"{root} holds no compile cache; make one with `aimo-solver cache build`")
    part = archive.with_name(archive.name + ".part")
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(part, "w:gz", compresslevel=6) as tar:
            text = json.dumps(asdict(stamp), indent=1).encode()
            header = tarfile.TarInfo(_STAMP_NAME)
            header.size = len(text)
            tar.addfile(header, BytesIO(text))  # first, so that `read_stamp` reads nothing else
            for file in files:
                tar.add(file, f"cache/{file.relative_to(root)}", recursive=False)
        part.replace(archive)
    except OSError as error:
        raise CacheError(f"{archive} cannot be written: {error}") from None
    return archive.stat().st_size


def _move_files(source: Path, target: Path) -> int:
    """Moves every file below `source` to the same place below `target`; returns their number."""
    files = [file for file in source.rglob("*") if file.is_file()]
    for file in files:
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.replace(place)
    return len(files)


def _cache_member(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    if not member.name.startswith("cache/"):
        return None
    return tarfile.data_filter(member.replace(name=member.name.removeprefix("cache/")), folder)
