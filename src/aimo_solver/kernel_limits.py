"""What a kernel may use, which guards hold it, and what the pool and its processes say to each other about it.

Imported on both sides of the fence, by the solver and by the process that forks kernels, so it needs nothing but the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Guard(StrEnum):
    """A way to contain a kernel. Whether the system allows it is only known once it was tried."""

    USER = "user"  # a user id of its own (needs root); ordinary file permissions and RLIMIT_NPROC then hold
    NETWORK = "network-namespace"  # no network interface at all
    MOUNTS = "mount-namespace"  # everything read-only but a private tmpfs of limited size
    PIDS = "pid-namespace"  # sees and signals no process but its own; all die with it
    SECCOMP = "seccomp"  # no socket but Unix ones, for every process and library of the kernel
    LANDLOCK = "landlock"  # nothing written outside the scratch directory; used where mounts cannot be had


class KillReason(StrEnum):
    """Why a kernel's process is gone before its lease ended."""

    HANG = "hang"  # did not end within the grace period after the interrupt
    OUTPUT = "output"  # went on printing after the interrupt
    MEMORY = "memory"  # all its processes together held more than the limit
    POOL_MEMORY = "pool memory"  # the pool held more than its limit, this kernel the most of it
    CPU_TIME = "cpu time"
    EXIT = "exit"  # ended itself, as os._exit does
    CRASH = "crash"  # died of a signal, as a segmentation fault


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelLimits:
    """Limits of one kernel; all of them hold from its start to the end of its lease.

    Attributes:
        memory_mb: address space that a process may add to what a fresh kernel has, so that Python raises MemoryError; also
            what all processes of the kernel may hold together before they are killed.
        pool_memory_mb: what all kernels of the pool may hold together; the largest one is killed. None means no limit.
        cpu_s: CPU seconds of one process.
        processes: processes and threads. Not enforced for root without `Guard.USER`.
        open_files: file descriptors of one process.
        scratch_mb: size of one file, and with `Guard.MOUNTS` of all files together.
        output_bytes: what is kept of a call's output; more is cut in the middle.
        flood_bytes: a call that prints more is stopped.
        grace_s: how long an interrupted call may take to end before its kernel is killed.
        replay_s: a kernel lost to a hang gets its successor fed with the lease's successful cells again if they took no
            longer than this in all.
        nice, start_nice: scheduling priority of a leased kernel and of one that starts or waits.
    """

    memory_mb: int = 4_096
    pool_memory_mb: int | None = None
    cpu_s: int = 1_800
    processes: int = 64
    open_files: int = 256
    scratch_mb: int = 256
    output_bytes: int = 100_000
    flood_bytes: int = 2_000_000
    grace_s: float = 1.0
    replay_s: float = 1.0
    nice: int = 5
    start_nice: int = 15
    guards: tuple[Guard, ...] = field(default=tuple(Guard))
