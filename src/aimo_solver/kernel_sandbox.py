"""Ways of Linux to contain a process, called through libc. Standard library only; nothing here is about kernels.

Each function changes the calling process for good and raises `OSError` where the system does not allow it. They are
meant for a process with one thread, right after fork.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

CLONE_NEWNS = 0x0002_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 0x4_0000
_AT_FDCWD, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY = -100, 0x8000, 0x1

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_SET_SECCOMP = 1, 4, 8, 22
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 36, 38, 47, 2
_CAP_DAC_READ_SEARCH = 2
_CAPABILITY_HEADER = struct.pack("=Ii", 0x2008_0522, 0)

# calls added to Linux since 5.0 have one number on all architectures
_IO_URING_SETUP, _MOUNT_SETATTR, _LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 425, 442, 444, 445, 446
_ARCHITECTURES = {"x86_64": (0xC000_003E, 41, 126), "aarch64": (0xC000_00B7, 198, 91)}  # AUDIT_ARCH, socket, capset

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _syscall(what: str, number: int, *args: object) -> int:
    return _check(int(_libc.syscall(ctypes.c_long(number), *args)), what)


def _prctl(what: str, option: int, *args: object) -> None:
    padded = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in (*args, 0, 0, 0, 0)[:4]]
    _check(_libc.prctl(ctypes.c_int(option), *padded), what)


def _architecture() -> tuple[int, int, int]:
    try:
        return _ARCHITECTURES[platform.machine()]
    except KeyError:
        raise OSError(errno.ENOSYS, f"unknown architecture {platform.machine()}") from None


def die_with_parent() -> None:
    """SIGKILL for this process when its parent ends. To be called after a change of user, which resets it."""
    _prctl("parent death signal", _PR_SET_PDEATHSIG, int(signal.SIGKILL))


def become_subreaper() -> None:
    """Orphaned descendants become children of this process."""
    _prctl("subreaper", _PR_SET_CHILD_SUBREAPER, 1)


def unshare(flags: int) -> None:
    """New namespaces for this process; a new pid namespace holds from its next child on."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def enter_user_namespace() -> None:
    """A user namespace in which this user keeps its id and may create namespaces of the other kinds."""
    uid, gid = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    args = source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()
    _check(_libc.mount(*args), f"mount {target}")


def _set_read_only(target: Path, read_only: bool) -> None:
    """With `read_only`, all mounts below `target`, too."""
    bits = (_MOUNT_ATTR_RDONLY, 0) if read_only else (0, _MOUNT_ATTR_RDONLY)
    attributes = struct.pack("=QQQQ", *bits, 0, 0)
    flags = _AT_RECURSIVE if read_only else 0
    _syscall("mount_setattr", _MOUNT_SETATTR, _AT_FDCWD, bytes(target), flags, attributes, ctypes.c_size_t(len(attributes)))


def isolate_mounts(keep: Path, hide: Path, size_mb: int, uid: int) -> Path:
    """In a mount namespace of its own, makes all files read-only but those in `keep` and in a fresh tmpfs on /tmp and /dev/shm.

    `hide` looks empty, and /proc shows this process's pid namespace, which must be new. What Python itself needs stays
    readable where it is, below /tmp too. Returns a directory of `uid` in the tmpfs.
    """
    _mount("none", "/", "none", _MS_REC | _MS_PRIVATE)
    _mount(str(keep), str(keep), "none", _MS_BIND)
    _set_read_only(Path("/"), True)
    _set_read_only(keep, False)
    covered = {path: os.open(path, os.O_PATH) for path in (keep, *_python_below(Path("/tmp")))}
    try:
        _mount("none", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={size_mb}m,mode=1777")
        for name in ("work", "shm"):
            Path("/tmp", name).mkdir(mode=0o700)
            os.chown(Path("/tmp", name), uid, -1)
        _mount("/tmp/shm", "/dev/shm", "none", _MS_BIND)
        for path, descriptor in covered.items():
            if not path.exists():  # it lies below /tmp
                path.mkdir(parents=True)
                _mount(f"/proc/self/fd/{descriptor}", str(path), "none", _MS_BIND)
    finally:
        for descriptor in covered.values():
            os.close(descriptor)
    if hide.is_dir():
        _mount("none", str(hide), "tmpfs", _MS_NOSUID | _MS_NODEV, "size=4k,mode=000")
    _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV)
    return Path("/tmp/work")


