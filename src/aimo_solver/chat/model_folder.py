"""The files of a model folder that chat formats need."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from aimo_solver.chat.tokenizer import Tokenizer
from aimo_solver.errors import ModelError


@dataclass(frozen=True)
class ModelFolder:
    """A model folder in the Hugging Face layout.

    Attributes:
        model_type: of ``config.json``, "" if it names none.
        template: the Jinja chat template, "" if the folder has none.
        bos, eos: texts of these tokens, for the template; "" if unknown.
        stop_ids: ``eos_token_id`` of ``generation_config.json`` and ``config.json``.
    """

    path: Path
    model_type: str
    template: str
    bos: str
    eos: str
    stop_ids: tuple[int, ...]

    @classmethod
    def read(cls, path: Path) -> ModelFolder:
        """Reads the configuration files of a folder, each of which may be missing.

        Raises:
            ModelError: there is no such folder, or one of the files is not JSON.
        """
        if not path.is_dir():
            raise ModelError(path, "no such folder")
        config = _json(path / "config.json")
        generation = _json(path / "generation_config.json")
        tokenizer = _json(path / "tokenizer_config.json")
        stop_ids: list[int] = []
        for holder in (generation, config, config.get("text_config")):
            value = holder.get("eos_token_id") if isinstance(holder, dict) else None
            stop_ids += [number for number in (value if isinstance(value, list) else [value]) if isinstance(number, int)]
        return cls(
            path=path,
            model_type=str(config.get("model_type", "")),
            template=_template(path, tokenizer),
            bos=_token_text(tokenizer.get("bos_token")),
            eos=_token_text(tokenizer.get("eos_token")),
            stop_ids=tuple(stop_ids),
        )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The folder's tokenizer, loaded on first use. Raises ModelError if it is missing or cannot be used."""
        return Tokenizer.load(self.path)

    def end_tokens(self, *names: str) -> tuple[int, ...]:
        """Returns the ids of the named control tokens that the tokenizer has, then `stop_ids`, each once."""
        controls = self.tokenizer.controls
        return tuple(dict.fromkeys([*(controls[name] for name in names if name in controls), *self.stop_ids]))


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(path.parent, f"{path.name} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise ModelError(path.parent, f"{path.name} holds no JSON object")
    return values


def _template(path: Path, tokenizer_config: dict[str, Any]) -> str:
    file = path / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = _json(path / "chat_template.json").get("chat_template") or tokenizer_config.get("chat_template")
    if isinstance(template, list):  # several templates by name
        named = {entry["name"]: entry["template"] for entry in template if isinstance(entry, dict)}
        template = named.get("tool_use") or named.get("default")
    return template if isinstance(template, str) else ""


def _token_text(token: object) -> str:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""
