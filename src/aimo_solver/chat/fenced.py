"""Turns of models without tool training: Python in Markdown blocks, run as soon as a block closes.

    ... ```python\\n{code}\\n```\\n```output\\n{output}\\n```\\n ...

The model goes on in the same turn, as tool-integrated reasoning models (ToRA, Qwen2.5-Math, OpenMath-Nemotron) were
trained to. The engine stops at a fence, whether it closes Python or not; `parse` tells them apart.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from aimo_solver.chat.model_folder import ModelFolder
from aimo_solver.chat.prompts import ANSWER_NOW, COMPLAINT, FENCED_TOOL, FINAL_ANSWER, NOT_RUN, OUT_OF_TIME
from aimo_solver.chat.template import ChatTemplate
from aimo_solver.chat.turns import FinalText, Malformed, ToolCalls, Turn
from aimo_solver.errors import ModelError

_FENCE = re.compile(
    r"^(?P<indent>[ \t]*+(?:(?:[-*+]|\d++[.)])[ \t]++)?+)(?P<fence>`{3,}+|~{3,}+)[ \t]*+(?P<info>[^\n`]*+)(?:\n|\Z)", re.MULTILINE
)
_TAG = re.compile(r"<(?P<end>/?)(?P<name>code|tool_call)>")
_PYTHON = frozenset({"python", "python3", "py", "ipython", "sage"})


@dataclass(slots=True)  # not frozen: a degenerate turn has tens of thousands, and freezing doubles the cost of each
class _Block:
    """One block of code. `start` and `end` are its places in the text, `closed` says whether it has its closing fence."""

    info: str
    code: str
    start: int
    end: int
    closed: bool

    @property
    def is_python(self) -> bool:
        return self.info.strip().lower().split(" ")[0].strip("{}.") in _PYTHON


class FencedFormat:
    """Any model with a chat template; Python runs in Markdown blocks."""

    name = "fenced"
    stop_strings: tuple[str, ...] = ("```\n", "```output", "</code>", "</tool_call>")

    def __init__(self, folder: ModelFolder) -> None:
        """Raises ModelError if the folder's chat template or tokenizer cannot be used."""
        self._template = ChatTemplate(folder)
        self._tokenizer = folder.tokenizer
        eos = self._tokenizer.control(folder.eos)
        self.stop_token_ids = tuple(dict.fromkeys([*([] if eos is None else [eos]), *folder.stop_ids]))
        if not self.stop_token_ids:
            raise ModelError(folder.path, "names no end-of-turn token in tokenizer_config.json or generation_config.json")

    def prompt(self, system: str, user: str, *, tools: bool) -> list[int]:
        if tools and system:
            system = f"{system}\n\n{FENCED_TOOL}"
        elif tools:
            user = f"{user}\n\n{FENCED_TOOL}"
        return self._template.prompt(system, user, tools=False)

    def parse(self, sampled: Sequence[int], *, cut: bool) -> Turn:
        text, ended = self._text(sampled)
        blocks = _blocks(text)
        runnable = [block for block in blocks if block.info and block.is_python and block.code.strip()]
        closed = [block for block in runnable if block.closed]
        if cut:
            if closed:
                return ToolCalls.first_of([block.code for block in closed], "the turn was cut off behind its code")
            return Malformed("Your turn was cut off by the length limit before its end.")
        if not ended:
            return ToolCalls.first_of([block.code for block in closed], None)
        final = text.rpartition("</think>")[2]
        if runnable and "\\boxed" not in text[runnable[-1].end :]:
            note = "a block that the turn did not stop at" if runnable[-1].closed else "an unclosed last block"
            return ToolCalls.first_of([block.code for block in runnable], note)
        if "<think>" in final or (self._template.thinks and "</think>" not in text and "\\boxed" not in text):
            return Malformed("Your turn ended inside your thoughts, without code and without a final text.")
        return FinalText(final.strip()) if final.strip() else Malformed("Your turn was empty.")

    def tool_results(self, sampled: Sequence[int], outputs: Sequence[str]) -> list[int]:
        if not outputs:
            return []
        text, ended = self._text(sampled)
        if ended:
            return self._template.user_turn("".join(_output(output) for output in outputs), ended_with=sampled[-1])
        written = text.rstrip().endswith("```output")  # the model has opened the block itself
        opening = "" if written or text.endswith("\n") else "\n"
        shown = "".join(_output(output, opened=written and index == 0) for index, output in enumerate(outputs))
        return self._tokenizer.encode(opening + shown)

    def complaint(self, sampled: Sequence[int], reason: str) -> list[int]:
        _, ended = self._text(sampled)
        return self._template.user_turn(COMPLAINT.format(reason=reason), ended_with=sampled[-1] if ended else None)

    def ask_answer(self, sampled: Sequence[int]) -> list[int]:
        plain = self._tokenizer.encode
        text, ended = self._text(sampled)
        tokens: list[int] = []
        blocks = _blocks(text)
        thinking = ("<think>" in text or self._template.thinks) and "</think>" not in text
        if ended:
            tokens = self._template.user_turn(ANSWER_NOW, ended_with=sampled[-1])
            thinking = self._template.thinks
        elif blocks and not blocks[-1].closed:
            tokens = plain(f"\n```\n{_output(NOT_RUN)}\n")
        elif blocks and blocks[-1].is_python and not text[blocks[-1].end :].strip():
            tokens = plain(f"\n{_output(NOT_RUN)}\n")
        elif sampled:
            tokens = plain("\n\n")
        if thinking:
            tokens += [*plain(OUT_OF_TIME), *self._tokenizer.encode_template("\n</think>\n\n")]
        return [*tokens, *plain(FINAL_ANSWER)]

    def answer_text(self, sampled: Sequence[int]) -> str:
        text, ended = self._text(sampled)
        text = FINAL_ANSWER + text
        return text + "}" if ended and text.count("{") > text.count("}") else text

    def decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens)

    def _text(self, sampled: Sequence[int]) -> tuple[str, bool]:
        """The turn's text without its end-of-turn token, and whether it had one."""
        end = next((place for place, token in enumerate(sampled) if token in self.stop_token_ids), None)
        return self._tokenizer.decode(sampled if end is None else sampled[:end]), end is not None


def _blocks(text: str) -> list[_Block]:
    """The blocks of a text by their ends: fenced ones, indented ones (in lists), ``<code>`` and ``<tool_call>`` tags."""
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
            opened = line if info else None  # some close a block by opening its output
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
    """The code without the indentation that the fence has, as CommonMark has it."""
    if not indent:
        return code
    prefix = re.sub(r"\S", " ", indent)
    cleaned = []
    for line in code.split("\n"):
        spaces = len(line) - len(line.lstrip(" \t"))
        cleaned.append(line[len(prefix) if line.startswith(prefix) else min(len(prefix), spaces) :])
    return "\n".join(cleaned)


def _output(output: str, *, opened: bool = False) -> str:
    """An output block, fenced longer than any fence inside."""
    longest = max((len(run) for run in re.findall(r"`{3,}", output)), default=2)
    fence = "`" * max(3, longest + 1) if not opened else "```"
    start = "" if opened else f"{fence}output"
    return f"{start}\n{output.rstrip()}\n{fence}\n"
