"""The commands that start vLLM servers: `serve` and `cache ...`."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from aimo_solver.cli.common import EMBEDDED_MODEL, ConfigFile, ModelPath, Settings, console, guarded, read_config
from aimo_solver.server.cache_build import build_cache
from aimo_solver.server.compile_cache import ARCHIVE_SUFFIX, Stamp, default_root, make_stamp, pack_cache
from aimo_solver.server.launch import plan_launch

cache = typer.Typer(no_args_is_help=True, help="The compile cache, which makes a server start faster on the same kind of GPU.")

Archive = Annotated[Path, typer.Option(help="path of the packed cache")]
CacheRoot = Annotated[Path | None, typer.Option("--root", help="folder of the cache")]


@guarded
def serve_command(
    model: ModelPath = EMBEDDED_MODEL,
    port: Annotated[int, typer.Option(min=1, max=65_535, help="port on the loopback interface")] = 8000,
    slots: Annotated[int, typer.Option(min=1, help="concurrent requests to tune the server for")] = 8,
    config_file: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Runs a vLLM server with the flags that `evaluate` uses, for --endpoint, until Ctrl-C."""
    config = read_config(model, config_file, settings=settings)
    plan = replace(plan_launch(model, config, slots=slots), port=port, served_name=model.resolve().name)
    for flag in plan.dropped:
        console.print(f"left out {flag.name}: unknown to the installed vLLM", style="yellow")
    command = plan.command
    console.print(" ".join(command.args), soft_wrap=True, highlight=False)
    sys.stdout.flush()
    os.execvpe(command.args[0], command.args, {**os.environ, **command.env})


@cache.command("build")
@guarded
def cache_build_command(
    model: ModelPath,
    archive: Archive = Path(f"compile-cache{ARCHIVE_SUFFIX}"),
    root: CacheRoot = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Starts the server twice on this GPU, sends first requests, and packs what was compiled."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    plan = plan_launch(model, read_config(model, config_file, settings=settings))
    _pack(asyncio.run(build_cache(plan, _root(root), archive.with_suffix(".server.log"))), archive)


@cache.command("pack")
@guarded
def cache_pack_command(
    model: ModelPath,
    archive: Archive = Path(f"compile-cache{ARCHIVE_SUFFIX}"),
    root: CacheRoot = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Packs what earlier server starts compiled on this GPU with the same model and options."""
    plan = plan_launch(model, read_config(model, config_file, settings=settings))
    _pack(make_stamp(plan, _root(root)), archive)


def _root(root: Path | None) -> Path:
    return (root or default_root()).absolute()  # the archive is unpacked to the same path


def _pack(stamp: Stamp, archive: Path) -> None:
    size = pack_cache(stamp, archive)
    console.print(f"{archive}: {size / 1e6:.1f} MB, for {stamp.gpu}")
