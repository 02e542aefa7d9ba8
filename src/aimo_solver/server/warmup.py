"""First requests to a fresh server, with the shapes of a run, so that no attempt waits while kernels are compiled.

On an H200 the first real requests waited 10 s for Triton kernels that vLLM's own start does not compile.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing

from aimo_solver.server.engine import CompletionRequest, Engine

# Odd and even, below and above one scheduler step, as short as a tool result and as long as a conversation.
_PROMPT_TOKENS = (17, 64, 250, 512, 1_001, 2_048, 3_000, 6_000)
_RESULT_TOKENS = 150
_FEWEST_SAMPLED = 8
_BURST_PROMPT, _BURST_TOKENS = 64, 200


async def warm_up(engine: Engine, *, slots: int, vocabulary: int) -> float:
    """Runs `slots` concurrent conversations of two turns; returns the seconds it took.

    They do not end together, so every number of streams up to `slots` occurs, and second turns begin while others still
    decode, as tool results arrive in a run.

    Args:
        vocabulary: token ids below it are valid.

    Raises:
        EngineError: the server does not answer or refuses.
    """
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(slots):
            group.create_task(_converse(engine, number, vocabulary))
    return time.monotonic() - began


async def measure_speed(engine: Engine, *, slots: int, vocabulary: int) -> float:
    """Returns the tokens per second of `slots` short concurrent requests.

    Some may end early, since their prompts are random tokens: the result is a lower bound.

    Raises:
        EngineError: as `warm_up`.
    """
    length = min(_BURST_PROMPT, engine.context_tokens // 2)
    most = min(_BURST_TOKENS, engine.context_tokens - length)
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        prompts = [_tokens(number, length, vocabulary) for number in range(slots)]
        bursts = [group.create_task(_sample(engine, prompt, most, "burst")) for prompt in prompts]
    return sum(len(burst.result()) for burst in bursts) / (time.monotonic() - began)


async def _converse(engine: Engine, number: int, vocabulary: int) -> None:
    length = min(_PROMPT_TOKENS[number % len(_PROMPT_TOKENS)], engine.context_tokens // 2)
    conversation = _tokens(number, length, vocabulary)
    for turn in range(2):
        room = engine.context_tokens - len(conversation)
        if room < 1:
            return
        most = min(_FEWEST_SAMPLED * (number + 1), room)
        sampled = await _sample(engine, conversation, most, f"warm-up-{number}-{turn}")
        conversation = [*conversation, *sampled, *_tokens(number + turn + 1, _RESULT_TOKENS, vocabulary)]


async def _sample(engine: Engine, prompt: list[int], most: int, label: str) -> list[int]:
    sampled: list[int] = []
    async with aclosing(engine.stream(CompletionRequest(tokens=prompt, max_tokens=most, label=label))) as chunks:
        async for chunk in chunks:
            sampled += chunk.token_ids
    return sampled


def _tokens(start: int, count: int, vocabulary: int) -> list[int]:
    # Steps of a large prime: no two conversations share a prefix, which the server would have cached.
    return [(start * 7_919 + step * 104_729) % vocabulary for step in range(count)]
