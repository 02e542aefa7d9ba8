"""Forces faults on starts of a real vLLM server, and measures which steps of the ladder answer them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gpu_faults
import gpu_shapes
from aimo_solver.config import load_config
from aimo_solver.errors import EngineError, ServerStartError
from aimo_solver.lab.bench.table import BenchResult
from aimo_solver.server.launch import LaunchPlan, plan_launch
from aimo_solver.server.machine import detect_gpus
from aimo_solver.server.supervisor import Supervisor
from aimo_solver.server.wheels import Installation

EAGER = ("--enforce-eager",)  # a quick start, where graphs do not matter
_TENANT = 0.6  # of the GPU's memory
# For concurrent servers: with the cache's size given, vLLM does not measure the memory, which the others take and give back.
_SMALL = {"memory_share": 0.05}
_SMALL_CACHE = ("--kv-cache-memory-bytes", str(1 << 30))
_SLACK = 0.02  # of the GPU's memory; with no more than this free beyond what is left to others, the KV cache is allocated
_LEAST_S = 30.0  # no row is started with less
_END_S = 15.0  # for a server that is cut to end
_COLUMNS = ("fault", "causes read", "steps", "lost s", "last start s", "serves")
_CUT = "cut after"

Row = tuple[Any, ...]
Forced = Callable[[LaunchPlan, Path], AbstractContextManager[object]]


@contextlib.contextmanager
def _nothing(plan: LaunchPlan, log: Path) -> Iterator[None]:
    yield


@contextlib.contextmanager
def _port_taken(plan: LaunchPlan, log: Path) -> Iterator[None]:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", plan.port))
        taken.listen()
        yield


@contextlib.contextmanager
def _co_tenant(plan: LaunchPlan, log: Path) -> Iterator[None]:
    with gpu_faults.memory_taker(_TENANT) as take:
        take()
        yield


@contextlib.contextmanager
def _taken_while_capturing(plan: LaunchPlan, log: Path) -> Iterator[None]:
    """Takes what the server leaves free once its KV cache is allocated, and keeps it."""
    share = plan.flag("--gpu-memory-utilization")
    assert share is not None
    left = 1.0 - float(share.value or 1.0) + _SLACK
    with gpu_faults.memory_taker(below=left) as take:
        watcher = threading.Thread(target=take, daemon=True)  # it ends with the taker
        watcher.start()
        yield


@dataclass(frozen=True)
class Fault:
    """A forced fault.

    Attributes:
        server: options of the server.
        forced: what is done around the starts.
        draft, shape, imports: a broken draft folder; two layers of gpt-oss's shape; a vLLM that cannot be imported.
        alone: nothing else may take GPU memory meanwhile.
        tiny: it can be forced on a CPU.
        limit_s: for all its starts.
    """

    name: str
    server: dict[str, Any] = field(default_factory=dict)
    forced: Forced = _nothing
    draft: bool = False
    shape: bool = False
    imports: bool = False
    alone: bool = False
    tiny: bool = False
    limit_s: float = 120.0


FAULTS = (
    Fault("draft with broken weights", {"extra_args": EAGER}, draft=True),
    Fault(
        "experts' backend that the model cannot use",
        {"moe_backend": "cutlass", "load_format": "dummy", "extra_args": EAGER},
        shape=True,
        limit_s=200.0,  # without graphs Marlin's kernels are compiled for each length of a step
    ),
    Fault("unknown flag", {"extra_args": (*EAGER, "--no-such-flag", "7")}, tiny=True),
    Fault("port in use", {"extra_args": EAGER}, _port_taken, tiny=True),
    Fault("unknown experts' backend", {"moe_backend": "nonsense", "extra_args": EAGER}),
    Fault("vLLM cannot be imported", imports=True, tiny=True, limit_s=40.0),
    Fault(
        "memory runs out while capturing",
        {"extra_args": ("--max-cudagraph-capture-size", "512")},
        _taken_while_capturing,
        alone=True,
    ),
    Fault(f"another process holds {_TENANT:.0%} of the GPU", {"extra_args": EAGER}, _co_tenant, alone=True),
    Fault("none", {"extra_args": EAGER}, alone=True),
)
"""The most valuable first."""


Force = Callable[[Fault, float], Awaitable[Row]]


@dataclass(frozen=True)
class Bench:
    """Where the faults are forced: logs and the table go to `out`."""

    out: Path
    work: Path
    pocket: Path
    tiny: bool
    left_s: Callable[[], float]

    def table(self, *, alone: bool, faults: Sequence[Fault] = FAULTS, force: Force | None = None) -> BenchResult:
        """Forces the faults that the table in `out` lacks, or has cut; saves after each, and starts none without time for it.

        Args:
            alone: force those that take memory, one after another; otherwise the others, concurrently.
        """
        rows = {row[0]: row for row in saved_rows(self.out / "ladder.json") if not str(row[-1]).startswith(_CUT)}
        wanted = [fault for fault in faults if fault.alone == alone and (fault.tiny or not self.tiny)]
        missing = [fault for fault in wanted if fault.name not in rows]

        def result() -> BenchResult:
            found = tuple(rows[fault.name] for fault in faults if fault.name in rows)
            return BenchResult(name="ladder", columns=_COLUMNS, rows=found, notes=notes)

        async def add(fault: Fault) -> None:
            left = min(self.left_s() - _END_S, fault.limit_s * (4 if self.tiny else 1))
            if left < _LEAST_S:
                print(f"-- {fault.name}: no time left", flush=True)
                return
            rows[fault.name] = await (force or self._force)(fault, left)
            print(rows[fault.name], flush=True)
            result().save(self.out / "ladder.json")

        async def add_all() -> None:
            width = 1 if alone else len(missing)
            for first in range(0, len(missing), width or 1):
                await asyncio.gather(*map(add, missing[first : first + width]))

        notes = (_gpus_found(),)
        asyncio.run(add_all())
        return result()

    def _plan(self, fault: Fault, folder: Path) -> LaunchPlan:
        server, model = dict(fault.server), self.pocket
        if fault.shape:
            model = folder / "shape"
            gpu_shapes.write_folder(model, gpu_shapes.config(2))
        if fault.draft:
            draft = folder / "draft"
            draft.mkdir()
            shutil.copy(self.pocket / "config.json", draft)
            (draft / "model.safetensors").write_bytes(bytes(64))
            server["draft_model"] = str(draft)
        if not (fault.alone or self.tiny):
            server |= {**_SMALL, "extra_args": (*server.get("extra_args", ()), *_SMALL_CACHE)}
        config = load_config({"server": server, "solver": {"slots": 2, "max_attempts": 2}, "sampling": {"min_p": 0.0}})
        plan = plan_launch(model, config)
        if fault.imports:
            environment = Installation(environment=folder)
            environment.python.parent.mkdir()
            environment.python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')  # without installed packages
            environment.python.chmod(0o755)
            plan = replace(plan, wheels=environment)
        return plan

    async def _force(self, fault: Fault, limit_s: float) -> Row:
        folder = self.work / "ladder" / re.sub(r"\W+", "-", fault.name)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        log = folder / "server.log"
        log.touch()
        try:
            return await _start(fault, self._plan(fault, folder), log, limit_s)
        finally:
            shutil.copy(log, self.out / f"ladder.{folder.name}.server.log")


def saved_rows(path: Path) -> list[Row]:
    """The rows of a saved table; none if there is no such file."""
    return [tuple(row.values()) for row in json.loads(path.read_text())["results"]] if path.exists() else []


def _gpus_found() -> str:
    began = time.monotonic()
    gpus = ", ".join(f"{gpu.name} {gpu.capability}" for gpu in detect_gpus()) or "none"
    return f"GPUs, found in {time.monotonic() - began:.2f} s: {gpus}"


async def _start(fault: Fault, plan: LaunchPlan, log: Path, limit_s: float) -> Row:
    """Starts servers until one serves, no start is left, or `limit_s` have passed; ends the last one."""
    events: list[dict[str, Any]] = []
    began = time.monotonic()

    def note(kind: str, **values: Any) -> None:
        events.append({"kind": kind} | values)
        told = values.get("cause") or values.get("step") or ""
        print(f"{time.monotonic() - began:6.1f} s  {fault.name}: {kind} {told}", flush=True)

    serves = "yes"
    async with plan.engine() as engine:
        supervisor = Supervisor(plan, engine, log, note)
        try:
            with fault.forced(plan, log):
                began = time.monotonic()
                async with asyncio.timeout(limit_s):
                    await supervisor.start()
                total_s = time.monotonic() - began
                await engine.probe()
        except (ServerStartError, EngineError) as error:
            total_s, serves = time.monotonic() - began, f"no: {str(error).splitlines()[0]}"
        except TimeoutError:
            total_s, serves = time.monotonic() - began, f"{_CUT} {limit_s:.0f} s"
        finally:
            await supervisor.stop()
    ready_s = sum(event["seconds"] for event in events if event["kind"] == "server_ready")
    causes = "; ".join(event["cause"] for event in events if event["kind"] == "server_start_failed")
    steps = "; ".join(event["step"] for event in events if event["kind"] == "server_adjusted")
    return fault.name, causes, steps, total_s - ready_s, ready_s, serves
