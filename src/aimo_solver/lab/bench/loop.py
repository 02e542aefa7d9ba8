"""Runs the agent loop with synthetic turns: each ends after a given number of tokens, in a tool call or in the answer.

Everything else is real: the engine's client, kernels, the run directory. So random weights give the same results as trained ones.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random
import tempfile
import time
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp

from aimo_solver.chat.prompts import Prompt
from aimo_solver.chat.turns import ChatFormat, FinalText, ToolCalls, Turn
from aimo_solver.chat.variants import PromptVariant
from aimo_solver.config import Config
from aimo_solver.kernels.pool import KernelPool
from aimo_solver.lab.bench.load import Turns
from aimo_solver.log.writer import RunLog
from aimo_solver.problems import Problem
from aimo_solver.server.client import RANK_HEADER, VllmEngine
from aimo_solver.server.completions import read_metrics
from aimo_solver.server.engine import Chunk, CompletionRequest
from aimo_solver.solve.attempt import Resources, RunningAttempt
from aimo_solver.solve.options import AttemptConfig
from aimo_solver.solve.session import Session

PROMPT_TOKENS = 300
RESULT_TOKENS = 60
_CODE = "print(sum(k * k for k in range(1000)))"
_HORIZON_S = 3_600.0
_STALL_S = 0.1  # at least ten decoding steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The server to measure.

    Attributes:
        chat: its model's chat format, which decodes logs.
        vocabulary: number of valid token ids.
        block_tokens: length of a block of its prefix cache.
        copies: of the model (data parallel).
    """

    base_url: str
    model: str
    chat: ChatFormat
    config: Config
    context_tokens: int
    vocabulary: int
    block_tokens: int = 16
    copies: int = 1

    @classmethod
    def of(cls, session: Session) -> Self:
        """Returns the server of a local session."""
        plan = session.plan
        assert plan is not None
        block = plan.flag("--block-size")
        return cls(
            base_url=session.engine.base_url,
            model=session.engine.model,
            chat=session.resources.chat,
            config=plan.config,
            context_tokens=session.engine.context_tokens,
            vocabulary=plan.vocabulary,
            block_tokens=int(block.value) if block is not None and block.value else 16,
            copies=plan.config.server.data_parallel,
        )

    def rank_header(self, conversation: int) -> dict[str, str]:
        """Returns the header that keeps a conversation's requests on one copy of the model."""
        return {RANK_HEADER: str(conversation % self.copies)} if self.copies > 1 else {}

    def whole_blocks(self, tokens: int) -> int:
        """Returns how many of a conversation's tokens fill blocks of the prefix cache."""
        return tokens // self.block_tokens * self.block_tokens


@dataclass(slots=True)
class Measurement:
    """The times of concurrent streams.

    Attributes:
        tokens, seconds: sampled by all streams together, from the first request to the last token.
        stalled: seconds within pauses of at least 0.1 s in which no stream received anything.
        received_at: when a stream last received something.
        gaps: seconds from each tool result to the next token.
        covered: cached prompt tokens over the tokens of all whole blocks computed before, per turn but the first.
    """

    tokens: int = 0
    seconds: float = 0.0
    stalled: float = 0.0
    received_at: float = 0.0
    gaps: list[float] = field(default_factory=list)
    covered: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds

    def receive(self) -> None:
        """Records that a stream received something."""
        now = time.perf_counter()
        pause = now - self.received_at
        if pause >= _STALL_S:
            self.stalled += pause
        self.received_at = now

    async def time(self, streams: Iterator[Coroutine[Any, Any, None]]) -> None:
        """Runs the streams concurrently and measures them."""
        began = self.received_at = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for stream in streams:
                group.create_task(stream)
        self.seconds = time.perf_counter() - began


def new_prompt(target: Target, serial: Iterator[int]) -> list[int]:
    """Draws a prompt that shares no beginning with an earlier one, so that none of it is cached."""
    draw = random.Random(next(serial))
    return [draw.randrange(target.vocabulary) for _ in range(PROMPT_TOKENS)]


async def count_requests(base_url: str, state: str = "running|waiting") -> int:
    """Returns how many requests run or wait on a vLLM server, or are in one of these states, by its own `/metrics`."""
    async with aiohttp.ClientSession() as session, session.get(f"{base_url}/metrics") as response:
        values = read_metrics(await response.text())
    return int(sum(sum(values.get(f"num_requests_{one}", ())) for one in state.split("|")))


