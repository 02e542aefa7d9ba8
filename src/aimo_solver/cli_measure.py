"""The commands that measure: `replay`, `bench ...` and `cache ...`."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress
from rich.table import Table

from aimo_solver import jitcache, scoreboard
from aimo_solver.bench_kernels import run as run_kernels
from aimo_solver.cli_guard import console, guarded
from aimo_solver.config import load_config
from aimo_solver.records import read_groups
from aimo_solver.replay import parse_policy, replay
from aimo_solver.simulate import parse_play, playable, simulate, sweep

_POLICIES = ("majority", "error-weighted", "entropy", "tail-entropy", "vote-share", "lexicographic", "proximity")
_PLAYS = ("default@greedy", "default@even", "default@clamp", "default@tiers", "default@marginal")
_SWEEP_HOURS = (0.5, 1, 2, 3, 4, 5, 6)

bench = typer.Typer(no_args_is_help=True, help="Speed, measured side by side in one run.")
cache = typer.Typer(no_args_is_help=True, help="The compile cache that makes a server start faster on the same GPU.")

Settings = Annotated[list[str] | None, typer.Option("--set", help="one option, as section.option=value; repeatable")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file with options")]


@guarded
def replay_command(
    attempts: Annotated[list[Path], typer.Argument(help="CSV files of attempts, run directories or their attempts.jsonl")],
    policy: Annotated[
        list[str] | None,
        typer.Option(help="VOTER, VOTER/STOP or, to simulate, VOTER/STOP@BUDGET; repeatable; the first is compared with"),
    ] = None,
    simulate_: Annotated[bool, typer.Option("--simulate", help="play whole competitions from the records")] = False,
    competitions: Annotated[int, typer.Option(min=1, help="how many, with --simulate")] = 10_000,
    problems: Annotated[int, typer.Option(min=1, help="problems per competition, with --simulate")] = 50,
    strata: Annotated[bool, typer.Option("--strata", help="also right answers per run")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object instead of tables")] = False,
    plots: Annotated[Path | None, typer.Option(help="folder for figures as SVG")] = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Scores voters, stop rules and budgets on logged attempts, with confidence intervals, without a GPU."""
    config = load_config(*([config_file] if config_file else []), settings=settings or ())
    groups = read_groups(attempts)
    figures = {}
    if simulate_:
        groups = playable(groups)
        plays = [parse_play(name, config) for name in policy or _PLAYS]
        with Progress(console=console, transient=True, disable=as_json) as progress:
            task = progress.add_task("competitions", total=1.0)
            played = simulate(
                groups,
                plays,
                competitions=competitions,
                problems=problems,
                progress=lambda share: progress.update(task, completed=share),
            )
            if plots is not None:
                limits = [3_600.0 * hours for hours in _SWEEP_HOURS]
                figures["budget"] = scoreboard.budget_figure(sweep(groups, plays, limits, competitions=min(competitions, 1_000)))
        values = scoreboard.simulation_values(played)
        tables: tuple[Table, ...] = (scoreboard.simulation_table(played),)
    else:
        scored = replay(groups, [parse_policy(name, config.voting) for name in policy or _POLICIES])
        values = scoreboard.replay_values(scored)
        tables = scoreboard.replay_tables(scored, strata=strata)
        if plots is not None:
            figures = {"tokens": scoreboard.tokens_figure(scored), "calibration": scoreboard.calibration_figure(scored.scores[0])}
    if as_json:
        print(json.dumps(values))
    else:
        console.print(*tables)
    if plots is not None:
        plots.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            figure.savefig(plots / f"{name}.svg")


@bench.command("kernels")
@guarded
def bench_kernels_command(
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object instead of a table")] = False,
    soak: Annotated[int | None, typer.Option(min=1, help="run so many leases of hard cases instead")] = None,
) -> None:
    """The kernel pool against plain jupyter_client."""
    raise typer.Exit(run_kernels(soak, as_json))


@cache.command("build")
@guarded
def cache_build_command(
    model: Annotated[Path, typer.Option(help="model folder")],
    archive: Annotated[Path, typer.Option(help="where the packed cache goes")] = Path("jit-cache.tar.gz"),
    root: Annotated[Path | None, typer.Option(help="folder of the cache")] = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Starts the server twice on this GPU, runs first requests, and packs what was compiled."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = load_config(*([config_file] if config_file else []), settings=settings or ())
    place = root or jitcache.default_root()
    made = asyncio.run(jitcache.build(model, config, place, archive.with_suffix(".server.log")))
    size = jitcache.pack(made, archive)
    console.print(f"{archive}: {size / 1e6:.1f} MB, for {made.gpu}")
