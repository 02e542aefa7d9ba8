"""Text to token ids and back, for a model folder with a ``tokenizer.json``.

`encode` is for text by others (a problem, a tool's output) and never yields a control token. `encode_template` is for the
format's own text, in which ``<|turn>`` and the like are control tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

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