class EndlessEngine(VllmEngine):
    """Continues sampling after the model's end of turn."""

    def _body(self, request: CompletionRequest) -> dict[str, Any]:
        return super()._body(request) | {"ignore_eos": True}


class _TurnEngine(EndlessEngine):
    """One attempt's engine: turns have given lengths and end as if the model had ended them."""

    def __init__(self, target: Target, index: int, turns: Turns, measured: Measurement, chat: _SyntheticTurns) -> None:
        super().__init__(
            target.base_url, target.model, target.config.sampling, context_tokens=target.context_tokens, copies=target.copies
        )
        self._index = index
        self._lengths = [turn.sampled for turn in turns]
        self._measured = measured
        self._chat = chat
        self._target = target
        self._computed = 0  # tokens whose keys and values are in the server's cache

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[Chunk, None]:
        length = self._lengths.pop(0) if self._lengths else 1
        request = dataclasses.replace(request, max_tokens=min(request.max_tokens, length))
        sampled = 0
        async with aclosing(super().stream(request)) as chunks:
            async for chunk in chunks:
                self._measured.receive()
                if sampled == 0 and chunk.token_ids and self._computed:
                    self._measured.gaps.append(time.perf_counter() - self._chat.result_at)
                sampled += len(chunk.token_ids)
                whole = self._target.whole_blocks(self._computed)
                if chunk.cached_tokens is not None and whole:
                    self._measured.covered.append(chunk.cached_tokens / whole)
                yield chunk if chunk.finish is None else dataclasses.replace(chunk, finish="stop")
        # The last token was sampled but not fed back, so its keys and values are not computed yet.
        self._computed = len(request.tokens) + sampled - 1
        self._measured.tokens += sampled

    def _rank(self, conversation: str) -> int | None:
        """Spreads attempts over copies by their index, as each attempt has an engine of its own here."""
        return self._index % self._target.copies if self._target.copies > 1 else None


class _SyntheticTurns:
    """One attempt's chat format: tool calls, then the answer. Logs are decoded by the model's own format."""

    name = "synthetic"
    stop_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()

    def __init__(self, real: ChatFormat, prompt: list[int], turns: Turns) -> None:
        self.result_at = 0.0
        self._real = real
        self._prompt = prompt
        self._results = [turn.result for turn in turns[:-1]]

    def prompt(self, prompt: Prompt) -> list[int]:
        return list(self._prompt)

    def parse(self, sampled: Sequence[int]) -> Turn:
        return ToolCalls((_CODE,)) if self._results else FinalText("\\boxed{1}")

    def tool_results(self, sampled: Sequence[int], outputs: Sequence[str]) -> list[int]:
        self.result_at = time.perf_counter()
        return list(itertools.islice(itertools.cycle(sampled), self._results.pop(0)))

    def complaint(self, sampled: Sequence[int], reason: str) -> list[int]:
        return []

    def ask_answer(self, sampled: Sequence[int], why: str = "") -> list[int]:
        return list(sampled[:1])

    def answer_text(self, sampled: Sequence[int]) -> str:
        return ""

    def decode(self, tokens: Sequence[int]) -> str:
        return self._real.decode(tokens)


async def run_loop(target: Target, serial: Iterator[int], plans: Sequence[Turns]) -> Measurement:
    """Measures one attempt for each of `plans`, with a tool call between two turns."""
    measured = Measurement()
    attempts = AttemptConfig(max_turns=max(map(len, plans)) + 1, answer_tokens=1, answer_s=1.0)
    config = dataclasses.replace(target.config, attempt=attempts)
    with tempfile.TemporaryDirectory() as folder:
        log = RunLog.create(Path(folder) / "run", config=config)
        async with KernelPool.from_config(dataclasses.replace(config.kernels, size=len(plans))) as pool:

            async def attempt(index: int, turns: Turns) -> None:
                chat = _SyntheticTurns(target.chat, new_prompt(target, serial), turns)
                async with _TurnEngine(target, index, turns, measured, chat) as engine:
                    resources = Resources(engine=engine, chat=chat, pool=pool, config=config)
                    started = time.monotonic()
                    record = await RunningAttempt(
                        resources,
                        Problem("bench", "synthetic"),
                        index,
                        PromptVariant(name="bench"),
                        deadline=started + _HORIZON_S,
                        problem_started=started,
                        trajectory=log.start_trajectory("bench", index, decode=chat.decode),
                    ).run()
                log.attempt_finished(record)

            await pool.wait_until_warm()  # no kernel starts during the measurement
            await measured.time(itertools.starmap(attempt, enumerate(plans)))
        log.finish()
    return measured
