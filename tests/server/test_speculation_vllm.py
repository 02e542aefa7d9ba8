"""Speculation with the embedded model's draft on real vLLM: the same tokens, turns, cache and slots as without."""

from __future__ import annotations

import asyncio
import csv
from collections.abc import Iterator
from contextlib import aclosing

import pytest

from aimo_solver.chat.families import load_chat_format
from aimo_solver.chat.prompts import Prompt
from aimo_solver.lab.bench.loop import EndlessEngine, count_requests
from aimo_solver.options import SamplingConfig
from aimo_solver.server.client import VllmEngine
from aimo_solver.server.completions import read_drafts
from aimo_solver.server.engine import Chunk, CompletionRequest
from tests.conftest import MODEL, ROOT, Served, serving

pytestmark = pytest.mark.vllm
CHAT = load_chat_format(MODEL)
DRAFT = ROOT / "data" / "pocket-draft"
GREEDY = SamplingConfig(temperature=0.0)


@pytest.fixture(scope="module")
def drafting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with the draft, whose method follows from its files.

    Only its greedy tokens are right: vLLM's CPU build draws wrongly under speculation, which `plan_speculation` refuses.
    """
    settings = f"server.draft_model={DRAFT}", "sampling.temperature=0"
    with serving(tmp_path_factory.mktemp("drafting"), *settings, slots=8) as served:
        yield served


def engine_of(served: Served, sampling: SamplingConfig = GREEDY, kind: type[VllmEngine] = VllmEngine) -> VllmEngine:
    return kind(served.url, served.name, sampling, context_tokens=served.context_tokens, speculates=True)


async def sample(engine: VllmEngine, tokens: list[int], max_tokens: int = 400) -> list[Chunk]:
    request = CompletionRequest(tokens=tokens, max_tokens=max_tokens, stop_token_ids=CHAT.stop_token_ids)
    async with aclosing(engine.stream(request)) as chunks:
        return [chunk async for chunk in chunks]


def tokens_of(chunks: list[Chunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids]


def prompts(count: int) -> list[list[int]]:
    with (ROOT / "data" / "warmup.csv").open(encoding="utf-8") as file:
        return [CHAT.prompt(Prompt(user=row["problem"])) for row, _ in zip(csv.DictReader(file), range(count), strict=False)]


async def test_greedy_turns_are_the_same_with_and_without_a_draft(drafting: Served, vllm: Served) -> None:
    """Turns of all problems side by side, so that streams with and without drafted tokens share steps."""
    found = []
    for served in (vllm, drafting):
        async with engine_of(served) as engine:
            turns = await asyncio.gather(*(sample(engine, tokens) for tokens in prompts(12)))
            assert (read_drafts(await engine.metrics()) is None) == (served is vllm)  # as `endpoint_session` finds out
        found.append([tokens_of(turn) for turn in turns])
    assert found[0] == found[1]
    assert all(turn[-1] in CHAT.stop_token_ids for turn in found[1])  # nothing that was drafted behind it
    assert not any(set(turn[:-1]) & set(CHAT.stop_token_ids) for turn in found[1])


async def test_drafted_tokens_are_accepted(drafting: Served) -> None:
    async with engine_of(drafting) as engine:
        before = read_drafts(await engine.metrics())
        sampled = len(tokens_of(await sample(engine, prompts(1)[0])))
        counts = read_drafts(await engine.metrics())
    assert before is not None
    assert counts is not None
    steps, accepted = counts.steps - before.steps, counts.accepted - before.accepted
    assert 1.5 < 1 + accepted / steps <= 4
    assert sampled <= steps + accepted + 1  # the first token is sampled with the prompt


async def test_a_limit_of_tokens_cuts_what_was_drafted_behind_it(drafting: Served) -> None:
    async with engine_of(drafting) as engine:
        for limit in (1, 2, 3, 5, 7):
            chunks = await sample(engine, prompts(1)[0], limit)
            assert len(tokens_of(chunks)) == limit
            assert [chunk.finish for chunk in chunks if chunk.finish] == ["length"]


async def test_the_turns_of_a_conversation_stay_token_exact_and_cached(drafting: Served) -> None:
    tokens = prompts(1)[0]
    async with engine_of(drafting) as engine:
        whole = tokens_of(await sample(engine, tokens))
        first = tokens_of(await sample(engine, tokens, len(whole) // 2))
        second = await sample(engine, [*tokens, *first])
    assert [*first, *tokens_of(second)] == whole
    grown = len(tokens) + len(first)
    assert (second[-1].cached_tokens or 0) >= (grown - 1) // 32 * 32  # whole blocks


async def test_min_p_is_answered(drafting: Served) -> None:
    """vLLM itself answers 400 to it under speculation."""
    async with engine_of(drafting, SamplingConfig(min_p=0.02), EndlessEngine) as engine:
        for variant in (None, SamplingConfig(min_p=0.3)):  # of the run, and of a prompt variant
            request = CompletionRequest(tokens=prompts(1)[0], max_tokens=20, sampling=variant)
            async with aclosing(engine.stream(request)) as chunks:
                assert len(tokens_of([chunk async for chunk in chunks])) == 20


async def test_every_token_has_its_entropy(drafting: Served) -> None:
    async with engine_of(drafting, SamplingConfig(top_logprobs=5)) as engine:
        chunks = await sample(engine, prompts(1)[0], 40)
    entropies = [value for chunk in chunks for value in chunk.entropies]
    assert len(entropies) == len(tokens_of(chunks)) > 0
    assert max(entropies) > 0


async def test_a_cancelled_stream_frees_its_slot(drafting: Served) -> None:
    async with engine_of(drafting, SamplingConfig(), EndlessEngine) as engine:
        async with aclosing(engine.stream(CompletionRequest(tokens=prompts(1)[0], max_tokens=3_500))) as chunks:
            await anext(chunks)
            while await count_requests(drafting.url) != 1:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        closed = engine.tokens_streamed
        while await count_requests(drafting.url):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert engine.tokens_streamed == closed < 3_000
