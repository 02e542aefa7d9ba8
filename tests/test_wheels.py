"""Installing attached wheels with the real pip, offline, from a wheel made here."""

from __future__ import annotations

import importlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from aimo_solver.errors import WheelError
from aimo_solver.wheels import NOTHING_TO_INSTALL, install


def make_wheel(folder: Path, name: str, module: str, source: str, *, needs: str | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-1.0.dist-info"
    files = {
        f"{module}.py": source,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        + (f"Requires-Dist: {needs}\n" if needs else ""),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)
    return path


@pytest.fixture(autouse=True)
def _same_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_what_is_there_is_not_installed_again(tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "polars", "polars", "raise AssertionError")
    assert install({"polars": "polars"}, tmp_path) is NOTHING_TO_INSTALL


def test_without_wheels_the_log_says_what_is_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert install({"no_such_module": "no-such-thing"}, tmp_path) is NOTHING_TO_INSTALL
    assert "no-such-thing" in caplog.text
    assert str(tmp_path) in caplog.text


def test_missing_packages_come_from_the_wheels_and_their_needs_from_the_image(tmp_path: Path) -> None:
    mount = tmp_path / "notebooks" / "me" / "aimo-wheels"
    make_wheel(mount, "aimo_first", "aimo_first", "import aimo_second, polars\nWHO = 'first'", needs="aimo_second")
    make_wheel(mount, "aimo_second", "aimo_second", "WHO = 'second'")
    before = list(sys.path)
    installation = install({"aimo_first": "aimo_first", "polars": "polars"}, tmp_path)
    installation.wait(120)
    assert importlib.import_module("aimo_first").WHO == "first"
    assert sys.path[: len(before)] == before
    # The server's interpreter finds the wheels first and this environment's packages behind them.
    program = "import aimo_first, polars; print(polars.__file__)"
    found = subprocess.run([installation.python, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    assert found == importlib.import_module("polars").__file__


def test_a_later_distribution_replaces_the_files_of_an_earlier_one(tmp_path: Path) -> None:
    mount = tmp_path / "wheels"
    make_wheel(mount, "aimo_engine", "aimo_engine", "", needs="aimo_old")
    make_wheel(mount, "aimo_old", "aimo_shared", "WHO = 'old'")
    make_wheel(mount, "aimo_new", "aimo_shared", "WHO = 'new'")
    install({"aimo_engine": "aimo_engine", "aimo_shared": "aimo_new"}, tmp_path).wait(120)
    assert importlib.import_module("aimo_shared").WHO == "new"


def test_a_failed_installation_shows_the_end_of_pips_output(tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "aimo_third", "aimo_third", "", needs="not-in-the-wheels")
    with pytest.raises(WheelError, match="not-in-the-wheels") as caught:
        install({"aimo_third": "aimo_third"}, tmp_path).wait(120)
    assert any("No matching distribution" in line for line in caught.value.log_tail)
