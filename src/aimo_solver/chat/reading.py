"""Decides what a turn is, once its parts are found: calls, a final text, or malformed.

An answer counts even if the same turn has a call that cannot be read, or a tag without a call.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from aimo_solver.answers import Reading, last_box, read_answer
from aimo_solver.chat.prompts import TOOL
from aimo_solver.chat.salvage import LONGEST_NAME, Code, python_blocks
from aimo_solver.chat.turns import MAX_CALLS, FinalText, Malformed, ToolCalls, Turn

PYTHON_NAMES = frozenset({TOOL, f"functions.{TOOL}"})
"""Names of the tool."""

_MOST_ENDS = 8  # ends of thoughts that are tried in one turn
_LONGEST_BOX = 200  # characters; a longer box is not a plain number

_Call = TypeVar("_Call")
_Part = TypeVar("_Part")


def read_calls(
    calls: Sequence[tuple[_Call, bool]],
    split: Callable[[_Call], Sequence[_Part]],
    read: Callable[[_Part], Code | Malformed],
    text: Callable[[], str],
    note: str | None = None,
) -> Turn:
    """Reads the first `MAX_CALLS` calls of a turn; each comes with whether its end was written.

    If `read` returns `Malformed` for one, the turn is its final text if that has an answer, and otherwise malformed.

    Args:
        split: returns the calls that one call holds.
        text: returns the final text beside the calls; called if one of them cannot be read.
        note: what else was repaired.
    """
    first = calls[:MAX_CALLS]
    single = [(part, ended) for call, ended in first for part in split(call)]
    notes = [note, "several calls in one" if len(single) > len(first) else None]
    codes: list[str] = []
    for call, ended in single[:MAX_CALLS]:
        code = read(call)
        if isinstance(code, Malformed):
            final = text()
            return FinalText(final.strip(), "an unreadable call beside the final text") if has_answer(final) else code
        codes.append(code.text)
        notes += [code.salvaged, None if ended else "the call's end was missing"]
    left_out = len(single) + len(calls) - len(first) - len(codes)
    return ToolCalls(tuple(codes), "; ".join(dict.fromkeys(filter(None, notes))) or None, left_out)


def read_text(text: str, find_calls: Callable[[str], Sequence[str]], read: Callable[[str], Code | Malformed]) -> Turn:
    """Reads a turn without calls: calls written as text, found by `find_calls`, Python blocks, or the final text."""
    text = text.strip()
    if not has_answer(text):
        turn = read_calls([(call, True) for call in find_calls(text)], lambda call: [call], read, lambda: text)
        if not isinstance(turn, ToolCalls) or not turn.codes:
            turn = ToolCalls.first_of(python_blocks(text), None)
        if turn.codes:
            return replace(turn, salvaged="code in the text instead of a tool call")
    return FinalText(text) if text else Malformed("Your turn was empty.")


def unknown_tool(name: str) -> Malformed:
    """Returns the reason for a call to a tool that does not exist."""
    return Malformed(f"There is no tool {name[:LONGEST_NAME]}; the only one is {TOOL}, which runs Python code.")


def after_thoughts(text: str, end: str) -> str:
    """Returns the text after the last end of the thoughts, or after an earlier one if only that text has an answer."""
    parts = [part for part in text.split(end)[1:] if part.strip()]
    return next(filter(has_answer, reversed(parts[-_MOST_ENDS:])), parts[-1] if parts else "")


def has_answer(text: str) -> bool:
    r"""Whether the last ``\boxed{...}`` in the text holds one number, and no question mark follows it."""
    after = _after_answer(text)
    return after is not None and not after.startswith("?")


def ends_with_answer(text: str) -> bool:
    """Whether the text ends with an answer. If words follow the answer, the model is still thinking."""
    after = _after_answer(text)
    return after is not None and re.search(r"[\w?]", after) is None


def _after_answer(text: str) -> str | None:
    """The text after the last box and its math delimiters; None if that box holds no number."""
    box = last_box(text)
    if box is None or len(box) > _LONGEST_BOX or read_answer(f"\\boxed{{{box}}}") == Reading():
        return None
    return text.rpartition(f"{box}}}")[2].lstrip("$\\)]* ")
