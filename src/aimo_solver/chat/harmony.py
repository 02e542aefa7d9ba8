"""Turns of gpt-oss in the harmony format: messages with a channel, and a stateful Jupyter session called ``python``.

    <|start|>assistant<|channel|>analysis<|message|>...<|end|>
    <|start|>assistant<|channel|>analysis to=python code<|message|>{code}<|call|>
    <|start|>python to=assistant<|channel|>analysis<|message|>{output}<|end|>
    <|start|>assistant<|channel|>final<|message|>...<|return|>

oss-harmony provides the vocabulary and the wording of the prompt, so no file of the model folder is needed. Turns are read by
our own parser, because the library's raises on malformed turns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import openai_harmony as library

from aimo_solver.chat import prompts, salvage
from aimo_solver.chat.model_folder import replace_surrogates
from aimo_solver.chat.prompts import TOOL, Prompt, close_box, join_texts, no_result
from aimo_solver.chat.reading import PYTHON_NAMES, ends_with_answer, has_answer, read_calls, unknown_tool
from aimo_solver.chat.salvage import Code, bare_code, calls_in_json, code_in_json, is_json, is_program, python_blocks
from aimo_solver.chat.turns import MAX_CALLS, FinalText, Malformed, ToolCalls, Turn

_CHANNEL = re.compile(r"<\|channel\|>[^a-z]*+(analysis|commentary|final)")
_RECIPIENT = re.compile(r"to=\s*+([^\s<]++)")
_OWN = frozenset({"", "assistant", "to", "analysis", "commentary", "final"})  # how the model's own headers begin
_NOT_TOOLS = frozenset({"assistant", "user", "all", "system", "developer"})
_LAST_ENDS = frozenset({"<|return|>", "<|endoftext|>"})
# oss-harmony's encoder is quadratic in the length of a piece of text without a boundary (8,000 emoji: 340 ms), so longer ones
# are cut. There is always a boundary after a digit and before a blank that follows another character.
_LONG_PIECE = re.compile(r"[^\d\x00-\x7f]{32}|[^\s\d]{256}|\s{256}")
CONTROLS = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>", "<|return|>", "<|endoftext|>")


@dataclass(frozen=True, slots=True)
class _Part:
    """One message of a sampled turn.

    Attributes:
        header: its text up to ``<|message|>``.
        body: None while the header is not closed.
        end: the control token that closed it, None if it is open.
    """

    header: str
    body: str | None
    end: str | None

    @property
    def is_own(self) -> bool:
        """Whether the model wrote it for itself; some models also write the next message of the user or the tool."""
        return re.split(r"[^a-z.]", self.header.strip(), maxsplit=1)[0] in _OWN

    @property
    def channel(self) -> str:
        place = _CHANNEL.search(self.header)
        return place.group(1) if place else ""

    @property
    def recipient(self) -> str | None:
        place = _RECIPIENT.search(self.header)
        return None if place is None or place.group(1) in _NOT_TOOLS else place.group(1)

    @property
    def is_call(self) -> bool:
        """Whether it is meant for a tool: it names one, is marked as code, or ends as a call outside the final channel."""
        if self.body is None or not self.is_own:
            return False
        marked = re.search(r"\bcode\b", _CHANNEL.sub("", self.header)) is not None
        return marked or self.recipient is not None or (self.end == "<|call|>" and self.channel != "final")


@cache
def load_encoding() -> library.HarmonyEncoding:
    """Returns the library's encoding of gpt-oss; reading its vocabulary takes half a second."""
    return library.load_harmony_encoding(library.HarmonyEncodingName.HARMONY_GPT_OSS)


