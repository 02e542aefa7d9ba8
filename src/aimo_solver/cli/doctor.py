"""`aimo-solver doctor`: checks whether this machine is fit to run this model."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from aimo_solver.cli.common import EMBEDDED_MODEL, ConfigFile, ModelPath, Settings, console, guarded
from aimo_solver.config import load_config
from aimo_solver.server.checks import Health, format_checks
from aimo_solver.solve.doctor import examine


@guarded
def doctor_command(
    model: ModelPath = EMBEDDED_MODEL,
    as_json: Annotated[bool, typer.Option("--json", help="print the checks as JSON")] = False,
    config_file: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Checks GPU, vLLM, model, memory, kernels, disk and clock; says what to do. Exit code 1 if anything is broken."""
    folder: Path | None = model if model.is_dir() else None  # a missing one is a finding
    checks = asyncio.run(examine(model, load_config(folder, config_file, settings=settings or ())))
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in checks], indent=1))
    else:
        console.print(format_checks(checks), soft_wrap=True, highlight=False, markup=False)
    if any(check.health is Health.BROKEN for check in checks):
        raise typer.Exit(1)
