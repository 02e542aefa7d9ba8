"""How a `Config` is put together, and what is said of a wrong one.

Defaults come first, then what the model's folder recommends (``aimo.toml``), then the user's TOML file, then single
``section.option=value`` settings.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from aimo_solver.config import Config
from aimo_solver.errors import ConfigError


def load_config(*tomls: Path, settings: Sequence[str] = (), base: Mapping[str, Any] | None = None) -> Config:
    """`base` (defaults if None), then the TOML files, then ``section.option=value`` settings; the last one wins.

    Raises:
        ConfigError: a file cannot be read, or an option is unknown or impossible.
    """
    values: dict[str, Any] = {section: dict(options) for section, options in (base or {}).items()}
    for toml in tomls:
        try:
            layer = tomllib.loads(toml.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(str(toml), "no such file") from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(str(toml), f"cannot be read as TOML: {error}") from None
        for section, options in layer.items():
            if not isinstance(options, dict):
                raise ConfigError(section, "is no option by itself; options stand in sections, for instance [solver]")
            values.setdefault(section, {}).update(options)
    for setting in settings:
        name, equals, text = setting.partition("=")
        section, dot, option = name.strip().partition(".")
        if not (equals and dot and section and option):
            raise ConfigError(setting, "write it as section.option=value, for instance solver.slots=16")
        values.setdefault(section, {})[option] = _toml_value(text.strip())
    return config_from(values)


def config_from(values: Mapping[str, Any]) -> Config:
    """A `Config` from nested plain values.

    Raises:
        ConfigError: with the dotted name of the first option that is wrong.
    """
    try:
        return TypeAdapter(Config).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"]]
        name = ".".join(place) or "config"
        if first["type"] == "unexpected_keyword_argument":
            raise ConfigError(name, f"unknown; known here: {', '.join(_options(place[:-1]))}") from None
        message = first["msg"].removeprefix("Value error, ")
        shown = "" if isinstance(first["input"], (dict, list)) else f" (got {first['input']!r})"
        raise ConfigError(name, f"{message[0].lower()}{message[1:]}{shown}") from None


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word is a string


def _options(sections: Sequence[str]) -> list[str]:
    here: Any = Config()
    for section in sections:
        here = getattr(here, section)
    return list(here.__dataclass_fields__)
