"""Reads a model's files into the page cache, many pieces at once, before the server maps them.

One reader gets a fraction of what most disks can deliver, and a server that maps its weights reads with one. Nothing is
pinned: the kernel may reclaim the pages if memory runs short.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

import numpy as np

from aimo_solver.server.machine import memory_room

_READ_BYTES = 16 << 20  # each read announces the next one to the kernel, so that the disk never waits for a reader
_OVERTAKEN_PIECES = 4
_EVIDENT_BYTES = 64 << 20  # smaller pieces may just have been read ahead: 128 KiB by Linux, up to 16 MiB by network file systems
_SAMPLES = 16  # resident pages that are tested

_libc = ctypes.CDLL(None, use_errno=True)


class StopReason(StrEnum):
    """Why a read-ahead ended."""

    DONE = "done"
    STOPPED = "stopped"  # by the caller
    OVERTAKEN = "overtaken"  # another process reads the files faster
    MEMORY = "memory"  # no room for more


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadAheadReport:
    """The result of a read-ahead.

    Attributes:
        total_bytes: size of all files that could be opened.
        bytes_read: read from the disk by this call.
        bytes_resident: already in the page cache when their turn came.
        problems: files that were left out, and why.
    """

    total_bytes: int
    bytes_read: int
    bytes_resident: int
    seconds: float
    stop: StopReason
    problems: Mapping[Path, str]

    def __str__(self) -> str:
        gb_per_s = self.bytes_read / 1e9 / self.seconds if self.seconds > 0 else 0.0
        left_out = f", {len(self.problems)} files left out" if self.problems else ""
        return (
            f"{self.bytes_read / 1e9:.1f} GB read and {self.bytes_resident / 1e9:.1f} GB found in memory of "
            f"{self.total_bytes / 1e9:.1f} GB in {self.seconds:.1f} s ({gb_per_s:.2f} GB/s), {self.stop.value}{left_out}"
        )


@dataclass(frozen=True, slots=True)
class _Piece:
    path: Path
    start: int
    end: int
    resident_before: int = 0


@dataclass(slots=True)
class _State:
    """What the reading threads share; `lock` guards all of it."""

    pieces: Iterator[_Piece]
    problems: dict[Path, str]
    lock: threading.Lock = field(default_factory=threading.Lock)
    read: int = 0
    resident: int = 0
    claimed: int = 0
    overtaken: int = 0
    stop: StopReason | None = None


def read_ahead(
    paths: Iterable[Path],
    *,
    threads: int = 8,
    piece_bytes: int = 128 << 20,
    limit_bytes: int | None = None,
    stop: threading.Event | None = None,
) -> ReadAheadReport:
    """Reads files into the page cache; returns when they are there or it has to stop. Blocks.

    The largest files come first, cut into pieces that `threads` readers take in turn. Resident pages are not read again.
    It stops early if `stop` is set, if memory has no room for more, or if another reader (the server) has overtaken it:
    several pieces in a row that were missing at first are resident when their turn comes.

    Args:
        paths: files, or folders whose files are read; not those in subfolders, where models keep the same weights in formats
            that the server does not read.
        limit_bytes: most bytes of these files to hold in memory; None takes `memory_room`, computed again for each piece.

    A missing or unreadable file is reported in `problems` and is never fatal.
    """
    began = time.monotonic()
    problems: dict[Path, str] = {}
    sizes = sorted(_files(paths, problems), key=lambda file: (-file[1], file[0]))
    pieces = [_Piece(path, at, min(at + piece_bytes, size)) for path, size in sizes for at in range(0, size, piece_bytes)]
    state = _State(iter(_survey(pieces, threads)), problems)
    readers = [
        threading.Thread(target=_run_reader, args=(state, limit_bytes, stop), name=f"read-ahead-{number}", daemon=True)
        for number in range(min(threads, len(pieces)))
    ]
    for reader in readers:
        reader.start()
    try:
        for reader in readers:
            reader.join()
    finally:  # an interrupt may end the wait
        state.stop = state.stop or (StopReason.STOPPED if any(reader.is_alive() for reader in readers) else StopReason.DONE)
    return ReadAheadReport(
        total_bytes=sum(size for _, size in sizes),
        bytes_read=state.read,
        bytes_resident=state.resident,
        seconds=time.monotonic() - began,
        stop=state.stop,
        problems=problems,
    )


def _files(paths: Iterable[Path], problems: dict[Path, str]) -> Iterator[tuple[Path, int]]:
    for path in paths:
        try:
            files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
        except OSError as error:
            problems[path] = error.strerror or str(error)
            continue
        for file in files:
            try:
                with file.open("rb", buffering=0) as opened:
                    yield file, os.fstat(opened.fileno()).st_size
            except OSError as error:
                problems[file] = error.strerror or str(error)


def _survey(pieces: Sequence[_Piece], threads: int) -> list[_Piece]:
    """Fills in how much of each piece is resident; in parallel, since a check takes about 0.1 µs per page."""

    def look(piece: _Piece) -> _Piece:
        try:
            with piece.path.open("rb", buffering=0) as file:
                missing = missing_ranges(file.fileno(), piece.start, piece.end)
        except OSError:  # its reader will report why
            return piece
        return replace(piece, resident_before=piece.end - piece.start - _length(missing))

    with ThreadPoolExecutor(max(1, threads)) as pool:
        return list(pool.map(look, pieces))


def _run_reader(state: _State, limit_bytes: int | None, stop: threading.Event | None) -> None:
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
            if piece.path in state.problems:
                continue
            # Resident pages of these files are among those that `memory_room` counts as reclaimable, so they are claimed too.
            fits = min(piece.end - piece.start, (allowed - state.claimed) // mmap.PAGESIZE * mmap.PAGESIZE)
            if fits <= 0:
                state.stop = StopReason.MEMORY
                return
            state.claimed += fits
            piece = replace(piece, end=piece.start + fits)
        try:
            _read_piece(state, piece, buffer, stop)
        except OSError as error:
            with state.lock:
                state.problems[piece.path] = error.strerror or str(error)


def _read_piece(state: _State, piece: _Piece, buffer: memoryview, stop: threading.Event | None) -> None:
    with piece.path.open("rb", buffering=0) as file:
        descriptor = file.fileno()
        missing = missing_ranges(descriptor, piece.start, piece.end)
        size = piece.end - piece.start
        with state.lock:
            state.resident += size - _length(missing)
            # Reclaimed pages, and a small piece that was read ahead for a neighbour, are not evidence of another reader.
            by_others = _length(missing) < size // 16 and piece.resident_before < size // 2 and size >= _EVIDENT_BYTES
            state.overtaken = state.overtaken + 1 if by_others else 0
            if state.overtaken >= _OVERTAKEN_PIECES:
                state.stop = StopReason.OVERTAKEN
                return
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        for start, end in missing:
            for at in range(start, end, _READ_BYTES):
                if state.stop in (StopReason.STOPPED, StopReason.OVERTAKEN) or (stop is not None and stop.is_set()):
                    return
                later = at + _READ_BYTES
                if later < end:
                    os.posix_fadvise(descriptor, later, min(_READ_BYTES, end - later), os.POSIX_FADV_WILLNEED)
                done = os.preadv(descriptor, [buffer[: min(_READ_BYTES, end - at)]], at)
                with state.lock:
                    state.read += done


def _length(ranges: Sequence[tuple[int, int]]) -> int:
    return sum(end - start for start, end in ranges)


def missing_ranges(descriptor: int, start: int, end: int) -> list[tuple[int, int]]:
    """Returns the byte ranges within start..end (start page-aligned) that are not in the page cache; all of it if unknown."""
    try:
        with mmap.mmap(descriptor, end - start, access=mmap.ACCESS_READ, offset=start) as mapped:
            pages = np.zeros(-(-(end - start) // mmap.PAGESIZE), np.uint8)
            address = np.frombuffer(mapped, np.uint8).ctypes.data
            failed = _libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(end - start), ctypes.c_void_p(pages.ctypes.data))
    except OSError:  # a file system without mmap
        return [(start, end)]
    resident = np.flatnonzero(pages & 1)
    if failed or (resident.size and not _readable_at_once(descriptor, start, resident)):
        return [(start, end)]
    absent = np.concatenate(([0], 1 - (pages & 1), [0])).astype(np.int8)
    edges = np.flatnonzero(np.diff(absent)).reshape(-1, 2)
    return [(start + int(first) * mmap.PAGESIZE, min(end, start + int(last) * mmap.PAGESIZE)) for first, last in edges]


def _readable_at_once(descriptor: int, start: int, resident: np.ndarray[tuple[int], np.dtype[np.intp]]) -> bool:
    """Returns whether a sample of the pages that `mincore` reports can be read without waiting.

    Linux reports every page of a file as resident to users without write permission, and some sandboxes do so to all.
    """
    byte = bytearray(1)
    for page in resident[:: max(1, resident.size // _SAMPLES)]:
        try:
            os.preadv(descriptor, [byte], start + int(page) * mmap.PAGESIZE, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                return False
            raise
    return True
