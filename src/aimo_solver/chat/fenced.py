r"""Turns of models without tool training: Python in Markdown blocks, run as soon as a block closes.

    ... ```python\n{code}\n```\n```output\n{output}\n```\n ...

The model continues in the same turn, as tool-integrated reasoning models (ToRA, Qwen2.5-Math, OpenMath-Nemotron) were trained.
The engine stops at every fence; `parse` finds those that close Python.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from aimo_solver.chat.model_folder import ModelFolder
from aimo_solver.chat.prompts import ANSWER_NOW, FENCED_TOOL, TIME_UP, Prompt, join_texts, no_result
from aimo_solver.chat.reading import after_thoughts, ends_with_answer, has_answer
from aimo_solver.chat.template import TemplateFormat
from aimo_solver.chat.turns import FinalText, Malformed, ToolCalls, Turn

_FENCE = re.compile(
    r"^(?P<indent>[ \t]*+(?:(?:[-*+]|\d++[.)])[ \t]++)?+)(?P<fence>`{3,}+|~{3,}+)[ \t]*+(?P<info>[^\n`]*+)(?:\n|\Z)", re.MULTILINE
)
_TAG = re.compile(r"<(?P<end>/?)(?P<name>code|tool_call)>")
_LONGEST_INDENT = 100  # characters; the rest of a fence's indentation is ignored
_PYTHON = frozenset({"python", "python3", "py", "ipython", "sage"})


@dataclass(slots=True)  # not frozen: a degenerate turn has tens of thousands, and freezing doubles the cost of each
class _Block:
    """A block of code from `start` to `end` of the text. `closed` says whether it has a closing fence."""

    info: str
    code: str
    start: int
    end: int
    closed: bool

    @property
    def is_python(self) -> bool:
        return self.info.strip().lower().split(" ")[0].strip("{}.") in _PYTHON


class FencedFormat(TemplateFormat):
    """Any model with a chat template; Python runs in Markdown blocks."""

    name = "fenced"
    stop_strings: tuple[str, ...] = ("```\n", "```output", "</code>", "</tool_call>")

    def __init__(self, folder: ModelFolder) -> None:
        """Raises ModelError if the folder's chat template or tokenizer cannot be used."""
        super().__init__(folder, folder.eos)

    def prompt(self, prompt: Prompt) -> list[int]:
        """Returns the tokens of a new conversation, with all instructions but `prompt.system` in the user's message.

        The authors of DeepSeek-R1 advise against a system message, and other models of this family are trained without tools.
        """
        tool = "" if prompt.tool is None else f"{FENCED_TOOL} {prompt.tool}"
        return self._open(prompt.system, join_texts(prompt.identity, prompt.developer, prompt.user, tool), None)

    def parse(self, sampled: Sequence[int]) -> Turn:
        text, ended = self._text(sampled)
        runnable = [block for block in _blocks(text) if block.is_python and block.code.strip()]
        if not ended:
            return ToolCalls.first_of([block.code for block in runnable if block.closed], None)
        if runnable and not has_answer(text[runnable[-1].end :]):
            note = "a block that the turn did not stop at" if runnable[-1].closed else "an unclosed last block"
            return ToolCalls.first_of([block.code for block in runnable], note)
        closed = "</think>" in text
        after = after_thoughts(text, "</think>") if closed else text
        final, opened, _ = after.partition("<think>")
        if (opened and not has_answer(final)) or (self._thinks and not closed and not ends_with_answer(final)):
            return Malformed("Your turn ended inside your thoughts, without code and without a final text.")
        return FinalText(final.strip()) if final.strip() else Malformed("Your turn was empty.")

    def tool_results(self, sampled: Sequence[int], outputs: Sequence[str]) -> list[int]:
        if not outputs:
            return []
        text, ended = self._text(sampled)
        if ended:
            return self._user_turn(sampled, "".join(map(_output, outputs)))
        if text.rstrip().endswith("```output"):  # the model has opened the first block
            return self._tokenizer.encode("".join([_output(outputs[0], opened=True), *map(_output, outputs[1:])]))
        return self._tokenizer.encode(("" if text.endswith("\n") else "\n") + "".join(map(_output, outputs)))

    def ask_answer(self, sampled: Sequence[int], why: str = TIME_UP) -> list[int]:
        plain = self._tokenizer.encode
        text, ended = self._text(sampled)
        blocks = _blocks(text)
        thinking = ("<think>" in text or self._thinks) and "</think>" not in text
        tokens: list[int] = []
        if ended:
            tokens = self._user_turn(sampled, ANSWER_NOW.format(why=why))
            thinking = self._thinks
        elif blocks and not blocks[-1].closed:
            tokens = plain(f"\n```\n{_output(no_result(why))}\n")
        elif blocks and blocks[-1].is_python and not text[blocks[-1].end :].strip():
            tokens = plain(f"\n{_output(no_result(why))}\n")
        elif sampled:
            tokens = plain("\n\n")
        return [*tokens, *self._open_answer(why, thinking=thinking)]


