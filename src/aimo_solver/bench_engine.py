"""What the agent loop costs: the same server, the same token budget, with the loop around it and without.

The bare engine is one HTTP request per stream whose bytes are read and thrown away. The loop is the real one, with real
kernels and a real run directory; only the model's turns are made up: each ends after a set number of tokens, in a tool
call or in the answer, whatever the tokens are. So it measures the same on real weights and on random ones.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import random
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from aimo_solver.agent import AgentRun, AttemptTools
from aimo_solver.bench import BenchResult, Value
from aimo_solver.chat import ChatFormat, FinalText, ToolCall, ToolCalls, Turn
from aimo_solver.config import AttemptConfig, Config
from aimo_solver.engine import Chunk, CompletionRequest, VllmEngine
from aimo_solver.environment import describe_environment
from aimo_solver.kernels import KernelPool
from aimo_solver.problems import Problem
from aimo_solver.prompts import PromptVariant
from aimo_solver.runlog import RunLog

_PROMPT_TOKENS = 300
_RESULT_TOKENS = 60
_CODE = "print(sum(k * k for k in range(1000)))"
_ABORTS = 5
_WARM_TOKENS = 32
_HORIZON_S = 3_600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The server to measure.

    Attributes:
        chat: its model's chat format, for the decoding of logs.
        vocabulary: token ids below it are valid.
        block_tokens: length of a block of its prefix cache.
    """

    base_url: str
    model: str
    chat: ChatFormat
    config: Config
    context_tokens: int
    vocabulary: int
    block_tokens: int = 16


@dataclass(slots=True)
class _Run:
    """One measured run of some streams.

    Attributes:
        tokens, seconds: sampled by all streams together, from the first request to the last token.
        gaps: seconds from each tool's result to the next token.
        covered: cached tokens over the tokens of all whole blocks that the server has seen, per turn behind the first.
    """

    tokens: int = 0
    seconds: float = 0.0
    gaps: list[float] = field(default_factory=list)
    covered: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


