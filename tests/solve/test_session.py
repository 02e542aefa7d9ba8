"""The server of a session: which vLLM it runs, and with which compile cache. What a session does without, and how it ends."""

from __future__ import annotations

import asyncio
import shutil
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aimo_solver.config import Config, load_config
from aimo_solver.log.writer import NullLog, ProblemResult
from aimo_solver.options import ServerConfig
from aimo_solver.server import compile_cache as jitcache
from aimo_solver.server.launch import Command, Preset, choose
from aimo_solver.server.machine import Gpu, Machine
from aimo_solver.server.wheels import NOTHING_TO_INSTALL, Installation
from aimo_solver.solve import session
from aimo_solver.solve.session import _server
from tests.conftest import MODEL
from tests.processes import pid_runs

H100 = Machine((Gpu("NVIDIA H100 80GB HBM3", 81_559 << 20, (9, 0), "580.1"),), 16)


@pytest.fixture
def wheels(tmp_path: Path) -> Installation:
    """An environment with a vLLM, a torch and flags that are not this Python's."""
    installation = Installation(tmp_path / "aimo-wheels")
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(installation.environment)}))
    for name, version in (("vllm", "99.1"), ("torch", "99.2")):
        (packages / name).mkdir(parents=True)
        (packages / name / "__init__.py").touch()
        info = packages / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (packages / "torch" / "version.py").write_text("cuda: str | None = '99.3'\n")
    (packages / "vllm" / "engine").mkdir()
    (packages / "vllm" / "engine" / "arg_utils.py").write_text('"--model", "--port", "--max-model-len"')
    return installation


@pytest.mark.parametrize("fits", [True, False])
def test_the_compile_cache_is_compared_with_what_the_wheels_brought(wheels: Installation, tmp_path: Path, fits: bool) -> None:
    root = tmp_path / "jit"
    (root / "vllm").mkdir(parents=True)
    (root / "vllm" / "compiled").write_text("graph")
    archive = tmp_path / "x.aimocache"
    config = Config(server=ServerConfig(jit_cache=str(archive)))
    preset = choose(MODEL, config.server, slots=2, machine=H100)
    path = wheels.path if fits else NOTHING_TO_INSTALL.path
    made = jitcache.stamp(H100, root, MODEL, preset.arguments, Path(path[0]) / "vllm", path)
    jitcache.pack(made, archive)
    shutil.rmtree(root)
    cache = jitcache.shipped(config.server.jit_cache, MODEL, preset, H100, wheels.path)
    _, supervisor = _server(MODEL, config, NullLog(), preset, wheels, cache)
    assert (supervisor.server.command.env.get("VLLM_CACHE_ROOT") == str(root / "vllm")) is fits
    assert (root / "vllm" / "compiled").exists() is fits


def test_the_command_heeds_the_vllm_of_the_wheels(wheels: Installation) -> None:
    preset = choose(MODEL, ServerConfig(), slots=2, machine=H100)
    _, supervisor = _server(MODEL, Config(), NullLog(), preset, wheels, {})
    args = supervisor.server.command.args
    assert args[0] == str(wheels.python) != sys.executable
    flags = {arg for arg in args if arg.startswith("--")}
    assert flags == {"--model", "--served-model-name", "--host", "--port", "--max-model-len", "--seed"}


_PROGRAM = """
import http.server, sys
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def do_POST(self):
        self.send_response(400); self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Health).serve_forever()
"""
CONFIG = load_config({"kernels": {"size": 1, "spares": 0}, "solver": {"slots": 1}, "server": {"jit_cache": "absent.aimocache"}})
STAGES = {"kernels", "weights", "compile cache", "first requests", "server", "wheels"}


