"""What processes and directories hold, as /proc and the file system tell. Standard library only."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_DEEPEST = 100  # directories one in another: every step down takes longer than the one before
_CHILDREN = Path("/proc/thread-self/children")  # not every Linux is built with it


@dataclass(frozen=True, slots=True)
class Stored:
    """Disk space, and the number of files and directories."""

    mb: float
    files: int


def stored(root: Path, uid: int, most: int) -> Stored:
    """What `uid` has below `root`. The count ends beyond `most` files, so that it takes bounded time.

    A directory that cannot be listed, or that lies very deep, counts for `most` files.
    """
    blocks = files = 0
    frontier = [(str(root), 0)]
    while frontier and files <= most:
        directory, depth = frontier.pop()
        if depth > _DEEPEST:
            files += most
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
                    if files > most:
                        break
        except (FileNotFoundError, NotADirectoryError):  # removed meanwhile
            pass
        except OSError:
            files += most
    return Stored(blocks * 512 / 2**20, files)


def written_mb(pid: int) -> float:
    """What a process and the children it has waited for wrote to disks, or were about to; 0 where the system does not tell."""
    values = _fields(f"/proc/{pid}/io")
    return (values.get("write_bytes", 0) - values.get("cancelled_write_bytes", 0)) / 2**20


def resident_mb(pid: int) -> float:
    """Memory of a process, including all that it shares with others."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES / 2**20
    return 0.0


def shared_out_mb(pids: Iterable[int], shm_mb: float) -> float:
    """Memory of processes and of files in /dev/shm, where shared pages count once. Slow: some milliseconds for a process.

    Pages of other files do not count, as the system can take them back.
    """
    private = shared = 0.0
    for pid in pids:
        values = _fields(f"/proc/{pid}/smaps_rollup")
        shared += values.get("Pss_Shmem", 0) / 1024
        told = values.get("Pss_Anon", values.get("Pss"))
        private += resident_mb(pid) if told is None else told / 1024
    return private + max(shared, shm_mb)  # such files are mapped, as a rule


def _fields(path: str) -> dict[str, int]:
    """The numbers in lines of the form ``name: number``."""
    with suppress(OSError):
        lines = (line.split() for line in Path(path).read_text().splitlines())
        return {words[0][:-1]: int(words[1]) for words in lines if len(words) > 1 and words[0][-1] == ":"}
    return {}


def descendants(pid: int) -> list[int]:
    """All processes below `pid`."""
    found: list[int] = []
    frontier = [pid]
    while frontier:
        frontier = [child for parent in frontier for child in children(parent)]
        found += frontier
    return found


def children(pid: int) -> list[int]:
    """The processes whose parent is `pid`."""
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
