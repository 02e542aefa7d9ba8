"""Broken turns are mended or the model is told what was wrong, and it is counted."""

from __future__ import annotations

import pytest

from aimo_solver.chat.turns import FinalText, Malformed, ToolCalls
from tests.chat_families import Family, family
from tests.faults.malformed import MALFORMED, Fault, Final, Told


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Family]:
    return {name: family(name, tmp_path_factory.mktemp(name)) for name in ("harmony", "gemma", "hermes", "fenced")}


def test_there_are_200_and_no_two_are_the_same() -> None:
    assert len(MALFORMED) >= 200
    assert len({(fault.family, fault.text, fault.cut) for fault in MALFORMED}) == len(MALFORMED)


@pytest.mark.parametrize("fault", MALFORMED, ids=lambda fault: f"{fault.family}: {fault.what}")
def test_salvage(families: dict[str, Family], fault: Fault) -> None:
    model = families[fault.family]
    sampled = model.template(fault.text)
    turn = model.chat.parse(sampled, cut=fault.cut)
    match fault.expected:
        case Final(text):
            assert isinstance(turn, FinalText)
            assert turn.text == text
        case Told(word):
            assert isinstance(turn, Malformed)
            assert word in turn.reason
            assert turn.reason in model.chat.decode(model.chat.complaint(sampled, turn.reason))
        case codes:
            assert isinstance(turn, ToolCalls)
            assert tuple(call.code for call in turn.calls) == codes
            assert turn.salvaged
            results = model.chat.decode(model.chat.tool_results(sampled, [f"result {code}" for code in codes]))
            assert all(f"result {code}".rstrip() in results for code in codes)
