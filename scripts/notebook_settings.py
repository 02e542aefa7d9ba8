"""What `build_notebook` writes for one user: the notebook's settings cell, and the metadata that Kaggle's command line reads."""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# The notebook, the notebook that makes the wheels, and the dataset for the compile cache.
_METADATA = (Path("kernel-metadata.json"), Path("wheels/kernel-metadata.json"), Path("cache/dataset-metadata.json"))
_USER = re.compile(r"[a-z0-9][a-z0-9_-]*")
_FRAMEWORKS = {"transformers": "Transformers", "pytorch": "PyTorch"}  # as Kaggle's command line spells them


class NotebookError(Exception):
    """The notebook cannot be built; the message is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserSettings:
    """What a user chose; None stands for the default.

    Attributes:
        user: the Kaggle name; None leaves what is there.
        model, draft: Kaggle's handle of a model (owner/model/framework/variation with or without a version) or of a dataset
            (owner/slug), or a folder.
        competition: its slug, or a folder.
        cache: Kaggle's handle of a dataset with a compile cache.
        values: NAME=VALUE for a name of the settings cell, or section.option=VALUE.
    """

    user: str | None = None
    model: str | None = None
    draft: str | None = None
    competition: str | None = None
    cache: str | None = None
    values: Sequence[str] = ()

    def edit_cell(self, source: str) -> str:
        """Returns the settings cell with the values; comments stay.

        Raises:
            NotebookError: a name or an option is unknown, or its value does not fit.
        """
        for name, value in (("MODEL", self.model), ("DRAFT", self.draft), ("COMPETITION", self.competition)):
            if value is not None:
                source = _set(source, name, value)
        options = []
        for setting in self.values:
            name, equals, text = setting.partition("=")
            if not equals:
                raise NotebookError(f"--set {setting}: write NAME=VALUE or section.option=VALUE")
            if "." in name:
                options.append(setting)
            else:
                source = _set(source, name, _literal(text))
        if options:
            _check_options(source, options)
            source = "\n".join([source, "", *map(_assignment, options)])
        return source

    def edit_metadata(self, folder: Path, settings_cell: str) -> dict[Path, str]:
        """Returns the metadata files that `folder`, the notebook's, needs, and their texts.

        They attach what the edited settings cell names. Files that are missing are made only for a named user.

        Raises:
            NotebookError: a name or a handle is not one of Kaggle's.
        """
        if self.user is not None and not _USER.fullmatch(self.user):
            raise NotebookError(f"--user {self.user}: write the name as in kaggle.com/NAME")
        names: dict[str, Any] = {}
        exec(settings_cell, names)
        texts = {}
        for path in _METADATA:
            present = folder / path
            if not present.is_file() and self.user is None:
                continue
            text = (present if present.is_file() else ROOT / "notebook" / path).read_text(encoding="utf-8")
            edited = self._edit(json.loads(text), names)
            texts[present] = text if edited == json.loads(text) else json.dumps(edited, indent=2) + "\n"
        return texts

    def _edit(self, metadata: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
        edited = dict(metadata)
        if self.user is not None:
            edited["id"] = _owned(self.user, metadata["id"])
        if metadata["id"].partition("/")[2] != "aimo-solver":
            return edited
        if self.user is not None:
            edited["kernel_sources"] = [_owned(self.user, kernel) for kernel in metadata["kernel_sources"]]
        edited["competition_sources"] = _competitions(names["COMPETITION"])
        sources = [source for source in map(_source, (names["MODEL"], names["DRAFT"])) if source is not None]
        edited["model_sources"] = [source for source in sources if source.count("/") > 1]
        datasets = [source for source in (*sources, self.cache) if source is not None and source.count("/") == 1]
        edited["dataset_sources"] = list(dict.fromkeys(datasets))
        return edited


def _owned(user: str, kernel: str) -> str:
    return f"{user}/{kernel.partition('/')[2]}"


def _competitions(name: str) -> list[str]:
    """Returns the slug for the metadata; nothing for a folder."""
    if name.startswith((".", "/", "~")):
        return []
    if "/" in name:
        raise NotebookError(f"{name}: write the slug, as in kaggle.com/competitions/SLUG, or the path of a folder")
    return [name]


def _source(name: str | None) -> str | None:
    """Returns the handle as the metadata names it, with a version; None for a folder."""
    if not name or name.startswith((".", "/", "~")) or Path(name).is_dir():
        return None
    parts = name.split("/")
    if not all(parts) or len(parts) not in (2, 4, 5):
        raise NotebookError(f"{name}: write owner/model/framework/variation, owner/dataset, or the path of a folder")
    if len(parts) == 2:
        return name
    framework = _FRAMEWORKS.get(parts[2].lower(), parts[2])
    return "/".join([*parts[:2], framework, parts[3], parts[4] if len(parts) == 5 else "1"])


def _set(source: str, name: str, value: object) -> str:
    """Returns the settings cell with another value for `name` and the same comment."""
    lines = source.split("\n")
    for number, line in enumerate(lines):
        if line.startswith(f"{name} = ") and not line.endswith("{"):
            before, hash_, comment = line.partition("  # ")
            default = ast.literal_eval(before.partition(" = ")[2])
            if type(default) is float and type(value) is int:
                value = float(value)
            if type(value) is not type(default):
                raise NotebookError(f"{name} is of type {type(default).__name__}, not {value!r}")
            text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
            lines[number] = f"{name} = {text}{hash_}{comment}"
            return "\n".join(lines)
    names = [line.partition(" = ")[0] for line in lines if re.match(r"[A-Z_]+ = (?!\{)", line)]
    raise NotebookError(f"the settings cell has no {name}; known: {', '.join(names)}")


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text.strip()  # a bare word is a string


def _check_options(source: str, options: Sequence[str]) -> None:
    sys.path.insert(0, str(ROOT / "src"))
    try:
        from aimo_solver.config import load_config
        from aimo_solver.errors import ConfigError
    except ModuleNotFoundError as error:
        raise NotebookError(f"--set section.option=VALUE needs {error.name}; run pip install -e . first") from None
    names: dict[str, Any] = {}
    exec(source, names)
    try:
        load_config(names["SETTINGS"], settings=options)
    except ConfigError as error:
        raise NotebookError(str(error)) from None


def _assignment(option: str) -> str:
    """Returns the line that sets ``section.option=VALUE`` in SETTINGS; the value is TOML, or a bare word."""
    name, _, text = option.partition("=")
    *sections, last = (json.dumps(part) for part in name.strip().split("."))
    try:
        value = tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    return f"SETTINGS{''.join(f'.setdefault({section}, {{}})' for section in sections)}[{last}] = {value!r}"
