"""Output as a terminal shows it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
