"""Broken turns are repaired, or the model gets the reason; both are counted."""

from __future__ import annotations

import pytest

from aimo_solver.chat.turns import FinalText, Malformed, ToolCalls
from tests.chat_families import Family
from tests.faults.malformed import MALFORMED, Fault, Final, Told


def test_there_are_200_different_turns() -> None:
    assert len(MALFORMED) >= 200
    assert len({(fault.family, fault.text) for fault in MALFORMED}) == len(MALFORMED)


@pytest.mark.parametrize("fault", MALFORMED, ids=lambda fault: f"{fault.family}: {fault.what}")
def test_the_turn_is_repaired_or_the_model_gets_the_reason(families: dict[str, Family], fault: Fault) -> None:
    model = families[fault.family]
    sampled = model.template(fault.text)
    turn = model.chat.parse(sampled)
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
            assert turn.codes == codes
            assert turn.salvaged
            results = model.chat.decode(model.chat.tool_results(sampled, [f"result {code}" for code in codes]))
            assert all(f"result {code}".rstrip() in results for code in codes)
