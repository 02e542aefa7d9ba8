"""The faults of an endurance run: their plan, and how each is injected into real processes and files."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import psutil

EVERY = 25  # problems per fault
_CALM = 0.05  # share of the problems at either end without faults
_LATEST_S = 2.0  # of a fault, after its problem was asked
_SERVER, _KEEPER, _FORKSERVER = "api_server", "server/keeper.py", "kernels.inside.forkserver"  # in their command lines


@dataclass(frozen=True)
class Fault:
    """A planned fault.

    Attributes:
        kinds: names in `KINDS`; several are injected at once.
        problem: the one being solved at the time, counted from 0 in the order of asking.
        after_s: seconds after that problem was asked.
    """

    kinds: tuple[str, ...]
    problem: int
    after_s: float

    def __str__(self) -> str:
        return " and ".join(self.kinds)


def plan(seed: int, problems: int, kinds: tuple[str, ...]) -> list[Fault]:
    """Returns the faults of a run by its seed, one per `EVERY` problems: each kind once, then pairs and single ones in turn."""
    random = Random(seed)
    count = max(1, problems // EVERY)
    chosen: list[tuple[str, ...]] = [(kind,) for kind in random.sample(kinds, len(kinds))[:count]]
    while len(chosen) < count:
        chosen.append(tuple(random.sample(kinds, min(len(kinds), 2 - len(chosen) % 2))))
    random.shuffle(chosen)
    calm = int(problems * _CALM)
    moments = sorted(random.sample(range(calm, max(calm + count, problems - calm)), count))
    return [Fault(kinds, moment, random.uniform(0.0, _LATEST_S)) for kinds, moment in zip(chosen, moments, strict=True)]


@dataclass(frozen=True)
class Victim:
    """The run that faults are injected into.

    Attributes:
        solver: its process.
        disk: the small file system with its logs and its temporary folder; None if it could not be mounted.
        temporary: its temporary folder.
        refusing: while this file exists, the server answers 503.
        send: sends the run's process a command.
        scale: factor on the duration of faults.
    """

    solver: psutil.Process
    disk: Path | None
    temporary: Path
    refusing: Path
    send: Callable[..., None]
    random: Random
    scale: float = 1.0

    def below(self, mark: str, without: str = "\0") -> psutil.Process | None:
        """The topmost of the solver's descendants with `mark` in its command line."""
        for process in self.solver.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                command = " ".join(process.cmdline())
                if mark in command and without not in command:
                    return process
        return None


def server_killed(victim: Victim) -> str:
    """Kills any process of the server: its keeper, its front end, or the engine behind it."""
    server = victim.below(_KEEPER)
    if server is None:
        return "there was none"
    process = victim.random.choice([server, *server.children(recursive=True)])
    process.kill()
    return f"process {process.pid} ({process.name()})"


def server_stopped(victim: Victim) -> str:
    return _signalled(victim.below(_SERVER, without=_KEEPER), signal.SIGSTOP)


def server_refuses(victim: Victim) -> str:
    """Answers 503 to every request for 20 s."""
    victim.refusing.touch()
    try:
        time.sleep(20.0 * victim.scale)
    finally:
        victim.refusing.unlink()
    return "503 to every request"


def kernels_killed(victim: Victim) -> str:
    forkserver = victim.below(_FORKSERVER)
    family = forkserver.children(recursive=True) if forkserver else []
    parents = {process.ppid() for process in family if process.is_running()}
    killed = [process for process in family if process.pid not in parents]
    for process in killed:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return f"{len(killed)} processes"


def forkserver_killed(victim: Victim) -> str:
    return _signalled(victim.below(_FORKSERVER), signal.SIGKILL)


def forkserver_stopped(victim: Victim) -> str:
    return _signalled(victim.below(_FORKSERVER), signal.SIGSTOP)


def disk_full(victim: Victim) -> str:
    """Fills the disk for a minute."""
    assert victim.disk is not None
    filler = victim.disk / "filler"
    try:
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(1 << 16)):
                pass
        time.sleep(60.0 * victim.scale)
    finally:
        filler.unlink(missing_ok=True)  # two of these faults may overlap
    return "no space left"


def temporary_folder_gone(victim: Victim) -> str:
    """Removes it with its content for 20 s."""
    shutil.rmtree(victim.temporary, ignore_errors=True)
    try:
        time.sleep(20.0 * victim.scale)
    finally:
        victim.temporary.mkdir(exist_ok=True)  # the run may have made it
    return str(victim.temporary)


def clock_jumps(victim: Victim) -> str:
    """Jumps as after a suspension: the monotonic clock by 15 s, the date by a day."""
    victim.send("jump", seconds=15.0 * victim.scale, date_s=86_400.0 * victim.random.choice([-1, 1]))
    return f"{15.0 * victim.scale:.0f} s, and a day by the date"


KINDS: dict[str, Callable[[Victim], str]] = {
    "server killed": server_killed,
    "server stopped": server_stopped,
    "server answers 503": server_refuses,
    "kernels killed": kernels_killed,
    "forkserver killed": forkserver_killed,
    "forkserver stopped": forkserver_stopped,
    "disk full": disk_full,
    "temporary folder gone": temporary_folder_gone,
    "clock jumps": clock_jumps,
}


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path | None]:
    """Mounts a file system of that size at `folder`; yields None if this user may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = os.geteuid() == 0 and os.system(f"mount -t tmpfs -o size={megabytes}m tmpfs '{folder}' 2>/dev/null") == 0
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            os.system(f"umount -l '{folder}'")


def _signalled(process: psutil.Process | None, number: signal.Signals) -> str:
    if process is None:
        return "there was none"
    process.send_signal(number)
    return f"process {process.pid}"
