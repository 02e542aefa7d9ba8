"""A run in the offline format of Weights & Biases, which ``wandb sync`` uploads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from aimo_solver.lab.export.tables import attempt_table, name_run, problem_table
from aimo_solver.lab.extras import load_extra
from aimo_solver.log.reader import RunRecord


def write_wandb_run(run: RunRecord, folder: Path, progress: Callable[[float], object] = lambda share: None) -> Path:
    """Writes ``wandb/offline-run-*`` into a folder and returns its path. Nothing is sent over the network.

    Each problem that ended is a step: its result and the right answers so far. The problems and attempts are tables, the
    options of the run its config, and the numbers of ``summary.json`` its summary.

    Raises:
        UserError: wandb is not installed.
    """
    wandb = load_extra("wandb", "pip install wandb")
    folder.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(mode="offline", root_dir=str(folder.resolve()), console="off", silent=True, x_disable_stats=True)
    config = dict(run.config) | {"environment": dict(run.environment)}
    with wandb.init(project="aimo-solver", name=name_run(run), config=config, settings=settings) as target:
        right = 0
        for number, result in enumerate(run.results, start=1):
            right += result.right is True
            target.log({"problems": number, "right": right, "seconds": result.seconds, "tokens": result.tokens})
            progress(number / len(run.results))
        for name, table in (("problems", problem_table(run)), ("attempts", attempt_table(run))):
            target.log(
                {f"tables/{name}": wandb.Table(columns=table.columns, data=[list(map(_cell, row)) for row in table.rows()])}
            )
        target.summary.update({name: value for name, value in (run.summary or {}).items() if name != "config"})
        return Path(target.dir).parent


def _cell(value: Any) -> Any:
    return str(value) if isinstance(value, list) else value
