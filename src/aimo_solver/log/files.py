"""The files of a run directory: their names and lines, and the lock that allows one writer per run."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import time
import zlib
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

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


def append_line(path: Path, line: bytes) -> None:
    """Adds a line to a file at once, or leaves the file unchanged.

    Raises:
        OSError: the file cannot be opened, or the disk has no room for the whole line.
    """
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            while line:  # a disk that becomes full takes a part of it
                line = line[file.write(line) :]
        except OSError:
            file.truncate(size)
            raise


def replace_file(path: Path, data: bytes) -> None:
    """Writes a whole file, or leaves the existing one unchanged."""
    part = path.with_suffix(".part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


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
    for wait_s in (0.05, 0.2, None):  # `reader.is_running` in another process holds the lock for a moment
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


def check_events(file: BinaryIO) -> None:
    """Raises an OSError if a locked events file is no longer in its folder, which may have become another run's."""
    if not os.path.samestat(os.fstat(file.fileno()), os.stat(file.name)):
        raise FileNotFoundError(errno.ENOENT, "is not the file that the run began", str(file.name))


def next_interruption(directory: Path) -> Path:
    """Returns the folder for what the next interruption leaves, ``interrupted/K``."""
    folder = directory / "interrupted"
    return folder / str(1 + sum(1 for _ in folder.iterdir()) if folder.is_dir() else 1)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return list(value) if isinstance(value, (set, frozenset)) else str(value)
