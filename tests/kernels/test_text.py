"""The text of results: as a terminal shows it, in order, and cut to a length."""

from __future__ import annotations

import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aimo_solver.kernels.inside.formatting import format_value
from aimo_solver.kernels.session import ExecutionResult
from aimo_solver.kernels.text import render_terminal


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\n\ttext, ä, 😀\n", "plain\n\ttext, ä, 😀\n"),
        ("\x1b[1;31mred\x1b[0m \x1b[38;5;12mblue\x1b[m", "red blue"),
        ("\x1b]0;a title\x07text\x1b(B", "text"),
        (" 10%|#   |\r 50%|##  |\r100%|####|\n", "100%|####|\n"),
        (" 10%|#   |\r 50%|##  |\r", " 50%|##  |"),
        ("long line\rshort", "shortline"),
        ("long line\r\x1b[Kshort", "short"),
        ("long line\x1b[2K\rshort", "short"),
        ("windows\r\nlines\r\n", "windows\nlines\n"),
        ("a\x00b\x07c\x7fd\x9be", "abcde"),
        ("ab\b\bc\n\bd", "cb\nd"),
        ("page\fpage", "page\npage"),
        ("half \ud83d of a pair", "half ? of a pair"),
        ("cut off\x1b[", "cut off"),
        ("\x1b", ""),
    ],
)
def test_text_is_rendered_as_by_a_terminal(text: str, shown: str) -> None:
    assert render_terminal(text) == shown


@given(st.text(st.sampled_from("ab \n\r\b\t\x00\x1b[]0;?mKH\x07\\\x9b\ud800é"), max_size=60))
def test_rendering_again_changes_nothing(text: str) -> None:
    shown = render_terminal(text)
    assert render_terminal(shown) == shown
    assert shown.count("\n") == text.count("\n")
    assert not set(shown) & {"\r", "\b", "\x00", "\x1b", "\x07", "\x9b", "\ud800"}


def result_of(stdout: str = "", value: str | None = None, traceback: str | None = None, *notes: str) -> ExecutionResult:
    return ExecutionResult(
        stdout=stdout,
        value=value,
        error_name=None if traceback is None else "ValueError",
        traceback=traceback,
        timed_out=False,
        killed_for=None,
        truncated=False,
        seconds=0.0,
        notes=notes,
    )


def test_text_shows_output_value_notes_and_traceback_in_this_order() -> None:
    assert result_of("out\n", "value", "trace\nValueError: x", "note").as_text() == "out\nvalue\n[note]\ntrace\nValueError: x"


def test_text_without_output_is_not_empty() -> None:
    assert result_of().as_text() == "[no output]"


def test_short_output_stays_whole_beside_a_long_traceback() -> None:
    text = result_of("hello", None, "x" * 9_000 + "\nValueError: x").as_text(8_000)
    assert text.startswith("hello\nxxx")
    assert text.endswith("ValueError: x")


@example(stdout="0" * 20, value="0" * 19, trace="0" * 17, limit=60)  # the note alone fills the limit
@given(
    stdout=st.text(max_size=400),
    value=st.none() | st.text(max_size=400),
    trace=st.none() | st.text(max_size=400),
    limit=st.integers(60, 500),
)
def test_text_keeps_its_limit_and_the_last_line(stdout: str, value: str | None, trace: str | None, limit: int) -> None:
    traceback = None if trace is None else f"{trace}\nValueError: x"
    text = result_of(stdout, value, traceback).as_text(limit)
    assert len(text) <= limit + 2 * len("\n[... 1,000 characters left out ...]\n") + 1
    if traceback is not None:
        assert text.endswith("ValueError: x")


@pytest.mark.slow
@settings(max_examples=20)
@given(
    head=st.integers(1, 10**60),
    middle=st.integers(120_500, 130_000),
    tail=st.integers(0, 10**60),
    sign=st.sampled_from(["", "-"]),
)
def test_a_huge_integer_is_shown_by_its_ends(head: int, middle: int, tail: int, sign: str) -> None:
    number = (head * 10**middle + tail) * (-1 if sign else 1)
    sys.set_int_max_str_digits(0)
    digits = str(abs(number))
    shown = format_value(number)
    assert shown.startswith(f"{sign}{digits[:50]}...{digits[-50:]} [an integer of {len(digits):,} digits")


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(0, 9))
def test_digits_of_huge_integers_are_counted_correctly_near_powers_of_ten(exponent: int, last: int) -> None:
    number = 10 ** (120_500 + exponent) - 5 + last
    assert f"of {120_500 + exponent + (last >= 5):,} digits" in format_value(number)
