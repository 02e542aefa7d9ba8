"""The system calls that a contained process may not make, as a program for seccomp. Standard library only."""

from __future__ import annotations

import errno
import platform
import struct

CLONE_NEWUSER = 0x1000_0000

_ARCHITECTURES = {"x86_64": (0xC000_003E, 0), "aarch64": (0xC000_00B7, 1)}  # AUDIT_ARCH, and the column below
_FORBIDDEN = {
    # memory that no process shows as its own
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    # objects that outlive the process which made them
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # ways around other guards
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_by_handle_at": (304, 265),  # opens files in directories that are hidden
    "io_uring_setup": (425, 425),  # opens sockets by itself
}
_NUMBERS = _FORBIDDEN | {
    "socket": (41, 198),
    "connect": (42, 203),
    "clone": (56, 220),
    "clone3": (435, 435),
    "capget": (125, 90),
    "capset": (126, 91),
    "mount_setattr": (442, 442),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}

# linux/bpf_common.h and linux/seccomp.h
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _ANSWER = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOWED, _DENIED = 0x7FFF_0000, 0x0005_0000
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16  # in struct seccomp_data
_AF_UNIX = 1


def number(name: str) -> int:
    """Of a system call on this architecture.

    Raises:
        OSError: it is neither x86-64 nor AArch64.
    """
    return _NUMBERS[name][_architecture()[1]]


def filter_program(connect: bool) -> bytes:
    """A BPF program that forbids what a contained process has no need of.

    Sockets fail with ENETUNREACH unless they are Unix sockets, which without `connect` reach nobody. Memory and objects
    that nobody counts or cleans up, and user namespaces, in which they could be made, fail with EPERM.

    Raises:
        OSError: as `number`.
    """
    architecture, _ = _architecture()
    program = [
        _op(_LOAD, _ARCHITECTURE_AT),
        _op(_EQUAL, architecture, 1, 0),
        _op(_ANSWER, _DENIED | errno.EPERM),  # 32-bit calls
        _op(_LOAD, _NUMBER_AT),
        _op(_AT_LEAST, 0x4000_0000, 0, 1),
        _op(_ANSWER, _DENIED | errno.EPERM),  # x32 calls
        *_deny_unless("socket", _op(_EQUAL, _AF_UNIX, 1, 0), errno.ENETUNREACH),
        *_deny_unless("clone", _op(_ANY_BIT, CLONE_NEWUSER, 0, 1), errno.EPERM),
        *_deny("clone3", errno.ENOSYS),  # its flags lie in memory, which a filter cannot read; libc falls back on clone
    ]
    for name in (*_FORBIDDEN, *(() if connect else ("connect",))):
        program += _deny(name, errno.EPERM)
    return b"".join([*program, _op(_ANSWER, _ALLOWED)])


def _architecture() -> tuple[int, int]:
    try:
        return _ARCHITECTURES[platform.machine()]
    except KeyError:
        raise OSError(errno.ENOSYS, f"unknown architecture {platform.machine()}") from None


def _op(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One instruction; the last two say how many to pass over after a test."""
    return struct.pack("=HBBI", code, if_true, if_false, operand)


def _deny(name: str, error: int) -> list[bytes]:
    return [_op(_EQUAL, number(name), 0, 1), _op(_ANSWER, _DENIED | error)]


def _deny_unless(name: str, test: bytes, error: int) -> list[bytes]:
    """Decides by the first argument: `test` passes over one instruction where the call is allowed."""
    return [
        _op(_EQUAL, number(name), 0, 4),
        _op(_LOAD, _FIRST_ARGUMENT_AT),
        test,
        _op(_ANSWER, _DENIED | error),
        _op(_ANSWER, _ALLOWED),
    ]
