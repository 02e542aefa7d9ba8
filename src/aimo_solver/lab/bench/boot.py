"""The boot, stage by stage: one after another, and side by side as a run does it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aimo_solver.config import Config
from aimo_solver.kernels.pool import KernelPool
from aimo_solver.lab.bench.readahead import evict
from aimo_solver.lab.bench.table import BenchResult
from aimo_solver.log.environment import describe_environment
from aimo_solver.log.writer import RunLog
from aimo_solver.server.client import CompletionRequest, VllmEngine
from aimo_solver.server.compile_cache import add_shipped_cache
from aimo_solver.server.launch import plan_launch
from aimo_solver.server.process import ServerProcess
from aimo_solver.server.readahead import read_ahead
from aimo_solver.server.warmup import warm_up
from aimo_solver.solve.session import local_session

_FIRST_PROMPT = 200


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a boot, in seconds from the boot's beginning."""

    name: str
    start: float
    end: float


async def bench_boot(model: Path, config: Config, folder: Path, *, cold_files: bool = False) -> BenchResult:
    """Boots twice, to the first token of a request: one stage after another, then as a run does it.

    Args:
        folder: gets the run directory and the server's log.
        cold_files: the model's files are evicted from the page cache before each boot.
    """
    if cold_files:
        await asyncio.to_thread(evict, weights(model))
    sequence = await _one_after_another(model, config, folder)
    if cold_files:
        await asyncio.to_thread(evict, weights(model))
    overlapped = await side_by_side(model, config, folder / "run")
    total = {"one after another": sequence[-1].end, "side by side": overlapped[-1].end}
    alone = {stage.name: stage.end - stage.start for stage in sequence}
    slower = max(alone["weights"], alone["server"])
    ratio = total["side by side"] / slower
    rows = [
        (way, stage.name, stage.start, stage.end, stage.end - stage.start)
        for way, stages in (("one after another", sequence), ("side by side", overlapped))
        for stage in stages
    ]
    return BenchResult(
        name="boot",
        columns=("boot", "stage", "start s", "end s", "seconds"),
        rows=tuple(rows),
        notes=(
            f"first token after {total['side by side']:.1f} s, one after another {total['one after another']:.1f} s",
            f"side by side takes {ratio:.2f} times the slower of reading and server start ({slower:.1f} s)",
            "the model's files were evicted from memory first" if cold_files else "the model's files were left in memory",
        ),
        details={"total_s": total, "alone_s": alone, "over_slower": ratio},
    )


def weights(model: Path) -> list[Path]:
    """The files that hold a model's weights."""
    return sorted(model.glob("*.safetensors"))


async def side_by_side(model: Path, config: Config, run_dir: Path, *, began: float | None = None) -> list[Stage]:
    """The stages of a run's own boot, from its log, with the first token behind them.

    Args:
        began: reading of `time.monotonic` that counts as second 0; now by default.
    """
    began = time.monotonic() if began is None else began
    log = RunLog.create(run_dir, config=config, environment=describe_environment(), started=began)
    async with local_session(model, config, log) as session:
        ready = time.monotonic() - began
        await _first_token(session.engine)
        first = time.monotonic() - began
    log.close()
    stages = _stages((run_dir / "events.jsonl").read_text(encoding="utf-8").splitlines())
    return [*stages, Stage("first token", ready, first)]


def _stages(lines: Sequence[str]) -> list[Stage]:
    started: dict[str, float] = {}
    stages = []
    for line in lines:
        event: Mapping[str, Any] = json.loads(line)
        if event["kind"] == "stage_started":
            started[event["stage"]] = event["t"]
        elif event["kind"] == "stage_ended":
            stages.append(Stage(event["stage"], started[event["stage"]], event["t"]))
    return stages


async def _one_after_another(model: Path, config: Config, folder: Path) -> list[Stage]:
    began = time.monotonic()
    stages: list[Stage] = []

    async def stage(name: str, work: Coroutine[Any, Any, object]) -> None:
        start = time.monotonic() - began
        await work
        stages.append(Stage(name, start, time.monotonic() - began))

    await stage("weights", asyncio.to_thread(read_ahead, [model]))
    pool = KernelPool.from_config(config.kernels, leases=config.solver.streams)
    try:
        await stage("kernels", pool.start())
        plan = add_shipped_cache(plan_launch(model, config))
        server = ServerProcess(plan.command, folder / "server.log")
        async with plan.engine() as engine:
            try:
                await stage("server", server.start(engine.ready, config.server.start_timeout_s))
                await stage("first requests", warm_up(engine, slots=plan.slots, vocabulary=plan.vocabulary))
                await stage("first token", _first_token(engine))
            finally:
                await server.stop()
    finally:
        await pool.close()
    return stages


async def _first_token(engine: VllmEngine) -> None:
    prompt = list(range(1, _FIRST_PROMPT + 1))
    async with aclosing(engine.stream(CompletionRequest(tokens=prompt, max_tokens=1))) as chunks:
        async for _ in chunks:
            pass
