"""What an isolated kernel can access."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from aimo_solver.kernels.inside.isolation import needs_to_read_all
from aimo_solver.kernels.limits import Isolation, KernelLimits
from aimo_solver.kernels.pool import KernelPool
from tests.conftest import ROOT
from tests.faults.kernel_cases import BARRED, RESOURCES, Case

pytestmark = pytest.mark.kernels

_PROGRAM = """
import asyncio
from aimo_solver.kernels.pool import KernelPool
async def main():
    async with KernelPool(size=1, spares=0) as pool, pool.lease() as kernel:
        print((await kernel.execute("import only_here; only_here.NUMBER", timeout_s=30)).as_text())
asyncio.run(main())
"""


def test_python_may_be_installed_below_tmp(tmp_path: Path) -> None:
    """Kernels get a /tmp of their own; an environment in the machine's /tmp must stay accessible."""
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


# run before the pool starts: root with Docker's default capabilities, and an unprivileged user
_RIGHTS = {
    "docker": """
import ctypes, platform, struct
kept = 0xA80425FB
libc = ctypes.CDLL(None)
for capability in range(64):
    if not kept >> capability & 1:
        libc.prctl(24, capability, 0, 0, 0)  # removes it from the bounding set
capset = {"x86_64": 126, "aarch64": 91}[platform.machine()]
assert libc.syscall(capset, struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", kept, kept, 0, 0, 0, 0)) == 0
""",
    "user": "import os\nos.setgroups([])\nos.setresgid(54321, 54321, 54321)\nos.setresuid(54321, 54321, 54321)",
}
_CASES_PROGRAM = """
import asyncio, json
from aimo_solver.kernels.pool import KernelPool
from tests.faults.kernel_cases import BARRED, RESOURCES, LIMITS

async def main():
    async with KernelPool(size=1, spares=1, limits=LIMITS) as pool:
        found = {}
        for case in (*RESOURCES, *BARRED):
            if not case.applies(pool.isolation):
                continue
            async with pool.lease() as kernel:
                for cell in case.cells:
                    await kernel.execute(cell, 30)
                found[case.name] = case.problems(await kernel.execute(case.code, case.timeout_s))
            async with pool.lease() as kernel:
                if case.next and (value := (await kernel.execute(case.next, 30)).value) != case.next_value:
                    found[case.name].append(f"is followed by {value}")
        print(json.dumps([pool.isolation, found]))

asyncio.run(main())
"""


@pytest.fixture(scope="module", params=_RIGHTS)
def outcome(request: pytest.FixtureRequest) -> tuple[str, list[str], dict[str, list[str]]]:
    """Returns the rights that the pool has, its active isolation, and the problems of each case."""
    rights: str = request.param
    if os.geteuid() != 0:
        pytest.skip("only root can have fewer rights")
    if rights == "user" and needs_to_read_all():
        pytest.skip("Python lies where only its owner can read it")
    program = _RIGHTS[rights] + _CASES_PROGRAM
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "KERNEL_TEST_SECRET": "KERNEL_TEST_SECRET"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return rights, *json.loads(done.stdout)


def test_kernels_of_root_are_users_of_their_own(outcome: tuple[str, list[str], dict[str, list[str]]]) -> None:
    rights, isolation, _ = outcome
    assert ("user" in isolation) == (rights == "docker")


@pytest.mark.parametrize("case", [*RESOURCES, *BARRED], ids=lambda case: case.name)
def test_hard_case_with_fewer_rights(outcome: tuple[str, list[str], dict[str, list[str]]], case: Case) -> None:
    if case.name not in outcome[2]:
        pytest.skip(f"needs one of {', '.join(sorted(case.needs))}")
    assert outcome[2][case.name] == []


async def test_a_kernel_with_the_solvers_user_id_connects_to_no_unix_socket() -> None:
    limits = KernelLimits(isolation=frozenset({Isolation.SECCOMP}))
    async with KernelPool(size=1, spares=0, limits=limits) as pool, pool.lease() as kernel:
        result = await kernel.execute("import socket\nsocket.socket(socket.AF_UNIX).connect('/no/such/socket')", 30)
    assert result.error_name == "PermissionError", result.as_text()
