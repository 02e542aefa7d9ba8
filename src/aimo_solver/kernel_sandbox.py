"""Ways of Linux to contain a process, called through libc. Standard library only; nothing here is specific to kernels.

Each function changes the calling process for good and raises `OSError` where the system does not allow it, so that the caller can do
without. They are meant for a process with one thread, right after fork.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
from collections.abc import Iterable
from pathlib import Path

CLONE_NEWNS = 0x0002_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

_MS_BIND, _MS_REC, _MS_PRIVATE, _MS_NOSUID, _MS_NODEV = 0x1000, 0x4000, 0x40000, 0x2, 0x4
_AT_FDCWD, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY = -100, 0x8000, 0x1

_PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_SET_SECCOMP = 4, 8, 22
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 36, 38, 47
_CAP_DAC_READ_SEARCH = 2

# the same numbers on every 64-bit architecture, as all calls added since 5.0
_SYS_MOUNT_SETATTR, _SYS_LANDLOCK_CREATE, _SYS_LANDLOCK_ADD, _SYS_LANDLOCK_RESTRICT, _SYS_IO_URING_SETUP = 442, 444, 445, 446, 425
# architecture: (AUDIT_ARCH, socket, capset)
_ARCHES = {"x86_64": (0xC000_003E, 41, 126), "aarch64": (0xC000_00B7, 198, 91)}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _syscall(what: str, number: int, *args: object) -> int:
    return _check(int(_libc.syscall(ctypes.c_long(number), *args)), what)


def _prctl(what: str, option: int, *args: int | ctypes.Array[ctypes.c_char]) -> None:
    padded = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in (*args, 0, 0, 0, 0)[:4]]
    _check(_libc.prctl(ctypes.c_int(option), *padded), what)


def become_subreaper() -> None:
    """Orphaned descendants become children of this process."""
    _prctl("subreaper", _PR_SET_CHILD_SUBREAPER, 1)


def unshare(flags: int) -> None:
    """New namespaces for this process; a new pid namespace holds from its next child on."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def enter_user_namespace() -> None:
    """A user namespace in which this user keeps its id and may create the other kinds of namespaces."""
    uid, gid = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    _check(_libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()), f"mount {target}")


def isolate_mounts(keep: Path, hide: Path, size_mb: int, uid: int, own_pids: bool) -> Path:
    """Makes all file systems read-only in a new mount namespace, but for `keep` and a fresh tmpfs on /tmp and /dev/shm.

    `hide` looks empty. With `own_pids`, /proc shows this pid namespace alone. Returns a directory of `uid` in the tmpfs.
    """
    unshare(CLONE_NEWNS)
    mount("none", "/", "none", _MS_REC | _MS_PRIVATE)
    kept = os.open(keep, os.O_PATH)
    try:
        attributes = struct.pack("=QQQQ", _MOUNT_ATTR_RDONLY, 0, 0, 0)
        mount(str(keep), str(keep), "none", _MS_BIND)
        source = os.open(keep, os.O_PATH)
        _syscall("read-only mounts", _SYS_MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, attributes, ctypes.c_size_t(32))
        clear = struct.pack("=QQQQ", 0, _MOUNT_ATTR_RDONLY, 0, 0)
        _syscall("writable mount", _SYS_MOUNT_SETATTR, _AT_FDCWD, str(keep).encode(), 0, clear, ctypes.c_size_t(32))
        mount("none", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={size_mb}m,mode=1777")
        for name in ("work", "shm"):
            Path("/tmp", name).mkdir()
            os.chown(Path("/tmp", name), uid, -1)
        if Path("/dev/shm").is_dir():
            mount("/tmp/shm", "/dev/shm", "none", _MS_BIND)
        if not keep.exists():  # it lies below /tmp and is covered now
            keep.mkdir(parents=True)
            mount(f"/proc/self/fd/{source}", str(keep), "none", _MS_BIND)
        os.close(source)
        if hide.is_dir():
            mount("none", str(hide), "tmpfs", _MS_NOSUID | _MS_NODEV, "size=4k,mode=000")
        if own_pids:
            mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV)
    finally:
        os.close(kept)
    return Path("/tmp/work")


