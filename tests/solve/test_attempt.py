"""One attempt, on scripted models and real kernels: every way it can end, and tokens that are never changed."""

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
from aimo_solver.chat.prompts import VARIANTS
from aimo_solver.chat.turns import MAX_CALLS, ChatFormat
from aimo_solver.kernels.pool import KernelPool
from aimo_solver.log.writer import NullLog
from aimo_solver.options import AttemptConfig, KernelConfig
from aimo_solver.problems import Problem
from aimo_solver.results import Attempt, FinishReason
from aimo_solver.solve.attempt import AgentRun, AttemptTools
from tests.fakes import Play, ScriptedEngine
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


class Stage:
    """Runs attempts on plays that are written as text."""

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

    def start(self, *plays: Play, seconds: float = 30.0, context: int = 4096, **limits: object) -> AgentRun:
        self.engine = ScriptedEngine(lambda index: plays, context)
        tools = AttemptTools(
            engine=self.engine,
            chat=self._chat,
            pool=self._pool,
            limits=AttemptConfig(**limits),  # type: ignore[arg-type]
            kernels=KernelConfig(),
            clock=time.monotonic,
        )
        now = time.monotonic()
        return AgentRun(
            tools,
            Problem("p", "What is 1 + 1?"),
            0,
            VARIANTS["tool"],
            deadline=now + seconds,
            problem_started=now,
            trajectory=NullLog().trajectory("p", 0),
        )

    async def play(self, *plays: Play, seconds: float = 30.0, context: int = 4096, **limits: object) -> Attempt:
        return await self.start(*plays, seconds=seconds, context=context, **limits).run()


@pytest.fixture
def stage(folder: Path, chat: ChatFormat, pool: KernelPool) -> Stage:
    return Stage(folder, chat, pool)


async def test_code_runs_and_the_answer_is_read(stage: Stage) -> None:
    attempt = await stage.play(Play(stage.call("print(6*7)")), Play(stage.final(42)))
    assert (attempt.answer, attempt.finish_reason) == (42, FinishReason.ANSWERED)
    assert (attempt.turns, attempt.tool_calls, attempt.tool_errors, attempt.seen_in_tool) == (2, 1, 0, True)
    assert attempt.entropy == pytest.approx(0.5)


async def test_prompts_only_grow_and_hold_the_sampled_tokens_exactly(stage: Stage) -> None:
    turns = [stage.call("x = 5"), stage.call("print(x * x)"), stage.final(25)]
    await stage.play(*map(Play, turns))
    prompts = [list(request.tokens) for request in stage.engine.requests]
    for (earlier, later), sampled in zip(pairwise(prompts), turns, strict=False):
        assert later[: len(earlier) + len(sampled)] == earlier + list(sampled)


async def test_session_lasts_through_the_attempt(stage: Stage) -> None:
    attempt = await stage.play(Play(stage.call("x = 5")), Play(stage.call("print(x)")), Play(stage.final(5)))
    assert attempt.seen_in_tool


async def test_failed_calls_are_counted(stage: Stage) -> None:
    attempt = await stage.play(Play(stage.call("1/0")), Play(stage.call("print(1)")), Play(stage.final(1)))
    assert (attempt.tool_calls, attempt.tool_errors) == (2, 1)


async def test_a_broken_stream_goes_on_from_the_exact_tokens(stage: Stage) -> None:
    turn = stage.call("print(6*7)")
    attempt = await stage.play(Play(turn, breaks_after=7), Play(stage.final(42)))
    assert attempt.answer == 42
    first, second = stage.engine.requests[:2]
    assert list(second.tokens) == [*first.tokens, *turn[:7]]


async def test_a_turn_of_many_calls_runs_the_first_and_the_model_is_told(stage: Stage, chat: ChatFormat) -> None:
    many = stage.text('<|tool_call>call:python{code:<|"|>print(1)<|"|>}<tool_call|>' * 11 + "<|tool_response>")
    attempt = await stage.play(Play(many), Play(stage.final(1)))
    assert attempt.tool_calls == MAX_CALLS == 8
    assert "1\n[3 more calls in this turn were not run" in chat.decode(stage.engine.requests[1].tokens)


async def test_a_malformed_turn_is_complained_about_and_goes_on(stage: Stage) -> None:
    attempt = await stage.play(Play(stage.text("<|tool_call>call:python{}<tool_call|><|tool_response>")), Play(stage.final(3)))
    assert (attempt.answer, attempt.malformed) == (3, 1)


