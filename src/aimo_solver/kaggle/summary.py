"""The result of a boot, one line per fact, and what the server did while a problem was solved."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aimo_solver.errors import AimoError
from aimo_solver.problems import ProblemResult
from aimo_solver.server.checks import Check, Health, flags_check, gpu_check, kv_check, versions_check
from aimo_solver.server.client import VllmEngine
from aimo_solver.server.completions import read_metrics
from aimo_solver.server.warmup import measure_speed
from aimo_solver.solve.doctor import try_kernel
from aimo_solver.solve.session import Session

LAUNCH = "launch"  # name of the check that a setting switches off
_BURST_S = 60.0
_LOG_BYTES = 1 << 21
_SAMPLE_S = 2.0  # between two readings: the KV cache is full only while attempts run
_BACKEND = re.compile(
    r"Using ([^\n:\[\]]{1,60}?\b[Bb]ackend)\b(?! for)"  # "Using FLASH_ATTN attention backend out of ..."
    r"|(MXFP4 experts: (?:\d+ )?warps per block(?: unchanged)?)"  # of server/inside/experts.py
)
_ALONGSIDE = ("kernels", "weights")  # stages that run while others do
_LEFT_OUT = ("--port", "--seed", "--host", "--served-model-name", "--model ")

Event = tuple[str, Mapping[str, Any]]
"""The kind and the values of one event of the run's log."""


async def summarise_boot(session: Session, events: Sequence[Event], server_log: Path | None) -> list[Check]:
    """Returns the checks of a session that has just opened, whose `events` are those of the whole run."""
    plan, config = session.plan, session.resources.config
    assert plan is not None
    boot = _last_boot(events)
    tokens, streams = await session.engine.kv_cache_tokens(), config.solver.streams
    backends = await asyncio.to_thread(_read_backends, server_log)
    pool: Any = session.resources.pool  # a KernelPool
    return [
        await asyncio.to_thread(versions_check, plan.wheels, plan.gpus),
        gpu_check(plan.gpus, plan.wheels.path),
        _launch_check(plan.adjustments.steps, " ".join(plan.command.args), boot),
        *_boot_warnings(events, boot, drafted=plan.speculation is not None),
        flags_check(plan),
        Check("backends", Health.OK, ", ".join(backends) or "none named in the server's log"),
        kv_check(tokens, streams, session.engine.context_tokens),
        await try_kernel(pool),
        _stages_check(boot, config.budget.cap_s),
        await _speed_check(session, streams),
    ]


def add_fallback(checks: Sequence[Check], steps: Sequence[str]) -> Sequence[Check]:
    """Returns the checks of the last boot, with the `steps` to a fallback that a later restart led to."""
    if not steps or any(check.name == LAUNCH and check.health is Health.BROKEN for check in checks):
        return checks
    found = f"a fallback serves since a restart: {'; '.join(steps)}"
    return [*checks, Check(LAUNCH, Health.BROKEN, found, "server.log has the output")]


def _last_boot(events: Sequence[Event]) -> Sequence[Event]:
    starts = [place for place, (kind, values) in enumerate(events) if (kind, values.get("stage")) == ("stage_started", "wheels")]
    return events[starts[-1] if starts else 0 :]


def _launch_check(steps: Sequence[str], command: str, boot: Sequence[Event]) -> Check:
    errors = [str(values.get("error")) for kind, values in boot if kind == "server_start_failed"]
    if not steps and not errors:
        flags = re.findall(r"--\S+(?: (?!--)\S+)*", command)
        return Check(LAUNCH, Health.OK, " ".join(flag for flag in flags if not flag.startswith(_LEFT_OUT)))
    lines = [line.strip() for error in errors[:1] for line in error.splitlines()]
    why = next((line for line in reversed(lines) if "Error" in line), "an earlier boot's")
    advice = f"first failure: {why[:300]}; server.log has more"
    if not steps:
        return Check(LAUNCH, Health.WARNING, f"the first command serves, after {len(errors)} failed starts", advice)
    found = f"a fallback serves, after {len(errors)} failed starts: {'; '.join(steps)}"
    return Check(LAUNCH, Health.BROKEN, found, f"{advice}; ALLOW_FALLBACK = True submits it all the same")


