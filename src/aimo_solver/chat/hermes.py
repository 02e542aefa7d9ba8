"""Qwen's and other Hermes-style turns: thoughts in ``<think>``, calls in ``<tool_call>``, results in a user turn.

    <|im_start|>assistant\\n<think>\\n...\\n</think>\\n\\n
    <tool_call>\\n{"name": "python", "arguments": {"code": "..."}}\\n</tool_call><|im_end|>\\n
    <|im_start|>user\\n<tool_response>\\n...\\n</tool_response><|im_end|>\\n<|im_start|>assistant\\n

Qwen3-Coder and Qwen3.5 write the call as ``<function=python>\\n<parameter=code>\\n...\\n</parameter>\\n</function>``; both
are read. Prompt and results are rendered by the model's own template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from aimo_solver.chat.model_folder import ModelFolder
from aimo_solver.chat.prompts import ANSWER_NOW, COMPLAINT, FINAL_ANSWER, NOT_RUN, OUT_OF_TIME, PYTHON_TOOL
from aimo_solver.chat.salvage import CODE_KEYS, Code, bare_code, code_in_json, compiles, python_blocks
from aimo_solver.chat.template import ChatTemplate
from aimo_solver.chat.turns import MAX_CALLS, FinalText, Malformed, ToolCall, ToolCalls, Turn
from aimo_solver.errors import ModelError

# Each tag becomes one character that no decoded text holds, so that a tag spelled out inside code is just text where
# the tag is a token of its own.
_TAGS = {"<think>": "\udc01", "</think>": "\udc02", "<tool_call>": "\udc03", "</tool_call>": "\udc04"}
_THINK, _END_THINK, _CALL, _END_CALL = _TAGS.values()
_CALLS = re.compile(rf"{_CALL}([^{_CALL}{_END_CALL}{_THINK}{_END_THINK}]*)({_END_CALL}?)")
_FUNCTION = re.compile(r"<function\s*=\s*([^>\s]*)\s*>?(.*)", re.DOTALL)
_PARAMETER = re.compile(r"<\s*+parameter\s*+=([^<>]*+)>")
_BARE_CALL = re.compile(r'\A\s*(\{\s*"name"\s*:\s*"[\w.]+"\s*,\s*"(?:arguments|parameters)".*)\Z', re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Split:
    """A turn taken apart. `content` is what follows the thoughts, calls excepted; `calls` are insides and whether closed."""

    content: str
    calls: list[tuple[str, bool]]
    in_thought: bool


class HermesFormat:
    """Models that follow Nous Hermes's tool calls: Qwen2.5, Qwen3, Qwen3.5 and fine-tunes of them."""

    name = "hermes"
    stop_strings: tuple[str, ...] = ()

    def __init__(self, folder: ModelFolder) -> None:
        """Raises ModelError if the folder's chat template or tokenizer cannot be used."""
        self._template = ChatTemplate(folder)
        self._tokenizer = folder.tokenizer
        self._tags = {number: mark for tag, mark in _TAGS.items() if (number := self._tokenizer.control(tag)) is not None}
        self._spelled = {tag: mark for tag, mark in _TAGS.items() if self._tokenizer.control(tag) is None}
        names = ("<|im_end|>", "<|endoftext|>")
        ends = [number for name in names if (number := self._tokenizer.control(name)) is not None]
        self.stop_token_ids = tuple(dict.fromkeys([*ends, *folder.stop_ids]))
        if not self.stop_token_ids:
            raise ModelError(folder.path, "names no end-of-turn token in its tokenizer or generation_config.json")

    def prompt(self, system: str, user: str, *, tools: bool) -> list[int]:
        return self._template.prompt(system, user, tools=tools)

    def parse(self, sampled: Sequence[int], *, cut: bool) -> Turn:
        split = self._split(sampled)
        if split.calls:
            return _tool_calls(split.calls, cut=cut)
        if cut:
            return Malformed("Your turn was cut off by the length limit before its end.")
        if split.in_thought:
            return Malformed("Your turn ended inside your thoughts, without a tool call and without a final text.")
        text = split.content.strip()
        if "\\boxed" not in text:
            bare = _BARE_CALL.match(text)
            code = code_in_json(bare.group(1)) if bare else _code_of(text) if "<function=" in text else None
            blocks = [code.text] if code else python_blocks(text)
            if blocks:
                return ToolCalls.first_of(blocks, "code in the text instead of a tool call")
        return FinalText(text) if text else Malformed("Your turn was empty.")

    def tool_results(self, sampled: Sequence[int], outputs: Sequence[str]) -> list[int]:
        tail = self._template.after_reply("tool", outputs, ended_with=sampled[-1] if self._ended(sampled) else None)
        if tail is not None:
            return tail
        text = "\n".join(f"<tool_response>\n{output}\n</tool_response>" for output in outputs)
        return self._user_turn(sampled, text)

    def complaint(self, sampled: Sequence[int], reason: str) -> list[int]:
        text = COMPLAINT.format(reason=reason)
        if self._split(sampled).calls:
            return self.tool_results(sampled, [text])
        return self._user_turn(sampled, text)

    def ask_answer(self, sampled: Sequence[int]) -> list[int]:
        template, plain = self._tokenizer.encode_template, self._tokenizer.encode
        split = self._split(sampled)
        tokens: list[int] = []
        thinking = split.in_thought
        if split.calls:
            close = [] if split.calls[-1][1] or self._ended(sampled) else template("\n</tool_call>")
            tokens = [*close, *self.tool_results([*sampled, *close], [NOT_RUN] * min(len(split.calls), MAX_CALLS))]
            thinking = self._template.thinks
        elif self._ended(sampled):
            tokens = self._user_turn(sampled, ANSWER_NOW)
            thinking = self._template.thinks
        elif sampled:
            tokens = plain("\n\n")
        if thinking:
            tokens += [*plain(OUT_OF_TIME), *template("\n</think>\n\n")]
        return [*tokens, *plain(FINAL_ANSWER)]

    def answer_text(self, sampled: Sequence[int]) -> str:
        ended = self._ended(sampled)
        text = FINAL_ANSWER + self._tokenizer.decode(sampled[:-1] if ended else sampled)
        return text + "}" if ended and text.count("{") > text.count("}") else text

    def decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens)

    def _ended(self, sampled: Sequence[int]) -> bool:
        return bool(sampled) and sampled[-1] in self.stop_token_ids

    def _split(self, sampled: Sequence[int]) -> _Split:
        text = self._marked(sampled)
        calls = [(place.group(1), bool(place.group(2))) for place in _CALLS.finditer(text)]
        _, closed, after = text.rpartition(_END_THINK)
        content = _CALLS.sub("", after) if closed else _CALLS.sub("", text)
        opened = self._template.thinks or _THINK in text
        in_thought = _THINK in after if closed else opened
        return _Split(re.sub(f"[{''.join(_TAGS.values())}]", "", content), calls, in_thought)

    def _marked(self, sampled: Sequence[int]) -> str:
        """The turn's text with every tag as its one character."""
        pieces: list[str] = []
        run: list[int] = []
        for token in sampled:
            if token in self.stop_token_ids:
                break
            if token in self._tags:
                pieces += [self._tokenizer.decode(run), self._tags[token]]
                run = []
            else:
                run.append(token)
        text = "".join([*pieces, self._tokenizer.decode(run)])
        for tag, mark in self._spelled.items():
            text = text.replace(tag, mark)
        return text

    def _user_turn(self, sampled: Sequence[int], text: str) -> list[int]:
        return self._template.user_turn(text, ended_with=sampled[-1] if self._ended(sampled) else None)


