"""Memory, files and descendants of processes, read from /proc and the file system. Standard library only."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from mmap import PAGESIZE
from pathlib import Path

_MAX_DEPTH = 100  # of directories: the time for one level grows with its depth
_CHILDREN = Path("/proc/thread-self/children")  # missing if Linux was built without CONFIG_PROC_CHILDREN


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """Disk space, and the number of files and directories."""

    mb: float
    files: int


def disk_usage(root: Path, uid: int, max_files: int) -> DiskUsage:
    """Returns what `uid` owns below `root`. Counting stops beyond `max_files`, which bounds the time.

    A directory that cannot be listed or is nested too deeply counts as `max_files` files.
    """
    blocks = files = 0
    frontier = [(str(root), 0)]
    while frontier and files <= max_files:
        directory, depth = frontier.pop()
        if depth > _MAX_DEPTH:
            files += max_files
            break
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    info = entry.stat(follow_symlinks=False)
                    if info.st_uid == uid:
                        files += 1
                        blocks += info.st_blocks
                        if entry.is_dir(follow_symlinks=False):
                            frontier.append((entry.path, depth + 1))
                    if files > max_files:
                        break
        except (FileNotFoundError, NotADirectoryError):  # removed in the meantime
            pass
        except OSError:
            files += max_files
    return DiskUsage(blocks * 512 / 2**20, files)


def written_mb(pid: int) -> float:
    """Returns what a process and the children it has reaped wrote to disks; 0 if the system does not report it."""
    values = _read_fields(f"/proc/{pid}/io")
    return (values.get("write_bytes", 0) - values.get("cancelled_write_bytes", 0)) / 2**20


def resident_mb(pid: int) -> float:
    """Returns the memory of a process, shared pages included."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGESIZE / 2**20
    return 0.0


def proportional_mb(pids: Iterable[int], shm_mb: float) -> float:
    """Returns the memory of processes and of files in /dev/shm, with shared pages counted once.

    Takes some milliseconds per process. Pages of other files do not count, as the system can reclaim them.
    """
    private = shared = 0.0
    for pid in pids:
        values = _read_fields(f"/proc/{pid}/smaps_rollup")
        shared += values.get("Pss_Shmem", 0) / 1024
        anonymous = values.get("Pss_Anon", values.get("Pss"))
        private += resident_mb(pid) if anonymous is None else anonymous / 1024
    return private + max(shared, shm_mb)  # files in /dev/shm are usually mapped


def _read_fields(path: str) -> dict[str, int]:
    """Returns the numbers in lines such as ``write_bytes: 4096``."""
    with suppress(OSError):
        lines = (line.split() for line in Path(path).read_text().splitlines())
        return {words[0][:-1]: int(words[1]) for words in lines if len(words) > 1 and words[0][-1] == ":"}
    return {}


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    frontier = [pid]
    while frontier:
        frontier = [child for parent in frontier for child in children(parent)]
        found += frontier
    return found


def children(pid: int) -> list[int]:
    if not _CHILDREN.exists():
        return [child for child in map(int, filter(str.isdigit, os.listdir("/proc"))) if _parent(child) == pid]
    found: list[int] = []
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    return found


def _parent(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0
