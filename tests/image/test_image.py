"""Tests on the packages of Kaggle's image, in a virtual environment of its own (scripts/install_image.sh, `make test`)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

PYTHON = ROOT / ".venv-image" / "bin" / "python"
_CASES = (
    "history or magic or shell or help or await or reset or display or syntax or half or stdout or input or busy or exit or NUL "
    "or exception or repr or alarm"
)
# Each runs tests of the library in one process: what touches a package whose version differs on Kaggle, and the notebook.
SELECTIONS = {
    "kernels": (
        *("tests/kernels/test_pool.py", "tests/kernels/test_text.py", "tests/kernels/test_faults.py", "-k"),
        f"test_text or a_lease or order or unreadable or hard_case and not less and ({_CASES})",
    ),
    "gateway": ("tests/kaggle/test_gateway.py", "-k", "accepts or two_processes or odd or integers or worker_thread"),
    "notebook": ("tests/image/notebook_on_image.py",),
}

pytestmark = [
    pytest.mark.kernels,
    pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-image: `make test` makes it where there is Python 3.12"),
]


def run_on_image(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PYTHONPATH"))}
    environment["PYTHONPATH"] = str(ROOT / "src")
    return subprocess.run(
        [PYTHON, *arguments], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


def test_the_environment_has_the_versions_of_the_image() -> None:
    pins = dict(line.split("==") for line in (ROOT / "requirements-image.txt").read_text().split() if "==" in line)
    program = (
        "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]), '%d.%d' % sys.version_info[:2])"
    )
    assert run_on_image("-c", program, *pins).stdout.split() == [*pins.values(), "3.12"]


@pytest.mark.parametrize("selection", SELECTIONS.values(), ids=SELECTIONS)
def test_the_library_works_on_the_versions_of_the_image(selection: tuple[str, ...]) -> None:
    # The image's older packages use functions that Python 3.12 deprecates.
    quietly = "-q", "-x", "-p", "no:cacheprovider", "-W", "ignore::DeprecationWarning"
    done = run_on_image("-m", "pytest", *quietly, *selection)
    assert done.returncode == 0, done.stdout[-4_000:]
