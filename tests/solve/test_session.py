"""Sessions: the server's command and compile cache, stages that are optional, and how a session ends."""

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
from aimo_solver.errors import WheelError
from aimo_solver.kernels.pool import KernelPool
from aimo_solver.log.writer import NullLog
from aimo_solver.options import SamplingConfig
from aimo_solver.problems import ProblemResult
from aimo_solver.server import launch
from aimo_solver.server.client import VllmEngine
from aimo_solver.server.compile_cache import add_cache, make_stamp, pack_cache
from aimo_solver.server.failures import Failure, FailureCause
from aimo_solver.server.ladder import safest
from aimo_solver.server.launch import plan_launch
from aimo_solver.server.options import ServerConfig
from aimo_solver.server.process import ServerCommand
from aimo_solver.server.supervisor import StartHistory, Supervisor
from aimo_solver.server.wheels import NOTHING_TO_INSTALL, Installation
from aimo_solver.solve import session
from tests.conftest import H100, MODEL
from tests.processes import pid_runs


@pytest.fixture
def wheels(tmp_path: Path) -> Installation:
    """An environment with another vLLM and torch than this Python, and other flags."""
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
def test_the_compile_cache_is_compared_with_the_versions_of_the_wheels(wheels: Installation, tmp_path: Path, fits: bool) -> None:
    root = tmp_path / "jit"
    (root / "vllm").mkdir(parents=True)
    (root / "vllm" / "compiled").write_text("graph")
    archive = tmp_path / "x.aimocache"
    config = Config(server=ServerConfig(compile_cache=str(archive)))
    pack_cache(make_stamp(plan_launch(MODEL, config, wheels if fits else NOTHING_TO_INSTALL, gpus=(H100,)), root), archive)
    shutil.rmtree(root)
    plan = add_cache(plan_launch(MODEL, config, wheels, gpus=(H100,)), fill=False)
    for start in (plan, safest(plan, Failure(FailureCause.UNKNOWN))):
        assert start.command.env.get("VLLM_CACHE_ROOT") == (str(root / "vllm") if fits else None)
    assert (root / "vllm" / "compiled").exists() is fits


def test_the_command_has_only_flags_of_the_vllm_in_the_wheels(wheels: Installation) -> None:
    args = plan_launch(MODEL, Config(), wheels, gpus=(H100,)).command.args
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
CONFIG = load_config(
    {"kernels": {"size": 1, "spares": 0}, "solver": {"slots": 1}, "server": {"compile_cache": "absent.aimocache"}}
)
STAGES = {"kernels", "weights", "compile cache", "first requests", "server", "wheels"}