def _blocks(text: str) -> list[_Block]:
    """The blocks of a text, in the order of their ends: fences, also indented (in lists), ``<code>`` and ``<tool_call>`` tags."""
    fenced = _fenced_blocks(text)
    starts = [block.start for block in fenced]

    def is_own(tagged: _Block) -> bool:
        """Whether no fence opens inside the tags, and the tags are not part of fenced code."""
        before = bisect_left(starts, tagged.start)
        inside = before > 0 and fenced[before - 1].closed and tagged.start < fenced[before - 1].end
        return not inside and before == bisect_left(starts, tagged.end)

    return sorted([*fenced, *filter(is_own, _tagged_blocks(text))], key=lambda block: block.end)


def _fenced_blocks(text: str) -> list[_Block]:
    blocks: list[_Block] = []
    opened: re.Match[str] | None = None
    for line in _FENCE.finditer(text):
        info = line["info"].strip()
        if opened is None:
            opened = line
        elif info in ("", "output") and line["fence"].startswith(opened["fence"]):
            code = _dedent(text[opened.end() : line.start()], opened["indent"])
            blocks.append(_Block(opened["info"], code, opened.start(), line.end(), True))
            opened = line if info else None  # some models close a block by opening its output
    if opened is not None:
        code = _dedent(text[opened.end() :], opened["indent"])
        blocks.append(_Block(opened["info"], code, opened.start(), len(text), False))
    return blocks


def _tagged_blocks(text: str) -> Iterator[_Block]:
    last = {name: text.rfind(f"</{name}>") for name in ("code", "tool_call")}
    opened: re.Match[str] | None = None
    for tag in _TAG.finditer(text):
        if opened is None:
            if not tag["end"] and tag.start() < last[tag["name"]]:
                opened = tag
        elif tag["end"] and tag["name"] == opened["name"]:
            yield _Block("python", text[opened.end() : tag.start()].strip("\n"), opened.start(), tag.end(), True)
            opened = None


def _dedent(code: str, indent: str) -> str:
    """The code without the indentation of its fence, as CommonMark defines it."""
    if not indent:
        return code
    prefix = re.sub(r"\S", " ", indent[:_LONGEST_INDENT])
    return re.sub(rf"^(?:{re.escape(prefix)}|[ \t]{{0,{len(prefix)}}}+)", "", code, flags=re.MULTILINE)


def _output(output: str, *, opened: bool = False) -> str:
    """An output block, with a fence longer than any fence inside."""
    longest = max((len(run) for run in re.findall(r"`{3,}", output)), default=2)
    fence = "`" * max(3, longest + 1) if not opened else "```"
    start = "" if opened else f"{fence}output"
    return f"{start}\n{output.rstrip()}\n{fence}\n"
