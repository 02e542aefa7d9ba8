"""What a boot led to: the launch command, the backends, the meter; and the logs of repeats."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aimo_solver.config import Config
from aimo_solver.kaggle import summary
from aimo_solver.kaggle.notebook import NotebookSessions, open_log
from aimo_solver.kaggle.summary import ServerMeter, _boot_warnings, _last_boot, _launch_check, _read_backends, _stages_check
from aimo_solver.log.reader import read_run
from aimo_solver.problems import Problem, ProblemResult
from aimo_solver.server.checks import Health
from aimo_solver.server.wheels import NOTHING_TO_INSTALL

COMMAND = "python -m vllm --model m --port 1 --max-model-len 4096 --async-scheduling --seed 3"
ERROR = "it ended\nlast lines of its log:\n  RuntimeError: CUDA out of memory\n  exit"
FAILED = ("server_start_failed", {"error": ERROR})


def test_the_first_command_serves() -> None:
    check = _launch_check((), COMMAND, [("server_ready", {})])
    assert check.health is Health.OK
    assert check.finding == "--max-model-len 4096 --async-scheduling"


def test_a_fallback_is_named_by_its_steps_with_the_reason() -> None:
    check = _launch_check(("GPU memory share 0.96 -> 0.9 (loading)", "no fork (unknown)"), COMMAND, [FAILED, FAILED])
    assert check.health is Health.BROKEN
    steps = "GPU memory share 0.96 -> 0.9 (loading); no fork (unknown)"
    assert check.finding == f"a fallback serves, after 2 failed starts: {steps}"
    assert "RuntimeError: CUDA out of memory" in check.advice


def test_a_command_that_served_at_the_second_try_is_a_warning() -> None:
    assert _launch_check((), COMMAND, [FAILED]).health is Health.WARNING


def test_a_fallback_that_an_earlier_boot_found_is_still_one() -> None:
    assert _launch_check(("no fork (unknown)",), COMMAND, []).health is Health.BROKEN


STARTED = ("stage_started", {"stage": "wheels"})
BOOT_FAILED = ("boot_failed", {"error": "ServerStartError: it ended\ncommand: vllm"})
LEFT_OUT = ("draft_left_out", {"reason": "model head not found"})


def test_a_boot_that_failed_before_and_a_draft_that_is_not_used_are_warnings() -> None:
    events = [LEFT_OUT, STARTED, BOOT_FAILED, STARTED, BOOT_FAILED, LEFT_OUT, STARTED, ("server_ready", {})]
    checks = _boot_warnings(events, _last_boot(events), drafted=False)
    assert [check.health for check in checks] == [Health.WARNING] * 2
    assert checks[0].finding == "2 failed before this one: ServerStartError: it ended"
    assert checks[1].finding == "left out: model head not found"
    assert _boot_warnings(events[5:], _last_boot(events[5:]), drafted=True) == []


@pytest.mark.parametrize(("server_s", "health"), [(800.0, Health.OK), (891.0, Health.WARNING)])
def test_a_boot_longer_than_a_problem_waits_is_a_warning(server_s: float, health: Health) -> None:
    ended = (("weights", 500.0, "failed"), ("wheels", 10.0, "done"), ("server", server_s, "done"))
    events = [("stage_ended", {"stage": stage, "seconds": seconds, "outcome": how}) for stage, seconds, how in ended]
    check = _stages_check(events, 900.0)
    assert check.health is health
    assert check.finding == f"weights 500 s (failed), wheels 10 s, server {server_s:.0f} s"


def test_backends_are_read_from_the_servers_log(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text(
        "INFO 11-21 [cuda.py:506] Using FLASH_ATTN attention backend out of potential backends: ['FLASH_ATTN', 'TRITON'].\n"
        "INFO 11-21 [mxfp4.py:540] Using 'TRITON' Mxfp4 MoE backend.\n"
        * 2
        + "INFO 11-22 09:57:08 [aimo_experts.py:33] MXFP4 experts: 4 warps per block\n"
    )
    found = ["FLASH_ATTN attention backend", "'TRITON' Mxfp4 MoE backend", "MXFP4 experts: 4 warps per block"]
    assert _read_backends(log) == found
    assert _read_backends(tmp_path / "missing") == _read_backends(None) == []


METRICS = """# HELP vllm:kv_cache_usage_perc KV-cache usage.
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 1000.0
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 9.5e+02
vllm:prefix_cache_hits_created{engine="0",model_name="m"} 1.7e+09
"""


@pytest.mark.parametrize(
    ("text", "measured"),
    [(METRICS, "KV cache up to 50%, 95% of the prompts cached, 0 restarts"), ("not metrics", "KV cache up to 0%, 0 restarts")],
)
def test_the_metrics_of_all_copies_are_added_up(text: str, measured: str) -> None:
    read = asyncio.Event()

    async def metrics() -> str:
        read.set()
        return text

    async def measure() -> str:
        engine: Any = SimpleNamespace(faults=0, metrics=metrics)
        meter = ServerMeter(engine)
        async with meter.watching():
            await read.wait()
            await asyncio.sleep(0)
            return meter.describe(ProblemResult(problem_id="p", answer=1, reason="equal", tokens=500, seconds=10.0))

    assert asyncio.run(measure()) == f"50 tok/s, {measured}"


def test_a_problem_is_measured_from_its_start_also_after_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "_SAMPLE_S", 0.0)
    result = ProblemResult(problem_id="p", answer=1, reason="equal", tokens=5_000, seconds=10.0)

    async def measure(*shown: tuple[float, int, int]) -> str:
        answers = list(shown)

        async def metrics() -> str:
            names = ("kv_cache_usage_perc", "prefix_cache_queries", "prefix_cache_hits")
            values = answers.pop(0) if answers else ()
            return "\n".join(f"vllm:{name} {value}" for name, value in zip(names, values, strict=False))

        engine: Any = SimpleNamespace(faults=0, metrics=metrics)
        measured = ServerMeter(engine)
        async with measured.watching():
            while len(answers) == len(shown):  # noqa: ASYNC110
                await asyncio.sleep(0)
            measured.begin()
            engine.faults = 1
            while answers:  # noqa: ASYNC110
                await asyncio.sleep(0)
            await asyncio.sleep(0.01)
        return measured.describe(result)

    text = asyncio.run(measure((0.1, 100, 0), (0.4, 300, 150), (0.2, 500, 300)))
    assert text == "500 tok/s, KV cache up to 40%, 75% of the prompts cached, 1 restarts"
    text = asyncio.run(measure((0.1, 900, 900), (0.3, 200, 50)))
    assert "25% of the prompts cached" in text


class LoggingSolver:
    """A solver that only writes a problem's end to its log."""

    def __init__(self, log: Any) -> None:
        self.log = log

    def with_log(self, log: Any) -> LoggingSolver:
        return LoggingSolver(log)

    def solve(self, id_: str) -> None:
        self.log.problem_started(Problem(id_, "x"), 1.0)
        self.log.problem_finished(ProblemResult(problem_id=id_, answer=1, reason="equal"))


def test_each_repeat_has_a_run_directory_of_its_own(tmp_path: Path) -> None:
    settings: Mapping[str, Any] = {}
    sessions = NotebookSessions("model", settings, NOTHING_TO_INSTALL, tmp_path, 0.0)
    sessions.begin_repeat(1)
    sessions._log = sessions._open_log(Config())
    session: Any = SimpleNamespace(solver=LoggingSolver(sessions._log))
    sessions._session = session
    session.solver.solve("p")
    sessions.begin_repeat(2)
    session.solver.solve("q")
    sessions.finish()
    found = {number: read_run(tmp_path / "run-1" / str(number)) for number in (1, 2)}
    assert [[result.problem_id for result in found[number].results] for number in (1, 2)] == [["p"], ["q"]]
    assert all((tmp_path / "run-1" / str(number) / "summary.json").is_file() for number in (1, 2))
    with open_log(tmp_path, Config(), 0.0) as log:
        assert log.directory == tmp_path / "run-2"
