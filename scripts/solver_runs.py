"""Runs of the solver, and other commands, as steps of a longer script that can be interrupted and continued."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import typer


def sample(
    model: Path,
    problems: Path,
    run: Path,
    attempts: int,
    parallel: int,
    seed: int,
    settings: Sequence[str] = (),
    log: Path | None = None,
) -> None:
    """Makes or continues a run in which every attempt ends by itself."""
    if (run / "summary.json").exists():
        return
    resume = ["--resume"] if (run / "run.json").exists() else []
    chosen = [f"solver.slots={attempts}", f"solver.max_attempts={attempts}", "voting.stop=never", *settings]
    options = [part for setting in chosen for part in ("--set", setting)]
    run_solver(
        *("evaluate", problems, "--model", model, "--out", run, *resume, "--seed", seed, "--time-limit", 1_000_000),
        *("--problems-in-parallel", parallel, *options),
        log=log,
    )


def run_solver(*arguments: object, log: Path | None = None) -> None:
    """Runs a command of `aimo-solver`; raises typer.Exit with its exit code if it fails."""
    run_command([sys.executable, "-m", "aimo_solver.cli", *arguments], log)


def run_command(command: Sequence[object], log: Path | None = None) -> None:
    """Runs a command, whose output is appended to `log` if that is given; raises typer.Exit with its exit code if it fails."""
    with log.open("ab") if log is not None else nullcontext() as output:
        code = subprocess.run([str(part) for part in command], stdout=output, stderr=output).returncode
    if code:
        raise typer.Exit(code)
