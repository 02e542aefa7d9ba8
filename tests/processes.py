"""Checks whether processes still run."""

from __future__ import annotations

import psutil


def runs(process: psutil.Process) -> bool:
    """Returns whether a process runs. A zombie does not; in some containers nobody reaps it."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def pid_runs(pid: int) -> bool:
    """Like `runs`, by process id."""
    try:
        return runs(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False
