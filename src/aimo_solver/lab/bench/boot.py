"""Measures the stages of a boot, one after another and side by side as in a run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

from aimo_solver.config import Config
from aimo_solver.kernels.pool import KernelPool
from aimo_solver.lab.bench.readahead import evict
from aimo_solver.lab.bench.table import BenchResult
from aimo_solver.lab.report.timeline import BootStage, boot_stages
from aimo_solver.log.reader import read_run
from aimo_solver.log.writer import RunLog
from aimo_solver.server.client import VllmEngine
from aimo_solver.server.compile_cache import add_cache
from aimo_solver.server.engine import CompletionRequest
from aimo_solver.server.launch import plan_launch
from aimo_solver.server.process import ServerProcess
from aimo_solver.server.readahead import read_ahead
from aimo_solver.server.warmup import warm_up
from aimo_solver.solve.session import local_session

_FIRST_PROMPT = 200


async def bench_boot(model: Path, config: Config, folder: Path, *, cold_files: bool = False) -> BenchResult:
    """Boots twice, to the first token of a request: one stage after another, then side by side.

    Args:
        folder: where the run directory and the server's log are written.
        cold_files: whether to evict the model's files from the page cache before each boot.
    """
    if cold_files:
        await asyncio.to_thread(evict, weight_files(model))
    sequence = await _boot_in_sequence(model, config, folder)
    if cold_files:
        await asyncio.to_thread(evict, weight_files(model))
    overlapped = await boot_side_by_side(model, config, folder / "run")
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
            "the model's files were evicted from the page cache" if cold_files else "the model's files were not evicted",
        ),
        details={"total_s": total, "alone_s": alone, "over_slower": ratio},
    )


def weight_files(model: Path) -> list[Path]:
    """Returns the files of a model's weights."""
    return sorted(model.glob("*.safetensors"))


async def boot_side_by_side(model: Path, config: Config, run_dir: Path, *, began: float | None = None) -> list[BootStage]:
    """Boots as a run does and returns the stages from its log, then the first token.

    Args:
        began: reading of `time.monotonic` that counts as second 0; now by default.
    """
    began = time.monotonic() if began is None else began
    log = RunLog.create(run_dir, config=config, started=began)
    async with local_session(model, config, log) as session:
        ready = time.monotonic() - began
        await _first_token(session.engine)
        first = time.monotonic() - began
    log.close()
    return [*boot_stages(read_run(run_dir).events, first), BootStage("first token", ready, first)]


async def _boot_in_sequence(model: Path, config: Config, folder: Path) -> list[BootStage]:
    began = time.monotonic()
    stages: list[BootStage] = []

    async def stage(name: str, work: Coroutine[Any, Any, object]) -> None:
        start = time.monotonic() - began
        await work
        stages.append(BootStage(name, start, time.monotonic() - began))

    await stage("weights", asyncio.to_thread(read_ahead, [model]))
    pool = KernelPool.from_config(config.kernels, leases=config.solver.streams)
    try:
        await stage("kernels", pool.start())
        plan = add_cache(plan_launch(model, config), fill=False)
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
