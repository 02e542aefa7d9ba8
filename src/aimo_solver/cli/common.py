"""What all commands share: the terminal, common options, the default model, errors as one line with an exit code."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from aimo_solver.config import Config, load_config
from aimo_solver.errors import AimoError, ServerStartError, UserError
from aimo_solver.server.launch import check_model

AsJson = Annotated[bool, typer.Option("--json", help="one JSON object instead of a table")]
ModelPath = Annotated[Path, typer.Option(help="model folder")]
ConfigFile = Annotated[Path | None, typer.Option("--config", dir_okay=False, help="TOML file with options")]
Curve = Annotated[str, typer.Option(help="measured decode speed by streams and depth (lab/throughput.json)")]
Records = Annotated[list[Path], typer.Argument(help="CSV files of attempts, run directories or their attempts.jsonl")]
Speed = Annotated[
    float, typer.Option(min=0, help="tokens/s of 8 streams, 16,000 tokens deep, to which the curve is scaled; 0: as measured")
]
Settings = Annotated[list[str] | None, typer.Option("--set", help="one option as section.option=value; repeatable")]

EMBEDDED_MODEL = Path(__file__).parents[3] / "data" / "pocket-model"

console = Console(width=None if sys.stdout.isatty() else 120)


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Turns errors into one line and an exit code."""

    @functools.wraps(command)
    def run(*args: object, **options: object) -> None:
        try:
            command(*args, **options)
        except (KeyboardInterrupt, asyncio.CancelledError):
            console.print("interrupted; finished problems are on disk", style="yellow")
            raise typer.Exit(130) from None
        except (UserError, ServerStartError) as error:
            print(f"aimo-solver: {error}", file=sys.stderr)
            raise typer.Exit(2) from None
        except AimoError as error:
            print(f"aimo-solver: {error}", file=sys.stderr)
            raise typer.Exit(1) from None

    return run


@contextmanager
def progress_bar(name: str, *, hidden: bool) -> Iterator[Callable[[float], None]]:
    """Shows a progress bar; yields a function that takes the share done, 0 to 1."""
    with Progress(console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task(name, total=1.0)
        yield lambda share: progress.update(task, completed=share)


def read_config(model: Path, *layers: Path | Mapping[str, Any] | None, settings: Sequence[str] | None) -> Config:
    """Reads the configuration for a model folder, which is checked first.

    Raises:
        ModelError: the folder holds no complete model.
        ConfigError: an option is invalid.
    """
    check_model(model)
    return load_config(model, *layers, settings=settings or ())
