"""One attempt, on scripted models and real kernels: its ends and its exact tokens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import pytest_asyncio

from aimo_solver.chat.families import load_chat_format
from aimo_solver.chat.model_folder import ModelFolder
from aimo_solver.chat.turns import MAX_CALLS, ChatFormat
from aimo_solver.chat.variants import VARIANTS
from aimo_solver.config import Config
from aimo_solver.kernels.pool import KernelPool
from aimo_solver.log.writer import NullLog
from aimo_solver.problems import Problem
from aimo_solver.results import Attempt, FinishReason
from aimo_solver.solve.attempt import Resources, RunningAttempt
from aimo_solver.solve.options import AttemptConfig
from tests.fakes import ScriptedEngine, ScriptedTurn
from tests.tiny_tokenizers import gemma_folder

pytestmark = [pytest.mark.kernels, pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gemma_folder(tmp_path_factory.mktemp("gemma"))


@pytest.fixture(scope="module")
def chat(folder: Path) -> ChatFormat:
    return load_chat_format(folder, "gemma")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[KernelPool]:
    async with KernelPool(size=2) as pool:
        yield pool


class Harness:
    """Runs attempts on scripted turns, written as text."""

    def __init__(self, folder: Path, chat: ChatFormat, pool: KernelPool) -> None:
        self._tokenizer = ModelFolder.read(folder).tokenizer
        self._chat = chat
        self._pool = pool
        self.engine: ScriptedEngine

    def call(self, code: str) -> Sequence[int]:
        encode = self._tokenizer.encode_template
        return [
            *encode('<|channel>thought\nlet me see<channel|><|tool_call>call:python{code:<|"|>'),
            *self._tokenizer.encode(code),
            *encode('<|"|>}<tool_call|><|tool_response>'),
        ]

    def text(self, text: str) -> Sequence[int]:
        return self._tokenizer.encode_template(text)

    def final(self, answer: object) -> Sequence[int]:
        return self.text(f"The answer is \\boxed{{{answer}}}.<turn|>")

    def start(self, *turns: ScriptedTurn, seconds: float = 30.0, context: int = 4096, **options: object) -> RunningAttempt:
        self.engine = ScriptedEngine(lambda index: turns, context)
        config = Config(attempt=AttemptConfig(**options))  # type: ignore[arg-type]
        resources = Resources(engine=self.engine, chat=self._chat, pool=self._pool, config=config)
        now = time.monotonic()
        return RunningAttempt(
            resources,
            Problem("p", "What is 1 + 1?"),
            0,
            VARIANTS["tool"],
            deadline=now + seconds,
            problem_started=now,
            trajectory=NullLog().start_trajectory("p", 0),
        )

    async def run(self, *turns: ScriptedTurn, seconds: float = 30.0, context: int = 4096, **options: object) -> Attempt:
        return await self.start(*turns, seconds=seconds, context=context, **options).run()


@pytest.fixture
def harness(folder: Path, chat: ChatFormat, pool: KernelPool) -> Harness:
    return Harness(folder, chat, pool)


async def test_runs_code_and_reads_the_answer(harness: Harness) -> None:
    attempt = await harness.run(ScriptedTurn(harness.call("print(6*7)")), ScriptedTurn(harness.final(42)))
    assert (attempt.answer, attempt.finish_reason) == (42, FinishReason.ANSWERED)
    assert (attempt.turns, attempt.tool_calls, attempt.tool_errors, attempt.seen_in_tool) == (2, 1, 0, True)
    assert attempt.entropy == pytest.approx(0.5)


async def test_prompts_only_grow_and_hold_the_sampled_tokens_exactly(harness: Harness) -> None:
    turns = [harness.call("x = 5"), harness.call("print(x * x)"), harness.final(25)]
    await harness.run(*map(ScriptedTurn, turns))
    prompts = [list(request.tokens) for request in harness.engine.requests]
    for (earlier, later), sampled in zip(pairwise(prompts), turns, strict=False):
        assert later[: len(earlier) + len(sampled)] == earlier + list(sampled)


async def test_the_python_session_lasts_for_the_whole_attempt(harness: Harness) -> None:
    attempt = await harness.run(
        ScriptedTurn(harness.call("x = 5")), ScriptedTurn(harness.call("print(x)")), ScriptedTurn(harness.final(5))
    )
    assert attempt.seen_in_tool


async def test_failed_calls_are_counted(harness: Harness) -> None:
    attempt = await harness.run(
        ScriptedTurn(harness.call("1/0")), ScriptedTurn(harness.call("print(1)")), ScriptedTurn(harness.final(1))
    )
    assert (attempt.tool_calls, attempt.tool_errors) == (2, 1)


async def test_a_broken_stream_continues_from_the_exact_tokens(harness: Harness) -> None:
    turn = harness.call("print(6*7)")
    attempt = await harness.run(ScriptedTurn(turn, breaks_after=7), ScriptedTurn(harness.final(42)))
    assert attempt.answer == 42
    first, second = harness.engine.requests[:2]
    assert list(second.tokens) == [*first.tokens, *turn[:7]]


async def test_of_very_many_calls_in_a_turn_only_the_first_run_and_the_rest_are_reported(
    harness: Harness, chat: ChatFormat
) -> None:
    many = harness.text('<|tool_call>call:python{code:<|"|>print(1)<|"|>}<tool_call|>' * 11 + "<|tool_response>")
    attempt = await harness.run(ScriptedTurn(many), ScriptedTurn(harness.final(1)))
    assert attempt.tool_calls == MAX_CALLS == 8
    assert "1\n[3 more calls in this turn were not run" in chat.decode(harness.engine.requests[1].tokens)


async def test_a_malformed_turn_gets_a_complaint_and_the_attempt_continues(harness: Harness) -> None:
    attempt = await harness.run(
        ScriptedTurn(harness.text("<|tool_call>call:python{}<tool_call|><|tool_response>")), ScriptedTurn(harness.final(3))
    )
    assert (attempt.answer, attempt.malformed) == (3, 1)


async def test_the_turn_limit_asks_for_the_answer(harness: Harness) -> None:
    turns = [
        ScriptedTurn(harness.call("print(1)")),
        ScriptedTurn(harness.call("print(2)")),
        ScriptedTurn(harness.text("8}.<turn|>")),
    ]
    attempt = await harness.run(*turns, max_turns=2)
    assert (attempt.answer, attempt.finish_reason, attempt.tool_calls) == (8, FinishReason.FORCED, 2)


async def test_the_token_limit_asks_for_the_answer(harness: Harness) -> None:
    attempt = await harness.run(
        ScriptedTurn(harness.text("so "), endless=True), ScriptedTurn(harness.text("9}.<turn|>")), max_tokens=50
    )
    assert (attempt.answer, attempt.finish_reason) == (9, FinishReason.FORCED)


async def test_a_full_context_asks_for_the_answer(harness: Harness) -> None:
    attempt = await harness.run(
        ScriptedTurn(harness.text("so "), endless=True), ScriptedTurn(harness.text("9}.<turn|>")), context=1500, answer_tokens=64
    )
    assert (attempt.answer, attempt.finish_reason) == (9, FinishReason.FORCED)


async def test_the_deadline_asks_for_the_answer(harness: Harness) -> None:
    turns = [ScriptedTurn(harness.text("so "), endless=True, delay_s=0.05), ScriptedTurn(harness.text("9}.<turn|>"))]
    attempt = await harness.run(*turns, seconds=12)
    assert (attempt.answer, attempt.finish_reason) == (9, FinishReason.FORCED)
    assert attempt.seconds < 12


async def test_a_model_that_never_stops_ends_at_the_deadline(harness: Harness) -> None:
    endless = ScriptedTurn(harness.text("so "), endless=True, delay_s=0.01)
    attempt = await harness.run(endless, endless, seconds=1.5)
    assert (attempt.answer, attempt.finish_reason) == (None, FinishReason.DEADLINE)
    assert harness.engine.running == 0


async def test_a_long_call_ends_at_the_deadline(harness: Harness) -> None:
    attempt = await harness.run(
        ScriptedTurn(harness.call("import time; time.sleep(60)")), ScriptedTurn(harness.text("4}.<turn|>")), seconds=6
    )
    assert attempt.seconds < 30
    assert attempt.tool_errors == 1


async def test_an_attempt_without_time_ends_at_once(harness: Harness) -> None:
    attempt = await harness.run(ScriptedTurn(harness.final(1)), seconds=0)
    assert (attempt.answer, attempt.finish_reason) == (None, FinishReason.DEADLINE)


async def test_a_cancelled_attempt_aborts_its_request_and_keeps_its_record(harness: Harness) -> None:
    run = harness.start(ScriptedTurn(harness.text("so "), endless=True, delay_s=0.01))
    task = asyncio.create_task(run.run())
    while run.tokens < 20:  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert harness.engine.running == 0
    assert run.record(FinishReason.CANCELLED).tokens >= 20


async def test_waits_until_the_deadline_for_a_server_that_does_not_return(harness: Harness) -> None:
    attempt = await harness.run(ScriptedTurn(harness.final(1), breaks_after=0, for_good=True), seconds=1.0)
    assert (attempt.answer, attempt.finish_reason) == (None, FinishReason.DEADLINE)


async def test_an_attempt_answers_without_a_kernel_when_all_are_leased(harness: Harness, pool: KernelPool) -> None:
    call = ScriptedTurn(harness.call("print(6*7)"))
    async with pool.lease(), pool.lease():
        attempt = await harness.run(call, ScriptedTurn(harness.text("4}.<turn|>")), seconds=3)
    assert (attempt.answer, attempt.finish_reason, attempt.tool_errors) == (4, FinishReason.FORCED, 0)
    assert (await harness.run(call, ScriptedTurn(harness.final(42)))).seen_in_tool


async def test_an_attempt_answers_without_python_when_the_pool_is_closed(folder: Path, chat: ChatFormat) -> None:
    pool = KernelPool(size=1)
    await pool.close()
    harness = Harness(folder, chat, pool)
    attempt = await harness.run(ScriptedTurn(harness.call("print(6*7)")), ScriptedTurn(harness.final(42)))
    assert (attempt.answer, attempt.finish_reason, attempt.seen_in_tool) == (42, FinishReason.ANSWERED, False)
