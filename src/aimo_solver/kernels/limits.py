"""Limits and isolation of a kernel, and the reasons for killing one. Shared with the forkserver: standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

UIDS_PER_POOL = 256  # kernels of one pool that can be alive at a time


class Isolation(StrEnum):
    """A mechanism that isolates a kernel. When it starts, the forkserver tests which ones the system allows."""

    USER = "user"  # a user id of its own (needs root), so that file permissions and RLIMIT_NPROC hold
    NETWORK = "network-namespace"  # no network interface
    NAMESPACES = "namespaces"  # a pid namespace, whose processes die together; a mount namespace, read-only except for a
    # private tmpfs of limited size; an IPC namespace
    SECCOMP = "seccomp"  # a system call filter for all its processes: Unix sockets only, no memory that is not accounted for
    LANDLOCK = "landlock"  # writes only to the scratch directory and /dev/shm; used where namespaces are not available


class KillReason(StrEnum):
    """Why the process of a kernel ended before its lease."""

    HANG = "hang"  # did not end within the grace period after the interrupt
    OUTPUT = "output"  # the same, after an interrupt for printing too much
    MEMORY = "memory"  # all its processes together exceeded the limit
    POOL_MEMORY = "pool memory"  # the pool exceeded its limit, and this kernel was the largest
    DISK = "disk"  # its files together were too large or too many
    CPU_TIME = "cpu time"
    EXIT = "exit"  # the process exited, for example by os._exit
    CRASH = "crash"  # died of a signal, for example a segmentation fault
    PROTOCOL = "protocol"  # its reply could not be read


@dataclass(frozen=True, slots=True)
class Ending:
    """How a kernel's process ended; `reason` is None if the solver ended it."""

    reason: KillReason | None
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelLimits:
    """Limits of one kernel, in force from its start to the end of its lease.

    Attributes:
        memory_mb: growth of one process beyond a fresh kernel, after which Python raises MemoryError; also the total of all
            processes of a kernel and its files in /dev/shm, above which the kernel is killed (shared pages count once per
            process where the system does not report shares).
        pool_memory_mb: total of all kernels, above which the largest one is killed; None means no limit.
        cpu_s: CPU seconds of one process.
        processes: processes and threads. Does not hold for root without `Isolation.USER`.
        open_files: file descriptors of one process.
        scratch_mb: size of one file, and of all files together. With `Isolation.NAMESPACES` the file system has this size;
            otherwise a kernel that stores more, or has written four times as much, is killed.
        scratch_files: number of files and directories, enforced in the same way.
        output_bytes: output of a call that is kept; more is cut in the middle.
        flood_bytes: output after which a call is interrupted.
        grace_s: time for an interrupted call to end before its kernel is killed.
        isolation: mechanisms to use where the system allows them.
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
    isolation: frozenset[Isolation] = frozenset(Isolation)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkserverSpec:
    """The first message to the forkserver.

    Attributes:
        directory: the pool's directory, which the forkserver removes when it ends.
        solver_pid: the process that the forkserver must not outlive.
        package: the source directory of this library, hidden from kernels where possible.
        preload: modules to import before the first fork; missing ones are ignored.
    """

    directory: Path
    solver_pid: int
    package: Path
    preload: Sequence[str]
    limits: KernelLimits
