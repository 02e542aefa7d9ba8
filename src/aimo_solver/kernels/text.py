"""Text that comes out of a kernel: cut to a length, and rendered as a terminal shows it. Standard library only."""

from __future__ import annotations

import re

_PLAIN = re.compile(r"[^\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]*+")
_TOKEN = re.compile(
    r"\x1b\[([0-?]*+)[ -/]*+([@-~])"  # a control sequence: colours, cursor, erasing
    r"|\x1b[\]PX^_][^\x07\x1b\n]*+(?:\x07|\x1b\\)?"  # a string for the terminal itself, such as a title
    r"|\x1b[ -/]*[0-~]?"  # any other escape
    r"|[\n\r\b]"
    r"|[^\n\r\b\x1b]+"
)
_DROPPED = dict.fromkeys([*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0)])


def cut_middle(text: str, limit: int) -> str:
    """Returns the head and tail of a text, `limit` characters in total, with a note between them; shorter text is unchanged."""
    if len(text) <= limit:
        return text
    head = limit // 2
    tail = limit - head
    return f"{text[:head]}\n[... {len(text) - limit:,} characters left out ...]\n{text[len(text) - tail :]}"


def render_terminal(text: str) -> str:
    r"""Returns what a terminal would show after `text` was printed, in linear time.

    Escape sequences and control characters are removed. ``\r`` and ``\b`` overwrite, so that only the last state of a
    progress bar remains. Lone surrogates become question marks.
    """
    if _PLAIN.fullmatch(text):
        return text
    lines: list[str] = []
    line: list[str] = []
    column = 0
    for token in _TOKEN.finditer(text.replace("\v", "\n").replace("\f", "\n")):
        shown = token[0]
        if shown == "\n":
            lines.append("".join(line))
            line, column = [], 0
        elif shown == "\r":
            column = 0
        elif shown == "\b":
            column = max(0, column - 1)
        elif token[2] == "K":  # erases to the end of the line, or the whole line
            del line[0 if token[1] == "2" else column :]
            column = min(column, len(line))
        elif shown[0] != "\x1b":
            shown = shown.translate(_DROPPED)
            line[column : column + len(shown)] = shown
            column += len(shown)
    lines.append("".join(line))
    return "\n".join(lines).encode("utf-8", "replace").decode()
