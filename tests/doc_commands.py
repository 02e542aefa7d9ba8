"""Finds the commands in the docs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^\n((?: {4}\S.*\n)+)", re.MULTILINE)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
SEPARATORS = ("&&", "|", ";")
PROGRAMS = ("aimo-solver", "kaggle", "make", "mypy", "pip", "pytest", "python", "ruff", "sed")


@dataclass(frozen=True)
class Command:
    """One command of the docs. `whole` is False for code in a sentence, which may be only the name of a command."""

    file: Path
    words: tuple[str, ...]
    whole: bool

    def __str__(self) -> str:
        return f"{self.file.name}: {self.text}"

    @property
    def text(self) -> str:
        return shlex.join(self.words)

    @property
    def complete(self) -> bool:
        """Whether it can be run as it is, even if it is part of a sentence."""
        name = 2 if self.words[0] == "aimo-solver" else 1
        return self.whole or (self.words[0] in PROGRAMS and len(self.words) > name)

    @property
    def settings(self) -> list[str]:
        return [value for name, value in zip(self.words, self.words[1:], strict=False) if name == "--set"]

    @property
    def policies(self) -> list[str]:
        return [value for name, value in zip(self.words, self.words[1:], strict=False) if name == "--policy"]


def blocks(text: str, language: str) -> list[str]:
    return [code for found, code in FENCE.findall(text) if found == language]


def commands() -> Iterator[Command]:
    for file in DOCS:
        text = file.read_text(encoding="utf-8")
        prose = FENCE.sub("", text)
        typed = [line for block in (*blocks(text, "bash"), *INDENTED.findall(prose)) for line in block.splitlines()]
        for line, whole in [*((line, True) for line in typed), *((code, False) for code in INLINE.findall(prose))]:
            for words in _split(line):
                yield Command(file, words, whole)


def _split(line: str) -> Iterator[tuple[str, ...]]:
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return  # code in a sentence, not a command
    part: list[str] = []
    for word in [*words, ";"]:
        if word in SEPARATORS:
            while part and re.fullmatch(r"[A-Z_]+=.*", part[0]):
                del part[0]
            if part:
                yield tuple(part)
            part = []
        else:
            part.append(word)


ALL = list(commands())
OURS = [c for c in ALL if c.words[0] == "aimo-solver"]
SCRIPTS = [c for c in ALL if c.words[0] == "python" and len(c.words) > 1 and c.words[1].startswith("scripts/")]
