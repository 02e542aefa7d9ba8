"""What a kernel may use, which guards hold it, and why one was killed.

Imported on both sides of the fence, by the solver and by the process that forks kernels, so it needs the standard
library only.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Self

UIDS_PER_POOL = 256  # kernels of one pool that can be alive at a time


class Guard(StrEnum):
    """A way to contain a kernel. Whether the system allows it is tried out when a pool starts."""

    USER = "user"  # a user id of its own (needs root), so that file permissions and RLIMIT_NPROC hold
    NETWORK = "network-namespace"  # no network interface at all
    NAMESPACES = "namespaces"  # sees and signals only its own processes, all of which die with it; all files are
    # read-only but a private tmpfs of limited size; no System V memory shared with others
    SECCOMP = "seccomp"  # no sockets but Unix ones, no memory or objects that nobody counts, in every child process too
    LANDLOCK = "landlock"  # nothing is written outside the scratch directory and /dev/shm; used where namespaces cannot be had


class KillReason(StrEnum):
    """Why a kernel's process was gone before its lease ended."""

    HANG = "hang"  # did not end within the grace period after the interrupt
    OUTPUT = "output"  # the same, after it was interrupted for printing too much
    MEMORY = "memory"  # all its processes together held more than the limit
    POOL_MEMORY = "pool memory"  # the pool held more than its limit, and this kernel the most of it
    DISK = "disk"  # its files together were larger or more than the limit
    CPU_TIME = "cpu time"
    EXIT = "exit"  # ended itself, as os._exit does
    CRASH = "crash"  # died of a signal, as by a segmentation fault
    PROTOCOL = "protocol"  # what it sent in place of a reply could not be read


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelLimits:
    """Limits of one kernel; all of them hold from its start to the end of its lease.

    Attributes:
        memory_mb: what a process may add to a fresh kernel's memory, so that Python raises MemoryError; also what all
            processes of a kernel, and the files in /dev/shm, may hold together before they are killed (pages that processes
            share count for each of them where the system does not tell).
        pool_memory_mb: what all kernels of the pool may hold together; the largest one is killed. None means no limit.
        cpu_s: CPU seconds of one process.
        processes: processes and threads. Root without `Guard.USER` is exempt from it.
        open_files: file descriptors of one process.
        scratch_mb: size of one file, and of all files together. With `Guard.NAMESPACES` their file system holds no more;
            otherwise a kernel that has written more is killed, as is one that wrote four times that in all.
        scratch_files: number of files and directories, in the same way.
        output_bytes: what is kept of a call's output; more is cut in the middle.
        flood_bytes: a call that prints more is stopped.
        grace_s: how long an interrupted call may take to end before its kernel is killed.
        replay_s: the successor of a lost kernel runs the lease's cells again if they took no longer than this in all.
        nice, start_nice: scheduling priority of a leased kernel, and of one that starts or waits.
        guards: those to be used where the system allows them.
    """

    memory_mb: int = 4_096
    pool_memory_mb: int | None = None
    cpu_s: int = 1_800
    processes: int = 64
    open_files: int = 256
    scratch_mb: int = 256
    scratch_files: int = 10_000
    output_bytes: int = 100_000
    flood_bytes: int = 2_000_000
    grace_s: float = 1.0
    replay_s: float = 1.0
    nice: int = 5
    start_nice: int = 15
    guards: frozenset[Guard] = frozenset(Guard)


@dataclass(frozen=True, slots=True, kw_only=True)
class ZygoteSpec:
    """What the process that forks kernels is started with.

    Attributes:
        directory: the pool's directory; removed in the end.
        solver_pid: the process it must not outlive.
        package: the library's own source directory, hidden from kernels where possible.
        preload: modules imported before the first fork; a missing one is passed over.
    """

    directory: str
    solver_pid: int
    package: str
    preload: tuple[str, ...]
    limits: KernelLimits

    def to_json(self) -> str:
        values = asdict(self)
        values["limits"]["guards"] = sorted(self.limits.guards)
        return json.dumps(values)

    @classmethod
    def from_json(cls, text: str) -> Self:
        values = json.loads(text)
        limits = values.pop("limits")
        guards = frozenset(map(Guard, limits.pop("guards")))
        return cls(**{**values, "preload": tuple(values["preload"])}, limits=KernelLimits(**limits, guards=guards))