class HarmonyFormat:
    """gpt-oss."""

    name = "harmony"
    stop_strings: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._encoding = load_encoding()
        self._ids = {name: self._template(name)[0] for name in CONTROLS}
        self._controls = {number: name for name, number in self._ids.items()}
        self.stop_token_ids = tuple(self._ids[name] for name in ("<|return|>", "<|call|>", "<|endoftext|>"))

    def prompt(self, prompt: Prompt) -> list[int]:
        opening = library.SystemContent.new().with_reasoning_effort(library.ReasoningEffort[prompt.reasoning_effort.upper()])
        # The identity is the only part of the format's system message that can hold free text.
        identity = join_texts(prompt.identity or opening.model_identity or "", prompt.system)
        opening = opening.with_model_identity(replace_surrogates(identity))
        if prompt.tool is not None:
            description = replace_surrogates(prompt.tool)
            opening = opening.with_tools(library.ToolNamespaceConfig(name=TOOL, description=description, tools=[]))
        messages = [library.Message.from_role_and_content(library.Role.SYSTEM, opening)]
        if prompt.developer:
            instructions = library.DeveloperContent.new().with_instructions(replace_surrogates(prompt.developer))
            messages.append(library.Message.from_role_and_content(library.Role.DEVELOPER, instructions))
        messages.append(library.Message.from_role_and_content(library.Role.USER, replace_surrogates(prompt.user.strip())))
        conversation = library.Conversation.from_messages(messages)
        return list(self._encoding.render_conversation_for_completion(conversation, library.Role.ASSISTANT))

    def parse(self, sampled: Sequence[int]) -> Turn:
        parts = self._parts(sampled)
        calls = [(part, part.end == "<|call|>") for part in parts if part.is_call]
        own = [part for part in parts if part.is_own and not part.is_call]
        texts = [(part.channel, part.body) for part in own if part.body and part.body.strip()]
        finals = [text for channel, text in texts if channel == "final"]
        final = "\n".join([*finals, *_unheaded(parts)])
        if calls:
            return read_calls(calls, _split_call, _code_of, lambda: final)
        channel, last = texts[-1] if texts else ("analysis", "")
        if not final and channel != "analysis" and ("\\boxed" not in last or ends_with_answer(last)):
            final = last
        blocks = [] if has_answer(final) else python_blocks(final or last)
        if blocks:
            return ToolCalls.first_of(blocks, "code in the text instead of a tool call")
        if final:
            return FinalText(final, None if finals else "the final text was not in the final channel")
        return Malformed("Your turn ended without a call to python and without a text in the final channel.")

    def tool_results(self, sampled: Sequence[int], outputs: Sequence[str]) -> list[int]:
        parts = self._parts(sampled)
        calls = [part for part in parts if part.is_call]
        return [*self._close(parts, call=bool(calls)), *self._results(calls, outputs), *self._template("<|start|>assistant")]

    def complaint(self, sampled: Sequence[int], reason: str) -> list[int]:
        parts = self._parts(sampled)
        called = bool(parts) and parts[-1].is_call
        text = prompts.COMPLAINT.format(reason=reason)
        message = self._results(parts[-1:], [text]) if called else self._user(text)
        return [*self._close(parts, call=called), *message, *self._template("<|start|>assistant")]

    def ask_answer(self, sampled: Sequence[int], why: str = prompts.TIME_UP) -> list[int]:
        template, plain = self._template, self._plain
        opening = [*template("<|channel|>final<|message|>"), *plain(prompts.FINAL_ANSWER)]
        parts = self._parts(sampled)
        if not parts:
            return opening
        last, calls = parts[-1], [part for part in parts if part.is_call]
        is_open = last.body is not None and last.end is None
        if is_open and last.channel == "final" and not calls:
            return [*plain("\n\n" if last.body and last.body.strip() else ""), *plain(prompts.FINAL_ANSWER)]
        in_thought = is_open and last.channel == "analysis" and not last.is_call
        settled = f"\n\n{prompts.END_THOUGHTS.format(why=why)}" if in_thought else ""
        tokens = [*plain(settled), *self._close(parts, call=last.is_call)]
        if calls:
            tokens += self._results(calls, [no_result(why)] * min(len(calls), MAX_CALLS))
        elif last.end in _LAST_ENDS:
            tokens += self._user(prompts.ANSWER_NOW.format(why=why))
        return [*tokens, *template("<|start|>assistant"), *opening]

    def answer_text(self, sampled: Sequence[int]) -> str:
        end = next((place for place, token in enumerate(sampled) if token in self._controls), len(sampled))
        return close_box(prompts.FINAL_ANSWER + self.decode(sampled[:end]), ended=end < len(sampled))

    def decode(self, tokens: Sequence[int]) -> str:
        # o200k_harmony ends at 201087; larger ids come from padded embeddings and have no text.
        return str(self._encoding.decode([token for token in tokens if 0 <= token < 201_088]))

    def _parts(self, sampled: Sequence[int]) -> list[_Part]:
        """The messages of a turn, which begins after ``<|start|>assistant``."""
        parts: list[_Part] = []
        header: list[int] = []
        body: list[int] | None = None

        def finish(end: str | None) -> None:
            nonlocal header, body
            if not header and body is None:
                return
            text = self.decode(header)
            parts.append(_Part(text, None if body is None else self.decode(body), end))
            header, body = [], None

        for token in sampled:
            control = self._controls.get(token)
            if control == "<|message|>" and body is None:
                body = []
            elif control in ("<|end|>", "<|call|>", "<|return|>", "<|endoftext|>"):
                finish(control)
            elif control == "<|start|>":
                finish(None)
            elif control == "<|channel|>" and body is not None:
                finish(None)  # a new message without ``<|start|>``
                header = [token]
            elif body is None:
                header.append(token)
            elif control is None:
                body.append(token)
        finish(None)
        return parts

    def _close(self, parts: Sequence[_Part], *, call: bool) -> list[int]:
        """The tokens that close the last message, if it is open."""
        if not parts or parts[-1].end is not None:
            return []
        return self._template(("" if parts[-1].body is not None else "<|message|>") + ("<|call|>" if call else "<|end|>"))

    def _results(self, calls: Sequence[_Part], outputs: Sequence[str]) -> list[int]:
        """One message per output, from the recipient and in the channel of its call, but never in the final channel."""
        tokens: list[int] = []
        for index, output in enumerate(outputs):
            call = calls[index] if index < len(calls) else _Part("", None, None)
            name = call.recipient if call.recipient in PYTHON_NAMES else "python"
            channel = "commentary" if call.channel == "commentary" else "analysis"
            tokens += self._template(f"<|start|>{name} to=assistant<|channel|>{channel}<|message|>")
            tokens += [*self._plain(output), self._ids["<|end|>"]]
        return tokens

    def _user(self, text: str) -> list[int]:
        return [*self._template("<|start|>user<|message|>"), *self._plain(text), self._ids["<|end|>"]]

    def _template(self, text: str) -> list[int]:
        return list(self._encoding.encode(text, allowed_special="all"))

    def _plain(self, text: str) -> list[int]:
        tokens: list[int] = []
        start = 0
        clean = replace_surrogates(text)
        for place in _LONG_PIECE.finditer(clean):
            tokens += self._encoding.encode(clean[start : place.end()], disallowed_special=())
            start = place.end()
        return [*tokens, *self._encoding.encode(clean[start:], disallowed_special=())]


