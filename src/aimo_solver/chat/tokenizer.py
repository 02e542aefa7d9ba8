"""Text to token ids and back, for a model folder with a ``tokenizer.json``.

Two ways in, never mixed: `encode` is for text that somebody else wrote (a problem, a tool's output) and never yields a
control token; `encode_template` is for the format's own text, where ``<|turn>`` and its like are meant as control tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from aimo_solver.errors import ModelError


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A model's tokenizer.

    Attributes:
        core: the `tokenizers` object.
        controls: text -> id of every added token that is more than white space; only `encode_template` yields them.
        _spelled: the text of any control token.
        _anchor: ids put before those to decode, because some decoders strip the first space of what they are given.
        _anchor_text: what the anchor decodes to.
    """

    core: tokenizers.Tokenizer
    controls: Mapping[str, int]
    _spelled: re.Pattern[str]
    _anchor: tuple[int, ...]
    _anchor_text: str

    @classmethod
    def load(cls, model_dir: Path) -> Tokenizer:
        """Reads ``tokenizer.json`` of a model folder.

        Raises:
            ModelError: the folder or the file is missing or cannot be used.
        """
        path = model_dir / "tokenizer.json"
        if not model_dir.is_dir():
            raise ModelError(model_dir, "no such folder")
        if not path.is_file():
            raise ModelError(model_dir, "has no tokenizer.json")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(model_dir, f"tokenizer.json cannot be read: {error}") from None
        try:
            core = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # noqa: BLE001 (the Rust library raises bare Exception)
            raise ModelError(model_dir, f"tokenizer.json cannot be used: {error}") from None
        return cls.of(core)

    @classmethod
    def of(cls, core: tokenizers.Tokenizer) -> Tokenizer:
        """Wraps a `tokenizers` object, whose truncation and padding are switched off."""
        core.no_truncation()
        core.no_padding()
        added = {token.content: number for number, token in core.get_added_tokens_decoder().items()}
        # Some models list runs of spaces and newlines among their added tokens: those are ordinary text.
        controls = {text: number for text, number in added.items() if text.replace("▁", " ").strip()}
        spelled = re.compile("|".join(map(re.escape, controls)) or r"(?!)")
        anchor = tuple(core.encode("a", add_special_tokens=False).ids)
        return cls(core, controls, spelled, anchor, str(core.decode(anchor, skip_special_tokens=False)))

    def encode(self, text: str) -> list[int]:
        """Ids of plain text. Control tokens that are spelled out in it become ordinary pieces."""
        ids = self._pieces(text)
        known = set(self.controls.values())
        if not known.isdisjoint(ids):  # a normaliser can spell one out of other characters
            normal = self._pieces(str(self.core.normalizer.normalize_str(text)) if self.core.normalizer else text)
            ids = [number for number in normal if number not in known]
        return ids

    def encode_template(self, text: str) -> list[int]:
        """Ids of a format's own text, control tokens included."""
        return self._ids(text)

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of any ids, control tokens spelled out; ids out of range are left out."""
        known = [token for token in tokens if 0 <= token < 2**32]
        if not known:
            return ""
        return str(self.core.decode([*self._anchor, *known], skip_special_tokens=False))[len(self._anchor_text) :]

    def control(self, text: str) -> int | None:
        """The id of a control token, None if this tokenizer has no such token."""
        return self.controls.get(text)

    def _pieces(self, text: str) -> list[int]:
        """Ids of the text, cut behind the first character of each control token in it, so that no piece holds a whole one."""
        ids: list[int] = []
        start = 0
        while (place := self._spelled.search(text, start)) is not None:
            ids += self._ids(text[start : place.start() + 1])
            start = place.start() + 1
        return ids + self._ids(text[start:])

    def _ids(self, text: str) -> list[int]:
        clean = text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates have no bytes
        return list(self.core.encode(clean, add_special_tokens=False).ids) if clean else []
