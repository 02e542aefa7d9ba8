"""Where the notebook writes its log, also when nothing can be written."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from aimo_solver.config import Config
from aimo_solver.kaggle.notebook import open_log
from aimo_solver.log.reader import read_run
from aimo_solver.log.writer import NullLog, RunLog
from aimo_solver.server.machine import Versions


def opened(directory: Path) -> RunLog:
    log = open_log(directory, Config(), 0.0)
    log.event("x")
    log.finish()
    return log


@pytest.mark.parametrize(
    ("there", "name"),
    [((), "run-1"), (("run-2",), "run-3"), (("run-9", "run-10", "notes", "run-x"), "run-11")],
    ids=["none", "the first is deleted", "more than nine"],
)
def test_a_run_gets_the_number_after_the_largest_one(tmp_path: Path, there: tuple[str, ...], name: str) -> None:
    for folder in there:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "run.json").write_text("{}")
    log = opened(tmp_path)
    assert log.directory == tmp_path / name
    assert read_run(log.directory).events[1].kind == "x"


def test_a_number_taken_by_another_run_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = RunLog.create.__func__  # type: ignore[attr-defined]

    def slow(cls: type[RunLog], /, directory: Path, **values: object) -> RunLog:
        if directory.name in ("run-1", "run-2"):
            directory.mkdir()
            (directory / "run.json").write_text("{}")
        log: RunLog = create(cls, directory, **values)
        return log

    monkeypatch.setattr(RunLog, "create", classmethod(slow))
    assert opened(tmp_path).directory == tmp_path / "run-3"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(params=["a file", "full", "read-only"])
def unwritable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder in which no run can be written."""
    place = tmp_path / "place"
    if request.param == "a file":
        place.write_text("in the way")
        yield place
        return
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    place.mkdir()
    options = "size=64k" if request.param == "full" else "ro"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        if request.param == "full":
            with suppress(OSError), (place / "filler").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4_096))
        yield place / "runs"
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_the_log_goes_to_a_temporary_folder_if_the_run_folder_cannot_be_written(unwritable: Path, temporary: Path) -> None:
    log = opened(unwritable)
    assert log.directory.parent == temporary
    assert read_run(log.directory).events[1].kind == "x"


def test_the_log_names_what_the_wheels_were_tried_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aimo_solver.kaggle.notebook.recorded_versions", lambda: Versions(vllm="0.26.0", driver="580.1"))
    wheels = read_run(opened(tmp_path / "runs").directory).environment["wheels"]
    assert (wheels["vllm"], wheels["driver"]) == ("0.26.0", "580.1")


def test_without_any_writable_folder_nothing_is_written_or_raised(unwritable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(unwritable / "temporary"))
    log = opened(unwritable)
    assert isinstance(log, NullLog)
    assert log.server_log is None
    assert log.config == Config().as_dict()


def test_the_cells_before_serving_run_on_a_full_disk(unwritable: Path) -> None:
    """With a package to install and no folder to install it in."""
    code = (
        "import tempfile; tempfile.tempdir = {0!r}\n"
        "from pathlib import Path\n"
        "from aimo_solver.server import wheels\n"
        "wheels.find_wheels = lambda root: (Path({0!r}),)\n"
        "found = wheels.install({{'no_such_module': 'nothing'}})\n"
        "assert found is wheels.NOTHING_TO_INSTALL\n"
        "assert found.renewed() is wheels.NOTHING_TO_INSTALL\n"
    )
    subprocess.run([sys.executable, "-c", code.format(str(unwritable / "x"))], check=True)