async def bench_engine(
    target: Target, *, streams: Sequence[int] = (1, 8, 16, 32), tokens: int = 2_000, turn_tokens: int = 500, rounds: int = 1
) -> BenchResult:
    """Measures every number of streams with `tokens` sampled tokens per stream, medians over `rounds`."""
    rows: list[tuple[Value, ...]] = []
    details: dict[str, Any] = {}
    serial = itertools.count()
    for count in streams:
        ways: dict[str, Callable[[int], Coroutine[Any, Any, _Run]]] = {
            "bare": partial(_bare, target, count, None, serial),
            "bare, logprobs 0": partial(_bare, target, count, 0, serial),
            "bare, logprobs 5": partial(_bare, target, count, 5, serial),
            "loop": partial(_loop, target, count, None, serial),
            "bare, turns": partial(_bare_turns, target, count, turn_tokens, serial),
            "loop, tools": partial(_loop, target, count, turn_tokens, serial),
        }
        for measure in ways.values():  # whatever is still to be compiled for this number of streams
            await measure(_WARM_TOKENS)
        runs: dict[str, list[_Run]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, measure in ways.items():
                runs[name].append(await measure(tokens))
        rates = {name: statistics.median(run.rate for run in done) for name, done in runs.items()}
        for name, done in runs.items():
            gaps = [gap for run in done for gap in run.gaps]
            covered = [share for run in done for share in run.covered]
            row = (count, name, rates[name], rates[name] / rates["bare"], *_gap_figures(gaps), min(covered, default=None))
            rows.append(row)
            details[f"{count} {name}"] = {"rates": [run.rate for run in done], "seconds": [run.seconds for run in done]}
    aborts = [await _abort_seconds(target, max(streams), serial) for _ in range(_ABORTS)]
    details["abort_seconds"] = aborts
    return BenchResult(
        name="engine",
        columns=("streams", "what", "tokens/s", "of bare", "tool to token ms, median", "95 %", "cached of whole blocks"),
        rows=tuple(rows),
        notes=(
            f"{tokens} tokens per stream behind prompts of {_PROMPT_TOKENS}, turns of {turn_tokens}; medians of {rounds} rounds",
            f"the loop asks for logprobs {target.config.sampling.top_logprobs}",
            f"at most {1e3 * max(aborts):.0f} ms from cancelling {max(streams)} streams to no running request, {_ABORTS} tries",
        ),
        details=details,
    )


def _gap_figures(gaps: Sequence[float]) -> tuple[float | None, float | None]:
    if len(gaps) < 2:
        return None, None
    return 1e3 * statistics.median(gaps), 1e3 * statistics.quantiles(gaps, n=20)[-1]


def _prompt(target: Target, serial: Iterator[int]) -> list[int]:
    """Tokens that no earlier prompt began with, so that nothing of them is cached."""
    draw = random.Random(next(serial))
    return [draw.randrange(target.vocabulary) for _ in range(_PROMPT_TOKENS)]


# --- the bare engine --------------------------------------------------------------------------------------------------


def _body(target: Target, prompt: Sequence[int], tokens: int, logprobs: int | None) -> dict[str, Any]:
    sampling = target.config.sampling
    body = {
        "model": target.model,
        "prompt": list(prompt),
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
    }
    return body if logprobs is None else body | {"logprobs": logprobs}


async def _bare(target: Target, streams: int, logprobs: int | None, serial: Iterator[int], tokens: int) -> _Run:
    async def stream(session: aiohttp.ClientSession) -> None:
        body = _body(target, _prompt(target, serial), tokens, logprobs)
        async with session.post(f"{target.base_url}/v1/completions", json=body) as response:
            response.raise_for_status()
            async for _ in response.content.iter_any():
                pass

    run = _Run(tokens=streams * tokens)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        run.seconds = await _side_by_side(stream(session) for _ in range(streams))
    return run


async def _bare_turns(target: Target, streams: int, turn_tokens: int, serial: Iterator[int], tokens: int) -> _Run:
    """Turns one behind the other, as the loop has them, but with nothing between them."""
    run = _Run()

    async def stream(session: aiohttp.ClientSession) -> None:
        conversation = _prompt(target, serial)
        for turn in range(max(1, tokens // turn_tokens)):
            body = _body(target, conversation, turn_tokens, None) | {"return_token_ids": True}
            asked = time.perf_counter()
            async with session.post(f"{target.base_url}/v1/completions", json=body) as response:
                response.raise_for_status()
                parts = [await response.content.readany()]
                if turn > 0:
                    run.gaps.append(time.perf_counter() - asked)
                parts += [part async for part in response.content.iter_any()]
            sampled = [token for message in _messages(b"".join(parts)) for token in message["choices"][0]["token_ids"]]
            run.tokens += len(sampled)
            conversation += [*sampled, *sampled[:_RESULT_TOKENS]]

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        run.seconds = await _side_by_side(stream(session) for _ in range(streams))
    return run


def _messages(data: bytes) -> Iterator[dict[str, Any]]:
    for event in data.split(b"\n\n"):
        payload = event.removeprefix(b"data:").strip()
        if payload and payload != b"[DONE]":
            yield json.loads(payload)


async def _side_by_side(streams: Iterator[Coroutine[Any, Any, None]]) -> float:
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for stream in streams:
            group.create_task(stream)
    return time.perf_counter() - began


# --- the loop ---------------------------------------------------------------------------------------------------------


class _EndlessEngine(VllmEngine):
    """Samples on behind the model's own end of turn."""

    def _body(self, request: CompletionRequest) -> dict[str, Any]:
        return super()._body(request) | {"ignore_eos": True}


class _CutEngine(_EndlessEngine):
    """One attempt's engine: every turn has the same length and ends as if the model had ended it."""

    def __init__(self, target: Target, turn_tokens: int, run: _Run, chat: _MadeUpTurns) -> None:
        super().__init__(target.base_url, target.model, target.config.sampling, context_tokens=target.context_tokens)
        self._turn_tokens = turn_tokens
        self._run = run
        self._chat = chat
        self._block = target.block_tokens
        self._seen = 0  # tokens whose keys and values the server has computed

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[Chunk, None]:
        request = dataclasses.replace(request, max_tokens=min(request.max_tokens, self._turn_tokens))
        sampled = 0
        async with aclosing(super().stream(request)) as chunks:
            async for chunk in chunks:
                if sampled == 0 and chunk.token_ids and self._seen:
                    self._run.gaps.append(time.perf_counter() - self._chat.result_at)
                sampled += len(chunk.token_ids)
                if chunk.cached_tokens is not None and self._seen >= self._block:
                    self._run.covered.append(chunk.cached_tokens / (self._seen // self._block * self._block))
                yield chunk if chunk.finish is None else dataclasses.replace(chunk, finish="stop")
        # The last token was sampled but not fed back, so the server has not computed it yet.
        self._seen = len(request.tokens) + sampled - 1
        self._run.tokens += sampled


class _MadeUpTurns:
    """One attempt's chat format: so many tool calls, then the answer. Logs are decoded as the model's own format does."""

    name = "made-up"
    stop_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()

    def __init__(self, real: ChatFormat, prompt: list[int], turns: int) -> None:
        self.result_at = 0.0
        self._real = real
        self._prompt = prompt
        self._turns_left = turns

    def prompt(self, system: str, user: str, *, tools: bool) -> list[int]:
        return list(self._prompt)

    def parse(self, sampled: Sequence[int], *, cut: bool) -> Turn:
        self._turns_left -= 1
        return ToolCalls((ToolCall(_CODE),)) if self._turns_left > 0 else FinalText("\\boxed{1}")

    def tool_results(self, sampled: Sequence[int], outputs: Sequence[str]) -> list[int]:
        self.result_at = time.perf_counter()
        return list(sampled[:_RESULT_TOKENS])

    def complaint(self, sampled: Sequence[int], reason: str) -> list[int]:
        return []

    def ask_answer(self, sampled: Sequence[int]) -> list[int]:
        return list(sampled[:1])

    def answer_text(self, sampled: Sequence[int]) -> str:
        return ""

    def decode(self, tokens: Sequence[int]) -> str:
        return self._real.decode(tokens)


async def _loop(target: Target, streams: int, turn_tokens: int | None, serial: Iterator[int], tokens: int) -> _Run:
    turn_tokens = turn_tokens or tokens
    run = _Run()
    config = target.config
    turns = max(1, tokens // turn_tokens)
    limits = AttemptConfig(max_turns=turns + 1, answer_tokens=1, answer_s=1.0)
    with tempfile.TemporaryDirectory() as folder:
        log = RunLog.create(Path(folder) / "run", config=config, environment=describe_environment())
        async with KernelPool.from_config(dataclasses.replace(config.kernels, size=streams)) as pool:

            async def attempt(index: int) -> None:
                chat = _MadeUpTurns(target.chat, _prompt(target, serial), turns)
                async with _CutEngine(target, turn_tokens, run, chat) as engine:
                    tools = AttemptTools(
                        engine=engine, chat=chat, pool=pool, limits=limits, kernels=config.kernels, clock=time.monotonic
                    )
                    started = time.monotonic()
                    record = await AgentRun(
                        tools,
                        Problem("bench", "made up"),
                        index,
                        PromptVariant("bench", "", "", True),
                        deadline=started + _HORIZON_S,
                        problem_started=started,
                        trajectory=log.trajectory("bench", index, decode=chat.decode),
                    ).run()
                log.attempt_finished(record)

            run.seconds = await _side_by_side(attempt(index) for index in range(streams))
        log.finish()
    return run


# --- aborts -----------------------------------------------------------------------------------------------------------


async def _abort_seconds(target: Target, streams: int, serial: Iterator[int]) -> float:
    """From the cancelling of all streams to the server saying that nothing runs or waits."""
    async with _EndlessEngine(
        target.base_url, target.model, target.config.sampling, context_tokens=target.context_tokens
    ) as engine:
        started = asyncio.Semaphore(0)

        async def stream() -> None:
            room = target.context_tokens - _PROMPT_TOKENS - 1
            async with aclosing(engine.stream(CompletionRequest(tokens=_prompt(target, serial), max_tokens=room))) as chunks:
                async for _ in chunks:
                    started.release()

        tasks = [asyncio.create_task(stream()) for _ in range(streams)]
        for _ in tasks:
            await started.acquire()
        began = time.perf_counter()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while True:
            if await engine.running_requests() == 0:
                return time.perf_counter() - began
            await asyncio.sleep(0.002)
