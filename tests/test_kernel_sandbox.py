"""What a kernel still sees of the machine once it is contained."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.kernels

_PROGRAM = """
import asyncio
from aimo_solver.kernels import KernelPool
async def main():
    async with KernelPool(size=1, spares=0) as pool, pool.lease() as kernel:
        print((await kernel.execute("import only_here; only_here.NUMBER", timeout_s=30)).as_text())
asyncio.run(main())
"""


def test_python_may_be_installed_below_the_folder_that_kernels_see_empty(tmp_path: Path) -> None:
    """Kernels get a /tmp of their own; an environment that lies in the machine's /tmp must still be found."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    query = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    packages = Path(subprocess.run([python, "-c", query], check=True, capture_output=True, text=True).stdout.strip())
    (packages / "other.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n{ROOT / 'src'}\n")
    (packages / "only_here.py").write_text("NUMBER = 2**10\n")
    bare = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run([python, "-c", _PROGRAM], capture_output=True, text=True, timeout=120, env=bare)
    assert done.stdout.strip() == "1024", done.stderr
