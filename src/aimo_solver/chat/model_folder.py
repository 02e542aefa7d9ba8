"""The files of a model folder that chat formats need: its configuration, its chat template, and its tokenizer.

`Tokenizer.encode` is for text from elsewhere (a problem, a tool's output) and never yields a control token.
`Tokenizer.encode_template` is for the format's own text, in which ``<|turn>`` and the like are control tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from aimo_solver.errors import ModelError


class Tokenizer:
    """A model's tokenizer.

    Attributes:
        core: the `tokenizers` object.
        controls: text -> id of every added token that is more than white space; only `encode_template` yields them.
    """

    def __init__(self, core: tokenizers.Tokenizer) -> None:
        """Wraps a `tokenizers` object and turns off its truncation and padding."""
        core.no_truncation()
        core.no_padding()
        self.core = core
        added = {token.content: number for number, token in core.get_added_tokens_decoder().items()}
        # Some models list runs of spaces and newlines among their added tokens: those are ordinary text.
        self.controls = {text: number for text, number in added.items() if text.replace("▁", " ").strip()}
        self._control_text = re.compile("|".join(map(re.escape, self.controls)) or r"(?!)")
        # Some decoders strip the first space of their input, so these ids are put before every other.
        self._anchor: list[int] = core.encode("a", add_special_tokens=False).ids
        self._anchor_length = len(core.decode(self._anchor, skip_special_tokens=False))

    @classmethod
    def load(cls, model_dir: Path) -> Tokenizer:
        """Reads ``tokenizer.json`` of a model folder.

        Raises:
            ModelError: the file is missing or cannot be used.
        """
        try:
            text = (model_dir / "tokenizer.json").read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ModelError(model_dir, "has no tokenizer.json") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(model_dir, f"tokenizer.json cannot be read: {error}") from None
        try:
            core = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # noqa: BLE001 (the Rust library raises bare Exception)
            raise ModelError(model_dir, f"tokenizer.json cannot be used: {error}") from None
        return cls(core)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of plain text. Control tokens spelled out in it become ordinary pieces."""
        ids = self._pieces(text)
        known = set(self.controls.values())
        if not known.isdisjoint(ids):  # a normaliser can produce one from other characters
            normal = self._pieces(str(self.core.normalizer.normalize_str(text)) if self.core.normalizer else text)
            ids = [number for number in normal if number not in known]
        return ids

    def encode_template(self, text: str) -> list[int]:
        """Returns the ids of a format's own text, control tokens included."""
        clean = replace_surrogates(text)
        return list(self.core.encode(clean, add_special_tokens=False).ids) if clean else []

    def decode(self, tokens: Iterable[int]) -> str:
        """Returns the text of any ids, control tokens included; ids out of range are left out."""
        known = [token for token in tokens if 0 <= token < 2**32]
        if not known:
            return ""
        return str(self.core.decode([*self._anchor, *known], skip_special_tokens=False))[self._anchor_length :]

    def _pieces(self, text: str) -> list[int]:
        """The ids of the text, which is cut after the first character of each control token, so that no piece holds one."""
        ids: list[int] = []
        start = 0
        while (place := self._control_text.search(text, start)) is not None:
            ids += self.encode_template(text[start : place.start() + 1])
            start = place.start() + 1
        return ids + self.encode_template(text[start:])


def replace_surrogates(text: str) -> str:
    """Returns the text with a question mark for each lone surrogate, which UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode("utf-8")


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