def _unheaded(parts: Sequence[_Part]) -> list[str]:
    """The text of a last message without a header, if it is an answer; a final text may also mention a control token."""
    if not parts or parts[-1].body is not None or parts[-1].end not in _LAST_ENDS:
        return []
    text = parts[-1].header
    in_final = len(parts) > 1 and parts[-2].end is None and parts[-2].channel == "final"
    bare = not any(control in text for control in CONTROLS)
    return [text] if (in_final and has_answer(text)) or (bare and ends_with_answer(text)) else []


def _code_of(part: _Part) -> Code | Malformed:
    code = _find_code(part)
    if code is not None:
        return code
    if part.recipient in PYTHON_NAMES or part.recipient is None:
        return Malformed("Your call to python holds no code.")
    return unknown_tool(part.recipient)


def _split_call(part: _Part) -> list[_Part]:
    return [replace(part, body=call) for call in calls_in_json(part.body or "")]


def _find_code(part: _Part) -> Code | None:
    body = part.body or ""
    known = part.recipient in PYTHON_NAMES
    note = None
    if part.recipient is None:
        note = "a call without a recipient"
    elif not known:
        note = f"unknown recipient {part.recipient[: salvage.LONGEST_NAME]!r}"
    elif part.channel not in ("analysis", "commentary"):
        note = "a call in the wrong channel"
    # A declared function is called as functions.python, with JSON arguments.
    natural = part.recipient == "functions.python" or "json" in part.header
    if body.lstrip().startswith(("{", "```json")) and (natural or is_json(body) or not is_program(body)):
        found = code_in_json(body)
        if found is not None and (known or is_program(found.text)):
            return Code(found.text, note or found.salvaged or (None if natural else "code in JSON"))
        if not known:
            return None
    bare = bare_code(body, note)
    return bare if known or (bare is not None and is_program(bare.text)) else None
