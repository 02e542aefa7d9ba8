"""The commands that measure: `replay` and `bench ...`."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.table import Table

from aimo_solver.cli.common import (
    EMBEDDED_MODEL,
    AsJson,
    ConfigFile,
    Curve,
    ModelPath,
    Records,
    Settings,
    Speed,
    console,
    guarded,
    progress_bar,
    read_config,
)
from aimo_solver.config import load_config
from aimo_solver.errors import ConfigError
from aimo_solver.lab import scoreboard
from aimo_solver.lab.bench.boot import bench_boot
from aimo_solver.lab.bench.decode import DEPTHS, STREAMS
from aimo_solver.lab.bench.decode_server import DecodeServer, Weights, read_start, server_options
from aimo_solver.lab.bench.engine import bench_engine
from aimo_solver.lab.bench.kernels import bench_kernels
from aimo_solver.lab.bench.loop import Target
from aimo_solver.lab.bench.parse import SIZES, bench_parse, list_readers, load_families
from aimo_solver.lab.bench.readahead import bench_read_ahead, make_files
from aimo_solver.lab.bench.table import BenchResult
from aimo_solver.lab.competition import Order
from aimo_solver.lab.records import read_groups
from aimo_solver.lab.replay import parse_policy, replay
from aimo_solver.lab.report import policy_plots
from aimo_solver.lab.simulate import parse_configuration, select_playable, simulate, sweep
from aimo_solver.lab.throughput import USUAL_CURVE, USUAL_SPEED, choose_curve
from aimo_solver.log.writer import RunLog
from aimo_solver.policy.voting import VOTER_NAMES
from aimo_solver.solve.session import local_session

_PLAYS = ("default@greedy", "default@even", "default@clamp", "default@tiers", "default@marginal")
_SWEEP_HOURS = (0.5, 1, 2, 3, 4, 5, 6)

bench = typer.Typer(no_args_is_help=True, help="Benchmarks, each against an alternative in the same run.")


@guarded
def replay_command(
    attempts: Records,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="VOTER, VOTER/STOP or, with --simulate, VOTER/STOP@BUDGET; repeatable; the first is the reference"),
    ] = None,
    simulate_: Annotated[bool, typer.Option("--simulate", help="simulate whole competitions from the records")] = False,
    competitions: Annotated[int, typer.Option(min=1, help="number of competitions, with --simulate")] = 10_000,
    problems: Annotated[int, typer.Option(min=1, help="problems per competition, with --simulate")] = 50,
    order: Annotated[Order, typer.Option(help="order of the problems by difficulty, with --simulate")] = Order.RANDOM,
    curve: Curve = USUAL_CURVE,
    speed: Speed = USUAL_SPEED,
    strata: Annotated[bool, typer.Option("--strata", help="also print right answers by run")] = False,
    as_json: AsJson = False,
    plots: Annotated[Path | None, typer.Option(help="folder for charts as SVG files")] = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Scores voters, stop rules and budgets on logged attempts, with confidence intervals, without a GPU."""
    config = load_config(config_file, settings=settings or ())
    groups = read_groups(attempts)
    if simulate_:
        groups = select_playable(groups)
        plays = {name: parse_configuration(name, config) for name in policy or _PLAYS}
        with progress_bar("competitions", hidden=as_json) as progress:
            speeds = choose_curve(curve, speed)
            played = simulate(
                groups, plays, competitions=competitions, problems=problems, order=order, speed=speeds, progress=progress
            )
            if plots is not None:
                limits = [3_600.0 * hours for hours in _SWEEP_HOURS]
                points = sweep(groups, plays, limits, competitions=min(competitions, 1_000), speed=speeds, progress=progress)
                policy_plots.save_sweep_chart(plots, points)
        values = scoreboard.simulation_values(played)
        tables: tuple[Table, ...] = (scoreboard.simulation_table(played),)
    else:
        scored = replay(groups, [parse_policy(name, config.voting) for name in policy or VOTER_NAMES])
        values = scoreboard.replay_values(scored)
        tables = scoreboard.replay_tables(scored, strata=strata)
        if plots is not None:
            policy_plots.save_replay_charts(plots, scored)
    if as_json:
        print(json.dumps(values))
    else:
        console.print(*tables)


@bench.command("kernels")
@guarded
def bench_kernels_command(
    as_json: AsJson = False,
    kernels: Annotated[int, typer.Option(min=1, max=64, help="kernels that start and work at the same time")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="repetitions")] = 3,
) -> None:
    """Compares the kernel pool with plain jupyter_client."""
    with console.status("kernels") as status:
        result = asyncio.run(bench_kernels(kernels, rounds, status.update))
    _show(result, as_json)


