"""How much of a file is in the page cache, and how much memory is left for more. Linux only."""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

_RESERVE_BYTES = 8 << 30  # a vLLM server's own processes take about 6 GB, 16 Python kernels 1.5 GB
_SAMPLES = 16
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "total_active_file")
_V2 = ("memory.max", "memory.current", "inactive_file", "active_file")

_libc = ctypes.CDLL(None, use_errno=True)


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


@functools.cache
def read_ahead_bytes(device: int) -> int:
    """Returns how far the kernel reads ahead on a device; 0 if unknown (some network and layered file systems)."""
    try:
        return int(Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb").read_text()) << 10
    except (OSError, ValueError):
        return 0


def memory_room() -> int:
    """Returns how many bytes of page cache files may fill, without what the server needs.

    Free and reclaimable memory of the machine, or of the control group if that has less: a container's limit counts page
    cache too, although the kernel reclaims it when the group needs more.
    """
    room = psutil.virtual_memory().available
    for limit, used, cache in _cgroup_limits():
        room = min(room, limit - (used - cache))
    return max(0, room - min(_RESERVE_BYTES, room // 2))


def _cgroup_limits(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> Iterator[tuple[int, int, int]]:
    """Yields limit, use and page cache in bytes of every limited control group of this process, versions 1 and 2."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if controllers == "":
            base, names = root, _V2
        elif "memory" in controllers.split(","):
            base, names = root / "memory", _V1
        else:
            continue
        group = base / own.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(base):
                yield from _group_limit(folder, *names)


def _group_limit(folder: Path, limit_name: str, used_name: str, *cache_names: str) -> Iterator[tuple[int, int, int]]:
    try:
        limit = (folder / limit_name).read_text().strip()
        used = int((folder / used_name).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return  # the root group has no limit, and a container may not see its ancestors
    if limit != "max":
        yield int(limit), used, sum(int(stat.get(name, 0)) for name in cache_names)
