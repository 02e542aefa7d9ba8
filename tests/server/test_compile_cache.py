"""The shipped compile cache: packing, checking and unpacking."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tarfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from aimo_solver.config import Config
from aimo_solver.errors import CacheError
from aimo_solver.server.compile_cache import (
    Stamp,
    add_cache,
    cache_environment,
    default_root,
    make_stamp,
    pack_cache,
    place_cache,
    read_stamp,
)
from aimo_solver.server.launch import plan_launch
from tests.conftest import H100, MODEL


@pytest.fixture
def made(tmp_path: Path) -> Stamp:
    """A cache as vLLM leaves it: nested folders, a lock, a shared object whose time ninja compares."""
    root = tmp_path / "root"
    for name, text in (("vllm/torch_compile_cache/a/model", "graph"), ("triton/x/k.cubin", "cubin"), ("flashinfer/op.so", "elf")):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    os.utime(root / "flashinfer/op.so", (1_700_000_000, 1_700_000_000))
    (root / "triton/x/k.lock").touch()
    return make_stamp(plan_launch(MODEL, Config(), gpus=(H100,)), root)


@pytest.fixture
def archive(tmp_path: Path, made: Stamp) -> Path:
    """The packed cache, on a machine without it."""
    file = tmp_path / "cache.aimocache"
    assert pack_cache(made, file) == file.stat().st_size > 0
    shutil.rmtree(made.root)
    return file


def test_a_packed_cache_is_restored_completely(archive: Path, made: Stamp, caplog: pytest.LogCaptureFixture) -> None:
    root = Path(made.root)
    with caplog.at_level(logging.INFO):
        assert place_cache(archive, made) == root
    assert "3 files in place" in caplog.text
    assert "made again" not in caplog.text
    assert (root / "vllm/torch_compile_cache/a/model").read_text() == "graph"
    assert (root / "flashinfer/op.so").stat().st_mtime == 1_700_000_000
    assert not (root / "triton/x/k.lock").exists()


def test_the_stamp_is_read_back_unchanged(archive: Path, made: Stamp) -> None:
    assert read_stamp(archive) == made


@pytest.mark.parametrize("name", ["gpu", "cuda", "python", "torch", "triton", "vllm", "flashinfer"])
def test_a_cache_for_another_gpu_or_version_is_ignored_with_a_warning(
    archive: Path, made: Stamp, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    changed: dict[str, Any] = {name: "other"}
    with caplog.at_level(logging.WARNING):
        assert place_cache(archive, replace(made, **changed)) is None
    assert not Path(made.root).exists()
    assert f"made with {name} " in caplog.text
    assert "here is other" in caplog.text


@pytest.mark.parametrize(("name", "value"), [("package", "/elsewhere"), ("model", "/elsewhere"), ("args", ("--other",))])
def test_another_path_or_flag_is_logged_because_torch_compile_starts_again(
    archive: Path, made: Stamp, name: str, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert place_cache(archive, replace(made, **{name: value})) is not None  # type: ignore[arg-type]
    assert f"made with another {name}, so torch.compile's part is made again" in caplog.text
    assert caplog.text.count("made again") == 1


def test_another_driver_does_not_matter(archive: Path, made: Stamp, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert place_cache(archive, replace(made, driver="999")) is not None
    assert "another" not in caplog.text


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "cut", "no stamp"])
def test_a_damaged_archive_is_ignored_with_a_warning(
    archive: Path, made: Stamp, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = archive.read_bytes()
    if damage == "missing":
        archive.unlink()
    elif damage == "no stamp":
        with tarfile.open(archive, "w:gz") as tar:
            tar.addfile(tarfile.TarInfo("cache/x"), BytesIO())
    else:
        archive.write_bytes({"empty": b"", "text": b"not an archive", "cut": whole[: len(whole) // 2]}[damage])
    with caplog.at_level(logging.WARNING):
        assert place_cache(archive, made) is None
    assert "ignored" in caplog.text
    assert not Path(made.root).exists()  # nothing half-unpacked is left


def test_no_file_is_unpacked_outside_the_cache(tmp_path: Path, archive: Path, made: Stamp) -> None:
    evil = tmp_path / "evil.aimocache"
    with tarfile.open(archive) as old, tarfile.open(evil, "w:gz") as new:
        first = old.next()
        assert first is not None
        new.addfile(first, old.extractfile(first))
        new.addfile(tarfile.TarInfo("cache/../../escaped"), BytesIO())
    assert place_cache(evil, made) is None
    assert not list(tmp_path.rglob("escaped"))


def test_a_cache_that_cannot_be_written_is_ignored(archive: Path, made: Stamp) -> None:
    Path(made.root).touch()  # a file is in the way
    assert place_cache(archive, made) is None


def test_an_empty_cache_is_not_packed(tmp_path: Path, made: Stamp) -> None:
    with pytest.raises(CacheError, match="cache build"):
        pack_cache(replace(made, root=str(tmp_path / "nothing")), tmp_path / "x.aimocache")


def test_an_archive_that_cannot_be_written_is_an_error(tmp_path: Path, made: Stamp) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match="cannot be written"):
        pack_cache(made, tmp_path / "file" / "x.aimocache")


@pytest.mark.slow
def test_the_stamp_names_what_is_installed_here() -> None:
    torch = pytest.importorskip("torch")
    here = make_stamp(plan_launch(MODEL, Config(), gpus=(H100,)), Path("/r"))
    assert here.torch == torch.__version__
    assert here.cuda == (torch.version.cuda or "")
    assert here.python == f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert here.gpu == "1 x NVIDIA H100 80GB HBM3"


def test_every_cache_lies_below_the_root() -> None:
    assert all(Path(value).is_relative_to("/r/x") for value in cache_environment(Path("/r/x")).values())


def test_the_default_root_is_below_the_cache_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert default_root() == Path("/c/aimo-solver/jit")


def test_a_server_without_a_shipped_cache_fills_one_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plan = add_cache(plan_launch(MODEL, Config(), gpus=(H100,)))
    root = tmp_path / "aimo-solver" / "jit"
    assert root.is_dir()
    assert plan.command.env.items() >= cache_environment(root).items()
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    with pytest.raises(OSError, match="dev/null"):
        add_cache(plan_launch(MODEL, Config(), gpus=(H100,)))
