"""Installing attached wheels with the real pip and uv, offline, from wheels made here."""

from __future__ import annotations

import fcntl
import importlib
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aimo_solver.errors import ServerSpawnError, ServerStartError, WheelError
from aimo_solver.server.machine import installed_version, package_folder
from aimo_solver.server.wheels import NOTHING_TO_INSTALL, Installation, install

pytestmark = pytest.mark.slow


def make_wheel(folder: Path, name: str, module: str, source: str, *, needs: str | None = None) -> Path:
    return _make_wheel(folder, name, f"{module}.py", source, needs)


def make_uv(folder: Path, program: str = f'exec {sys.prefix}/bin/uv "$@"') -> Path:
    """A wheel with a shell script in place of uv's program; by default it runs this environment's uv."""
    return _make_wheel(folder, "uv", "uv-1.0.data/scripts/uv", f"#!/bin/sh\n{program}\n", None)


def _make_wheel(folder: Path, name: str, file: str, text: str, needs: str | None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-1.0.dist-info"
    files = {
        file: text,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
        + (f"Requires-Dist: {needs}\n" if needs else ""),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in files.items():
            entry = zipfile.ZipInfo(file)
            entry.external_attr = 0o100755 << 16  # a file that can be run
            wheel.writestr(entry, text)
    return path


@pytest.fixture(autouse=True)
def _same_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("aimo_first", "aimo_fourth", "aimo_server", "aimo_shared")):
            del sys.modules[name]


def test_installed_packages_are_not_installed_again(tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "polars", "polars", "raise AssertionError")
    assert install({"polars": "polars"}, tmp_path) is NOTHING_TO_INSTALL


def test_missing_packages_without_wheels_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert install({"no_such_module": "no-such-thing"}, tmp_path) is NOTHING_TO_INSTALL
    assert "no-such-thing" in caplog.text
    assert str(tmp_path) in caplog.text


def test_missing_packages_come_from_the_wheels_and_their_dependencies_from_the_image(tmp_path: Path) -> None:
    mount = tmp_path / "notebooks" / "me" / "aimo-wheels"
    make_wheel(mount, "aimo_first", "aimo_first", "import aimo_second, polars\nWHO = 'first'", needs="aimo_second")
    make_wheel(mount, "aimo_second", "aimo_second", "WHO = 'second'")
    before = list(sys.path)
    installation = install({"aimo_first": "aimo_first", "polars": "polars"}, tmp_path, overlay=True)
    installation.wait(120)
    assert importlib.import_module("aimo_first").WHO == "first"
    assert sys.path[: len(before)] == before
    # The server's interpreter finds the wheels first, then this environment's packages.
    program = "import aimo_first, polars; print(polars.__file__)"
    found = subprocess.run([installation.python, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    assert found == importlib.import_module("polars").__file__


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Packages of the image, in its own folder and in PYTHONPATH, that fail when they are imported."""
    folder = tmp_path / "image" / "site-packages"
    (folder / "google" / "protobuf").mkdir(parents=True)
    for module in ("tensorflow.py", "transformers.py", "google/protobuf/__init__.py"):
        (folder / module).write_text("raise RuntimeError('a package of the image')")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr("aimo_solver.server.wheels.SERVER_MODULE", "aimo_server")
    return folder


def serve(installation: Installation, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [str(installation.python), "-c", "import aimo_server"]
    return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)


def failed_start() -> ServerStartError:
    return ServerStartError("the vLLM server ended", ["python"], 1, [])


PROGRAM = """
import importlib.util, transformers
image = [name for name in ("tensorflow", "google", "polars") if importlib.util.find_spec(name)]
print(transformers.WHO, image)
"""


@pytest.mark.usefixtures("image")
def test_packages_of_the_image_cannot_break_the_server(tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "aimo_server", "aimo_server", PROGRAM, needs="transformers")
    make_wheel(tmp_path / "wheels", "transformers", "transformers", "WHO = 'wheels'")
    before = list(sys.path)
    installation = install({"aimo_server": "aimo_server"}, tmp_path)
    installation.wait(120)
    assert serve(installation, **installation.variables).stdout.split(maxsplit=1) == ["wheels", "[]\n"]
    assert "a package of the image" in serve(installation).stderr
    assert sys.path == [*before, *installation.path]
    assert installation.renewed(failed_start()) is installation


def test_an_overlay_follows_an_environment_from_which_the_server_cannot_be_imported(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_wheel(tmp_path / "wheels", "aimo_server", "aimo_server", "import aimo_helper")
    (image / "aimo_helper.py").touch()
    monkeypatch.setattr("aimo_solver.server.wheels.install.__defaults__", ({"aimo_server": "aimo_server"}, tmp_path))
    first = install()
    first.wait(120)
    assert first.renewed(ValueError("another failure")) is first
    assert first.renewed(ServerSpawnError("no process could be started", ["python"], None, [])) is first
    second = first.renewed(failed_start())
    assert "No module named 'aimo_helper'" in caplog.text
    second.wait(120)
    assert (first.overlay, second.overlay) == (False, True)
    assert serve(second, **second.variables).returncode == 0
    assert second.renewed(failed_start()) is second


def test_an_overlay_follows_wheels_that_are_not_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(tmp_path / "wheels", "aimo_first", "aimo_first", "import polars", needs="polars")
    monkeypatch.setattr("aimo_solver.server.wheels.install.__defaults__", ({"aimo_first": "aimo_first"}, tmp_path))
    first = install()
    with pytest.raises(WheelError, match="polars"):
        first.wait(120)
    second = first.renewed()
    assert folder_of(second) == first.environment
    assert second.overlay


def installer_of(installation: Installation, distribution: str) -> str:
    (info,) = (folder_of(installation) / "lib").rglob(f"{distribution}-1.0.dist-info")
    return (info / "INSTALLER").read_text().strip()


@pytest.mark.parametrize("overlay", [False, True])
def test_uv_fills_an_environment_of_its_own_whatever_the_image_sets_for_it(
    overlay: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_SYSTEM_PYTHON", "1")
    monkeypatch.setenv("UV_CONSTRAINT", str(tmp_path / "missing.txt"))
    make_uv(tmp_path / "mount")
    make_wheel(tmp_path / "mount", "aimo_first", "aimo_first", "", needs="aimo_fourth")
    make_wheel(tmp_path / "other", "aimo_fourth", "aimo_fourth", "")
    installation = install({"aimo_first": "aimo_first"}, tmp_path, overlay=overlay)
    assert {installer_of(installation, name) for name in ("aimo_first", "aimo_fourth")} == {"pip" if overlay else "uv"}


@pytest.mark.parametrize("program", ["exit 2", "sleep 60"], ids=["fails", "hangs"])
def test_pip_takes_over_from_uv(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aimo_solver.server.wheels._UV_S", 1)
    site = "$(dirname $0)/../lib/*/site-packages"
    make_uv(tmp_path / "mount", f"for site in {site}; do touch $site/unfinished.py; done\n{program}")
    make_wheel(tmp_path / "mount", "aimo_first", "aimo_first", "")
    installation = install({"aimo_first": "aimo_first"}, tmp_path)
    assert installer_of(installation, "aimo_first") == "pip"
    assert not [*folder_of(installation).rglob("unfinished.py")]


@pytest.mark.parametrize("with_uv", [False, True], ids=["pip", "uv"])
def test_a_later_distribution_replaces_the_files_of_an_earlier_one(with_uv: bool, tmp_path: Path) -> None:
    mount = tmp_path / "wheels"
    if with_uv:
        make_uv(mount)
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


def test_a_failed_installation_is_repeated_once_its_wheels_are_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aimo_solver.server.wheels.install.__defaults__", ({"aimo_sixth": "aimo_sixth"}, tmp_path))
    nothing = install()
    make_wheel(tmp_path / "wheels", "aimo_sixth", "aimo_sixth", "WHO = 'sixth'", needs="aimo_seventh")
    failed = nothing.renewed()
    for _ in range(2):
        with pytest.raises(WheelError):
            failed.wait(120)
    make_wheel(tmp_path / "wheels", "aimo_seventh", "aimo_seventh", "")
    renewed = failed.renewed()
    renewed.wait(120)
    assert renewed.renewed() is renewed
    assert importlib.import_module("aimo_sixth").WHO == "sixth"


def test_an_installation_that_hangs_is_killed(tmp_path: Path) -> None:
    hung = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    (tmp_path / "pip.log").write_text("Looking in links\n")
    with pytest.raises(WheelError, match="not ready after 0 s"):
        Installation(tmp_path, hung).wait(0.2)
    assert hung.wait(10) == -signal.SIGKILL


INSTALL_AND_STAY = """
import sys, tempfile
from pathlib import Path
from aimo_solver.server.wheels import install
tempfile.tempdir = sys.argv[1]
installation = install({"aimo_fourth": "aimo_fourth"}, Path(sys.argv[2]))
installation.wait(120)
print(installation.environment, installation.process is not None, flush=True)
sys.stdin.readline()
"""


@contextmanager
def other_process(temporary: Path, root: Path) -> Iterator[tuple[Path, bool]]:
    """Runs another process that installs and stays; yields its environment and whether it ran pip."""
    command = [sys.executable, "-c", INSTALL_AND_STAY, str(temporary), str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder, installed = process.stdout.readline().split()
        yield Path(folder), installed == "True"
        process.communicate("\n", timeout=60)


def folder_of(installation: Installation) -> Path:
    assert installation.environment is not None
    installation.wait(120)
    return installation.environment


def test_an_environment_with_the_same_wheels_is_reused(tmp_path: Path) -> None:
    make_wheel(tmp_path / "mount" / "wheels", "aimo_fourth", "aimo_fourth", "WHO = 1")
    with other_process(tmp_path, tmp_path / "mount") as (folder, installed):
        assert (folder, installed) == (tmp_path / "aimo-wheels", True)
        with other_process(tmp_path, tmp_path / "mount") as (again, installed):  # while the first process uses it
            assert (again, installed) == (folder, False)
    here = install({"aimo_fourth": "aimo_fourth"}, tmp_path / "mount")
    assert here.process is None
    assert folder_of(here) == folder
    assert importlib.import_module("aimo_fourth").WHO == 1
    # What an earlier call installed does not count as part of the image.
    assert install({"aimo_fourth": "aimo_fourth"}, tmp_path / "mount").python == here.python


def test_other_wheels_replace_an_unused_environment(tmp_path: Path) -> None:
    make_wheel(tmp_path / "mount" / "wheels", "aimo_fourth", "aimo_fourth", "WHO = 1")
    with other_process(tmp_path, tmp_path / "mount") as (folder, _):
        pass
    (folder / "left over").touch()
    make_wheel(tmp_path / "mount" / "wheels", "aimo_fourth", "aimo_fourth", "WHO = 'replaced'")
    with other_process(tmp_path, tmp_path / "mount") as (again, installed):
        assert (again, installed) == (folder, True)
        assert not (folder / "left over").exists()


def test_an_environment_in_use_is_not_replaced(tmp_path: Path) -> None:
    make_wheel(tmp_path / "mount" / "wheels", "aimo_fourth", "aimo_fourth", "WHO = 1")
    with other_process(tmp_path, tmp_path / "mount") as (folder, _):
        make_wheel(tmp_path / "mount" / "wheels", "aimo_fourth", "aimo_fourth", "WHO = 'other'")
        own = folder_of(install({"aimo_fourth": "aimo_fourth"}, tmp_path / "mount"))
        assert own != folder
        assert (package_text(folder), package_text(own)) == ("WHO = 1", "WHO = 'other'")


def package_text(environment: Path) -> str:
    (module,) = environment.rglob("aimo_fourth.py")
    return module.read_text()


def test_an_unfinished_installation_is_repeated(tmp_path: Path) -> None:
    make_wheel(tmp_path / "mount" / "wheels", "aimo_fifth", "aimo_fifth", "", needs="aimo_fourth")
    with pytest.raises(WheelError):
        install({"aimo_fifth": "aimo_fifth"}, tmp_path / "mount").wait(120)
    make_wheel(tmp_path / "mount" / "wheels", "aimo_fourth", "aimo_fourth", "")
    assert folder_of(install({"aimo_fifth": "aimo_fifth"}, tmp_path / "mount")) == tmp_path / "aimo-wheels"


def test_an_installation_of_another_process_is_not_waited_for(tmp_path: Path) -> None:
    make_wheel(tmp_path / "mount" / "wheels", "aimo_fourth", "aimo_fourth", "")
    lock = os.open(tmp_path / "aimo-wheels.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)  # as long as pip works
    folder = folder_of(install({"aimo_fourth": "aimo_fourth"}, tmp_path / "mount"))
    os.close(lock)
    assert folder.parent == tmp_path
    assert folder.name.startswith("aimo-wheels")
    assert folder.name != "aimo-wheels"


def test_the_path_is_that_of_the_servers_python(tmp_path: Path) -> None:
    """The wheels have another version of a package than the image."""
    make_wheel(tmp_path / "mount" / "wheels", "aimo_first", "aimo_first", "", needs="jinja2<2")
    make_wheel(tmp_path / "mount" / "wheels", "jinja2", "jinja2/__init__", "")
    installation = install({"aimo_first": "aimo_first"}, tmp_path / "mount")
    folder = folder_of(installation)
    assert installed_version("jinja2", installation.path) == "1.0" != installed_version("jinja2")
    package = package_folder("jinja2", installation.path)
    assert package is not None
    assert package.is_relative_to(folder)
    assert installation.path == (str(package.parent),)
    assert NOTHING_TO_INSTALL.path == tuple(sys.path)
