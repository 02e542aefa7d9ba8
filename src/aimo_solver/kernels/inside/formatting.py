"""Formats values and errors of a cell for the reply: a value's text, a short traceback, the statement that failed."""

from __future__ import annotations

import ast
import importlib.util
import linecache
import math
import re
import traceback
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any

from IPython.lib import pretty

from aimo_solver.kernels.text import cut_middle

_TEXT_CHARS = 100_000  # longest value or message in a reply
_LINE_CHARS = 300
_WIDTH = 120
_EDGE_FRAMES = 5  # shown at either end of a long traceback
_SHOWN_BITS = 400_000  # of longer integers only the ends are shown: converting all digits takes quadratic time
_EDGE_DIGITS = 50

_CELL = re.compile(r"<cell \d+>")  # the file name of a cell
_LIBRARY = re.compile(r".*/(?:site-packages|dist-packages|python3\.\d+)/")
_OWN = str(Path(__file__).parent)


def clean(text: str, limit: int = _TEXT_CHARS) -> str:
    """Cuts the middle out of text longer than `limit` characters, and escapes lone surrogates."""
    return cut_middle(text, limit).encode("utf-8", "backslashreplace").decode()


def format_value(value: object) -> str:
    """Returns the text that a notebook shows for a value. Raises what the value's own repr raises."""
    return clean(str(pretty.pretty(value, max_width=_WIDTH)))  # type: ignore[no-untyped-call]


def _print_int(value: int, printer: Any, cycle: bool) -> None:
    del cycle
    if value.bit_length() <= _SHOWN_BITS:
        printer.text(repr(value))
        return
    size = abs(value)
    digits = int((size.bit_length() - 1) * math.log10(2)) + 1  # or one less
    head = size // 10 ** (digits - _EDGE_DIGITS)
    if head >= 10**_EDGE_DIGITS:
        head, digits = head // 10, digits + 1
    elif head < 10 ** (_EDGE_DIGITS - 1):
        digits -= 1
    sign = "-" if value < 0 else ""
    tail = f"{size % 10**_EDGE_DIGITS:0{_EDGE_DIGITS}}"
    printer.text(f"{sign}{head}...{tail} [an integer of {digits:,} digits, its middle left out]")


pretty.for_type(int, _print_int)  # type: ignore[no-untyped-call]


def format_error(error: BaseException, source: str, name: str) -> str:
    """Returns a short traceback of `error`, which ended the cell `name`. The last line is ``ErrorName: message``.

    Args:
        source: the cell's text as it was compiled.
    """
    frames = list(_frames(error.__traceback__))
    if isinstance(error, SyntaxError) and not any(_is_cell(code) for code, _ in frames):
        return clean(
            "".join([*traceback.format_exception_only(error)[:-1], "[nothing of this cell was run]\n", _last_line(error)])
        )
    missing = _missing_package(error)
    if missing is not None:
        return f"{_last_line(error)} (package {missing} is not installed here and cannot be installed)"
    lines = ["Traceback (most recent call last):", *_frame_lines(frames)]
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        lines.append(clean(f"[while handling {_last_line(cause)}]", _LINE_CHARS))
    lines += _failed_statement(source, name, error.__traceback__)
    return "\n".join([*lines, _last_line(error)])


def _frames(tb: TracebackType | None) -> Iterator[tuple[CodeType, int]]:
    frame: FrameType
    for frame, line in traceback.walk_tb(tb):
        if not frame.f_code.co_filename.startswith(_OWN):
            yield frame.f_code, line


def _is_cell(code: CodeType) -> bool:
    return _CELL.fullmatch(code.co_filename) is not None


def _last_line(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception as broken:  # noqa: BLE001 - an exception's own __str__ can raise anything
        text = f"<its message cannot be shown: {type(broken).__name__}>"
    return clean(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def _missing_package(error: BaseException) -> str | None:
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    package = error.name.partition(".")[0]
    try:
        return None if importlib.util.find_spec(package) else package
    except (ImportError, ValueError):
        return None


def _frame_lines(frames: list[tuple[CodeType, int]]) -> Iterator[str]:
    """Shows the frames of cells, and below each the innermost frame of a library."""
    cells = [i for i, (code, _) in enumerate(frames) if _is_cell(code)]
    first = cells[0] if cells else max(len(frames) - 2, 0)
    kept = [i for i in range(first, len(frames)) if _is_cell(frames[i][0]) or i + 1 == len(frames) or _is_cell(frames[i + 1][0])]
    if len(kept) > 2 * _EDGE_FRAMES:
        kept = kept[:_EDGE_FRAMES] + kept[-_EDGE_FRAMES:]
    before = first - 1
    for i in kept:
        if i - before > 1:
            yield f"  [{i - before - 1:,} frames left out]"
        before = i
        code, line = frames[i]
        yield f'  File "{_LIBRARY.sub("", code.co_filename)}", line {line}, in {code.co_name}'
        text = linecache.getline(code.co_filename, line).strip()
        if text:
            yield f"    {clean(text, _LINE_CHARS)}"


def _failed_statement(source: str, name: str, tb: TracebackType | None) -> Iterator[str]:
    while tb is not None and tb.tb_frame.f_code.co_filename != name:
        tb = tb.tb_next
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError):
        return
    if tb is None or len(body) < 2:
        return
    _, _, column, _ = next(islice(tb.tb_frame.f_code.co_positions(), tb.tb_lasti // 2, None))
    place = tb.tb_lineno, column or 0
    for number, statement in enumerate(body, start=1):
        first = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", ()))])
        if (first, 0) <= place < (statement.end_lineno or first, statement.end_col_offset or 0):
            kept = "; what the statements before it did is kept" if number > 1 else ""
            yield f"[statement {number} of {len(body)} failed, at line {tb.tb_lineno}{kept}]"
            return
