from __future__ import annotations

import pytest

from aimo_solver.lab.report.data import RunReport, load_report
from aimo_solver.log.reader import read_run
from tests.small_run import ANSWERS, write_run


@pytest.fixture(scope="session")
def run_report(tmp_path_factory: pytest.TempPathFactory) -> RunReport:
    return load_report(read_run(write_run(tmp_path_factory.mktemp("runs") / "run", ANSWERS)))