def _python_below(folder: Path) -> list[Path]:
    """The directories that Python is installed in or imports from and that lie below `folder`, outer ones first."""
    named = {Path(name).resolve() for name in (sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path) if name}
    return sorted(path for path in named if path.is_dir() and path != folder and path.is_relative_to(folder))


def switch_user(uid: int, read_all: bool) -> None:
    """Becomes `uid`, a user without any rights; with `read_all` it may still read, but not write, all files."""
    if read_all:
        _prctl("keep capabilities", _PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    if read_all:
        bit = 1 << _CAP_DAC_READ_SEARCH
        _syscall("capset", _architecture()[2], _CAPABILITY_HEADER, struct.pack("=IIIIII", bit, bit, bit, 0, 0, 0))
        _prctl("ambient capability", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_READ_SEARCH)
    _prctl("dumpable", _PR_SET_DUMPABLE, 1)  # otherwise /proc/self belongs to root


def drop_capabilities() -> None:
    """Takes root's powers from root, and those of its user namespace from another user."""
    _syscall("capset", _architecture()[2], _CAPABILITY_HEADER, bytes(24))


def forbid_privileges() -> None:
    """No program started from here gains rights."""
    _prctl("no new privileges", _PR_SET_NO_NEW_PRIVS, 1)


def forbid_sockets() -> None:
    """Sockets fail with ENETUNREACH unless they are Unix sockets, in libraries and child processes too.

    io_uring, which can open sockets by itself, is forbidden with them. Needs `forbid_privileges`.
    """
    arch, socket_call, _ = _architecture()

    def op(code: int, k: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_true, if_false, k)

    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    program = b"".join(
        [
            op(load, 4),  # the architecture the call was made for
            op(equal, arch, 0, 7),
            op(load, 0),  # the call's number
            op(at_least, 0x4000_0000, 5, 0),  # x32 calls
            op(equal, _IO_URING_SETUP, 4, 0),
            op(equal, socket_call, 0, 2),
            op(load, 16),  # its first argument, the address family
            op(equal, 1, 0, 1),  # AF_UNIX
            op(answer, 0x7FFF_0000),  # allowed
            op(answer, 0x0005_0000 | errno.ENETUNREACH),
        ]
    )
    code = ctypes.create_string_buffer(program, len(program))
    _prctl("seccomp", _PR_SET_SECCOMP, 2, struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))


def restrict_writes(writable: Iterable[Path]) -> None:
    """Landlock: reading and executing is allowed everywhere, all else below `writable` only. Needs `forbid_privileges`.

    From version 4 on TCP, and from 6 on signals and abstract Unix sockets to other processes are forbidden as well.
    """
    version = _syscall("landlock", _LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    rights = (1 << (13, 14, 15, 15, 16)[min(version, 5) - 1]) - 1
    of_files = 0b1100_0000_0000_0111 & rights  # execute, write, read, truncate, ioctl
    reading = 0b1101
    rules = struct.pack("=Q", rights)
    if version >= 4:
        rules += struct.pack("=Q", 0b11)
    if version >= 6:
        rules += struct.pack("=Q", 0b11)
    ruleset = _syscall("landlock", _LANDLOCK_CREATE_RULESET, rules, ctypes.c_size_t(len(rules)), 0)
    try:
        for path, allowed in [(Path("/"), reading), *((p, rights) for p in writable if p.exists())]:
            place = os.open(path, os.O_PATH)
            rule = struct.pack("=Qi", allowed if path.is_dir() else allowed & of_files, place)
            try:
                _syscall("landlock", _LANDLOCK_ADD_RULE, ruleset, 1, rule, 0)
            finally:
                os.close(place)
        _syscall("landlock", _LANDLOCK_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def limit(kind: int, value: int, spare: int = 0) -> None:
    """Sets a resource limit to `value`, its hard limit to `spare` more; a lower hard limit that holds already stays."""
    hard = resource.getrlimit(kind)[1]
    highest = value + spare if hard == resource.RLIM_INFINITY else min(value + spare, hard)
    resource.setrlimit(kind, (min(value, highest), highest))
