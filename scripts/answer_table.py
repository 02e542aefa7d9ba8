"""Compares `read_answer` with the math-verify library on the endings of tests/answer_endings.toml.

pip install -e '.[symbolic]'
python scripts/answer_table.py                               # the figures in docs/chat-formats.md
python scripts/answer_table.py --rows                        # with every ending that one of the two reads wrongly
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import sympy
import typer
from math_verify import parse, verify
from math_verify.errors import TimeoutException
from math_verify.utils import timeout

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.answer_endings import ENDINGS, Ending

from aimo_solver.answers import ANSWER_RANGE, extract_answer
from aimo_solver.problems import Answer


def read(ending: Ending) -> Answer | None:
    """Returns the answer that `aimo_solver` reads."""
    return extract_answer(ending.text)


def read_with_math_verify(ending: Ending) -> int | None:
    """Returns the right answer if math-verify considers the text equal to it, otherwise the integer in range that it reads.

    An equation, or a set of one number, counts as the number.
    """
    found = parse(ending.text)
    if ending.answer is not None and verify(parse(f"${ending.answer}$"), found):
        return ending.answer
    value = next(iter(found), None)
    if isinstance(value, sympy.Set) and len(value.args) == 1:
        value = value.args[0]
    if isinstance(value, sympy.Eq):
        value = value.rhs
    try:
        number = _evaluate(value) if isinstance(value, sympy.Expr) else None
    except (TimeoutException, RecursionError):  # 3!!!!
        return None
    return int(number) if number is not None and number.is_Number and number in ANSWER_RANGE else None


@timeout(5)  # type: ignore[untyped-decorator]
def _evaluate(value: sympy.Expr) -> sympy.Expr:
    return value.doit()


READERS: Mapping[str, Callable[[Ending], Answer | None]] = {"read_answer": read, "math-verify": read_with_math_verify}


def main(rows: Annotated[bool, typer.Option(help="print every ending that is read wrongly")] = False) -> None:
    """Prints, for both readers, how many endings give a wrong integer and how many answers are missed."""
    logging.disable()
    for name, reader in READERS.items():
        answers = [(ending, reader(ending)) for ending in ENDINGS]
        false = [(ending, answer) for ending, answer in answers if answer is not None and answer != ending.answer]
        missed = [(ending, answer) for ending, answer in answers if answer is None and ending.answer is not None]
        stated = sum(ending.answer is not None for ending in ENDINGS)
        print(
            f"{name}: of {len(ENDINGS)} endings {len(false)} give a wrong integer; of {stated} answers {len(missed)} are missed"
        )
        for ending, answer in (*false, *missed) if rows else ():
            print(f"  {ending.text!r}: {answer}, not {ending.answer}")


if __name__ == "__main__":
    typer.run(main)