def _tool_calls(found: Sequence[tuple[str, bool]], *, cut: bool) -> Turn:
    codes: list[str] = []
    notes: list[str] = []
    written = [call for call in found if call[0].strip()]
    if written and len(written) < len(found):
        found, notes = written, ["a tag too much"]
    for index, (inside, closed) in enumerate(found[:MAX_CALLS]):
        if cut and not closed and index == len(found) - 1:
            if not codes:
                return Malformed("Your call was cut off by the length limit; send shorter code.")
            notes.append("a second call was cut off")
            break
        code = _code_of(inside)
        if code is None:
            return Malformed(
                f'Your call could not be read. Write it as {{"name": "{PYTHON_TOOL.name}", '
                f'"arguments": {{"{PYTHON_TOOL.parameter}": "..."}}}} inside the tool-call tags.'
            )
        codes.append(code.text)
        notes += [note for note in (code.mended, None if closed else "the call's end was missing") if note]
    return ToolCalls(tuple(map(ToolCall, codes)), "; ".join(dict.fromkeys(notes)) or None, max(0, len(found) - MAX_CALLS))


def _code_of(inside: str) -> Code | None:
    """The code of one call, in JSON, in Qwen's XML, or as it is."""
    text = inside.strip()
    if text.startswith("{"):
        return _json_code(text)
    function = _FUNCTION.search(text)
    if function is not None:
        return _xml_code(function.group(1), function.group(2)) or _code_between_tags(function.group(2))
    found = code_in_json(text[text.index("{") :]) if re.match(r"[^\w{]*+(?:json[^\w{]*+)?+\{", text) else None
    if found is not None:
        return Code(found.text, found.mended or "a call in another form")
    bare = bare_code(text)
    return Code(bare.text, "bare code in the call") if bare is not None and compiles(bare.text) else None


