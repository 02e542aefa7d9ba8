"""Sampling a turn to its end over faults of the server."""

from __future__ import annotations

import time
from typing import Any

import pytest
from aiohttp import web

from aimo_solver.chat.families import load_chat_format
from aimo_solver.log.writer import NullLog
from aimo_solver.results import FinishReason
from aimo_solver.server.engine import Engine
from aimo_solver.solve import conversation
from aimo_solver.solve.conversation import LOST_TOKENS, Conversation, SampledTurn
from tests.conftest import MODEL, Served
from tests.fakes import ScriptedEngine, ScriptedTurn
from tests.http_vllm import HttpVllm, event, reset, sends

CHAT = load_chat_format(MODEL)


def begin(engine: Engine, prompt: int) -> Conversation:
    made = Conversation(engine, CHAT, time.monotonic, NullLog().start_trajectory("p", 0))
    made.begin([5] * prompt)
    return made


async def sample_turn(engine: Engine, room: int | None = None, *, prompt: int = 500, seconds: float = 60.0) -> SampledTurn:
    made = begin(engine, prompt)
    return await made.sample(made.room if room is None else room, time.monotonic() + seconds, "p-0-1")


async def test_a_server_that_restarted_with_less_context_is_asked_for_less() -> None:
    server = HttpVllm(context_tokens=49_152)
    async with server.engine(context_tokens=65_536) as engine:
        sampled = await sample_turn(engine)
        assert (sampled.tokens, sampled.cut_by) == ([7, 8, 9], None)
        assert engine.context_tokens == 49_152
    assert [body["max_tokens"] for body in server.requests] == [65_036, 48_652]


@pytest.mark.parametrize("fault", [503, 429, 500, sends(event({"error": {"message": "engine dead", "code": 500}})), reset])
async def test_consecutive_failures_do_not_end_the_turn(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "_FIRST_PAUSE_S", 0.001)
    server = HttpVllm()
    server.faults.extend([fault] * 9)
    async with server.engine() as engine:
        sampled = await sample_turn(engine)
    assert (sampled.tokens, sampled.cut_by) == ([7, 8, 9], None)
    assert len(server.requests) == 10


async def test_requests_are_repeated_with_growing_pauses_until_the_deadline() -> None:
    server = HttpVllm()
    server.for_good = 503
    async with server.engine() as engine:
        sampled = await sample_turn(engine, seconds=1.0)
    assert (sampled.tokens, sampled.cut_by) == ([], FinishReason.DEADLINE)
    assert "503" in (sampled.error or "")
    assert len(server.requests) <= 4  # at 0, 0.1, 0.3 and 0.7 s


async def test_tokens_before_a_broken_stream_are_part_of_the_next_prompt() -> None:
    server = HttpVllm(turn=(8, 9))
    server.faults.append(sends(event({"choices": [{"text": "a", "token_ids": [7], "finish_reason": None}]}) + "data: {"))
    async with server.engine() as engine:
        sampled = await sample_turn(engine, prompt=3)
    assert (sampled.tokens, sampled.cut_by) == ([7, 8, 9], None)
    assert [body["prompt"] for body in server.requests] == [[5, 5, 5], [5, 5, 5, 7]]


async def test_a_conversation_that_exceeds_the_context_is_cut_and_not_sent_again() -> None:
    server = HttpVllm(context_tokens=400)
    async with server.engine() as engine:
        sampled = await sample_turn(engine, 1_000)
    assert (sampled.tokens, sampled.cut_by) == ([], FinishReason.TOKEN_LIMIT)
    assert len(server.requests) <= 2


async def test_a_server_that_refuses_the_length_without_naming_its_context_is_asked_for_half() -> None:
    server = HttpVllm(turn=range(10, 60))
    words = web.json_response({"error": {"message": "max_tokens is too large for now", "code": 400}}, status=400)

    async def refuses_more_than_32(request: web.Request) -> web.StreamResponse:
        body = server.requests[-1]
        if body["max_tokens"] > 32:
            return web.Response(status=words.status, body=words.body)
        return server.completion(body)

    server.for_good = refuses_more_than_32
    async with server.engine() as engine:
        sampled = await sample_turn(engine, 100)
    assert sampled.cut_by is FinishReason.TOKEN_LIMIT
    assert [body["max_tokens"] for body in server.requests] == [100, 50, 25, 25, 25, 25]
    assert len(sampled.tokens) == 100


