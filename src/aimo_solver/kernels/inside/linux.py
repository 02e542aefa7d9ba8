"""Linux calls that isolate a process, made through libc. Standard library only; independent of kernels.

Each function changes the calling process permanently and raises `OSError` where the system does not allow it. Call them
right after a fork, in a process with one thread.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from aimo_solver.kernels.inside.syscall_filter import CLONE_NEWUSER, build_filter, syscall_number

CLONE_NEWNS = 0x0002_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 0x4_0000
_AT_FDCWD, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY = -100, 0x8000, 0x1

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_SET_SECCOMP = 1, 4, 8, 22
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 36, 38, 47, 2
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2
_CAPABILITY_HEADER = struct.pack("=Ii", 0x2008_0522, 0)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _check(result: int, what: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def _syscall(name: str, *args: object) -> int:
    return _check(int(_libc.syscall(ctypes.c_long(syscall_number(name)), *args)), name)


def _prctl(what: str, option: int, *args: object) -> None:
    padded = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in (*args, 0, 0, 0, 0)[:4]]
    _check(_libc.prctl(ctypes.c_int(option), *padded), what)


def die_with_parent() -> None:
    """Requests that this process be killed when its parent ends. A change of user resets this."""
    _prctl("parent death signal", _PR_SET_PDEATHSIG, int(signal.SIGKILL))


def become_subreaper() -> None:
    """Makes orphaned descendants children of this process."""
    _prctl("subreaper", _PR_SET_CHILD_SUBREAPER, 1)


def unshare(flags: int) -> None:
    """Moves this process into new namespaces; a new pid namespace starts with its next child."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def enter_user_namespace() -> None:
    """Enters a user namespace in which this user keeps its id and may create other namespaces."""
    uid, gid = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    args = source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()
    _check(_libc.mount(*args), f"mount {target}")


def isolate_mounts(hide: Iterable[Path], size_mb: int, files: int, uid: int) -> Path:
    """Makes all files read-only except in a new tmpfs on /tmp and /dev/shm. Needs a mount namespace of its own.

    The tmpfs holds `size_mb` and about `files` files. The directories `hide` appear empty; /proc shows this process's pid
    namespace, which must be new. Python's own directories stay readable, even below /tmp.

    Returns:
        A directory of `uid` in the tmpfs.
    """
    _mount("none", "/", "none", _MS_REC | _MS_PRIVATE)
    attributes = struct.pack("=QQQQ", _MOUNT_ATTR_RDONLY, 0, 0, 0)
    _syscall("mount_setattr", _AT_FDCWD, b"/", _AT_RECURSIVE, attributes, ctypes.c_size_t(len(attributes)))
    covered = {path: os.open(path, os.O_PATH) for path in _python_below(Path("/tmp"))}
    try:
        _mount("none", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={size_mb}m,nr_inodes={files + 64},mode=1777")
        for name in ("work", "shm"):
            Path("/tmp", name).mkdir(mode=0o700)
            os.chown(Path("/tmp", name), uid, -1)
        _mount("/tmp/shm", "/dev/shm", "none", _MS_BIND)
        for path in hide:
            if path.is_dir():
                _mount("none", str(path), "tmpfs", _MS_NOSUID | _MS_NODEV, "size=4k,nr_inodes=8,mode=711")
        for path, descriptor in covered.items():
            if not path.exists():  # it lies below /tmp or a hidden directory
                path.mkdir(parents=True)
                _mount(f"/proc/self/fd/{descriptor}", str(path), "none", _MS_BIND)
    finally:
        for descriptor in covered.values():
            os.close(descriptor)
    _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV)
    return Path("/tmp/work")


def _python_below(folder: Path) -> list[Path]:
    """Returns the directories of Python and its packages that lie below `folder`, outer ones first."""
    named = {Path(name).resolve() for name in (sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path) if name}
    return sorted(path for path in named if path.is_dir() and path != folder and path.is_relative_to(folder))


