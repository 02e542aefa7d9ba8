"""The built notebook, top to bottom in a rerun, with Kaggle's gateway in another process and a stand-in for vLLM's program.

It starts no vLLM, so it runs on the packages of Kaggle's image alone: pytest collects it there only (`test_image`).
"""

from __future__ import annotations

import json

import pytest

from tests.conftest import MODEL
from tests.faults import fake_vllm
from tests.kaggle.test_notebook import INSTALL, Place, leftovers, place
from tests.without_network import can_cut_network

__all__ = ["place"]  # a fixture


@pytest.mark.skipif(not can_cut_network(), reason="no network namespaces here")
def test_a_rerun_answers_every_problem(place: Place) -> None:
    problems = {f"p{number}": fake_vllm.problem(number) for number in (120, 345, 678)}
    csv = place.problems([(id_, text) for id_, (text, _) in problems.items()])
    environment = place.folder / "wheels"
    environment.mkdir()
    fake_vllm.installed(environment, None, 0, MODEL)
    installed = f"from aimo_solver.server.wheels import Installation\nwheels = Installation(Path('{environment}'))"
    place.edit(INSTALL, installed)
    place.run("rerun", str(csv))
    assert json.loads((place.folder / "gateway" / "result.json").read_text()) == {"Succeeded": True}
    submission = place.submission("gateway")
    assert dict(submission.rows()) == {id_: answer for id_, (_, answer) in problems.items()}
    assert (environment / "python").stat().st_size >= len(problems)  # answers were computed in Python
    assert leftovers(place.folder) == []
