"""One cell of each row of the fault table; `scripts/fault_table.py` runs all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from aimo_solver.kernels.limits import Isolation
from aimo_solver.kernels.pool import KernelPool
from tests.conftest import ROOT
from tests.faults import injection, table
from tests.faults.injection import KERNEL, Failing
from tests.faults.table import Cell

pytestmark = [pytest.mark.kernels, pytest.mark.timeout(600)]
# Every row, and every other row with the call failing for ever: twice as many cells take minutes more.
CELLS = [(row, ("once", "for ever")[number % 2]) for number, row in enumerate(table.ROWS)]


@pytest.fixture(scope="module")
def cells() -> dict[str, Cell]:
    return {cell.row: cell for cell in table.run_cells(CELLS)}


@pytest.mark.parametrize(("row", "times"), CELLS)
def test_a_run_survives_a_call_that_fails(cells: dict[str, Cell], row: str, times: str) -> None:
    cell = cells[row]
    assert cell.times == times
    assert not cell.fault, f"{cell.fault}\n{cell.log}"


def test_the_script_prints_the_rows_that_are_asked_for(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "fault_table.py"), "--times", "once", "--out", "cells.jsonl", "health"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    cells = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    assert {cell["row"] for cell in cells} == {name for name in table.ROWS if "health" in name}
    assert f"{len(cells)} runs" in run.stdout


LEAVING = """
import sys, tempfile
from pathlib import Path

import psutil

from tests.faults import injection, table

folder = Path(sys.argv[1])
(folder / "t").mkdir()
created = injection.Created()
(folder / "log").touch()
left = [Path(tempfile.mkdtemp(dir=place)) for place in ("/dev/shm", "/var/tmp")]
try:
    assert table._left_behind(psutil.Process(), folder, created) == list(map(str, left))
finally:
    for path in left:
        path.rmdir()
assert table._left_behind(psutil.Process(), folder, created) == []
"""


def test_files_left_outside_the_temporary_folder_are_found(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", LEAVING, tmp_path], cwd=ROOT, check=True)


async def test_a_passing_shortage_disables_no_isolation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def active() -> tuple[Isolation, ...]:
        async with KernelPool(size=1, spares=0) as pool, pool.lease():
            return pool.isolation

    monkeypatch.setattr(subprocess.Popen, "__init__", subprocess.Popen.__init__)  # put back afterwards
    before = await active()
    injection.arm(Failing("os.fork", "EAGAIN", process=KERNEL), 1, tmp_path / "tally")
    assert await active() == before
    assert injection.Tally(tmp_path / "tally").value == 1
