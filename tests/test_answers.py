"""Reading the integer from a final text: what is an answer, what is not; no text takes long or raises."""

from __future__ import annotations

import re
import threading
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aimo_solver.answers import ANSWER_RANGE, Reading, extract_answer, last_box, read_answer, read_symbolic
from aimo_solver.chat.harmony import load_encoding
from aimo_solver.latex import evaluate_latex
from tests.answer_endings import ENDINGS
from tests.conftest import ROOT

TRANSCRIPTS = ROOT.parent / "shared" / "harmony" / "attempts.npz"

TOO_LARGE = [
    "7^{7^{7}}", "2^{100000}", "9" * 1001, "100000!", "(" * 200 + "1" + ")" * 200, "{" * 45 + "1" + "}" * 45, "-" * 500 + "1",
    "\\binom{100000}{50000}", "(10^{1000})^{1000}",
]  # fmt: skip


def test_the_endings_of_the_table_are_read() -> None:
    readings = [(ending, read_answer(ending.text)) for ending in ENDINGS if ending.read]
    assert len(readings) > 600
    assert [(ending, reading) for ending, reading in readings if reading != Reading(ending.answer, ending.out_of_range)] == []


def test_endings_that_are_not_read_rightly_are_still_wrong() -> None:
    """Those that become right belong into the other lists of the table."""
    assert [ending for ending in ENDINGS if not ending.read and extract_answer(ending.text) == ending.answer] == []


@pytest.mark.parametrize("box", TOO_LARGE)
def test_a_box_that_takes_long_to_evaluate_is_not_read(box: str) -> None:
    assert extract_answer(f"Therefore $\\boxed{{{box}}}$.") is None


@given(number=st.integers(-200_000, 200_000), zeros=st.integers(0, 3))
def test_every_integer_in_range_counts_and_no_other(number: int, zeros: int) -> None:
    text = f"\\boxed{{{'-' * (number < 0)}{'0' * zeros}{abs(number)}}}"
    assert extract_answer(text) == (number if number in ANSWER_RANGE else None)


@given(number=st.integers(1_000, 99_999), comma=st.sampled_from([",", "{,}", "\\,", "\\ ", " "]))
def test_thousands_in_every_notation(number: int, comma: str) -> None:
    assert extract_answer(f"\\boxed{{{number // 1000}{comma}{number % 1000:03d}}}") == number


_EXPRESSIONS = st.recursive(
    st.integers(0, 500).map(lambda n: (str(n), Fraction(n))),
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(
        lambda t: (
            f"({t[0][0]}{t[1]}{t[2][0]})" if t[1] != "/" else f"\\frac{{{t[0][0]}}}{{{t[2][0]}}}",
            None
            if t[0][1] is None or t[2][1] is None or (t[1] == "/" and t[2][1] == 0)
            else {"+": t[0][1] + t[2][1], "-": t[0][1] - t[2][1], "*": t[0][1] * t[2][1], "/": t[0][1] / (t[2][1] or 1)}[t[1]],
        )
    ),
    max_leaves=8,
)


@given(expression=_EXPRESSIONS)
def test_expressions_have_their_exact_value(expression: tuple[str, Fraction | None]) -> None:
    text, value = expression
    assert evaluate_latex(text) == value


@given(
    text=st.lists(
        st.one_of(
            st.sampled_from(
                ["\\boxed{", "}", "{", "\\frac", "\\text{", "\\pmod", "^", "!", "(", ")", "\\bmod", "9", ",", "-", "\\sqrt"]
            ),
            st.text(max_size=5),
        )
    ).map("".join)
)
@settings(max_examples=200)
def test_no_text_raises(text: str) -> None:
    answer = extract_answer(text)
    assert answer is None or answer in ANSWER_RANGE
    answer = extract_answer(f"\\boxed{{{text}}}")
    assert answer is None or answer in ANSWER_RANGE


@pytest.mark.parametrize(
    ("text", "answer"), [("123456", 456), ("-1", 999), ("2^{30}", 824), ("1000", 0), ("3/2", None), ("x", None), ("1000.0", 0)]
)
def test_a_modulus_reduces_any_integer(text: str, answer: int | None) -> None:
    reading = read_answer(f"\\boxed{{{text}}}", modulus=1_000)
    assert (reading.answer, reading.out_of_range) == (answer, text == "3/2")


def test_another_range() -> None:
    assert [read_answer(f"\\boxed{{{n}}}", range(-5, 6)).answer for n in (-6, -5, 5, 6)] == [None, -5, 5, None]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So \\boxed{ $\\frac{1}{2}$ }.", "\\frac{1}{2}"),
        ("\\boxed{}", None),
        ("no box", None),
        (f"\\boxed{{{'1+' * 600}1}}", None),
    ],
)
def test_a_symbolic_answer_is_the_text_of_the_last_box(text: str, answer: str | None) -> None:
    assert read_symbolic(text).answer == answer


@pytest.mark.slow
@pytest.mark.skipif(not TRANSCRIPTS.is_file(), reason="needs the transcripts of real attempts")
def test_the_last_messages_of_real_attempts_without_their_boxes() -> None:
    """None of the 218 gives a wrong integer; where a cut message states the answer in its last words, it is read."""
    decode = load_encoding().decode
    read = 0
    with np.load(TRANSCRIPTS) as arrays:
        attempts = np.split(arrays["tokens"], arrays["ends"][:-1])
        for tokens, answer in zip(attempts, arrays["answer"].tolist(), strict=True):
            message = decode(tokens[-4_000:].tolist()).rpartition("<|message|>")[2]
            reading = read_answer(re.sub(r"\\boxed\{([^{}]*)\}", r"\1", message))
            assert reading.answer in (None, answer)
            read += reading.answer is not None
    assert read >= 190


def test_hostile_texts_are_read_quickly_in_a_thread() -> None:
    """Only the test's own time limit applies."""
    hostile = [
        "\\boxed{" + "9^{" * 30 + "9" + "}" * 31,
        "\\boxed{" + "\\text{a}" * 120 + "}",
        "\\boxed{" * 50_000,
        "\\boxed{" + "{" * 200_000,
        "\\boxed{1}, \\boxed{2}, " * 20_000,
        "\\boxed{1000!^{1000!}}",
        "\\boxed{" + "1000!*" * 150 + "1}",
        "\\boxed{" + "\\frac{1}{997!}+" * 60 + "1}",
    ]
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.extend(extract_answer(text) for text in hostile), daemon=True)
    thread.start()
    thread.join(120)
    assert answers == [None] * len(hostile)


@pytest.mark.parametrize("digit", "፫²①੩𝟑")
def test_digits_of_every_script_are_read_or_rejected(digit: str) -> None:
    for text in (f"\\frac{digit}1", f"\\frac1{digit}", digit, f"2^{digit}", f"{digit}!", f"\\binom{digit}1", f"1{digit}{{,}}000"):
        answer = extract_answer(f"\\boxed{{{text}}}")
        assert answer is None or answer in ANSWER_RANGE
    assert extract_answer("\\boxed{\\frac፫2}") is None


def test_a_character_that_normalises_to_eighteen_is_bounded() -> None:
    assert extract_answer("\\boxed{" + "ﷺ" * 1_000 + "}") is None


def test_a_box_ends_at_its_own_brace() -> None:
    assert last_box("a \\boxed{x_{1} + \\{y\\}} b}") == "x_{1} + \\{y\\}"
