"""Writes to a disk that may fail for a while."""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from aimo_solver.log.files import append_line, check_events

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 32.0
_CALM_S = 60.0  # a failure that comes later than this after the last pause is a new one
_WAITING_BYTES = 2**25  # half of it holds minutes of trajectories with 16 slots; written in less than a second
_OPEN_BYTES = 2**10  # opening a file takes as long as writing this

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Write:
    run: Callable[[], object]
    size: int


class WriteQueue:
    """Writes in order, at once if that is possible. Thread-safe; no method raises an OSError.

    A write that fails waits in memory, with all later ones; the first call after a pause tries again. The pauses double from
    1 to 32 s, so that a disk that fails every second is reported seldom. Records beyond 32 MiB are lost.

    Attributes:
        lost: number of records that were lost.
        closed: whether writes do nothing.
    """

    def __init__(
        self, directory: Path, events: BinaryIO | None, clock: Callable[[], float], on_resume: Callable[[float, int], object]
    ) -> None:
        """`events` is the locked file of the run; None makes a closed queue. `on_resume` is called when all that waited is
        written, with the seconds since the failure and the number of records lost."""
        self.lost = 0
        self.closed = events is None
        self._directory = directory
        self._events = events
        self._clock = clock
        self._on_resume = on_resume
        self._lock = threading.RLock()  # `on_resume` may write
        self._waiting: deque[_Write] = deque()
        self._bytes = 0
        self._failing_since: float | None = None
        self._lost_before = 0
        self._pause_s, self._retry_at = 0.0, -math.inf

    @property
    def failing(self) -> bool:
        return self._failing_since is not None

    def append(self, path: Path, line: bytes, share: float = 1.0) -> bool:
        """Adds a line to a file, now or later. Returns False if it is lost, as more than `share` of the room is in use."""
        return self._put(_Write(lambda: append_line(path, line), len(line) + _OPEN_BYTES), share * _WAITING_BYTES)

    def run(self, write: Callable[[], object]) -> None:
        """Calls a function that changes files, now or later. It is called again if it raises an OSError."""
        self._put(_Write(write, 0), math.inf)

    def close(self) -> None:
        """Tries once more to write what waits. A second call does nothing."""
        with self._lock:
            if self.closed:
                return
            self._drain()
            self.closed = True
            self.lost += sum(write.size > 0 for write in self._waiting)
            self._waiting.clear()
        if self.lost:
            _log.warning("run log %s lacks %d records that could not be written", self._directory, self.lost)

    def _put(self, write: _Write, room: float) -> bool:
        with self._lock:
            if self.closed:
                return False
            self._waiting.append(write)
            self._bytes += write.size
            if self._clock() >= self._retry_at:
                self._drain()
            if self._bytes <= room:
                return True
            self._bytes -= self._waiting.pop().size
            self.lost += 1
            return False

    def _drain(self) -> None:
        while self._waiting:
            write = self._waiting.popleft()
            self._bytes -= write.size
            try:
                if self._events is not None and self.failing:
                    check_events(self._events)
                write.run()
            except OSError as error:
                self._waiting.appendleft(write)
                self._bytes += write.size
                self._pause(error)
                return
        if self._failing_since is not None:
            seconds, lost = self._clock() - self._failing_since, self.lost - self._lost_before
            self._failing_since = None
            _log.warning("run log %s is written again after %.0f s; %d records were lost", self._directory, seconds, lost)
            self._on_resume(seconds, lost)

    def _pause(self, error: OSError) -> None:
        now = self._clock()
        again = now - self._retry_at < _CALM_S
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S) if again else _FIRST_PAUSE_S
        self._retry_at = now + self._pause_s
        if self._failing_since is None:
            self._failing_since, self._lost_before = now, self.lost
            _log.warning("run log %s cannot be written; records wait in memory: %s", self._directory, error)
