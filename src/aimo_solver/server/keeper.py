"""The parent process of a vLLM server, which ends the server's process tree when the server or the solver ends.

Its standard input is a socket whose other end the solver holds, so it closes when the solver is gone, even by SIGKILL. It
is the subreaper of its descendants: those whose parents have died become its children, so none can leave the tree. If this
process is stopped, it is continued when the solver dies; if it is killed, the server is killed with it.

    python keeper.py FOLDER COMMAND...

It writes the server's process id to its standard input and exits with the server's exit code or signal. FOLDER has the
server's sockets and is removed at the end; it is an empty string if there is none.

What stays: the folder if keeper and solver are killed at once; shared memory and semaphores if Python's resource tracker is
killed, and then every process that has them mapped before the keeper looks.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import shutil
import signal
import sys
import time

import psutil

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LIFELINE = 0  # the descriptor
_SHARED = "/dev/shm"
_SHARED_NAMES = ("psm_", "sem.mp-")  # as Python's multiprocessing names shared memory and semaphores
_POLL_S = 0.1
_TRACKERS_S = 3.0
_KILL_S = 10.0  # a process in an uninterruptible call of the GPU driver can take seconds to die


def main(folder: str, command: list[str]) -> None:
    """Starts `command`, waits for its end or the solver's, kills all its descendants and removes `folder`."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)
    keeper = os.getpid()
    server = os.fork()
    if server == 0:
        _become_server(command, keeper)
    os.write(_LIFELINE, b"%d\n" % server)
    # This process leaves the output to the server, so that the pipe ends with the tree.
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(server, signal.SIGTERM))
    status: int | None = None
    while status is None and not select.select([_LIFELINE], [], [], _POLL_S)[0]:
        status = _reap().get(server)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    reaped = _kill_tree()
    shutil.rmtree(folder, ignore_errors=True)
    _exit_like(status if status is not None else reaped.get(server, 0))


def _become_server(command: list[str], keeper: int) -> None:
    os.setsid()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != keeper:
        os._exit(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, _LIFELINE)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]}: {error}", file=sys.stderr, flush=True)
    os._exit(127)


def _kill_tree() -> dict[int, int]:
    """Kills all descendants, including those started meanwhile; returns the wait statuses of children by process id.

    Python's resource trackers get 3 s to end by themselves: they remove the shared memory that killed processes leave.
    """
    reaped: dict[int, int] = {}
    shared = shared_memory(psutil.Process().children(recursive=True))
    began = time.monotonic()
    while (descendants := psutil.Process().children(recursive=True)) and time.monotonic() - began < _KILL_S:
        tracking = time.monotonic() - began < _TRACKERS_S
        for process in descendants:
            if not (tracking and is_resource_tracker(process)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.01)
        reaped |= _reap()
    remove_files(shared)  # left by a tracker that was killed itself
    return reaped


def shared_memory(processes: list[psutil.Process]) -> set[str]:
    """Returns the paths of Python's shared memory and semaphores that the processes have mapped.

    /dev/shm may hold other people's files, so files are found by device and inode. The path of a mapped semaphore is one that
    the C library used before it renamed the file.
    """
    mapped: set[tuple[str, str]] = set()
    for process in processes:
        with contextlib.suppress(OSError), open(f"/proc/{process.pid}/maps", encoding="utf-8", errors="replace") as maps:
            mapped.update((fields[3], fields[4]) for line in maps if _SHARED in line and (fields := line.split()))
    found: set[str] = set()
    with contextlib.suppress(OSError), os.scandir(_SHARED) as files:
        number = os.stat(_SHARED).st_dev
        device = f"{os.major(number):02x}:{os.minor(number):02x}"
        found.update(file.path for file in files if file.name.startswith(_SHARED_NAMES) and (device, str(file.inode())) in mapped)
    return found


def remove_files(names: set[str]) -> None:
    """Removes files; ignores those that are gone."""
    for name in names:
        with contextlib.suppress(OSError):
            os.unlink(name)


def is_resource_tracker(process: psutil.Process) -> bool:
    """Returns whether it is a resource tracker of Python's multiprocessing."""
    try:
        return any("multiprocessing.resource_tracker" in word for word in process.cmdline())
    except psutil.Error:
        return False


def _reap() -> dict[int, int]:
    """Returns the wait statuses of the children that have ended, by process id."""
    reaped: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            reaped[ended[0]] = ended[1]
    return reaped


def _exit_like(status: int) -> None:
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code if code >= 0 else 128 - code)  # the latter if this process ignores the signal


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
