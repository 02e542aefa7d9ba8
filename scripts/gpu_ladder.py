"""Forces faults on starts of a real vLLM server, and measures which steps of the ladder answer them."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gpu_faults
import gpu_shapes
from aimo_solver.config import load_config
from aimo_solver.errors import EndpointError, ServerStartError
from aimo_solver.lab.bench.table import BenchResult
from aimo_solver.server.flags import Variable
from aimo_solver.server.launch import LaunchPlan, plan_launch
from aimo_solver.server.machine import detect_gpus
from aimo_solver.server.supervisor import Supervisor

EAGER = ("--enforce-eager",)  # a quick start, where graphs do not matter
_TENANT = 0.6  # of the GPU's memory
_LONGEST_S = 45.0  # of one row; none is started without time for it

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
    """Takes what the server leaves free, as soon as its KV cache has its share."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            if log.exists() and "GPU KV cache size" in log.read_text(errors="replace"):
                take()
                return

    with gpu_faults.memory_taker() as take:
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()


@dataclass(frozen=True)
class Fault:
    """A forced fault.

    Attributes:
        server: options of the server.
        forced: what is done around the starts.
        draft, shape, imports: a broken draft folder; two layers of gpt-oss's shape; a vLLM that cannot be imported.
        tiny: it can be forced on a CPU.
    """

    name: str
    server: dict[str, Any] = field(default_factory=dict)
    forced: Forced = _nothing
    draft: bool = False
    shape: bool = False
    imports: bool = False
    tiny: bool = False


FAULTS = (
    Fault("none", {"extra_args": EAGER}),
    Fault(f"another process holds {_TENANT:.0%} of the GPU", {"extra_args": EAGER}, _co_tenant),
    Fault("memory runs out while capturing", {"extra_args": ("--max-cudagraph-capture-size", "512")}, _taken_while_capturing),
    Fault(
        "experts' backend that the model cannot use",
        {"moe_backend": "cutlass", "load_format": "dummy", "extra_args": EAGER},
        shape=True,
    ),
    Fault("draft with broken weights", {"extra_args": EAGER}, draft=True),
    Fault("unknown flag", {"extra_args": (*EAGER, "--no-such-flag", "7")}, tiny=True),
    Fault("port in use", {"extra_args": EAGER}, _port_taken, tiny=True),
    Fault("unknown experts' backend", {"moe_backend": "nonsense", "extra_args": EAGER}),
    Fault("vLLM cannot be imported", {"restarts": 1}, imports=True, tiny=True),
)


def table(out: Path, work: Path, pocket: Path, *, tiny: bool, left_s: Callable[[], float]) -> BenchResult:
    """Forces one fault after another; saves after each, and starts none without time for it."""
    columns = ("fault", "causes read", "steps", "lost s", "last start s", "serves")
    began = time.monotonic()
    gpus = ", ".join(f"{gpu.name} {gpu.capability}" for gpu in detect_gpus()) or "none"
    found = f"GPUs, found in {time.monotonic() - began:.2f} s: {gpus}"
    result = BenchResult(name="ladder", columns=columns, rows=(), notes=(found,))
    for number, fault in enumerate(FAULTS):
        if left_s() < _LONGEST_S or (tiny and not fault.tiny):
            continue
        folder = work / "ladder" / str(number)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "server.log").touch()
        row = asyncio.run(_force(fault, _plan(fault, folder, pocket), folder / "server.log"))
        shutil.copy(folder / "server.log", out / f"ladder.{number}.server.log")
        print(row, flush=True)
        result = replace(result, rows=(*result.rows, row))
        result.save(out / "ladder.json")
    return result


def _plan(fault: Fault, folder: Path, pocket: Path) -> LaunchPlan:
    server, model = dict(fault.server), pocket
    if fault.shape:
        model = folder / "shape"
        gpu_shapes.write_folder(model, 2)
    if fault.draft:
        draft = folder / "draft"
        draft.mkdir()
        shutil.copy(pocket / "config.json", draft)
        (draft / "model.safetensors").write_bytes(bytes(64))
        server["draft_model"] = str(draft)
    config = load_config({"server": server, "solver": {"slots": 2, "max_attempts": 2}, "sampling": {"min_p": 0.0}})
    plan = plan_launch(model, config)
    if fault.imports:
        (folder / "vllm").mkdir()
        (folder / "vllm" / "__init__.py").write_text("import no_such_module\n")
        plan = replace(plan, cache_variables=(Variable("PYTHONPATH", str(folder), "a vLLM that fails"),))
    return plan


async def _force(fault: Fault, plan: LaunchPlan, log: Path) -> tuple[Any, ...]:
    events: list[dict[str, Any]] = []
    serves = "yes"
    async with plan.engine() as engine:
        supervisor = Supervisor(plan, engine, log, lambda kind, **values: events.append({"kind": kind} | values))
        began = time.monotonic()
        try:
            with fault.forced(plan, log):
                began = time.monotonic()
                await supervisor.start()
                total_s = time.monotonic() - began
                await engine.probe()
        except (ServerStartError, EndpointError) as error:
            total_s, serves = time.monotonic() - began, f"no: {str(error).splitlines()[0]}"
        finally:
            await supervisor.stop()
    ready_s = sum(event["seconds"] for event in events if event["kind"] == "server_ready")
    causes = "; ".join(event["cause"] for event in events if event["kind"] == "server_start_failed")
    steps = "; ".join(event["step"] for event in events if event["kind"] == "server_adjusted")
    return fault.name, causes, steps, total_s - ready_s, ready_s, serves
