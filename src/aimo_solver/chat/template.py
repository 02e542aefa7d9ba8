"""The common part of the families that are prompted by the model's own chat template.

The template is rendered with placeholders for the texts. The template's own text may become control tokens; the texts
themselves are encoded as plain text and never do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from aimo_solver.chat.model_folder import ModelFolder
from aimo_solver.chat.prompts import COMPLAINT, END_THOUGHTS, FINAL_ANSWER, Prompt, close_box, declare_tool, join_texts
from aimo_solver.errors import ModelError

_GENERATION = re.compile(r"{%-?\s*(?:end)?generation\s*-?%}")  # marks for training, unknown to plain Jinja
_FAILURES = (TemplateError, TypeError, KeyError, AttributeError, ValueError, IndexError)
"""What templates raise on roles and shapes that they do not support."""

_SLOT = re.compile(r"slot-([a-z]+)-(\d+)-end")

_Message = tuple[str, str]  # role and text


class TemplateFormat:
    """A chat format that renders prompts and results with the model's template; thoughts are in ``<think>`` tags."""

    stop_strings: tuple[str, ...] = ()

    def __init__(self, folder: ModelFolder, *ends: str) -> None:
        """
        Args:
            ends: end-of-turn tokens besides the folder's `stop_ids`, where the tokenizer has them.

        Raises:
            ModelError: the folder has no end-of-turn token, or its tokenizer or chat template cannot be used.
        """
        if not folder.template:
            raise ModelError(folder.path, "has no chat template")
        self._folder = folder
        self._tokenizer = folder.tokenizer
        self.stop_token_ids = folder.end_tokens(*ends)
        if not self.stop_token_ids:
            raise ModelError(folder.path, "names no end-of-turn token in its tokenizer or generation_config.json")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now(UTC).strftime(form)
        user = ("user", _slot("user"))
        try:
            self._template = environment.from_string(_GENERATION.sub("", folder.template))
            # Without tools, some templates need an empty list, others None.
            self._no_tools: list[Any] | None = None
            if self._try([user]) is None:
                self._no_tools = []
            opening = self._render([user])
        except _FAILURES as error:
            raise ModelError(folder.path, f"its chat template cannot be used: {error}") from None
        if user[1] not in opening:
            raise ModelError(folder.path, "its chat template leaves out the user's message")
        self._thinks = opening.rstrip().endswith("<think>")  # the model's turn begins inside its thoughts
        self._user_turn([], "")  # fails now rather than during a run

    def prompt(self, prompt: Prompt) -> list[int]:
        return self._open(prompt.instructions, prompt.user.strip(), prompt.tool)

    def _open(self, system: str, user: str, tool: str | None) -> list[int]:
        """The tokens of a new conversation; without a system role, the system message goes before the user's."""
        rendered = self._try([("system", _slot("system")), ("user", _slot("user"))], tool=tool) if system else None
        if rendered is None or _slot("system") not in rendered:
            rendered = self._render([("user", _slot("user"))], tool=tool)
            user = join_texts(system, user)
        return self._fill(rendered, {"system": [system], "user": [user]})

    def complaint(self, sampled: Sequence[int], reason: str) -> list[int]:
        return self._user_turn(sampled, COMPLAINT.format(reason=reason))

    def answer_text(self, sampled: Sequence[int]) -> str:
        text, ended = self._text(sampled)
        return close_box(FINAL_ANSWER + text, ended=ended)

    def decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens)

    def _before_end(self, sampled: Sequence[int]) -> tuple[list[int], bool]:
        """The tokens before the end-of-turn token, and whether there is one."""
        written = list(takewhile(lambda token: token not in self.stop_token_ids, sampled))
        return written, len(written) < len(sampled)

    def _text(self, sampled: Sequence[int]) -> tuple[str, bool]:
        """The text before the end-of-turn token, and whether there is one."""
        written, ended = self._before_end(sampled)
        return self.decode(written), ended

    def _after_reply(self, sampled: Sequence[int], role: str, texts: Sequence[str]) -> list[int] | None:
        """What follows a model's turn: its end if it is open, messages of `role`, and the opening of the next turn.

        None if the template does not support the role.
        """
        messages = [(role, _slot(role, number)) for number in range(1, len(texts) + 1)]
        rendered = self._try([("user", _slot("user")), ("assistant", _slot("assistant")), *messages])
        if rendered is None or any(slot not in rendered for _, slot in messages):
            return None
        tail = self._fill(rendered.partition(_slot("assistant"))[2], {role: ["", *texts]})
        if sampled and sampled[-1] in self.stop_token_ids and sampled[-1] in tail:
            end = tail.index(sampled[-1])
            if not self.decode(tail[:end]).strip():
                return tail[end + 1 :]
        return tail

    def _user_turn(self, sampled: Sequence[int], text: str) -> list[int]:
        tail = self._after_reply(sampled, "user", [text])
        if tail is None:
            raise ModelError(self._folder.path, "its chat template cannot render a second user message")
        return tail

    def _open_answer(self, why: str, *, thinking: bool) -> list[int]:
        """Ends the thoughts, if the model is inside them, and opens the final text."""
        close = (
            [*self._tokenizer.encode(END_THOUGHTS.format(why=why)), *self._tokenizer.encode_template("\n</think>\n\n")]
            if thinking
            else []
        )
        return [*close, *self._tokenizer.encode(FINAL_ANSWER)]

    def _try(self, messages: Sequence[_Message], *, tool: str | None = None) -> str | None:
        try:
            return self._render(messages, tool=tool)
        except _FAILURES:
            return None

    def _render(self, messages: Sequence[_Message], *, tool: str | None = None) -> str:
        values: dict[str, Any] = {
            "messages": [{"role": role, "content": text} for role, text in messages],
            "tools": self._no_tools if tool is None else [declare_tool(tool)],
            "add_generation_prompt": True,
            "enable_thinking": True,  # Qwen3, GLM, SmolLM3
            "thinking": True,  # DeepSeek-V3.1
            "bos_token": self._folder.bos,
            "eos_token": self._folder.eos,
        }
        return self._template.render(values)

    def _fill(self, rendered: str, texts: dict[str, list[str]]) -> list[int]:
        """The tokens of a rendered template, with the texts in place of their slots."""
        tokens: list[int] = []
        start = 0
        for place in _SLOT.finditer(rendered):
            tokens += self._tokenizer.encode_template(rendered[start : place.start()])
            tokens += self._tokenizer.encode(texts[place.group(1)][int(place.group(2))])
            start = place.end()
        return [*tokens, *self._tokenizer.encode_template(rendered[start:])]


def _slot(role: str, number: int = 0) -> str:
    return f"slot-{role}-{number}-end"


def _to_json(value: object, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