def switch_user(uid: int, read_all: bool) -> None:
    """Becomes `uid`, a user without any rights; with `read_all` it may still read (not write) all files."""
    if read_all:
        _prctl("keep capabilities", _PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    if read_all:
        bit = 1 << _CAP_DAC_READ_SEARCH
        header = struct.pack("=Ii", 0x2008_0522, 0)
        data = struct.pack("=IIIIII", bit, bit, bit, 0, 0, 0)
        _syscall("capset", _arch()[2], header, data)
        _prctl("ambient capability", _PR_CAP_AMBIENT, 2, _CAP_DAC_READ_SEARCH)
    _prctl("dumpable", _PR_SET_DUMPABLE, 1)  # otherwise /proc/self belongs to root


def drop_privileges() -> None:
    """No program started from here gains rights."""
    _prctl("no new privileges", _PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """Root without root's powers."""
    _syscall("capset", _arch()[2], struct.pack("=Ii", 0x2008_0522, 0), bytes(24))


def _arch() -> tuple[int, int, int]:
    try:
        return _ARCHES[platform.machine()]
    except KeyError:
        raise OSError(f"unknown architecture {platform.machine()}") from None


def forbid_sockets() -> None:
    """socket() works for Unix sockets only (ENETUNREACH otherwise), also in libraries and child processes; needs `drop_privileges`.

    io_uring, which can open sockets by itself, is forbidden too.
    """
    arch, socket_call, _ = _arch()

    def op(code: int, k: int, jt: int = 0, jf: int = 0) -> bytes:
        return struct.pack("=HBBI", code, jt, jf, k)

    load, jeq, jge, ret = 0x20, 0x15, 0x35, 0x06
    allow, deny = 0x7FFF_0000, 0x0005_0000 | errno.ENETUNREACH  # SECCOMP_RET_ERRNO
    program = b"".join(
        [
            op(load, 4),  # seccomp_data.arch
            op(jeq, arch, 0, 7),  # another calling convention: deny
            op(load, 0),  # the system call's number
            op(jge, 0x4000_0000, 5, 0),  # x32 calls: deny
            op(jeq, _SYS_IO_URING_SETUP, 4, 0),
            op(jeq, socket_call, 0, 2),
            op(load, 16),  # its first argument, the low half
            op(jeq, 1, 0, 1),  # AF_UNIX
            op(ret, allow),
            op(ret, deny),
        ]
    )
    code = ctypes.create_string_buffer(program, len(program))
    fprog = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))
    _prctl("seccomp", _PR_SET_SECCOMP, 2, fprog)


def restrict_writes(writable: Iterable[Path]) -> None:
    """Landlock: reading and executing is allowed everywhere, all else only below `writable`; needs `drop_privileges`."""
    abi = _syscall("landlock", _SYS_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    execute_and_read = 0b1101
    rights = (1 << (13, 14, 15, 15, 16)[min(abi, 5) - 1]) - 1
    if abi >= 4:
        rules = struct.pack("=QQ", rights, 0b11)  # no TCP, either
    else:
        rules = struct.pack("=Q", rights)
    if abi >= 6:
        rules += struct.pack("=Q", 0b11)  # no abstract Unix sockets of others, no signals to others
    ruleset = _syscall("landlock", _SYS_LANDLOCK_CREATE, rules, ctypes.c_size_t(len(rules)), 0)
    file_rights = rights & 0b1_1100_0000_0000_0111 if abi >= 5 else rights & 0b100_0000_0000_0111
    try:
        for path, allowed in [(Path("/"), execute_and_read), *((p, rights) for p in writable if p.exists())]:
            fd = os.open(path, os.O_PATH)
            allowed &= rights if path.is_dir() else file_rights
            try:
                _syscall("landlock", _SYS_LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", allowed, fd), 0)
            finally:
                os.close(fd)
        _syscall("landlock", _SYS_LANDLOCK_RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)


def limit(kind: int, value: int) -> None:
    """Sets an rlimit, both soft and hard, to `value` or to the hard limit that holds already if that is lower."""
    hard = resource.getrlimit(kind)[1]
    new = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (new, new))
