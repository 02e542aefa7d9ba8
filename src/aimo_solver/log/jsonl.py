"""Records as lines of JSON: written strictly, read tolerantly."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic_core import from_json

_Record = TypeVar("_Record")


def json_line(record: Mapping[str, Any]) -> bytes:
    """One line of JSON; records inside become their fields, what JSON cannot hold becomes null or text."""
    try:
        text = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_plain)
    except ValueError:
        text = json.dumps(_finite(record), ensure_ascii=False, separators=(",", ":"), default=_plain)
    return text.encode("utf-8", "replace") + b"\n"


def read_lines(path: Path) -> Iterator[dict[str, Any] | None]:
    """The records of a JSON-lines file, gzip or plain; None for a line that is not whole. A missing file has none."""
    # Token ids make up most of a run; pydantic's parser reads them four times as fast as the standard library's.
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
    except FileNotFoundError:
        return
    for line in data.split(b"\n"):
        if line.strip():
            try:
                record = from_json(line)
            except ValueError:
                record = None
            yield record if isinstance(record, dict) else None


def record_of(kind: type[_Record], line: Mapping[str, Any]) -> _Record:
    """A record from the fields it knows; later versions may have written more."""
    names = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in line.items() if name in names})


def as_plain(record: Any) -> dict[str, Any]:
    """The fields of a record, not deeper."""
    return {item.name: getattr(record, item.name) for item in fields(record)}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return as_plain(value)
    return list(value) if isinstance(value, (set, frozenset)) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return _finite(as_plain(value)) if is_dataclass(value) and not isinstance(value, type) else value