def switch_user(uid: int, read_all: bool) -> None:
    """Becomes `uid`, a user without privileges; with `read_all` it may still read all files.

    Where this process lacks CAP_DAC_READ_SEARCH, as in a container with Docker's default capabilities, `read_all` also
    lets the user write all files; only a read-only file system or Landlock prevents that.
    """
    if read_all:
        _prctl("keep capabilities", _PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    if read_all:
        try:
            _keep_capability(_CAP_DAC_READ_SEARCH)
        except PermissionError:
            _keep_capability(_CAP_DAC_OVERRIDE)
    _prctl("dumpable", _PR_SET_DUMPABLE, 1)  # otherwise /proc/self belongs to root


def _keep_capability(capability: int) -> None:
    """Drops all capabilities but one, which programs started from here inherit."""
    bit = 1 << capability
    _syscall("capset", _CAPABILITY_HEADER, struct.pack("=IIIIII", bit, bit, bit, 0, 0, 0))
    _prctl("ambient capability", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability)


@contextmanager
def file_access_as(uid: int) -> Iterator[None]:
    """Opens files as user and group `uid`. Without CAP_SYS_PTRACE only that user can read /proc files of its processes."""
    own = os.geteuid(), os.getegid()
    if uid == own[0]:
        yield
        return
    _libc.setfsgid(uid)
    _libc.setfsuid(uid)
    try:
        _raise_capabilities()  # the reader must hold every capability that the process has
        yield
    finally:
        _libc.setfsuid(own[0])
        _libc.setfsgid(own[1])


def _raise_capabilities() -> None:
    """Makes all permitted capabilities effective; a change of user has removed some."""
    held = ctypes.create_string_buffer(24)
    _syscall("capget", _CAPABILITY_HEADER, held)
    _, low, inheritable_low, _, high, inheritable_high = struct.unpack("=6I", held.raw)
    wanted = struct.pack("=6I", low, low, inheritable_low, high, high, inheritable_high)
    _syscall("capset", _CAPABILITY_HEADER, wanted)


def drop_capabilities() -> None:
    """Drops the capabilities of root, or those that another user has in its user namespace."""
    _syscall("capset", _CAPABILITY_HEADER, bytes(24))


def forbid_privileges() -> None:
    """Keeps programs started from here from gaining privileges."""
    _prctl("no new privileges", _PR_SET_NO_NEW_PRIVS, 1)


def filter_syscalls(allow_connect: bool) -> None:
    """Applies `build_filter` to this process and all programs that it starts. Needs `forbid_privileges`."""
    program = build_filter(allow_connect)
    buffer = ctypes.create_string_buffer(program, len(program))
    _prctl("seccomp", _PR_SET_SECCOMP, 2, struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer)))


def restrict_writes(writable: Iterable[Path]) -> None:
    """Uses Landlock to allow reading and executing everywhere, and writing below `writable`.

    Landlock ABI 4 or later also forbids TCP; ABI 6 or later, signals and abstract Unix sockets to other processes. Needs
    `forbid_privileges`.
    """
    version = _syscall("landlock_create_ruleset", None, ctypes.c_size_t(0), 1)
    rights = (1 << (13, 14, 15, 15, 16)[min(version, 5) - 1]) - 1
    file_rights = 0b1100_0000_0000_0111 & rights  # execute, write, read, truncate, ioctl
    reading = 0b1101
    rules = struct.pack("=Q", rights)
    if version >= 4:
        rules += struct.pack("=Q", 0b11)
    if version >= 6:
        rules += struct.pack("=Q", 0b11)
    ruleset = _syscall("landlock_create_ruleset", rules, ctypes.c_size_t(len(rules)), 0)
    allowed: Mapping[Path, int] = {Path("/"): reading, **dict.fromkeys(writable, rights)}
    try:
        for path, right in allowed.items():
            if path.exists():
                place = os.open(path, os.O_PATH)
                rule = struct.pack("=Qi", right if path.is_dir() else right & file_rights, place)
                try:
                    _syscall("landlock_add_rule", ruleset, 1, rule, 0)
                finally:
                    os.close(place)
        _syscall("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)


def set_limit(kind: int, value: int, spare: int = 0) -> None:
    """Sets a resource limit to `value` and its hard limit to `value + spare`; a lower hard limit stays in force."""
    hard = resource.getrlimit(kind)[1]
    highest = value + spare if hard == resource.RLIM_INFINITY else min(value + spare, hard)
    resource.setrlimit(kind, (min(value, highest), highest))
