"""Mending what models write almost right: code with stray fences, code in the wrong place, cut or broken strings."""

from __future__ import annotations

import ast
import re
import warnings

_FENCED = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*(?:python3?|py|ipython|Python)?[ \t]*\n(.*?)(?:\n[ \t]*\1[ \t]*|\Z)$", re.DOTALL)
_PYTHON_BLOCK = re.compile(r"^[ \t]*```[ \t]*(?:python3?|py|Python)[ \t]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE)


def compiles(code: str) -> bool:
    """Whether the code is Python by itself, without a notebook's magics."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def without_fences(code: str) -> str:
    """Code without a Markdown fence around it; code that is Python as it stands is never touched."""
    stripped = code.strip()
    if not stripped.startswith(("```", "~~~")) or compiles(code):
        return code
    place = _FENCED.match(stripped)
    return place.group(2) if place else code


def python_blocks(text: str) -> list[str]:
    """The code of the closed ```python blocks of a text."""
    return [place.group(1) for place in _PYTHON_BLOCK.finditer(text) if place.group(1).strip()]
