"""What still runs."""

from __future__ import annotations

import psutil


def runs(process: psutil.Process) -> bool:
    """A zombie that nobody reaps, as in some containers, does not run any more."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def pid_runs(pid: int) -> bool:
    """As `runs`, by number."""
    try:
        return runs(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False
