"""Reads a model's files into the page cache, many pieces at once, before the server asks for them.

One reader gets a fraction of what most disks can give, and a server that maps its weights reads with one. What this
does not do: it pins nothing. Pages can be evicted again if memory runs short.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from aimo_solver.server.pagecache import PAGE_BYTES, memory_room, missing_ranges, read_ahead_bytes

_READ_BYTES = 16 << 20  # each read asks the kernel for the next one too, so that the disk never waits for a reader
_REPORT_S = 1.0
_OVERTAKEN_PIECES = 4


class StopReason(StrEnum):
    """Why a prewarm ended."""

    DONE = "done"
    STOPPED = "stopped"  # the caller asked for it
    OVERTAKEN = "overtaken"  # somebody else reads the files faster
    MEMORY = "memory"  # more would not fit


class Event(Protocol):
    """What can ask a prewarm to stop, for instance a `threading.Event`."""

    def is_set(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class FileProblem:
    """A file that could not be read, and why."""

    path: Path
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PrewarmReport:
    """What a prewarm did, or has done so far.

    Attributes:
        total_bytes: size of all files that could be opened.
        bytes_read: read from the disk by this call.
        bytes_resident: found in the page cache when their turn came.
        stop: None while it runs.
        problems: files that were left out.
    """

    total_bytes: int
    bytes_read: int
    bytes_resident: int
    seconds: float
    stop: StopReason | None = None
    problems: tuple[FileProblem, ...] = ()

    @property
    def gb_per_s(self) -> float:
        """Reading speed, 10^9 bytes per second."""
        return self.bytes_read / 1e9 / self.seconds if self.seconds > 0 else 0.0

    def __str__(self) -> str:
        state = "running" if self.stop is None else self.stop.value
        left_out = f", {len(self.problems)} files left out" if self.problems else ""
        return (
            f"{self.bytes_read / 1e9:.1f} GB read and {self.bytes_resident / 1e9:.1f} GB found in memory of "
            f"{self.total_bytes / 1e9:.1f} GB in {self.seconds:.1f} s ({self.gb_per_s:.2f} GB/s), {state}{left_out}"
        )


@dataclass(frozen=True, slots=True)
class _Piece:
    path: Path
    start: int
    end: int
    resident_before: int


@dataclass(slots=True)
class _State:
    """What the reading threads share; `lock` guards all of it."""

    pieces: Iterator[_Piece]
    total: int
    problems: list[FileProblem]
    lock: threading.Lock = field(default_factory=threading.Lock)
    read: int = 0
    resident: int = 0
    claimed: int = 0
    overtaken: int = 0
    stop: StopReason | None = None
    bad: set[Path] = field(default_factory=set)


def prewarm(
    paths: Iterable[Path],
    *,
    threads: int = 8,
    piece_bytes: int = 128 << 20,
    limit_bytes: int | None = None,
    stop: Event | None = None,
    on_progress: Callable[[PrewarmReport], None] | None = None,
) -> PrewarmReport:
    """Brings files into the page cache; returns when they are there or it has to stop. Blocks: run it in a thread.

    Largest files first, each cut into pieces that `threads` readers take in turn. What is resident is not read again.
    It stops early if `stop` is set, if memory would not hold more, or if several pieces in a row that were missing at
    first have been read by somebody else meanwhile (the server has overtaken it).

    Args:
        paths: files, or folders whose files are meant; not those in their subfolders, where models come with the same
            weights in formats that a server does not read.
        limit_bytes: most bytes of these files to hold in memory; None takes what `memory_room` says, asked anew for
            each piece.
        on_progress: called about once a second from the calling thread, and at the end.

    A missing or unreadable file is reported in `problems` and never fatal.
    """
    began = time.monotonic()
    problems: list[FileProblem] = []
    sizes = sorted(_files(paths, problems), key=lambda file: (-file[1], file[0]))
    pieces = _survey(
        [_Piece(path, start, min(start + piece_bytes, size), 0) for path, size in sizes for start in range(0, size, piece_bytes)],
        threads,
    )
    state = _State(iter(pieces), sum(size for _, size in sizes), problems)

    def report() -> PrewarmReport:
        with state.lock:
            return PrewarmReport(
                total_bytes=state.total,
                bytes_read=state.read,
                bytes_resident=state.resident,
                seconds=time.monotonic() - began,
                stop=state.stop,
                problems=tuple(state.problems),
            )

    readers = [
        threading.Thread(target=_reader, args=(state, limit_bytes, stop), name=f"prewarm-{number}", daemon=True)
        for number in range(min(threads, len(pieces)))
    ]
    for reader in readers:
        reader.start()
    try:
        next_report = began + _REPORT_S
        for reader in readers:
            while reader.is_alive():
                reader.join(max(0.0, next_report - time.monotonic()))
                if time.monotonic() >= next_report:
                    next_report = time.monotonic() + _REPORT_S
                    if on_progress is not None:
                        on_progress(report())
    except BaseException:
        state.stop = StopReason.STOPPED
        raise
    state.stop = state.stop or StopReason.DONE
    last = report()
    if on_progress is not None:
        on_progress(last)
    return last


# --- reading ----------------------------------------------------------------------------------------------------------


def _reader(state: _State, limit_bytes: int | None, stop: Event | None) -> None:
    buffer = memoryview(bytearray(_READ_BYTES))
    while state.stop is None:
        if stop is not None and stop.is_set():
            state.stop = StopReason.STOPPED
            return
        allowed = limit_bytes if limit_bytes is not None else memory_room()
        with state.lock:
            piece = next(state.pieces, None)
            if piece is None:
                return
            if piece.path in state.bad:
                continue
            # Pages that are resident already are part of what was counted as reclaimable.
            fits = min(piece.end - piece.start, (allowed - state.claimed) // PAGE_BYTES * PAGE_BYTES)
            if fits <= 0:
                state.stop = StopReason.MEMORY
                return
            state.claimed += fits
            piece = replace(piece, end=piece.start + fits)
        try:
            _read_piece(state, piece, buffer, stop)
        except OSError as error:
            with state.lock:
                if piece.path not in state.bad:
                    state.bad.add(piece.path)
                    state.problems.append(FileProblem(piece.path, error.strerror or str(error)))


def _read_piece(state: _State, piece: _Piece, buffer: memoryview, stop: Event | None) -> None:
    with piece.path.open("rb", buffering=0) as file:
        descriptor = file.fileno()
        missing = missing_ranges(descriptor, piece.start, piece.end)
        absent = sum(end - start for start, end in missing)
        size = piece.end - piece.start
        ahead = read_ahead_bytes(os.fstat(descriptor).st_dev)
        with state.lock:
            state.resident += size - absent
            # What the kernel may have read ahead for a neighbouring piece tells nothing, nor a page that it has taken back.
            by_others = absent < size // 16 and piece.resident_before < size // 2 and size > 4 * ahead
            state.overtaken = state.overtaken + 1 if by_others else 0
            if state.overtaken >= _OVERTAKEN_PIECES:
                state.stop = StopReason.OVERTAKEN
                return
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        for start, end in missing:
            for at in range(start, end, _READ_BYTES):
                if state.stop in (StopReason.STOPPED, StopReason.OVERTAKEN) or (stop is not None and stop.is_set()):
                    return
                if at + _READ_BYTES < end:
                    os.posix_fadvise(
                        descriptor, at + _READ_BYTES, min(_READ_BYTES, end - at - _READ_BYTES), os.POSIX_FADV_WILLNEED
                    )
                done = os.preadv(descriptor, [buffer[: min(_READ_BYTES, end - at)]], at)
                with state.lock:
                    state.read += done


def _files(paths: Iterable[Path], problems: list[FileProblem]) -> Iterator[tuple[Path, int]]:
    for path in paths:
        try:
            files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
        except OSError as error:
            problems.append(FileProblem(path, error.strerror or str(error)))
            continue
        for file in files:
            try:
                with file.open("rb", buffering=0) as opened:
                    yield file, os.fstat(opened.fileno()).st_size
            except OSError as error:
                problems.append(FileProblem(file, error.strerror or str(error)))


def _survey(pieces: Sequence[_Piece], threads: int) -> list[_Piece]:
    """The pieces with what is resident of each; side by side, since a look costs about 0.1 µs a page."""

    def look(piece: _Piece) -> _Piece:
        try:
            with piece.path.open("rb", buffering=0) as file:
                absent = sum(end - start for start, end in missing_ranges(file.fileno(), piece.start, piece.end))
        except OSError:
            absent = piece.end - piece.start  # its reader will report why
        return _Piece(piece.path, piece.start, piece.end, piece.end - piece.start - absent)

    with ThreadPoolExecutor(max(1, threads)) as pool:
        return list(pool.map(look, pieces))
