"""The system calls that a kernel's processes may not make, as a BPF program for seccomp. Standard library only."""

from __future__ import annotations

import errno
import platform
import struct

CLONE_NEWUSER = 0x1000_0000

_ARCHITECTURES = {"x86_64": (0xC000_003E, 0), "aarch64": (0xC000_00B7, 1)}  # AUDIT_ARCH, and the column below
_FORBIDDEN = {
    # memory that is not accounted to a process
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    # objects that outlive the process that made them
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # ways around other isolation
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_by_handle_at": (304, 265),  # opens files in hidden directories
    "io_uring_setup": (425, 425),  # opens sockets without the system call
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
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOWED, _DENIED = 0x7FFF_0000, 0x0005_0000
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16  # in struct seccomp_data
_AF_UNIX = 1


def syscall_number(name: str) -> int:
    """Returns the number of a system call on this architecture.

    Raises:
        OSError: neither x86-64 nor AArch64.
    """
    return _NUMBERS[name][_architecture()[1]]


def build_filter(allow_connect: bool) -> bytes:
    """Returns the BPF program.

    Sockets other than Unix sockets fail with ENETUNREACH. Without `allow_connect` Unix sockets cannot connect. Everything
    in `_FORBIDDEN` and new user namespaces fail with EPERM.

    Raises:
        OSError: neither x86-64 nor AArch64.
    """
    architecture, _ = _architecture()
    program = [
        _op(_LOAD, _ARCHITECTURE_AT),
        _op(_EQUAL, architecture, 1, 0),
        _op(_RETURN, _DENIED | errno.EPERM),  # 32-bit calls
        _op(_LOAD, _NUMBER_AT),
        _op(_AT_LEAST, 0x4000_0000, 0, 1),
        _op(_RETURN, _DENIED | errno.EPERM),  # x32 calls
        *_deny_unless("socket", _op(_EQUAL, _AF_UNIX, 1, 0), errno.ENETUNREACH),
        *_deny_unless("clone", _op(_ANY_BIT, CLONE_NEWUSER, 0, 1), errno.EPERM),
        *_deny("clone3", errno.ENOSYS),  # a filter cannot read its flags, which lie in memory; libc falls back on clone
    ]
    for name in (*_FORBIDDEN, *(() if allow_connect else ("connect",))):
        program += _deny(name, errno.EPERM)
    return b"".join([*program, _op(_RETURN, _ALLOWED)])


def _architecture() -> tuple[int, int]:
    try:
        return _ARCHITECTURES[platform.machine()]
    except KeyError:
        raise OSError(errno.ENOSYS, f"unknown architecture {platform.machine()}") from None


def _op(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """One instruction; `if_true` and `if_false` are how many instructions to skip after a test."""
    return struct.pack("=HBBI", code, if_true, if_false, operand)


def _deny(name: str, error: int) -> list[bytes]:
    return [_op(_EQUAL, syscall_number(name), 0, 1), _op(_RETURN, _DENIED | error)]


def _deny_unless(name: str, test: bytes, error: int) -> list[bytes]:
    """Decides by the first argument: `test` skips one instruction where the call is allowed."""
    return [
        _op(_EQUAL, syscall_number(name), 0, 4),
        _op(_LOAD, _FIRST_ARGUMENT_AT),
        test,
        _op(_RETURN, _DENIED | error),
        _op(_RETURN, _ALLOWED),
    ]
