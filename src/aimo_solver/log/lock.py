"""Who writes a run: a lock on its events file, held as long as its writer lives."""

from __future__ import annotations

import fcntl
import logging
import time
from pathlib import Path
from typing import BinaryIO

from aimo_solver.errors import RunDirectoryError

_log = logging.getLogger(__name__)


def locked(directory: Path) -> BinaryIO:
    """The events file, open for appending and locked; the lock ends with the file or the process.

    Raises:
        RunDirectoryError: another process writes this run.
        OSError: the file cannot be opened.
    """
    file = (directory / "events.jsonl").open("ab", buffering=0)
    for wait_s in (0.05, 0.2, None):  # `is_running` of somebody who watches holds it for an instant
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


def is_running(directory: Path) -> bool:
    """True while some process writes this run."""
    try:
        with (directory / "events.jsonl").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