class Witness(NullLog):
    """Keeps events in mind."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[dict[str, Any]] = []

    def event(self, kind: str, **values: Any) -> None:
        self.events.append({"kind": kind} | values)

    def outcomes(self, outcome: str) -> set[str]:
        return {event["stage"] for event in self.events if event["kind"] == "stage_ended" and event["outcome"] == outcome}


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Witness:
    """Sessions get a small HTTP program for vLLM, and no first requests. No run directory."""

    def program(preset: Preset, model: Path, port: int, *rest: object) -> Command:
        return Command((sys.executable, "-c", _PROGRAM, str(port)), {}, ())

    async def warm(*arguments: object, **options: object) -> None: ...

    monkeypatch.setattr(session, "command", program)
    monkeypatch.setattr(session, "detect_machine", lambda: H100)
    monkeypatch.setattr(session, "warm_up", warm)
    return Witness()


async def never(*arguments: object, **options: object) -> None:
    await asyncio.Event().wait()


def fails(*arguments: object, **options: object) -> None:
    raise OSError(28, "No space left on device")


async def fails_later(*arguments: object, **options: object) -> None:
    raise RuntimeError("a defect")


@pytest.mark.kernels
async def test_every_stage_of_a_session_is_in_the_log_and_one_without_a_run_directory_works(served: Witness) -> None:
    async with session.local_session(MODEL, CONFIG, served) as ready:
        assert ready.lost is None
        async with ready.tools.pool.lease(10) as kernel:
            assert (await kernel.execute("1 + 1", timeout_s=10)).value == "2"
    assert served.outcomes("done") == STAGES


@pytest.mark.parametrize(
    ("stage", "place", "harm"),
    [
        ("kernels", "KernelPool.start", fails_later),
        ("kernels", "KernelPool.start", never),
        ("weights", "prewarm", fails),
        ("compile cache", "shipped", fails),
        ("first requests", "warm_up", fails_later),
        ("first requests", "warm_up", never),
    ],
)
async def test_a_stage_that_the_run_can_do_without_never_stops_the_boot(
    served: Witness, monkeypatch: pytest.MonkeyPatch, stage: str, place: str, harm: Callable[..., Any]
) -> None:
    for name in ("_CACHE_S", "_WARM_UP_S", "_STRAGGLERS_S"):
        monkeypatch.setattr(session, name, 0.5)
    monkeypatch.setattr(f"aimo_solver.solve.session.{place}", harm)
    async with session.local_session(MODEL, CONFIG, served) as ready:
        assert ready.lost is None
    assert stage in served.outcomes("failed")
    assert {"server", "wheels"} <= served.outcomes("done")


@pytest.mark.parametrize("harm", [fails_later, never])
@pytest.mark.parametrize("part", ["KernelPool", "VllmEngine"])
async def test_a_part_that_does_not_go_down_does_not_keep_the_others_up(
    served: Witness, monkeypatch: pytest.MonkeyPatch, part: str, harm: Callable[..., Any]
) -> None:
    close = getattr(session, part).close

    async def closed_badly(self: Any) -> None:
        await close(self)
        await harm()

    monkeypatch.setattr(f"aimo_solver.solve.session.{part}.close", closed_badly)
    monkeypatch.setattr(session, "_DOWN_S", 5.0)
    async with session.local_session(MODEL, CONFIG, served):
        server = next(event["pid"] for event in served.events if event["kind"] == "server_ready")
        assert pid_runs(server)
    assert not pid_runs(server)
    failed = [event["part"] for event in served.events if event["kind"] == "teardown_failed"]
    assert failed == [{"KernelPool": "kernels", "VllmEngine": "engine"}[part]]


async def test_restarts_come_back_after_a_problem_that_ended_well(served: Witness, monkeypatch: pytest.MonkeyPatch) -> None:
    refilled = []
    monkeypatch.setattr(session.Supervisor, "refill", lambda self: refilled.append(1))
    async with session.local_session(MODEL, CONFIG, served) as ready:
        for votes in (0, 1):
            ready.solver._on_problem_end(ProblemResult(problem_id="p", answer=0, reason="equal", votes=votes))
    assert len(refilled) == 1
