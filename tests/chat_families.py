"""An example of every chat family: its folder, and how its models write a call and a final text."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aimo_solver.chat.families import load_chat_format
from aimo_solver.chat.harmony import load_encoding
from aimo_solver.chat.model_folder import ModelFolder
from aimo_solver.chat.turns import ChatFormat, FinalText, Malformed, ToolCalls
from tests.tiny_tokenizers import THINKING_TEMPLATE, fenced_folder, gemma_folder, harmony_folder, hermes_folder

NAMES = ("harmony", "gemma", "gemma-thinks-after-tool", "hermes", "hermes-thinking", "hermes-xml", "fenced")
THINKS_AFTER_TOOL = "{# ns.prev_message_type == 'tool_response' and enable_thinking #}"


@dataclass(frozen=True)
class Family:
    """A format, and what a test needs to write turns of its model.

    Attributes:
        template: text with control tokens -> ids. plain: text without -> ids.
        call_parts, final_parts: what the model writes before and after the code of a call or a final text.
        controls: ids that only the format or the model may produce.
        thought: what the model writes before its thoughts.
        escape: encodes the code of a call.
        ending: what all code ends with.
        reserved: a pattern; code in which it is found is read otherwise than it is written.
    """

    name: str
    folder: Path
    chat: ChatFormat
    template: Callable[[str], list[int]]
    plain: Callable[[str], list[int]]
    call_parts: tuple[str, str]
    final_parts: tuple[str, str]
    controls: dict[str, int]
    thought: str
    escape: Callable[[str], str] = str
    ending: str = ""
    reserved: str = "(?!)"

    def call(self, code: str) -> list[int]:
        before, after = self.call_parts
        return [*self.template(before), *self.plain(self.escape(code.removesuffix(self.ending))), *self.template(after)]

    def final(self, text: str) -> list[int]:
        before, after = self.final_parts
        return [*self.template(before), *self.plain(text), *self.template(after)]

    def marks(self, tokens: Sequence[int]) -> list[int]:
        """Returns the control tokens among some tokens, in order."""
        known = set(self.controls.values())
        return [token for token in tokens if token in known]


def family(name: str, path: Path) -> Family:
    """Builds a family's folder under `path` and its format."""
    if name == "harmony":
        encoding = load_encoding()
        words = ("start", "end", "message", "channel", "constrain", "call", "return", "endoftext")
        controls = {f"<|{word}|>": encoding.encode(f"<|{word}|>", allowed_special="all")[0] for word in words}
        return Family(
            name,
            path,
            load_chat_format(harmony_folder(path)),
            lambda text: encoding.encode(text, allowed_special="all"),
            lambda text: encoding.encode(text, disallowed_special=()),
            (
                "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>analysis to=python code<|message|>",
                "<|call|>",
            ),
            ("<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>", "<|return|>"),
            controls,
            "<|channel|>analysis<|message|>",
            reserved=r"\A\s*\{",
        )
    if name.startswith("gemma"):
        folder = gemma_folder(path, THINKS_AFTER_TOOL if name == "gemma-thinks-after-tool" else "")
        call = ('<|channel>thought\nhm\n<channel|><|tool_call>call:python{code:<|"|>', '<|"|>}<tool_call|><|tool_response>')
        return _family(name, folder, call, ("<|channel>thought\nhm\n<channel|>", "<turn|>"), "<|channel>thought\n")
    if name == "hermes-xml":
        call = (
            "<think>\nhm\n</think>\n\n<tool_call>\n<function=python>\n<parameter=code>\n",
            "\n</parameter>\n</function>\n</tool_call><|im_end|>",
        )
        final = ("<think>\nhm\n</think>\n\n", "<|im_end|>")
        return _family(name, hermes_folder(path), call, final, "<think>\n", reserved="parameter")  # its tags are plain text
    if name.startswith("hermes"):
        thinking = name == "hermes-thinking"
        start = "hm\n</think>\n\n" if thinking else "<think>\nhm\n</think>\n\n"
        call = (f'{start}<tool_call>\n{{"name": "python", "arguments": {{"code": ', "}}\n</tool_call><|im_end|>")
        folder = hermes_folder(path, THINKING_TEMPLATE) if thinking else hermes_folder(path)
        thought = "" if thinking else "<think>\n"
        return _family(name, folder, call, (start, "<|im_end|>"), thought, lambda code: json.dumps(code, ensure_ascii=False))
    call, final = ("hm\n```python\n", "\n```\n"), ("hm\n</think>\n\n", "<|end|>")
    # any line of backquotes closes a Markdown block
    return _family(name, fenced_folder(path), call, final, "", ending="\n", reserved="```|</code>|<tool_call>")


def _family(
    name: str,
    folder: Path,
    call: tuple[str, str],
    final: tuple[str, str],
    thought: str,
    escape: Callable[[str], str] = str,
    ending: str = "",
    reserved: str = "(?!)",
) -> Family:
    tokenizer = ModelFolder.read(folder).tokenizer
    return Family(
        name,
        folder,
        load_chat_format(folder),
        tokenizer.encode_template,
        tokenizer.encode,
        call,
        final,
        dict(tokenizer.controls),
        thought,
        escape,
        ending,
        reserved,
    )


def check_turn(model: Family, sampled: Sequence[int], expected: list[str] | str) -> None:
    """Asserts the codes of a turn's calls, or a part of the reason, or the beginning of the final text."""
    match model.chat.parse(sampled):
        case ToolCalls(codes):
            assert [code.rstrip() for code in codes] == expected
        case Malformed(reason):
            assert isinstance(expected, str)
            assert expected in reason
            assert len(model.chat.complaint(sampled, reason)) < 200
        case FinalText(text):
            assert isinstance(expected, str)
            assert text.startswith(expected)
    assert len(model.chat.ask_answer(sampled)) < 500
