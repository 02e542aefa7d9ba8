"""The files of a run directory: their names and lines, and the lock that allows one writer per run."""

from __future__ import annotations

import fcntl
import gzip
import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping, Set
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from pydantic_core import from_json

from aimo_solver.errors import RunDirectoryError

SCHEMA = 1

_log = logging.getLogger(__name__)


def json_line(record: Mapping[str, Any]) -> bytes:
    """Encodes a record as one line of strict JSON: NaN and infinity become null, dataclasses objects, other values text."""
    try:
        text = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_plain)
    except ValueError:
        finite = json.loads(json.dumps(record, default=_plain), parse_constant=lambda name: None)
        text = json.dumps(finite, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace") + b"\n"


def read_lines(path: Path) -> Iterator[dict[str, Any] | None]:
    """Yields the records of a JSON-lines file, gzip or plain; None for a torn line. A missing file has no records."""
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


def append_line(path: Path, line: bytes) -> None:
    """Adds a line to a file at once."""
    with path.open("ab", buffering=0) as file:
        file.write(line)


def replace_file(path: Path, data: bytes) -> None:
    """Writes a whole file, or leaves the existing one unchanged."""
    part = path.with_suffix(".part")
    part.write_bytes(data)
    os.replace(part, path)


def trajectory_path(directory: Path, problem_id: str, index: int) -> Path:
    """The file of a running attempt. Any text is a safe problem id."""
    name = quote(problem_id, safe=" +=,@()[]", errors="surrogatepass")
    name = name.replace(".", "%2E") if name.strip(".") == "" else name
    if len(name) > 120:
        name = f"{name[:100]}~{zlib.crc32(problem_id.encode('utf-8', 'surrogatepass')):08x}"
    return directory / "trajectories" / (name or "%") / f"{index}.jsonl"


def lock_events(directory: Path) -> BinaryIO:
    """Opens the events file for appending and locks it; the lock ends with the file or the process.

    Raises:
        RunDirectoryError: another process writes this run.
        OSError: the file cannot be opened.
    """
    file = (directory / "events.jsonl").open("ab", buffering=0)
    for wait_s in (0.05, 0.2, None):  # `reader.is_running` in another process holds the lock for an instant
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if wait_s is None:
                file.close()
                raise RunDirectoryError(directory, "is being written by another process; wait for it, or end it") from None
            time.sleep(wait_s)
        except OSError:
            _log.info("%s: no file locks on this file system", directory)
            break
    return file


def set_aside(directory: Path, kept: Set[str]) -> None:
    """Moves the records of all problems but those `kept` to ``interrupted/K/``, and drops torn lines."""
    folder = directory / "interrupted"
    folder /= str(1 + sum(1 for _ in folder.iterdir()) if folder.is_dir() else 1)
    for name in ("problems", "attempts", "votes"):
        path = directory / f"{name}.jsonl"
        lines = list(read_lines(path))
        keep = [line for line in lines if line and line["problem_id"] in kept]
        removed = [line for line in lines if line and line["problem_id"] not in kept]
        if removed:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / path.name).write_bytes(b"".join(map(json_line, removed)))
        if len(keep) < len(lines):
            replace_file(path, b"".join(map(json_line, keep)))
    done = {trajectory_path(directory, problem_id, 0).parent.name for problem_id in kept}
    trajectories = directory / "trajectories"
    for path in sorted(trajectories.iterdir()) if trajectories.is_dir() else ():
        if path.name not in done:
            (folder / "trajectories").mkdir(parents=True, exist_ok=True)
            shutil.move(path, folder / "trajectories" / path.name)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return list(value) if isinstance(value, (set, frozenset)) else str(value)
