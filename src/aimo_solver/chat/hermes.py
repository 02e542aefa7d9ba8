r"""Turns of Qwen and other Hermes-style models: thoughts in ``<think>``, calls in ``<tool_call>``, results in a user turn.

    <|im_start|>assistant\n<think>\n...\n</think>\n\n
    <tool_call>\n{"name": "python", "arguments": {"code": "..."}}\n</tool_call><|im_end|>\n
    <|im_start|>user\n<tool_response>\n...\n</tool_response><|im_end|>\n<|im_start|>assistant\n

Qwen3-Coder and Qwen3.5 write the call as ``<function=python>\n<parameter=code>\n...\n</parameter>\n</function>``; both
forms are read. The model's own template renders the prompt and the results.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from aimo_solver.chat.model_folder import ModelFolder
from aimo_solver.chat.prompts import ANSWER_NOW, COMPLAINT, TIME_UP, TOOL, TOOL_PARAMETER, no_result
from aimo_solver.chat.reading import PYTHON_NAMES, after_thoughts, has_answer, read_calls, read_text, unknown_tool
from aimo_solver.chat.salvage import CODE_KEYS, Code, bare_code, calls_in_json, code_in_json, compiles, is_program, name_in_json
from aimo_solver.chat.template import TemplateFormat
from aimo_solver.chat.turns import MAX_CALLS, Malformed, Turn

# Each tag is replaced by one character that no decoded text contains. Where a tag is a single token, the same tag spelled
# out in code stays text.
TAGS = {"<think>": "\udc01", "</think>": "\udc02", "<tool_call>": "\udc03", "</tool_call>": "\udc04"}
_THINK, _END_THINK, _CALL, _END_CALL = TAGS.values()
_CALLS = re.compile(rf"{_CALL}([^{_CALL}{_END_CALL}{_THINK}{_END_THINK}]*)({_END_CALL}?)")
_FUNCTION = re.compile(r"<function\s*=\s*([^>\s]*)\s*>?(.*)", re.DOTALL)
_NEXT_FUNCTION = re.compile(r"(?<=</function>)\s*+(?=<function\s*+=)")
_PARAMETER = re.compile(r"<\s*+parameter\s*+=([^<>]*+)>")
_BARE_CALL = re.compile(r'\s*+\[?+\s*+\{\s*+"name"\s*+:\s*+"[\w.]++"\s*+,\s*+"(?:arguments|parameters)"')
_OTHER_FORM = "a call in another form"
_LONGEST_GAP = 100  # characters of white space between two parameters
_UNREADABLE = Malformed(
    f'Your call could not be read. Write it as {{"name": "{TOOL}", '
    f'"arguments": {{"{TOOL_PARAMETER}": "..."}}}} inside the tool-call tags.'
)


@dataclass(frozen=True, slots=True)
class _Split:
    """The parts of a turn.

    Attributes:
        content: the text after the thoughts, without calls, up to where another thought begins.
        rest: the same, with calls that are not closed: the text may only mention their tag.
        calls: the text of each call, and whether it is closed.
    """

    content: str
    rest: str
    calls: list[tuple[str, bool]]
    in_thought: bool


class HermesFormat(TemplateFormat):
    """Models with Nous Hermes's tool calls: Qwen2.5, Qwen3, Qwen3.5 and fine-tunes of them."""

    name = "hermes"

    def __init__(self, folder: ModelFolder) -> None:
        """Raises ModelError if the folder's chat template or tokenizer cannot be used."""
        super().__init__(folder, "<|im_end|>", "<|endoftext|>")
        controls = self._tokenizer.controls
        self._tags = {controls[tag]: mark for tag, mark in TAGS.items() if tag in controls}
        self._spelled = {tag: mark for tag, mark in TAGS.items() if tag not in controls}

    def parse(self, sampled: Sequence[int]) -> Turn:
        split = self._split(sampled)
        if split.calls:
            written = [(text, closed) for text, closed in split.calls if text.strip()]
            note = "a tag too many" if 0 < len(written) < len(split.calls) else None
            return read_calls(written or split.calls, _split_call, _code_of, lambda: split.rest, note)
        if split.in_thought and not has_answer(split.content):
            return Malformed("Your turn ended inside your thoughts, without a tool call and without a final text.")
        return read_text(split.content, _untagged_calls, _code_of)

    def tool_results(self, sampled: Sequence[int], outputs: Sequence[str]) -> list[int]:
        tail = self._after_reply(sampled, "tool", outputs)
        if tail is not None:
            return tail
        return self._user_turn(sampled, "\n".join(f"<tool_response>\n{output}\n</tool_response>" for output in outputs))

    def complaint(self, sampled: Sequence[int], reason: str) -> list[int]:
        if self._split(sampled).calls:
            return self.tool_results(sampled, [COMPLAINT.format(reason=reason)])
        return super().complaint(sampled, reason)

    def ask_answer(self, sampled: Sequence[int], why: str = TIME_UP) -> list[int]:
        split = self._split(sampled)
        ended = self._before_end(sampled)[1]
        thinking = self._thinks
        tokens: list[int] = []
        if split.calls:
            close = [] if split.calls[-1][1] or ended else self._tokenizer.encode_template("\n</tool_call>")
            tokens = [*close, *self.tool_results([*sampled, *close], [no_result(why)] * min(len(split.calls), MAX_CALLS))]
        elif ended:
            tokens = self._user_turn(sampled, ANSWER_NOW.format(why=why))
        else:
            thinking = split.in_thought
            tokens = self._tokenizer.encode("\n\n") if sampled else []
        return [*tokens, *self._open_answer(why, thinking=thinking)]

    def _split(self, sampled: Sequence[int]) -> _Split:
        text = self._marked(sampled)
        calls = [(place.group(1), bool(place.group(2))) for place in _CALLS.finditer(text)]
        closed = _END_THINK in text
        after = after_thoughts(text, _END_THINK) if closed or self._thinks else text
        content, opened, _ = after.partition(_THINK)
        in_thought = bool(opened) or (self._thinks and not closed)
        rest = _CALLS.sub(lambda call: "" if call.group(2) else call.group(1), content)
        return _Split(_without_tags(_CALLS.sub("", content)), _without_tags(rest), calls, in_thought)

    def _marked(self, sampled: Sequence[int]) -> str:
        """The turn's text with each tag replaced by its character."""
        pieces: list[str] = []
        run: list[int] = []
        for token in self._before_end(sampled)[0]:
            if token in self._tags:
                pieces += [self._tokenizer.decode(run), self._tags[token]]
                run = []
            else:
                run.append(token)
        text = "".join([*pieces, self._tokenizer.decode(run)])
        for tag, mark in self._spelled.items():
            text = text.replace(tag, mark)
        return text