async def test_a_request_refused_for_another_reason_is_not_repeated() -> None:
    server = HttpVllm()
    server.for_good = 404
    async with server.engine() as engine:
        sampled = await sample_turn(engine)
    assert sampled.cut_by is FinishReason.ENGINE_ERROR
    assert "404" in (sampled.error or "")
    assert len(server.requests) == 1


@pytest.mark.vllm
async def test_vllm_reports_its_context(vllm: Served) -> None:
    async with vllm.engine() as engine:
        engine.context_tokens = 65_536
        assert (await sample_turn(engine)).tokens
        assert engine.context_tokens == vllm.context_tokens == 4_096
        engine.context_tokens = 65_536
        sampled = await sample_turn(engine, 1_000, prompt=5_000)
        assert (sampled.tokens, sampled.cut_by, engine.context_tokens) == ([], FinishReason.TOKEN_LIMIT, 4_096)
        engine.context_tokens = 65_536
        await engine.wait_ready()
        assert engine.context_tokens == 4_096


class Waits:
    """A clock that stands still, except that each request takes `seconds` until its first token."""

    def __init__(self, seconds: float) -> None:
        self.now = 0.0
        self._seconds = seconds

    def __call__(self) -> float:
        return self.now

    def on_request(self, engine: ScriptedEngine) -> None:
        self.now += self._seconds


async def converse(*turns: ScriptedTurn, prompt: int = 2_000, give_up: int = 0) -> tuple[Conversation, list[SampledTurn]]:
    clock, engine = Waits(4.0), ScriptedEngine(lambda index: turns, context_tokens=8_192)
    engine.on_request = clock.on_request
    made = Conversation(engine, CHAT, clock, NullLog().start_trajectory("p", 0))
    made.begin([5] * prompt)
    sampled = []
    for number in range(len(turns)):
        if number and give_up:
            made._truncate(prompt - give_up)
        sampled.append(await made.sample(1_000, clock() + 60, f"p-0-{number}"))
        made.insert(lambda texts: [9], ["result"], "tool_result", keep=0)
    return made, sampled


async def test_a_turn_whose_prefix_was_evicted_is_counted_with_its_tokens_and_seconds() -> None:
    turn = [7] * 99
    made, turns = await converse(ScriptedTurn(turn, cached=0), ScriptedTurn(turn), ScriptedTurn(turn, cached=512))
    # The third prompt: 2,000 + 2 * (99 + 1) tokens, all but the last computed before; 512 of them were still there.
    assert [(one.cached, one.lost) for one in turns] == [(0, 0), (2_100, 0), (512, 2_199 - 512)]
    assert [one.lost_s for one in turns] == [0, 0, pytest.approx(4.0 * (2_199 - 512) / (2_200 - 512))]
    assert (made.lost_turns, made.lost_tokens, made.lost_s) == (1, turns[2].lost, turns[2].lost_s)
    assert made.cached_tokens == 2_612


@pytest.mark.parametrize(("cached", "lost"), [(2_099 - LOST_TOKENS, 0), (2_098 - LOST_TOKENS, LOST_TOKENS + 1)])
async def test_a_partial_block_is_no_loss(cached: int, lost: int) -> None:
    _, turns = await converse(ScriptedTurn([7] * 99), ScriptedTurn([7], cached=cached))
    assert turns[1].lost == lost


async def test_tokens_that_were_given_up_are_not_lost() -> None:
    _, turns = await converse(ScriptedTurn([7] * 99), ScriptedTurn([7], cached=1_000), give_up=1_000)
    assert turns[1].lost == 0


async def test_a_restart_within_a_turn_loses_the_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "_FIRST_PAUSE_S", 0.001)
    broken = ScriptedTurn([7] * 99, breaks_after=50, cached=0)
    made, turns = await converse(broken)
    assert len(turns[0].tokens) == 99
    assert (turns[0].lost, made.lost_turns) == (2_050, 1)


async def test_a_server_that_reports_no_cached_tokens_loses_none() -> None:
    server = HttpVllm()
    async with server.engine() as engine:
        sampled = await sample_turn(engine)
    assert (sampled.cached, sampled.lost) == (None, 0)