async def test_a_final_text_without_an_answer_is_asked_for_one(stage: Stage) -> None:
    attempt = await stage.play(Play(stage.text("I do not know.<turn|>")), Play(stage.text("17}.<turn|>")))
    assert (attempt.answer, attempt.finish_reason) == (17, FinishReason.FORCED)


async def test_turn_limit_asks_for_the_answer(stage: Stage) -> None:
    plays = [Play(stage.call("print(1)")), Play(stage.call("print(2)")), Play(stage.text("8}.<turn|>"))]
    attempt = await stage.play(*plays, max_turns=2)
    assert (attempt.answer, attempt.finish_reason, attempt.tool_calls) == (8, FinishReason.FORCED, 2)


async def test_token_limit_asks_for_the_answer(stage: Stage) -> None:
    attempt = await stage.play(Play(stage.text("so "), endless=True), Play(stage.text("9}.<turn|>")), max_tokens=50)
    assert (attempt.answer, attempt.finish_reason) == (9, FinishReason.FORCED)


async def test_full_context_asks_for_the_answer(stage: Stage) -> None:
    attempt = await stage.play(
        Play(stage.text("so "), endless=True), Play(stage.text("9}.<turn|>")), context=1500, answer_tokens=64
    )
    assert (attempt.answer, attempt.finish_reason) == (9, FinishReason.FORCED)


async def test_deadline_asks_for_the_answer_and_keeps_it(stage: Stage) -> None:
    plays = [Play(stage.text("so "), endless=True, delay_s=0.05), Play(stage.text("9}.<turn|>"))]
    attempt = await stage.play(*plays, seconds=12)
    assert (attempt.answer, attempt.finish_reason) == (9, FinishReason.FORCED)
    assert attempt.seconds < 12


async def test_a_model_that_never_stops_ends_at_the_deadline(stage: Stage) -> None:
    endless = Play(stage.text("so "), endless=True, delay_s=0.01)
    attempt = await stage.play(endless, endless, seconds=1.5)
    assert (attempt.answer, attempt.finish_reason) == (None, FinishReason.DEADLINE)
    assert stage.engine.running == 0


async def test_a_long_call_does_not_outlive_the_deadline(stage: Stage) -> None:
    attempt = await stage.play(Play(stage.call("import time; time.sleep(60)")), Play(stage.text("4}.<turn|>")), seconds=6)
    assert attempt.seconds < 30
    assert attempt.tool_errors == 1


async def test_no_time_at_all_ends_at_once(stage: Stage) -> None:
    attempt = await stage.play(Play(stage.final(1)), seconds=0)
    assert (attempt.answer, attempt.finish_reason) == (None, FinishReason.DEADLINE)


async def test_a_cancelled_attempt_frees_its_stream_and_keeps_its_record(stage: Stage) -> None:
    run = stage.start(Play(stage.text("so "), endless=True, delay_s=0.01))
    task = asyncio.create_task(run.run())
    while run.tokens < 20:  # noqa: ASYNC110 - the run tells nobody when it has sampled
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stage.engine.running == 0
    assert run.record(FinishReason.CANCELLED).tokens >= 20


async def test_a_server_that_stays_away_is_waited_for_until_the_deadline(stage: Stage) -> None:
    attempt = await stage.play(Play(stage.final(1), breaks_after=0, for_good=True), seconds=1.0)
    assert (attempt.answer, attempt.finish_reason) == (None, FinishReason.DEADLINE)


async def test_more_attempts_than_kernels_all_answer(stage: Stage, pool: KernelPool) -> None:
    call = Play(stage.call("print(6*7)"))
    async with pool.lease(), pool.lease():
        attempt = await stage.play(call, Play(stage.text("4}.<turn|>")), seconds=3)
    assert (attempt.answer, attempt.finish_reason, attempt.tool_errors) == (4, FinishReason.FORCED, 0)
    assert (await stage.play(call, Play(stage.final(42)))).seen_in_tool


async def test_a_pool_that_is_closed_costs_an_attempt_its_python_only(folder: Path, chat: ChatFormat) -> None:
    pool = KernelPool(size=1)
    await pool.close()
    stage = Stage(folder, chat, pool)
    attempt = await stage.play(Play(stage.call("print(6*7)")), Play(stage.final(42)))
    assert (attempt.answer, attempt.finish_reason, attempt.seen_in_tool) == (42, FinishReason.ANSWERED, False)