@bench.command("readahead")
@guarded
def bench_readahead_command(
    folder: Annotated[Path, typer.Option(help="folder on the disk to measure, for temporary files")],
    gigabytes: Annotated[float, typer.Option(min=0.01, help="total size of the files")] = 8.0,
    as_json: AsJson = False,
) -> None:
    """Compares read-ahead with cat, dd and direct parallel reads, on cold and on cached files."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="bench-readahead-") as scratch:
        with console.status("writing files"):
            files = make_files(Path(scratch), gigabytes)
        with console.status("reading"):
            result = bench_read_ahead(files)
    _show(result, as_json)


@bench.command("engine")
@guarded
def bench_engine_command(
    model: ModelPath = EMBEDDED_MODEL,
    streams: Annotated[str, typer.Option(help="numbers of concurrent streams, separated by commas")] = "1,8,16,32",
    tokens: Annotated[int, typer.Option(min=10, help="tokens per stream")] = 2_000,
    turn_tokens: Annotated[int, typer.Option(min=5, help="tokens between two tool calls")] = 500,
    rounds: Annotated[int, typer.Option(min=1, help="repetitions")] = 1,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Compares the agent loop with bare requests: same server, same prompts, same number of tokens."""
    counts = _counts(streams)
    most = max(counts)
    slots = {"solver": {"slots": most, "max_attempts": most}}
    config = read_config(model, config_file, slots, settings=settings)

    async def measure(folder: Path) -> BenchResult:
        with RunLog.create(folder / "run", config=config) as log:
            async with local_session(model, config, log) as session:
                target = Target.of(session)
                return await bench_engine(target, streams=counts, tokens=tokens, turn_tokens=turn_tokens, rounds=rounds)

    with tempfile.TemporaryDirectory(prefix="bench-engine-") as scratch, console.status("starting the server, then measuring"):
        result = asyncio.run(measure(Path(scratch)))
    _show(result, as_json)


@bench.command("decode")
@guarded
def bench_decode_command(
    model: ModelPath = EMBEDDED_MODEL,
    streams: Annotated[str, typer.Option(help="numbers of concurrent streams, separated by commas")] = ",".join(
        map(str, STREAMS)
    ),
    depths: Annotated[str, typer.Option(help="tokens of context of each stream, separated by commas")] = ",".join(
        map(str, DEPTHS)
    ),
    tokens: Annotated[int, typer.Option(min=10, help="tokens to count per stream")] = 256,
    weights: Annotated[
        str,
        typer.Option(
            help="real, random (drawn in memory, with routing that spreads) or dummy (all tokens take the same experts)"
        ),
    ] = "real",
    skew: Annotated[float, typer.Option(min=0, help="concentrates the routing of random weights")] = 0.0,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Measures decoding by streams and depth, with the bytes that a step has to read."""
    kind = next((kind for kind in get_args(Weights) if kind == weights), None)
    if kind is None:
        raise ConfigError("--weights", f"unknown {weights}; known: {', '.join(get_args(Weights))}")
    if skew and kind != "random":
        raise ConfigError("--skew", "belongs to --weights random")
    counts, lengths = _counts(streams), _counts(depths, "--depths")
    defaults = {"solver": {"slots": max(counts), "max_attempts": max(counts)}, "server": server_options(kind, skew)}
    config = read_config(model, config_file, defaults, settings=settings)

    async def measure(folder: Path, progress: Callable[[str], None]) -> BenchResult:
        with RunLog.create(folder / "run", config=config) as log:
            async with local_session(model, config, log) as session:
                server = await DecodeServer.of(session, read_start(folder / "run" / "server.log"), kind, skew)
                return await server.measure(streams=counts, depths=lengths, tokens=tokens, progress=progress)

    with tempfile.TemporaryDirectory(prefix="bench-decode-") as scratch, console.status("starting the server") as status:
        result = asyncio.run(measure(Path(scratch), status.update))
    _show(result, as_json)


@bench.command("boot")
@guarded
def bench_boot_command(
    model: ModelPath = EMBEDDED_MODEL,
    cold_files: Annotated[bool, typer.Option("--cold-files", help="evict the model files from the page cache first")] = False,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Compares the stages of a boot in sequence and in parallel, as a run starts them."""
    config = read_config(model, config_file, settings=settings)
    with tempfile.TemporaryDirectory(prefix="bench-boot-") as scratch, console.status("starting servers"):
        result = asyncio.run(bench_boot(model, config, Path(scratch), cold_files=cold_files))
    _show(result, as_json)


@bench.command("parse")
@guarded
def bench_parse_command(
    model: ModelPath = EMBEDDED_MODEL,
    family: Annotated[list[str] | None, typer.Option(help="only this chat family, answers or salvage; repeatable")] = None,
    sizes: Annotated[str, typer.Option(help="characters per input, separated by commas")] = ",".join(map(str, SIZES)),
    every: Annotated[bool, typer.Option("--every", help="one row per input instead of the slowest per reader")] = False,
    as_json: AsJson = False,
) -> None:
    """Measures the readers of model output on degenerate output: CPU time by chat family, entry point and input."""
    with tempfile.TemporaryDirectory(prefix="bench-parse-") as scratch:
        chosen = list_readers(load_families(model, Path(scratch)))
        known = dict.fromkeys(reader.family for reader in chosen)
        if unknown := set(family or ()) - known.keys():
            raise ConfigError("--family", f"unknown {', '.join(sorted(unknown))}; known: {', '.join(known)}")
        chosen = [reader for reader in chosen if not family or reader.family in family]
        with progress_bar("readers", hidden=as_json) as progress:
            result = bench_parse(chosen, sorted(_counts(sizes, "--sizes")), every=every, progress=progress)
    _show(result, as_json)


def _show(result: BenchResult, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result.as_dict()))
    else:
        result.show(console)


def _counts(text: str, option: str = "--streams") -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise ConfigError(option, f"write numbers like 1,8,16 (got {text!r})")
    return counts
