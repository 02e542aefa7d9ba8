"""The client, on real vLLM and on servers whose streams break off."""

from __future__ import annotations

import asyncio
import math
from contextlib import AsyncExitStack, aclosing

import pytest
from aiohttp import web

from aimo_solver.chat.families import load_chat_format
from aimo_solver.chat.prompts import Prompt
from aimo_solver.config import Config, load_config
from aimo_solver.errors import ContextExceeded, EngineRejected, EngineUnavailable
from aimo_solver.lab.bench.loop import EndlessEngine, count_requests
from aimo_solver.options import SamplingConfig
from aimo_solver.server.client import VllmEngine
from aimo_solver.server.completions import entropy, read_kv_tokens, refusal
from aimo_solver.server.engine import Chunk, CompletionRequest
from tests.conftest import Served
from tests.http_vllm import Handler, HttpVllm, event, sends


async def sample(engine: VllmEngine, request: CompletionRequest) -> list[Chunk]:
    async with aclosing(engine.stream(request)) as chunks:
        return [chunk async for chunk in chunks]


def tokens_of(chunks: list[Chunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids]


def prompt(served: Served, text: str = "What is the remainder of 7^30 modulo 11?") -> list[int]:
    return load_chat_format(served.model).prompt(Prompt(user=text))


@pytest.mark.vllm
async def test_a_stop_token_ends_the_turn_and_is_part_of_it(vllm: Served) -> None:
    chat = load_chat_format(vllm.model)
    async with vllm.engine() as engine:
        chunks = await sample(engine, CompletionRequest(tokens=prompt(vllm), max_tokens=500, stop_token_ids=chat.stop_token_ids))
    assert [chunk.finish for chunk in chunks if chunk.finish] == ["stop"]
    assert tokens_of(chunks)[-1] in chat.stop_token_ids


@pytest.mark.vllm
async def test_length_ends_the_turn_at_the_last_token(vllm: Served) -> None:
    async with vllm.engine() as engine:
        chunks = await sample(engine, CompletionRequest(tokens=prompt(vllm), max_tokens=3))
    assert [chunk.finish for chunk in chunks if chunk.finish] == ["length"]
    assert len(tokens_of(chunks)) == 3


@pytest.mark.vllm
@pytest.mark.parametrize("candidates", [0, 5])
async def test_every_token_has_its_entropy(vllm: Served, candidates: int) -> None:
    async with vllm.engine(load_config(settings=[f"sampling.top_logprobs={candidates}"])) as engine:
        chunks = await sample(engine, CompletionRequest(tokens=prompt(vllm), max_tokens=30))
    entropies = [value for chunk in chunks for value in chunk.entropies]
    assert len(entropies) == len(tokens_of(chunks)) > 0
    assert all(0 <= value < 20 for value in entropies)
    assert max(entropies) > 0


@pytest.mark.vllm
async def test_the_previous_turn_is_found_in_the_prefix_cache(vllm: Served) -> None:
    long = prompt(vllm, "Consider the numbers " + ", ".join(map(str, range(100, 160))) + ". What is their sum?")
    async with vllm.engine() as engine:
        first = await sample(engine, CompletionRequest(tokens=long, max_tokens=40))
        grown = [*long, *tokens_of(first)]
        second = await sample(engine, CompletionRequest(tokens=[*grown, *long[:5]], max_tokens=2))
    cached = second[-1].cached_tokens
    assert cached is not None
    assert cached >= (len(grown) - 1) // 32 * 32  # whole blocks; the last sampled token was never a prompt


@pytest.mark.vllm
async def test_closing_a_stream_frees_the_servers_slot(vllm: Served) -> None:
    async with EndlessEngine(vllm.url, vllm.name, SamplingConfig(), context_tokens=vllm.context_tokens) as engine:
        async with aclosing(engine.stream(CompletionRequest(tokens=prompt(vllm), max_tokens=3_500))) as chunks:
            await anext(chunks)
            while await count_requests(vllm.url) != 1:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert engine.running == 1
        closed = engine.tokens_streamed
        while await count_requests(vllm.url):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert (engine.running, engine.tokens_streamed) == (0, closed)
    assert closed < 3_000  # the server did not just finish


@pytest.mark.vllm
async def test_a_prompt_that_does_not_fit_is_rejected(vllm: Served) -> None:
    async with vllm.engine() as engine:
        with pytest.raises(EngineRejected) as error:
            await sample(engine, CompletionRequest(tokens=[5] * 5_000, max_tokens=10))
    assert error.value.status == 400


BEGINNING = 'data: {"choices":[{"token_ids":[7,8],"finish_reason":null}]}\n\n'


def answers(text: str) -> Handler:
    """Returns a handler whose response is complete."""

    async def handler(request: web.Request) -> web.Response:
        return web.Response(text=text)

    return handler


async def test_chunks_before_a_break_are_kept() -> None:
    http = HttpVllm()
    http.for_good = sends(BEGINNING + 'data: {"choi')
    seen: list[int] = []

    async def collect(engine: VllmEngine) -> None:
        async for chunk in engine.stream(CompletionRequest(tokens=[1], max_tokens=5)):
            seen.extend(chunk.token_ids)

    async with http.engine() as engine:
        with pytest.raises(EngineUnavailable):
            await collect(engine)
    assert seen == [7, 8]


@pytest.mark.parametrize(
    ("rest", "problem"),
    [("data: [DONE]\n\n", "without a finish reason"), ('data: {"error":{"message":"engine dead"}}\n\n', "engine dead")],
)
async def test_a_stream_without_an_end_or_with_an_error_is_a_break(rest: str, problem: str) -> None:
    http = HttpVllm()
    http.for_good = answers(BEGINNING + rest)
    async with http.engine() as engine:
        with pytest.raises(EngineUnavailable, match=problem):
            await sample(engine, CompletionRequest(tokens=[1], max_tokens=5))


@pytest.mark.parametrize(("status", "kind"), [(500, EngineUnavailable), (503, EngineUnavailable), (404, EngineRejected)])
async def test_the_status_of_a_refusal_decides_whether_to_try_again(status: int, kind: type[Exception]) -> None:
    http = HttpVllm()
    http.for_good = status
    async with http.engine() as engine:
        with pytest.raises(kind, match=str(status)):
            await sample(engine, CompletionRequest(tokens=[1], max_tokens=5))


CHUNK = {"choices": [{"text": "a", "token_ids": [7], "finish_reason": "stop"}]}


@pytest.mark.parametrize(
    "text",
    [
        "data: {not json}\n\n",
        "data: [1, 2]\n\n",
        "data: 5\n\n",
        "data: {}\n\n",
        'data: {"choices": 5}\n\n',
        'data: {"choices": [{"token_ids": ["x"]}]}\n\n',
        'data: {"choices": [{"token_ids": [1], "logprobs": {"token_logprobs": ["x"]}}]}\n\n',
        'data: {"error": "engine dead"}\n\n',
        f"data: {'[' * 100_000}\n\n",
        "data: " + "x" * 3_000_000,
        "<html>gateway</html>",
        "",
    ],
    ids=range(12),
)
async def test_a_stream_that_cannot_be_read_is_a_break(text: str) -> None:
    http = HttpVllm()
    http.for_good = sends(text)
    async with http.engine() as engine:
        with pytest.raises(EngineUnavailable) as error:
            await sample(engine, CompletionRequest(tokens=[1], max_tokens=5))
    assert len(str(error.value)) < 1_000


async def test_a_stream_shorter_than_its_length_is_a_break() -> None:
    http = HttpVllm()
    http.for_good = sends(event(CHUNK), headers={"Content-Length": "5000"})
    async with http.engine() as engine:
        with pytest.raises(EngineUnavailable):
            await sample(engine, CompletionRequest(tokens=[1], max_tokens=5))


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
async def test_comments_that_keep_a_stream_open_are_not_messages(newline: str) -> None:
    http = HttpVllm()
    text = f": keep-alive\n\n{event(CHUNK)}event: end\ndata: [DONE]\n\n"
    http.for_good = sends(text.replace("\n", newline))
    async with http.engine() as engine:
        assert tokens_of(await sample(engine, CompletionRequest(tokens=[1], max_tokens=5))) == [7]


async def test_a_server_without_token_ids_is_reported_in_one_line() -> None:
    http = HttpVllm()
    http.token_ids = False
    async with http.engine() as engine:
        with pytest.raises(EngineRejected, match="without token ids") as told:
            await engine.probe()
        with pytest.raises(EngineRejected, match="without token ids"):
            await sample(engine, CompletionRequest(tokens=[1], max_tokens=5))
    assert "\n" not in str(told.value)


async def test_a_probe_of_a_working_server_passes() -> None:
    async with HttpVllm().engine() as engine:
        await engine.probe()
        assert (engine.tokens_streamed, engine.running, engine.failures) == (1, 0, 0)


@pytest.mark.parametrize(
    ("words", "context"),
    [
        ("max_tokens=64988 cannot be greater than max_model_len=49152. Please request fewer output tokens.", 49_152),
        ("This model's maximum context length is 49152 tokens. However, your prompt contains 50000 input tokens", 49_152),
        ("Input length (50000) exceeds model's maximum context length (49152).", 49_152),
        ("'max_tokens' or 'max_completion_tokens' is too large: 64988.", None),
    ],
)
def test_the_context_is_read_from_a_refusal_for_length(words: str, context: int | None) -> None:
    error = refusal(400, words)
    assert isinstance(error, ContextExceeded)
    assert error.context_tokens == context


def test_entropy_of_an_even_choice() -> None:
    even = {str(number): math.log(1 / 4) for number in range(4)}
    assert entropy(even) == pytest.approx(math.log(4))


def test_the_default_log_probabilities_are_the_cheapest() -> None:
    assert Config().sampling.top_logprobs == 0


async def test_the_context_of_a_restarted_server_is_read_before_its_first_request() -> None:
    async with HttpVllm(context_tokens=49_152).engine() as engine:
        await engine.wait_ready()
        assert engine.context_tokens == 49_152


@pytest.mark.parametrize(
    "models", ["", "[]", '{"data": 1}', '{"data": [3]}', '{"data": [{"id": "m", "max_model_len": "x"}]}', "[" * 99_999]
)
async def test_a_list_of_models_that_cannot_be_read_leaves_the_context_unchanged(models: str) -> None:
    http = HttpVllm()
    http.models = models
    async with http.engine(context_tokens=100) as engine:
        await engine.wait_ready()
        assert engine.context_tokens == 100
        with pytest.raises(EngineUnavailable, match="does not list models"):
            await engine.served_models()


def turn(conversation: int, number: int) -> CompletionRequest:
    return CompletionRequest(tokens=[1], max_tokens=8, label=f"problem-{conversation}-{number}")


async def test_conversations_spread_over_the_copies_of_the_model_and_stay_there() -> None:
    http = HttpVllm()
    async with http.engine(copies=3) as engine:
        async with AsyncExitStack() as stack:  # side by side
            for conversation in range(6):
                chunks = await stack.enter_async_context(aclosing(engine.stream(turn(conversation, 0))))
                await anext(chunks)
        for conversation in (5, 1, 3):
            await sample(engine, turn(conversation, 1))
    assert http.ranks == [0, 1, 2, 0, 1, 2, 2, 1, 0]


@pytest.mark.parametrize(("copies", "label"), [(1, "problem-0-0"), (2, "")])
async def test_one_copy_and_requests_outside_conversations_are_not_pinned(copies: int, label: str) -> None:
    http = HttpVllm()
    async with http.engine(copies=copies) as engine:
        await sample(engine, CompletionRequest(tokens=[1], max_tokens=8, label=label))
    assert http.ranks == [None]


INFO = 'vllm:cache_config_info{block_size="16",engine="0",%snum_gpu_blocks="100",sliding_window="None"} 1.0\n'


@pytest.mark.parametrize(
    ("metrics", "tokens"),
    [
        (INFO % 'kv_cache_size_tokens="1500",', 1_500),
        (INFO % 'kv_cache_size_tokens="None",', None),
        ((INFO % 'kv_cache_size_tokens="1500",') * 2, 3_000),  # two copies of the model
        ("vllm:num_requests_running 3.0\n", None),
        ("", None),
    ],
)
def test_the_size_of_the_kv_cache_is_read_from_the_metrics(metrics: str, tokens: int | None) -> None:
    assert read_kv_tokens("# HELP\n" + metrics) == tokens


@pytest.mark.vllm
async def test_vllm_reports_the_size_of_its_kv_cache(vllm: Served) -> None:
    async with vllm.engine() as engine:
        assert (await engine.kv_cache_tokens() or 0) > vllm.context_tokens
