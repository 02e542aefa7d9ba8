"""Reading any model output never raises, takes linear time and returns nothing longer than the output.

Each example repeats one unit, up to 100,000 characters. A reader that is not linear takes minutes and exceeds the time limit
of the test. ``make fuzz`` runs more examples than ``make test``; AIMO_FUZZ_EXAMPLES is their number.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aimo_solver.answers import ANSWER_RANGE, extract_answer
from aimo_solver.chat import salvage
from aimo_solver.chat.turns import MAX_CALLS, FinalText, Malformed, ToolCalls
from aimo_solver.lab.bench.degenerate import AFTER, DEGENERATE, REPEATED, Degenerate
from tests.chat_families import NAMES, Family
from tests.conftest import ROOT

EXAMPLES = int(os.environ.get("AIMO_FUZZ_EXAMPLES", "12"))
CHARACTERS = 100_000
TRANSCRIPTS = ROOT.parent / "shared" / "harmony" / "attempts.npz"

_SETTINGS = settings(
    max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], report_multiple_bugs=False
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(60 + 5 * EXAMPLES)]

_WORDS = tuple(dict.fromkeys(part for one in DEGENERATE for part in (one.unit, one.opening, one.closing, one.ending)))


def _joined(most: int) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(_WORDS), max_size=most).map("".join)


degenerate = st.one_of(
    st.sampled_from(DEGENERATE),
    st.builds(
        Degenerate,
        name=st.just("drawn"),
        opening=_joined(3),
        unit=_joined(2).filter(bool),
        middle=_joined(1),
        closing=_joined(1),
        ending=_joined(2),
    ),
)
lengths = st.sampled_from([100, 1_000, CHARACTERS])


def read(model: Family, sampled: Sequence[int], output: str) -> None:
    """Passes a turn through every entry point, as an attempt does."""
    chat, written = model.chat, len(model.chat.decode(sampled))
    turn = chat.parse(sampled)
    match turn:
        case ToolCalls(codes):
            assert len(codes) <= MAX_CALLS
            assert all(code.strip() for code in codes)
            assert sum(len(code) for code in codes) <= written
            results = chat.tool_results(sampled, [output, *[""] * (len(codes) - 1)] if codes else [])
            # The fence can be as long as the output, and a character has up to four bytes.
            assert len(results) <= 12 * len(output) + 100 * len(codes) + 100
        case FinalText(text):
            assert len(text) <= written
            extract_answer(text)
        case Malformed(reason):
            assert 0 < len(reason) < 500
            assert "\n" not in reason
            assert len(chat.complaint(sampled, reason)) < 1_000
    assert len(chat.ask_answer(sampled)) < 1_000
    answer = extract_answer(chat.answer_text(sampled))
    assert answer is None or answer in ANSWER_RANGE


@pytest.mark.parametrize("name", NAMES)
def test_every_degenerate_turn_of_the_table_is_read(families: dict[str, Family], name: str) -> None:
    model = families[name]
    for one in (*REPEATED, *AFTER[model.chat.name], *AFTER["salvage"]):
        read(model, one.tokens(400, model.template), "1")


@pytest.mark.parametrize("name", NAMES)
@given(one=degenerate, end=st.booleans(), size=lengths, output=degenerate)
@_SETTINGS
def test_a_long_degenerate_turn_is_read(
    families: dict[str, Family], name: str, one: Degenerate, end: bool, size: int, output: Degenerate
) -> None:
    model = families[name]
    sampled = one.tokens(size, model.template)
    read(model, [*sampled, model.chat.stop_token_ids[0]] if end else sampled, output.text(8_000))


@pytest.mark.parametrize(
    "read_text",
    [extract_answer, salvage.bare_code, salvage.code_in_json, salvage.python_blocks, salvage.compiles],
    ids=lambda read_text: read_text.__name__,
)
@given(one=degenerate, size=lengths)
@settings(_SETTINGS, max_examples=5 * EXAMPLES)
def test_a_long_degenerate_text_is_read(read_text: Callable[[str], object], one: Degenerate, size: int) -> None:
    text = one.text(size)
    found = read_text(text)
    if isinstance(found, salvage.Code):
        assert len(found.text) <= len(text)
    elif isinstance(found, list):
        assert sum(map(len, found)) <= len(text)


def test_every_degenerate_text_of_the_table_is_read() -> None:
    for one in DEGENERATE:
        text = one.text(400)
        answer = extract_answer(f"\\boxed{{{text}}}")
        assert answer is None or answer in ANSWER_RANGE
        for read_text in (salvage.bare_code, salvage.code_in_json, salvage.python_blocks):
            read_text(text)


@functools.cache
def _transcripts() -> list[list[int]]:
    with np.load(TRANSCRIPTS) as arrays:
        return [part.tolist() for part in np.split(arrays["tokens"], arrays["ends"][:-1])]


@pytest.mark.skipif(not TRANSCRIPTS.is_file(), reason="needs the transcripts of real attempts")
@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(_SETTINGS, max_examples=5 * EXAMPLES)
def test_every_piece_of_a_real_transcript_is_read(families: dict[str, Family], name: str, data: st.DataObject) -> None:
    """Transcripts of gpt-oss; the other families read their text."""
    attempt = data.draw(st.sampled_from(_transcripts()))
    start = data.draw(st.integers(0, len(attempt) - 1))
    piece = attempt[start : start + data.draw(st.integers(1, 5_000))]
    model = families[name]
    sampled = piece if name == "harmony" else model.template(families["harmony"].chat.decode(piece))
    read(model, sampled, "1")
