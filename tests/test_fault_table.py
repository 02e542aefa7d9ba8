"""Every call that can fail, in a whole run: it ends in time, with every answer that the rest of the system can give.

The cells of `tests/faults/table.py`; `scripts/fault_table.py` runs all of them; here are those that fail once and for ever.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.faults import table

pytestmark = [pytest.mark.kernels, pytest.mark.timeout(600)]


def test_the_script_prints_the_rows_that_are_asked_for(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "scripts" / "fault_table.py", "--times", "once", "--out", "cells.jsonl", "health"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    cells = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    assert {cell["row"] for cell in cells} == {name for name in table.ROWS if "health" in name}
    assert f"{len(cells)} runs" in run.stdout