class EventLog(NullLog):
    """Keeps its events."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[dict[str, Any]] = []

    def event(self, kind: str, **values: Any) -> None:
        self.events.append({"kind": kind} | values)

    def outcomes(self, outcome: str) -> set[str]:
        return {event["stage"] for event in self.events if event["kind"] == "stage_ended" and event["outcome"] == outcome}


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> EventLog:
    """Sessions start a small HTTP program instead of vLLM, and send no first requests. No run directory."""

    def run_program(args: tuple[str, ...], env: object) -> ServerCommand:
        return ServerCommand((sys.executable, "-c", _PROGRAM, args[args.index("--port") + 1]))

    monkeypatch.setattr(launch, "ServerCommand", run_program)
    monkeypatch.setattr(launch, "detect_gpus", lambda path: (H100,))
    monkeypatch.setattr(session, "warm_up", nothing)
    return EventLog()


async def nothing(*arguments: object, **options: object) -> None: ...


async def never(*arguments: object, **options: object) -> None:
    await asyncio.Event().wait()


def fails(*arguments: object, **options: object) -> None:
    raise OSError(28, "No space left on device")


async def fails_later(*arguments: object, **options: object) -> None:
    raise RuntimeError("a defect")


async def test_slots_times_parallel_problems_size_server_graphs_kernels_and_first_requests(
    served: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    warmed = []

    async def warm(engine: object, *, slots: int, vocabulary: int) -> None:
        warmed.append(slots)

    monkeypatch.setattr(session, "warm_up", warm)
    monkeypatch.setattr(KernelPool, "start", nothing)
    config = load_config({"solver": {"slots": 8, "parallel": 4}, "server": {"preset": "generic"}})
    async with session.local_session(MODEL, config, served) as ready:
        assert ready.plan is not None
        flags = {flag.name: flag.value for flag in ready.plan.flags}
        assert isinstance(ready.resources.pool, KernelPool)
        assert ready.resources.pool.size == 32
    assert (flags["--max-num-seqs"], flags["--max-cudagraph-capture-size"], warmed) == ("32", "32", [32])


async def test_the_wait_for_the_wheels_ends_with_the_clock(served: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []

    def wait(self: Installation, timeout_s: float) -> None:
        waited.append(timeout_s)
        raise WheelError("pip was not ready", [])

    monkeypatch.setattr(Installation, "wait", wait)
    monkeypatch.setattr(KernelPool, "start", nothing)
    for history in (StartHistory(lambda: 5.0), StartHistory()):
        with pytest.raises(WheelError):
            async with session.local_session(MODEL, CONFIG, served, history=history):
                pass
    assert waited == [5.0, session._WHEELS_S]


@pytest.mark.kernels
async def test_every_stage_is_logged_and_a_session_without_a_run_directory_works(served: EventLog) -> None:
    async with session.local_session(MODEL, CONFIG, served) as ready:
        assert ready.lost is None
        async with ready.resources.pool.lease(10) as kernel:
            assert (await kernel.execute("1 + 1", timeout_s=10)).value == "2"
    assert served.outcomes("done") == STAGES


@pytest.mark.kernels
@pytest.mark.parametrize(
    ("stage", "place", "fault"),
    [
        ("kernels", "KernelPool.start", fails_later),
        ("kernels", "KernelPool.start", never),
        ("weights", "read_ahead", fails),
        ("compile cache", "add_cache", fails),
        ("first requests", "warm_up", fails_later),
        ("first requests", "warm_up", never),
    ],
)
async def test_an_optional_stage_that_fails_never_stops_the_boot(
    served: EventLog, monkeypatch: pytest.MonkeyPatch, stage: str, place: str, fault: Callable[..., Any]
) -> None:
    for name in ("_CACHE_S", "_WARM_UP_S", "STRAGGLERS_S"):
        monkeypatch.setattr(session, name, 0.5)
    monkeypatch.setattr(f"aimo_solver.solve.session.{place}", fault)
    async with session.local_session(MODEL, CONFIG, served) as ready:
        assert ready.lost is None
    assert stage in served.outcomes("failed")
    assert {"server", "wheels"} <= served.outcomes("done")


@pytest.mark.kernels
@pytest.mark.parametrize("fault", [fails_later, never])
@pytest.mark.parametrize("part", ["KernelPool", "VllmEngine"])
async def test_a_part_that_cannot_be_closed_does_not_keep_the_others_open(
    served: EventLog, monkeypatch: pytest.MonkeyPatch, part: str, fault: Callable[..., Any]
) -> None:
    close = getattr(session, part).close

    async def fail_to_close(self: Any) -> None:
        await close(self)
        await fault()

    monkeypatch.setattr(f"aimo_solver.solve.session.{part}.close", fail_to_close)
    monkeypatch.setattr(session, "_CLOSE_S", 5.0)
    async with session.local_session(MODEL, CONFIG, served):
        server = next(event["pid"] for event in served.events if event["kind"] == "server_ready")
        assert pid_runs(server)
    assert not pid_runs(server)
    failed = [event["part"] for event in served.events if event["kind"] == "teardown_failed"]
    assert failed == [{"KernelPool": "kernels", "VllmEngine": "engine"}[part]]


@pytest.mark.kernels
async def test_restarts_come_back_after_a_problem_that_ended_well(served: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    refilled = []
    monkeypatch.setattr(Supervisor, "refill", lambda self: refilled.append(1))
    async with session.local_session(MODEL, CONFIG, served) as ready:
        for votes in (0, 1):
            for observer in ready.solver._observers:
                observer.problem_finished(ProblemResult(problem_id="p", answer=0, reason="equal", votes=votes))
    assert len(refilled) == 1


@pytest.mark.parametrize(
    ("tokens", "streams", "says"),
    [
        (32_000, 8, None),
        (
            31_999,
            8,
            "31,999 tokens, 3,999 for each of 8 attempts (context 8,000); lower solver.slots or solver.parallel to 7 attempts",
        ),
        (None, 8, None),
    ],
)
async def test_a_kv_cache_below_half_a_context_for_each_attempt_is_reported(
    monkeypatch: pytest.MonkeyPatch, tokens: int | None, streams: int, says: str | None
) -> None:
    async def reported(self: VllmEngine) -> int | None:
        return tokens

    monkeypatch.setattr(VllmEngine, "kv_cache_tokens", reported)
    log = EventLog()
    async with VllmEngine("http://127.0.0.1:1", "m", SamplingConfig(), context_tokens=8_000) as engine:
        warning = await session.check_cache(engine, streams, log)
    assert (warning is None) == (says is None)
    assert (says or "") in (warning or "")
    assert [event["warning"] for event in log.events] == ([] if tokens is None else [warning])
