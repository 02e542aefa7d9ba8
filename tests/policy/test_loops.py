"""The loop detector: made-up loops are found, real attempts are left alone."""

from __future__ import annotations

import sys

import pytest

from aimo_solver.policy.loops import WINDOW, LoopDetector
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

import score_guards
from score_guards import LOOPS, TEXTS, fires_at, least_novelty, make_loop, read_transcripts

TRANSCRIPTS = ROOT.parent / "shared" / "harmony" / "attempts.npz"


@pytest.mark.parametrize("name", [*LOOPS, *TEXTS])
def test_a_made_up_loop_is_found(name: str) -> None:
    tokens = make_loop(name)
    at = fires_at(tokens)
    assert at is not None
    assert WINDOW < at <= 2 * WINDOW


def test_text_without_a_loop_is_left_alone() -> None:
    assert fires_at(score_guards.prose()) is None


@pytest.mark.parametrize("chunk", [1, 7, 3_000])
def test_tokens_may_come_in_any_pieces(chunk: int) -> None:
    tokens = make_loop("a sentence")
    detector = LoopDetector()
    assert any(detector.add(tokens[at : at + chunk]) for at in range(0, len(tokens), chunk))


def test_after_a_report_the_search_begins_again() -> None:
    detector = LoopDetector()
    assert detector.add([7] * WINDOW)
    detector.forget()
    assert not detector.add([7] * (WINDOW - 1))
    assert detector.add([7] * 512)


@pytest.mark.parametrize("token", [0, -1, 2**31, 2**40])
def test_no_token_id_is_an_error(token: int) -> None:
    assert LoopDetector().add([token] * WINDOW)


@pytest.mark.slow
@pytest.mark.skipif(not TRANSCRIPTS.is_file(), reason="needs the transcripts of real attempts")
def test_no_real_attempt_comes_near_a_loop() -> None:
    """Every eighth window that the detector looks at; ``scripts/score_guards.py`` looks at all of them."""
    least = [least_novelty(one.turns, step=4_096) for one in read_transcripts(TRANSCRIPTS, texts=False)]
    assert len(least) == 218
    assert min(least) > 1.1