def _json_code(text: str) -> Code | None:
    try:
        value = json.loads(text)
        exact = value["name"] == PYTHON_TOOL.name and isinstance(value["arguments"][PYTHON_TOOL.parameter], str)
    except (ValueError, RecursionError, KeyError, TypeError):
        exact = False
    if exact:
        return bare_code(value["arguments"][PYTHON_TOOL.parameter])
    found = code_in_json(text)
    name = re.search(r"""["']?name["']?\s*:\s*["']([^"']*)["']""", text)
    if found is None or (name is not None and name.group(1) != PYTHON_TOOL.name and not compiles(found.text)):
        return None
    return Code(found.text, found.mended or "a call in another form")


def _xml_code(name: str, body: str) -> Code | None:
    values: dict[str, str] = {}
    exact = name == PYTHON_TOOL.name
    places = list(_PARAMETER.finditer(body))
    ends = [*(place.start() for place in places[1:]), len(body)]
    for place, end_of_value in zip(places, ends, strict=False):
        value = body[place.end() : end_of_value]
        end = value.rfind("</parameter>")
        if end < 0:
            value = value.partition("</function>")[0].rstrip()
            last = value.rfind("\n") + 1
            end = last if value.startswith("</", last) else len(value)  # its own tag, misspelled
            exact = False
        key = place.group(1).strip().lower()
        values[key] = value[:end].removeprefix("\n").removesuffix("\n")
        exact = exact and place.group() == f"<parameter={key}>"
    for key in (*CODE_KEYS, *values):
        if key in values:
            exact = exact and key == PYTHON_TOOL.parameter
            return bare_code(values[key], None if exact else "a call in another form")
    return None


def _code_between_tags(body: str) -> Code | None:
    """Code in ``<function=...>`` without a parameter, or with one whose tags are not written as they should be."""
    code, closed, _ = body.rpartition("</function>")
    if not closed:
        return None
    opening, _, rest = code.partition(">")
    if opening.lstrip().startswith("<") and "\n" not in opening.strip():
        code = rest.rpartition("</")[0] or rest
    bare = bare_code(code.strip("\n"), "a call in another form")
    return bare if bare is not None and compiles(bare.text) else None
