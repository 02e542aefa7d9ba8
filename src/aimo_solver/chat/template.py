"""A model folder's own chat template, rendered into tokens without ever reading other people's text as control tokens.

The template is rendered once per shape with place-holders; the text around them is the template's own, what goes into
their places is encoded as plain text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from aimo_solver.chat.model_folder import ModelFolder
from aimo_solver.chat.prompts import PYTHON_TOOL
from aimo_solver.errors import ModelError

_GENERATION = re.compile(r"{%-?\s*(?:end)?generation\s*-?%}")  # marks for training, unknown to plain Jinja
_FAILURES = (TemplateError, TypeError, KeyError, AttributeError, ValueError, IndexError)
"""How templates fail on roles and shapes that they do not know."""

_SLOT = re.compile(r"slot-([a-z]+)-(\d+)-end")


class ChatTemplate:
    """The turns of a model, as its own template marks them."""

    def __init__(self, folder: ModelFolder) -> None:
        """
        Raises:
            ModelError: the folder has no template, or the template cannot render the simplest conversation.
        """
        if not folder.template:
            raise ModelError(folder.path, "has no chat template")
        self._folder = folder
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now(UTC).strftime(form)
        try:
            self._template = environment.from_string(_GENERATION.sub("", folder.template))
            # Some templates that always speak of tools want a list where others want nothing.
            self._no_tools: list[Any] | None = None
            if self._try([("user", _slot("user"))], tools=False) is None:
                self._no_tools = []
            ending = self._render([("user", _slot("user"))], tools=False)
        except _FAILURES as error:
            raise ModelError(folder.path, f"its chat template cannot be used: {error}") from None
        if _slot("user") not in ending:
            raise ModelError(folder.path, "its chat template leaves out the user's message")
        self.thinks = ending.rstrip().endswith("<think>")
        """The model's turn begins inside its thoughts."""
        self.user_turn("", ended_with=None)  # better to fail now than in the middle of a run

    def prompt(self, system: str, user: str, *, tools: bool) -> list[int]:
        """A conversation's beginning, up to where the model starts to write.

        Where the template has no system role, the system message goes in front of the user's.
        """
        messages = [("system", _slot("system"))] if system else []
        rendered = self._try([*messages, ("user", _slot("user"))], tools=tools)
        if rendered is None or (system and _slot("system") not in rendered):
            rendered = self._render([("user", _slot("user"))], tools=tools)
            user = f"{system}\n\n{user}" if system else user
        return self._fill(rendered, {"system": [system.strip()], "user": [user.strip()]})

    def after_reply(self, role: str, texts: Sequence[str], *, ended_with: int | None) -> list[int] | None:
        """What follows a model's text: its end-of-turn token, messages of `role`, and the opening of the next model turn.

        None if the template does not know the role.

        Args:
            ended_with: the end-of-turn token that the model has sampled itself; it is not repeated.
        """
        opening = [("user", _slot("user")), ("assistant", _slot("assistant"))]
        rendered = self._try([*opening, *((role, _slot(role, index + 1)) for index in range(len(texts)))], tools=False)
        if rendered is None or any(_slot(role, index + 1) not in rendered for index in range(len(texts))):
            return None
        tail = self._fill(rendered.partition(_slot("assistant"))[2], {role: ["", *texts]})
        if ended_with in tail:
            end = tail.index(ended_with)
            if not self._folder.tokenizer.decode(tail[:end]).strip():
                return tail[end + 1 :]
        return tail

    def user_turn(self, text: str, *, ended_with: int | None) -> list[int]:
        """`after_reply` with one message of the user's, which every template knows."""
        tail = self.after_reply("user", [text], ended_with=ended_with)
        if tail is None:
            raise ModelError(self._folder.path, "its chat template cannot render a second message of the user's")
        return tail

    def _try(self, messages: Sequence[tuple[str, str]], *, tools: bool) -> str | None:
        try:
            return self._render(messages, tools=tools)
        except _FAILURES:
            return None

    def _render(self, messages: Sequence[tuple[str, str]], *, tools: bool) -> str:
        values: dict[str, Any] = {
            "messages": [{"role": role, "content": text} for role, text in messages],
            "tools": [_declaration()] if tools else self._no_tools,
            "add_generation_prompt": True,
            "enable_thinking": True,  # Qwen3, GLM, SmolLM3
            "thinking": True,  # DeepSeek-V3.1
            "bos_token": self._folder.bos,
            "eos_token": self._folder.eos,
        }
        return self._template.render(values)

    def _fill(self, rendered: str, texts: dict[str, list[str]]) -> list[int]:
        tokenizer = self._folder.tokenizer
        tokens: list[int] = []
        start = 0
        for place in _SLOT.finditer(rendered):
            tokens += tokenizer.encode_template(rendered[start : place.start()])
            tokens += tokenizer.encode(texts[place.group(1)][int(place.group(2))])
            start = place.end()
        return [*tokens, *tokenizer.encode_template(rendered[start:])]


def _slot(role: str, number: int = 0) -> str:
    return f"slot-{role}-{number}-end"


def _declaration() -> dict[str, Any]:
    tool = PYTHON_TOOL
    parameter = {"type": "string", "description": tool.parameter_description}
    parameters = {"type": "object", "properties": {tool.parameter: parameter}, "required": [tool.parameter]}
    return {"type": "function", "function": {"name": tool.name, "description": tool.description, "parameters": parameters}}


def _to_json(value: object, indent: int | None = None, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
