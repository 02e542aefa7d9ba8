"""Reading the integer from a final text: what is an answer, what is not; no text takes long or raises."""

from __future__ import annotations

import threading
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aimo_solver.answers import ANSWER_RANGE, Reading, evaluate_latex, extract_answer, last_box, read_answer, read_symbolic

COUNTS = {
    # plain integers
    "42": 42, "0": 0, "99999": 99999, "00042": 42, "000": 0, "+42": 42, "-0": 0, "42.": 42, "42.0": 42, " 42 ": 42, "４２": 42,
    # groups of digits
    "12,345": 12345, "12{,}345": 12345, "12\\,345": 12345, "12\\ 345": 12345, "12 345": 12345, "12~345": 12345, "12\\!345": 12345,
    # layout and fonts
    "$42$": 42, "\\(42\\)": 42, "{42}": 42, "\\displaystyle 42": 42, "\\mathbf{42}": 42, "\\text{42}": 42, "\\textbf{42}": 42,
    "\\mathrm{42}": 42, "\\left(42\\right)": 42, "\\Big(42\\Big)": 42, "\\boldsymbol{42}": 42, "\\quad 42": 42,
    # units and words around the number
    "42\\text{ cm}": 42, "42\\ \\text{cm}^2": 42, "42\\,\\mathrm{cm}^{2}": 42, "42^\\circ": 42, "42^{\\circ}": 42, "42°": 42,
    "42 degrees": 42, "42 \\text{ square units}": 42, "\\text{The answer is } 42": 42, "42 cm": 42,
    # equations and congruences
    "x = 42": 42, "a+b=40+2=42": 42, "N=\\mathbf{42}": 42, "42 \\pmod{1000}": 42, "42 (mod 1000)": 42, "42 (\\bmod 7)": 42,
    "N \\equiv 42 \\pmod{1000}": 42, "\\mathrm{N}=42": 42, "42 \\pmod 7": 42, "x \\equiv 42 \\pmod{10^5}": 42,
    # remainders to be taken
    "142 \\bmod 100": 42, "2^{10} \\bmod 1000": 24, "5 \\mod 7": 5, "142 mod 100": 42, "-58 \\bmod 100": 42,
    # fractions and expressions
    "\\frac{84}{2}": 42, "\\dfrac{84}{2}": 42, "\\tfrac{84}2": 42, "84/2": 42, "6 \\cdot 7": 42, "6\\times7": 42, "6*7": 42,
    "6 × 7": 42, "2^{5}+10": 42, "7!": 5040, "\\binom{9}{2}+6": 42, "\\dbinom{10}{3}": 120, "\\sqrt{1764}": 42, "6(7)": 42,
    "2\\sqrt{441}": 42, "(6)(7)": 42, "10^{5}-1": 99999, "2^10": 1024, "4.2\\times10^{1}": 42, "\\lfloor 42.7 \\rfloor": 42,
    "\\lceil 41.2 \\rceil": 42, "-(-42)": 42, "50-8": 42, "50−8": 42, "3! \\cdot 7": 42, "1{,}000 - 958": 42,
    "\\left\\lfloor \\frac{85}{2} \\right\\rfloor": 42, "84 \\div 2": 42, "[42]": 42, "\\frac{6!}{2!}": 360,
}  # fmt: skip

DO_NOT = [
    # out of range or not an integer
    "-1", "100000", "1,234,567", "−5", "1/3", "\\frac12", "42.5", "\\sqrt{2}", "\\pi", "10^{5}", "1/0", "\\frac{1}{0}", "0.1",
    "\\infty", "-\\frac{84}{2}", "1e3",
    # not one number
    "", " ", "x", "x + 1", "42x", "3 \\text{ or } 4", "1, 2", "1,2", "12,34", "(1, 2)", "\\{1, 2\\}", "42 \\text{ and } 43",
    "1 2", "\\text{forty-two}", "\\text{none}", "?", "\\ldots", "a = b", "3\\frac{1}{2}", "\\log 100", "\\sum_{k=1}^{3} k",
    "42!!!!",     "\\begin{pmatrix}1\\end{pmatrix}", "1 \\le x \\le 2", "\\frac{1}", "\\binom{3}{5}",
    "(42", "42)", "^2", "*", "\\sqrt{-4}",
    # too large on the way
    "7^{7^{7}}", "2^{100000}", "9" * 1001, "100000!", "(" * 200 + "1" + ")" * 200, "{" * 45 + "1" + "}" * 45, "-" * 500 + "1",
    "\\binom{100000}{50000}", "(10^{1000})^{1000}",
]  # fmt: skip


@pytest.mark.parametrize(("box", "answer"), COUNTS.items())
def test_box_with_an_answer(box: str, answer: int) -> None:
    assert extract_answer(f"Therefore $\\boxed{{{box}}}$.") == answer


@pytest.mark.parametrize("box", DO_NOT)
def test_box_without_an_answer(box: str) -> None:
    assert extract_answer(f"Therefore $\\boxed{{{box}}}$.") is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("first \\boxed{1}, finally \\boxed{2}", 2),
        ("\\boxed{1} and then \\boxed{x}", None),  # the last one is meant, even if it cannot be read
        ("\\boxed{\\boxed{7}}", 7),
        ("\\boxed{7} \\boxed{", 7),  # an opened box without an end is none
        ("\\boxed 7", 7),
        ("\\boxed{ 7 }", 7),
        ("\\boxed {7}", 7),
        ("\\fbox{7}", 7),
        ("\\boxed{\\text{a} = \\frac{14}{2}}", 7),
        ("\\boxedx{7}", None),
        ("boxed{7}", None),
        ("The answer is 7.", None),
        ("", None),
        ("\\boxed", None),
        ("\\boxed{12", None),
    ],
)
def test_the_last_closed_box_is_read(text: str, answer: int | None) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "reading"),
    [
        ("\\boxed{42}", Reading(42)),
        ("\\boxed{100000}", Reading(out_of_range=True)),
        ("\\boxed{-1}", Reading(out_of_range=True)),
        ("\\boxed{\\frac12}", Reading(out_of_range=True)),
        ("\\boxed{x}", Reading()),
        ("I could not solve it.", Reading()),
    ],
)
def test_a_number_out_of_range_differs_from_no_answer(text: str, reading: Reading) -> None:
    assert read_answer(text) == reading


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
@settings(max_examples=500)
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


def test_hostile_texts_are_read_quickly_in_a_thread() -> None:
    """Only the test's own time limit applies."""
    hostile = [
        "\\boxed{" + "9^{" * 30 + "9" + "}" * 31,
        "\\boxed{" + "\\text{a}" * 120 + "}",
        "\\boxed{" * 50_000,
        "\\boxed{" + "{" * 200_000,
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