def _boot_warnings(events: Sequence[Event], boot: Sequence[Event], *, drafted: bool) -> list[Check]:
    """Returns warnings about boots that failed before the last one, `boot`, and about a draft that is not used."""
    made = []
    failed = [values["error"] for kind, values in events[: len(events) - len(boot)] if kind == "boot_failed"]
    if failed:
        found = f"{len(failed)} failed before this one: {str(failed[-1]).splitlines()[0]:.200}"
        made.append(Check("boots", Health.WARNING, found, "the competition's run will lose the same time"))
    left_out = [values["reason"] for kind, values in events if kind == "draft_left_out"]
    if left_out and not drafted:
        made.append(Check("draft", Health.WARNING, f"left out: {left_out[-1]}", "correct DRAFT, or leave it empty"))
    return made


def _stages_check(boot: Sequence[Event], cap_s: float) -> Check:
    """Names the stages; warns if those that follow each other take longer than `cap_s`, which is how long a problem waits."""
    ended = [values for kind, values in boot if kind == "stage_ended"]
    named = [f"{one['stage']} {one['seconds']:.0f} s" + ("" if one["outcome"] == "done" else " (failed)") for one in ended]
    found, seconds = ", ".join(named), sum(one["seconds"] for one in ended if one["stage"] not in _ALONGSIDE)
    if seconds > cap_s:
        return Check("stages", Health.WARNING, found, f"the first problem waits {cap_s:.0f} s (budget.cap_s), and then gets 0")
    return Check("stages", Health.OK, found)


def _read_backends(server_log: Path | None) -> list[str]:
    try:
        if server_log is None:
            return []
        with server_log.open("rb") as file:
            text = file.read(_LOG_BYTES).decode("utf-8", "replace")
    except OSError:
        return []
    return list(dict.fromkeys(found[1] or found[2] for found in _BACKEND.finditer(text)))


async def _speed_check(session: Session, streams: int) -> Check:
    assert session.plan is not None
    try:
        async with asyncio.timeout(_BURST_S):
            speed = await measure_speed(session.engine, slots=streams, vocabulary=session.plan.vocabulary)
    except (ExceptionGroup, AimoError, TimeoutError) as error:
        return Check("speed", Health.WARNING, f"not measured: {error!r:.200}")
    return Check("speed", Health.OK, f"{speed:,.0f} tok/s in a burst of {streams} short requests")


class ServerMeter:
    """Measures what the server does while a problem is solved. Problems come one at a time."""

    def __init__(self, engine: VllmEngine) -> None:
        self._engine = engine
        self._faults = engine.faults
        self._latest = self._first = (0.0, 0.0)  # prompt tokens, and those of them found in the prefix cache
        self._largest_share = 0.0  # of the KV cache, taken by running requests

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Reads the metrics while the block runs."""
        task = asyncio.create_task(self._watch(), name="meter")
        try:
            yield
        finally:
            task.cancel()

    def begin(self) -> None:
        """Starts measuring another problem."""
        self._faults = self._engine.faults
        self._first = self._latest
        self._largest_share = 0.0

    def describe(self, result: ProblemResult) -> str:
        """Returns what was measured since `begin`, in a few words."""
        prompts, cached = (latest - first for latest, first in zip(self._latest, self._first, strict=True))
        hits = f", {cached / prompts:.0%} of the prompts cached" if prompts > 0 else ""
        speed = f"{result.tokens / max(result.seconds, 1e-3):,.0f} tok/s"
        return f"{speed}, KV cache up to {self._largest_share:.0%}{hits}, {self._engine.faults - self._faults} restarts"

    async def _watch(self) -> None:
        while True:
            if values := read_metrics(await self._engine.metrics()):  # a figure for each copy of the model
                prompts, cached = (sum(values.get(f"prefix_cache_{name}", ())) for name in ("queries", "hits"))
                if prompts < self._first[0]:  # another server, which counts from 0
                    self._first = (0.0, 0.0)
                self._latest = (prompts, cached)
                shares = values.get("kv_cache_usage_perc", [0.0])
                self._largest_share = max(self._largest_share, sum(shares) / len(shares))
            await asyncio.sleep(_SAMPLE_S)
