"""Watching and restarting a server, on real processes, with a small HTTP program instead of vLLM."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from aimo_solver.chat.families import load_chat_format
from aimo_solver.config import Config
from aimo_solver.errors import EngineLost, ServerStartError
from aimo_solver.log.writer import NullLog
from aimo_solver.options import SamplingConfig
from aimo_solver.server import supervisor
from aimo_solver.server.client import VllmEngine
from aimo_solver.server.failures import Failure
from aimo_solver.server.flags import UNADJUSTED, Adjustments
from aimo_solver.server.options import ServerConfig
from aimo_solver.server.process import ServerCommand, ServerProcess, free_port
from aimo_solver.server.supervisor import Supervisor
from aimo_solver.solve.conversation import Conversation, SampledTurn
from tests.conftest import MODEL
from tests.processes import pid_runs
from tests.server_programs import SERVING, eventually, python, worker_pids

CHAT = load_chat_format(MODEL)


@dataclass(frozen=True)
class Scripted:
    """A plan whose commands follow one another, the last one for ever; every step notes the cause."""

    commands: tuple[ServerCommand, ...]
    url: str
    config: Config
    adjustments: Adjustments = UNADJUSTED

    @property
    def command(self) -> ServerCommand:
        return self.commands[0]


def scripted_next(plan: Scripted, failure: Failure, *, last: bool, port: int) -> Scripted:
    steps = (*plan.adjustments.steps, f"{failure.cause.value}{', last' if last else ''}")
    return replace(plan, commands=plan.commands[1:] or plan.commands, adjustments=replace(plan.adjustments, steps=steps))


def supervise(
    commands: Sequence[ServerCommand], url: str, engine: VllmEngine, log: Path, note: Callable[..., None], **options: Any
) -> Supervisor:
    plan: Any = Scripted(tuple(commands), url, Config(server=ServerConfig(start_timeout_s=60, **options)))
    return Supervisor(plan, engine, log, note, pause_s=0.01)


class Bench:
    """A port, an engine on it, commands that serve or fail to, and a supervisor."""

    def __init__(self, folder: Path) -> None:
        self.port = port = free_port()
        self.engine = VllmEngine(f"http://127.0.0.1:{port}", "m", SamplingConfig(), context_tokens=65_536)
        self.fault = folder / "fault"
        self.good = python(SERVING, str(port), str(self.fault))
        self.safe = python(SERVING, str(port), str(self.fault), "--safe")
        self.bad = python("import sys; print('no memory left'); sys.exit(3)")
        self.log = folder / "server.log"
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.supervisor: Supervisor

    async def start(self, *commands: ServerCommand, restarts: int = 3, stall_s: float = 60.0) -> Supervisor:
        options = {"stall_s": stall_s, "restarts": restarts}
        self.supervisor = supervise(commands, self.engine.base_url, self.engine, self.log, self.note, **options)
        await self.supervisor.start()
        return self.supervisor

    def note(self, kind: str, **values: Any) -> None:
        self.events.append((kind, values))

    @property
    def steps(self) -> list[str]:
        return [values["step"] for kind, values in self.events if kind == "server_adjusted"]

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]

    def pid(self) -> int:
        pid = self.supervisor.server.pid
        assert pid is not None
        return pid

    async def kill(self) -> None:
        """Kills the server, and waits for the next one."""
        ready = self.kinds.count("server_ready")
        os.kill(self.pid(), signal.SIGKILL)
        await eventually(lambda: self.kinds.count("server_ready") > ready)


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervisor, "next_plan", scripted_next)
        yield bench
        if hasattr(bench, "supervisor"):
            await asyncio.wait_for(bench.supervisor.stop(), 60)
    await bench.engine.close()


async def test_a_killed_server_is_restarted(bench: Bench) -> None:
    await bench.start(bench.good)
    orphans = await worker_pids(bench.log)
    await bench.kill()
    await asyncio.wait_for(bench.engine.wait_ready(), 120)
    assert not any(map(pid_runs, orphans))
    assert bench.kinds.count("server_fault") == bench.engine.faults == 1


async def test_a_server_without_progress_is_restarted(bench: Bench) -> None:
    await bench.start(bench.good, stall_s=1.0)
    os.kill(bench.pid(), signal.SIGSTOP)
    bench.engine.running = 1  # a request is under way and gets no token
    await eventually(lambda: "server_fault" in bench.kinds)
    bench.engine.running = 0
    await eventually(lambda: bench.kinds.count("server_ready") == 2)
    assert bench.steps == ["not ready in time"]


async def test_an_idle_server_is_left_alone(bench: Bench) -> None:
    await bench.start(bench.good, stall_s=0.5)
    await asyncio.sleep(1.5)
    assert bench.kinds == ["server_starting", "server_ready"]


@pytest.mark.parametrize("silent", [False, True])
async def test_an_idle_server_that_does_not_answer_is_restarted(bench: Bench, silent: bool) -> None:
    await bench.start(bench.good, stall_s=0.5)
    if silent:
        os.kill(bench.pid(), signal.SIGSTOP)
    else:
        bench.fault.write_text("503")
    await eventually(lambda: "server_fault" in bench.kinds)
    bench.fault.unlink(missing_ok=True)
    await eventually(lambda: bench.kinds.count("server_ready") == 2)


async def test_a_healthy_server_whose_requests_all_fail_is_restarted(bench: Bench) -> None:
    """Its completions page answers 200 without a body; between the attempt's retries no request runs."""
    await bench.start(bench.good, stall_s=0.5)
    attempt = asyncio.create_task(draw(bench.engine))
    await eventually(lambda: "server_fault" in bench.kinds)
    attempt.cancel()


