"""What a kernel tells about a call: the value's text, a short traceback, and which statement failed. Runs inside the kernel."""

from __future__ import annotations

import ast
import importlib.util
import re
import traceback
from types import TracebackType
from typing import Any

from IPython.lib import pretty

TEXT_CHARS = 100_000  # longest value or message that leaves the kernel
_CELL = re.compile(r"<cell \d+>")
_ANSI = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
_EDGE_FRAMES = 6  # of the model's own frames, kept at either end of a traceback
_SHOWN_BITS = 400_000  # longer integers are shown by their ends; text of all digits takes quadratic time
_EDGE_DIGITS = 50


def cell_name(number: int) -> str:
    """The file name under which a cell is compiled."""
    return f"<cell {number}>"


def plain(text: str) -> str:
    """Without colours."""
    return _ANSI.sub("", text)


def cut(text: str, limit: int = TEXT_CHARS) -> str:
    """Cut in the middle, with a note, to about `limit` characters."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half:,} characters left out ...]\n{text[-half:]}"


def value_text(value: object) -> str:
    """As a notebook shows it. Raises whatever the value's own repr raises."""
    return cut(pretty.pretty(value, max_width=120))


def _print_int(value: int, printer: Any, cycle: bool) -> None:
    del cycle
    if value.bit_length() <= _SHOWN_BITS:
        printer.text(repr(value))
        return
    import mpmath

    size = abs(value)
    with mpmath.workdps(_EDGE_DIGITS + 20):
        shift = max(size.bit_length() - 1_000, 0)
        log = mpmath.log10(size >> shift) + shift * mpmath.log10(2)
        digits = int(log) + 1
        head = int(mpmath.power(10, log - int(log) + _EDGE_DIGITS - 1))
    tail = f"{size % 10**_EDGE_DIGITS:0{_EDGE_DIGITS}}"
    sign = "-" if value < 0 else ""
    printer.text(f"{sign}{head}...{tail}  [an integer of {digits:,} digits, its middle left out]")


pretty.for_type(int, _print_int)


def error_text(error: BaseException, source: str, name: str) -> str:
    """A short traceback of `error`, raised in the cell `name` with the (transformed) `source`. `ErrorName: message` stands last."""
    if isinstance(error, SyntaxError) and not _raised_in_cells(error.__traceback__):
        return cut("".join([*traceback.format_exception_only(error)[:-1], "[nothing of this cell was run]\n", _last_line(error)]))
    missing = _missing_package(error)
    if missing is not None:
        return f"{_last_line(error)} (package {missing!r} is not installed here and cannot be; do without it)"
    lines = ["Traceback (most recent call last):", *_frames(error.__traceback__)]
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        lines.append(f"[while handling {cut(_last_line(cause), 500)}]")
    statement = _failed_statement(error.__traceback__, source, name)
    if statement is not None:
        lines.append(statement)
    return "\n".join([*lines, cut(_last_line(error))])


def _last_line(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception as broken:  # noqa: BLE001 - an exception whose own __str__ fails
        text = f"<its message cannot be shown: {type(broken).__name__}>"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _missing_package(error: BaseException) -> str | None:
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    package = error.name.partition(".")[0]
    try:
        return None if importlib.util.find_spec(package) else package
    except (ImportError, ValueError):
        return None


def _raised_in_cells(tb: TracebackType | None) -> bool:
    return any(_CELL.fullmatch(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(tb))


def _frames(tb: TracebackType | None) -> list[str]:
    """The frames of the model's own code, and the last one of a library below each."""
    summary = traceback.extract_tb(tb)
    own = [i for i, frame in enumerate(summary) if _CELL.fullmatch(frame.filename)]
    if not own:
        return [line.rstrip("\n") for line in traceback.StackSummary.from_list(summary[-2:]).format()]
    kept = [i for i in range(own[0], len(summary)) if i in set(own) or i == len(summary) - 1 or i + 1 in set(own)]
    shown: list[str] = []
    skipped = 0
    for place, i in enumerate(kept):
        if _EDGE_FRAMES <= place < len(kept) - _EDGE_FRAMES:
            skipped += 1
            continue
        if skipped:
            shown.append(f"  [{skipped} frames left out]")
            skipped = 0
        elif place and i - kept[place - 1] > 1:
            shown.append(f"  [{i - kept[place - 1] - 1} library frames left out]")
        frame = summary[i]
        shown.append(f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}')
        if frame.line:
            shown.append(f"    {cut(frame.line.strip(), 300)}")
    return shown


def _failed_statement(tb: TracebackType | None, source: str, name: str) -> str | None:
    line = next((number for frame, number in traceback.walk_tb(tb) if frame.f_code.co_filename == name), None)
    if line is None:
        return None
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError):  # top-level await is fine for ast, so this is code that never compiled
        return None
    for number, statement in enumerate(body, start=1):
        if statement.lineno <= line <= (statement.end_lineno or statement.lineno) or _decorated(statement, line):
            if len(body) == 1:
                return None
            kept = "" if number == 1 else "; what the statements before it did is kept"
            return f"[statement {number} of {len(body)} failed, at line {line}{kept}]"
    return None


def _decorated(statement: ast.stmt, line: int) -> bool:
    return any(d.lineno <= line <= (d.end_lineno or d.lineno) for d in getattr(statement, "decorator_list", ()))
