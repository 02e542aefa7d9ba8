"""Measures how fast files are read into the page cache: read-ahead against `cat`, `dd` and direct reads.

The disk's own limit is the best of several numbers of threads that bypass the page cache (O_DIRECT).
"""

from __future__ import annotations

import mmap
import os
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from aimo_solver.errors import UserError
from aimo_solver.lab.bench.table import BenchResult, Value
from aimo_solver.server.readahead import missing_ranges, read_ahead

_BLOCK = 16 << 20
_DIRECT_THREADS = (4, 8, 16, 32)


def bench_read_ahead(files: Sequence[Path], *, threads: int = 8, rounds: int = 1, limit_bytes: int | None = None) -> BenchResult:
    """Reads the same files each way, evicted from the page cache before each; best of `rounds`.

    Raises:
        UserError: there are no files, or they cannot be evicted (a tmpfs, or pages not yet written back).
    """
    total = sum(file.stat().st_size for file in files)
    if total == 0:
        raise UserError("there is nothing to read")
    ways: list[tuple[str, Callable[[], None]]] = [
        ("cat", lambda: _pipe(["cat", *map(str, files)])),
        ("dd, direct, one after another", lambda: _dd(files)),
        *((f"direct, {count} threads", _direct_reader(files, count)) for count in _DIRECT_THREADS),
        (f"read-ahead, {threads} threads", lambda: _read_ahead(files, threads, limit_bytes)),
    ]
    rows: list[tuple[Value, ...]] = []
    for name, read in ways:
        seconds = min(_timed(files, read) for _ in range(rounds))
        rows.append((name, "cold", total / 1e9, seconds, total / 1e9 / seconds))
    began = time.monotonic()
    again = read_ahead(files, threads=threads, limit_bytes=limit_bytes)
    warm = time.monotonic() - began
    rows.append((f"read-ahead, {threads} threads", "warm", total / 1e9, warm, total / 1e9 / warm))
    best = max(float(row[4] or 0) for row in rows if str(row[0]).startswith("direct"))
    cold = next(float(row[4] or 0) for row in rows if row[0] == f"read-ahead, {threads} threads")
    resident = sum(resident_bytes(file) for file in files)
    return BenchResult(
        name="readahead",
        columns=("reader", "page cache", "GB", "seconds", "GB/s"),
        rows=tuple(rows),
        notes=(
            f"read-ahead reaches {cold / best:.2f} of the best direct parallel read",
            f"after it {resident / total:.4f} of the bytes are resident; the second call read {again.bytes_read / 1e9:.3f} GB",
        ),
        details={"share_of_best_direct": cold / best, "warm_seconds": warm, "resident_share": resident / total},
    )


def resident_bytes(path: Path) -> int:
    """Returns how many bytes of a file are in the page cache; 0 if the kernel does not report it."""
    size = path.stat().st_size
    if size == 0:
        return 0
    with path.open("rb", buffering=0) as file:
        return size - sum(end - start for start, end in missing_ranges(file.fileno(), 0, size))


def make_files(folder: Path, gigabytes: float, count: int = 8) -> list[Path]:
    """Writes files of random bytes in parallel and flushes them to the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    size = int(gigabytes * 1e9 / count)

    def make(number: int) -> Path:
        path = folder / f"random-{number:02d}.bin"
        random = np.random.default_rng(number)
        with path.open("wb", buffering=0) as file:
            for at in range(0, size, _BLOCK):
                file.write(random.bytes(min(_BLOCK, size - at)))
            os.fsync(file.fileno())
        return path

    with ThreadPoolExecutor(min(count, os.cpu_count() or 1)) as pool:
        return list(pool.map(make, range(count)))


def evict(files: Sequence[Path]) -> None:
    """Removes files from the page cache.

    Raises:
        UserError: they stay in the page cache.
    """
    for file in files:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    left = sum(resident_bytes(file) for file in files)
    if left > 0.01 * sum(file.stat().st_size for file in files):
        raise UserError(f"{left / 1e9:.2f} GB stay in the page cache; take a folder on a disk of its own")


def _timed(files: Sequence[Path], read: Callable[[], None]) -> float:
    evict(files)
    began = time.monotonic()
    read()
    return time.monotonic() - began


def _read_ahead(files: Sequence[Path], threads: int, limit_bytes: int | None) -> None:
    report = read_ahead(files, threads=threads, limit_bytes=limit_bytes)
    if report.bytes_read < 0.99 * report.total_bytes:
        raise UserError(f"read-ahead stopped early: {report}")


def _pipe(command: Sequence[str]) -> None:
    # Through a pipe: with /dev/null as its output, the kernel may skip the copy.
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        buffer = memoryview(bytearray(1 << 20))
        while process.stdout.readinto(buffer):  # type: ignore[attr-defined]
            pass
    if process.returncode != 0:
        raise UserError(f"{command[0]} ended with exit code {process.returncode}")


def _dd(files: Sequence[Path]) -> None:
    for file in files:
        subprocess.run(["dd", f"if={file}", "of=/dev/null", "bs=16M", "iflag=direct", "status=none"], check=True)


def _direct_reader(files: Sequence[Path], threads: int) -> Callable[[], None]:
    """Returns a function that reads all files with O_DIRECT, in blocks shared among `threads` threads."""

    def read() -> None:
        blocks = iter([(file, at) for file in files for at in range(0, file.stat().st_size, _BLOCK)])
        lock = threading.Lock()

        def reader() -> None:
            descriptors: dict[Path, int] = {}
            with mmap.mmap(-1, _BLOCK) as buffer:  # page-aligned, as O_DIRECT requires
                while True:
                    with lock:
                        file, at = next(blocks, (None, 0))
                    if file is None:
                        break
                    if file not in descriptors:
                        descriptors[file] = os.open(file, os.O_RDONLY | os.O_DIRECT)
                    os.preadv(descriptors[file], [buffer], at)
            for descriptor in descriptors.values():
                os.close(descriptor)

        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(reader) for _ in range(threads)]:
                done.result()

    return read