async def test_a_failed_start_is_followed_by_the_next_command(bench: Bench) -> None:
    await bench.start(bench.bad, bench.good, bench.safe)
    assert bench.kinds == ["server_starting", "server_start_failed", "server_adjusted", "server_starting", "server_ready"]
    assert bench.supervisor.server.command == bench.good
    assert bench.steps == ["unknown"]


async def test_the_output_of_a_failed_start_is_read_and_the_last_start_takes_the_safest_flags(bench: Bench) -> None:
    memory = python("import sys; sys.exit('torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB')")
    await bench.start(memory, ServerCommand(("/no/such/python",)), bench.good, restarts=2)
    assert bench.steps == ["out of memory while loading", "unknown, last"]


async def test_no_restart_is_used_where_the_server_cannot_be_imported(bench: Bench) -> None:
    missing = ServerCommand((sys.executable, "-m", "no_such_vllm.entrypoints"))
    with pytest.raises(ServerStartError, match="while starting"):
        await bench.start(missing, bench.good)
    assert bench.kinds == ["server_starting", "server_start_failed"]
    assert bench.events[-1][1]["cause"] == "vLLM cannot be imported"


async def test_a_process_that_the_system_does_not_start_is_not_the_commands_fault(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn = ServerProcess._spawn

    def fails_once(server: ServerProcess) -> None:
        monkeypatch.setattr(ServerProcess, "_spawn", spawn)
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(ServerProcess, "_spawn", fails_once)
    await bench.start(bench.good)
    assert bench.steps == ["no process could be started"]


async def test_the_client_follows_the_server_to_another_port(bench: Bench) -> None:
    url, bench.engine.base_url = bench.engine.base_url, "http://127.0.0.1:1"
    bench.supervisor = supervise([bench.good], url, bench.engine, bench.log, bench.note)
    await bench.supervisor.start()
    assert bench.engine.base_url == url


async def test_the_last_command_is_repeated_while_restarts_are_left(bench: Bench) -> None:
    with pytest.raises(ServerStartError, match="no memory left"):
        await bench.start(bench.bad, bench.bad, restarts=3)
    assert bench.kinds.count("server_start_failed") == 4


async def test_a_server_that_served_is_first_restarted_with_the_same_command(bench: Bench) -> None:
    supervisor = await bench.start(bench.good, bench.safe)
    used = []
    for _ in range(2):
        bench.engine.tokens_streamed += 1
        await bench.kill()
        used.append(supervisor.server.command)
    assert used == [bench.good, bench.safe]
    assert bench.steps == ["killed"]


async def test_a_server_that_served_nothing_is_restarted_with_a_safer_command(bench: Bench) -> None:
    supervisor = await bench.start(bench.good, bench.safe)
    await bench.kill()
    assert supervisor.server.command == bench.safe


async def test_waiting_fails_when_no_restart_is_left(bench: Bench) -> None:
    await bench.start(bench.good, restarts=0)
    os.kill(bench.pid(), signal.SIGKILL)
    with pytest.raises(EngineLost, match="died"):
        await asyncio.wait_for(bench.engine.wait_ready(), 120)


async def test_refilled_restarts_can_be_used_again(bench: Bench) -> None:
    supervisor = await bench.start(bench.good, restarts=1)
    for fault in (1, 2):
        await bench.kill()
        assert bench.engine.faults == fault
        supervisor.refill()
    assert bench.engine.lost is None


@pytest.mark.slow
async def test_attempts_continue_after_kills_and_a_restart_with_less_context(bench: Bench) -> None:
    """Without waiting for the server: a request that is too long is refused, and then shortened."""
    program = (sys.executable, "-m", "tests.http_vllm", str(bench.port))
    roomy, tight = ServerCommand((*program, "65536")), ServerCommand((*program, "49152"))
    bench.engine.context_tokens = 65_536
    supervisor = await bench.start(roomy, bench.bad, tight)
    drawn = [await draw(bench.engine)]
    os.kill(bench.pid(), signal.SIGKILL)
    drawn.append(await draw(bench.engine))
    await eventually(lambda: bench.kinds.count("server_ready") == 2)
    assert (supervisor.server.command, bench.engine.context_tokens) == (roomy, 65_536)
    os.kill(bench.pid(), signal.SIGKILL)
    drawn += await asyncio.gather(*(draw(bench.engine) for _ in range(8)))
    bench.engine.context_tokens = 65_536
    drawn += [await draw(bench.engine)]
    assert [sampled.tokens for sampled in drawn] == [[7, 8, 9]] * 11
    assert (supervisor.server.command, bench.engine.context_tokens) == (tight, 49_152)
    assert bench.engine.faults == 2


async def draw(engine: VllmEngine) -> SampledTurn:
    """A first turn that asks for all that the context holds."""
    conversation = Conversation(engine, CHAT, time.monotonic, NullLog().start_trajectory("p", 0))
    conversation.begin([5] * 500)
    return await conversation.sample(conversation.room, time.monotonic() + 120, "p-0-1")


async def test_a_full_disk_prevents_no_start(bench: Bench) -> None:
    bench.log.symlink_to("/dev/full")
    await bench.start(bench.good)
    await bench.kill()


async def test_an_error_in_the_watch_is_reported_and_the_watch_continues(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.start(bench.good, stall_s=0.5)

    async def fails(timeout_s: float) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bench.engine, "answers", fails)
    await eventually(lambda: bench.kinds.count("server_watch_failed") >= 2)
    monkeypatch.undo()
    await bench.kill()


async def test_a_log_that_fails_does_not_end_the_watch(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.start(bench.good)

    def fails(kind: str, **values: Any) -> None:
        Bench.note(bench, kind, **values)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bench.supervisor, "_on_event", fails)
    await bench.kill()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["starting", "stopped"])
async def test_stopping_does_not_hang(bench: Bench, moment: str) -> None:
    """During a start that never becomes ready, and with a server that is stopped."""
    if moment == "starting":
        await bench.start(bench.good)
        bench.fault.write_text("503")
        os.kill(bench.pid(), signal.SIGKILL)
        await eventually(lambda: bench.kinds.count("server_starting") == 2)
    else:
        await bench.start(bench.good)
        os.kill(bench.pid(), signal.SIGSTOP)
    await asyncio.wait_for(bench.supervisor.stop(), 60)
    assert not bench.supervisor.server.alive