def _without_tags(text: str) -> str:
    return re.sub(f"[{''.join(TAGS.values())}]", "", text)


def _split_call(text: str) -> list[str]:
    """The calls in the text of one call: several if functions or JSON objects follow one another."""
    functions = _NEXT_FUNCTION.split(text)
    return functions if len(functions) > 1 else calls_in_json(text)


def _untagged_calls(text: str) -> list[str]:
    """The texts of calls written without ``<tool_call>`` tags."""
    return _split_call(text) if _BARE_CALL.match(text) or "<function=" in text else []


def _code_of(inside: str) -> Code | Malformed:
    """The code of one call: in JSON, in Qwen's XML, or bare."""
    text = inside.strip()
    function = _FUNCTION.search(text)
    name = ""
    if text.startswith("{"):
        name = name_in_json(text)
        code = _json_code(text)
    elif function is not None:
        name = function.group(1)
        code = _xml_code(name, function.group(2))
        if code is None and (name in PYTHON_NAMES or not _PARAMETER.search(function.group(2))):
            code = _code_between_tags(function.group(2))
    elif re.match(r"[^\w{]*+(?:json[^\w{]*+)?+\{", text):
        name = name_in_json(text[text.index("{") :])
        code = code_in_json(text[text.index("{") :])
        code = code and code.noted(_OTHER_FORM)
    else:
        bare = bare_code(text)
        code = Code(bare.text, "bare code in the call") if bare is not None and is_program(bare.text) else None
    known = not name or name in PYTHON_NAMES
    if code is None or not (known or is_program(code.text)):
        return _UNREADABLE if known else unknown_tool(name)
    return code


def _json_code(text: str) -> Code | None:
    try:
        value = json.loads(text)
        exact = value["name"] == TOOL and isinstance(value["arguments"][TOOL_PARAMETER], str)
    except (ValueError, RecursionError, KeyError, TypeError):
        exact = False
    if exact:
        return bare_code(value["arguments"][TOOL_PARAMETER])
    found = code_in_json(text)
    return found and found.noted(_OTHER_FORM)


def _xml_code(name: str, body: str) -> Code | None:
    values: dict[str, str] = {}
    exact = name == TOOL
    places = _parameters(body)
    ends = [*(place.start() for place in places[1:]), len(body)]
    for place, end_of_value in zip(places, ends, strict=False):
        value = body[place.end() : end_of_value]
        end = value.rfind("</parameter>")
        if end < 0:
            value = value.partition("</function>")[0].rstrip()
            last = value.rfind("\n") + 1
            end = last if value.startswith("</", last) else len(value)  # the closing tag, misspelled
            exact = False
        key = place.group(1).strip().lower()
        values[key] = value[:end].removeprefix("\n").removesuffix("\n")
        exact = exact and place.group() == f"<parameter={key}>"
    for key in (*CODE_KEYS, *(values if not name or name in PYTHON_NAMES else ())):
        if key in values:
            return bare_code(values[key], None if exact and key == TOOL_PARAMETER else _OTHER_FORM)
    return None


def _parameters(body: str) -> list[re.Match[str]]:
    """The opening tags of the parameters, without tags inside the code."""
    places = list(_PARAMETER.finditer(body))
    if len(places) > 1 and compiles(body[places[0].end() : body.rfind("</parameter>")].strip("\n")):
        return places[:1]
    return [place for number, place in enumerate(places) if number == 0 or _is_between(body, place)]


def _is_between(body: str, place: re.Match[str]) -> bool:
    """Whether the tag follows the end of a parameter or is alone on its line."""
    before = body[max(0, place.start() - _LONGEST_GAP) : place.start()].rstrip(" \t")
    alone = before.endswith("\n") and body[place.end() : place.end() + 1] == "\n"
    return alone or before.rstrip().endswith("</parameter>")


def _code_between_tags(body: str) -> Code | None:
    """Code in ``<function=...>`` without a parameter, or with misspelled parameter tags."""
    code, closed, _ = body.rpartition("</function>")
    if not closed:
        return None
    opening, _, rest = code.partition(">")
    if opening.lstrip().startswith("<") and "\n" not in opening.strip():
        code = rest.rpartition("</")[0] or rest
    bare = bare_code(code.strip("\n"), _OTHER_FORM)
    return bare if bare is not None and compiles(bare.text) else None
