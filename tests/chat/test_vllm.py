"""Whole attempts of every chat family on a real vLLM server with real kernels: the prefix cache holds all earlier turns.

The model has random weights and a vocabulary as large as gpt-oss's. It samples either random tokens or a script, by a logits
processor.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
import pytest_asyncio

from aimo_solver.chat.turns import ChatFormat
from aimo_solver.chat.variants import VARIANTS
from aimo_solver.config import Config
from aimo_solver.kernels.options import KernelConfig
from aimo_solver.kernels.pool import KernelPool
from aimo_solver.log.writer import NullLog
from aimo_solver.options import SamplingConfig
from aimo_solver.problems import Problem
from aimo_solver.results import Attempt, FinishReason
from aimo_solver.server.client import VllmEngine
from aimo_solver.server.engine import Chunk, CompletionRequest
from aimo_solver.server.process import ServerCommand, ServerProcess, free_port
from aimo_solver.solve.attempt import Resources, RunningAttempt
from aimo_solver.solve.options import AttemptConfig
from tests.chat_families import NAMES, Family
from tests.conftest import ROOT
from tests.tiny_tokenizers import fenced_folder

pytestmark = [pytest.mark.vllm, pytest.mark.kernels, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

BLOCK = 32  # the CPU backend takes multiples of 32 only
VOCABULARY = 201_088  # gpt-oss's, the largest of all
CONTEXT = 4_096

CODES = [
    "x = 6",
    "y = 7  # " + "a comment that makes this turn longer than a block of the cache " * 2,
    "print([i * i for i in range(200)])",
    "print('<|end|> <turn|> <|im_end|> </tool_response> ```')",
    "print(x * y)",
]


class PlayedEngine(VllmEngine):
    """A vLLM client that sends a script with each request and records prompts, samples and cached tokens."""

    def __init__(self, url: str) -> None:
        super().__init__(url, "tiny", SamplingConfig(temperature=1.0, min_p=0.0), context_tokens=CONTEXT)
        self.scripts: list[Sequence[int]] = []
        self.asked: list[list[int]] = []
        self.sampled: list[list[int]] = []
        self.cached: list[int] = []

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[Chunk, None]:
        self.asked.append(list(request.tokens))
        self.sampled.append([])
        async for chunk in super().stream(request):
            self.sampled[-1] += chunk.token_ids
            if chunk.cached_tokens is not None:
                self.cached.append(chunk.cached_tokens)
            yield chunk

    def _body(self, request: CompletionRequest) -> dict[str, Any]:
        turn = len(self.asked) - 1
        script = list(self.scripts[turn]) if turn < len(self.scripts) else []
        # The server's end token is that of the tiny model, an ordinary token in other families.
        body = {**super()._body(request), "ignore_eos": True}
        return {**body, "vllm_xargs": {"script": script}} if script else body


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    folder = fenced_folder(tmp_path_factory.mktemp("tiny"))
    shape = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 64,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT, "tie_word_embeddings": True, "torch_dtype": "float32", "rms_norm_eps": 1e-6,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(shape), encoding="utf-8")
    port = free_port()
    command = ServerCommand(
        (
            sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--served-model-name", "tiny",
            "--host", "127.0.0.1", "--port", str(port), "--load-format", "dummy", "--max-model-len", str(CONTEXT),
            "--block-size", str(BLOCK), "--enable-prefix-caching", "--enable-prompt-tokens-details", "--enforce-eager",
            "--max-num-seqs", "4", "--logits-processors", "tests.scripted_logits:Scripted",
        ),
        {
            "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        },
    )  # fmt: skip
    engine = VllmEngine(f"http://127.0.0.1:{port}", "tiny", SamplingConfig(), context_tokens=CONTEXT)
    server = ServerProcess(command, folder / "server.log")
    try:
        await server.start(engine.healthy, 300)
        yield engine.base_url
    finally:
        await engine.close()
        await server.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[KernelPool]:
    async with KernelPool(size=1, spares=1) as pool:
        yield pool


async def _attempt(engine: VllmEngine, chat: ChatFormat, pool: KernelPool, **limits: Any) -> Attempt:
    now = time.monotonic()
    config = Config(attempt=AttemptConfig(**limits), kernels=KernelConfig(timeout_s=30.0))
    resources = Resources(engine=engine, chat=chat, pool=pool, config=config)
    run = RunningAttempt(
        resources,
        Problem("p", "What is 6 * 7?"),
        0,
        VARIANTS["tool"],
        deadline=now + 200,
        problem_started=now,
        trajectory=NullLog().start_trajectory("p", 0),
    )
    return await run.run()


@pytest.mark.parametrize("name", NAMES)
async def test_a_scripted_attempt_is_cached_to_the_last_whole_block(
    families: dict[str, Family], url: str, pool: KernelPool, name: str
) -> None:
    model = families[name]
    async with PlayedEngine(url) as engine:
        engine.scripts = [*map(model.call, CODES), model.final("So the answer is \\boxed{42}.")]
        attempt = await _attempt(engine, model.chat, pool)
    assert [model.chat.decode(turn) for turn in engine.sampled] == [model.chat.decode(script) for script in engine.scripts]
    assert engine.sampled == [list(script) for script in engine.scripts]
    assert (attempt.answer, attempt.finish_reason) == (42, FinishReason.ANSWERED)
    assert (attempt.tool_calls, attempt.tool_errors, attempt.malformed, attempt.seen_in_tool) == (len(CODES), 0, 0, True)
    for turn, (earlier, later) in enumerate(pairwise(engine.asked)):
        said = earlier + engine.sampled[turn]
        assert later[: len(said)] == said
        # The last token of a turn was sampled but not yet read by the model.
        assert engine.cached[turn + 1] >= (len(said) - 1) // BLOCK * BLOCK
    assert attempt.cached_tokens == sum(engine.cached)


@pytest.mark.parametrize("name", NAMES)
async def test_random_tokens_give_a_record_and_prompts_only_grow(
    families: dict[str, Family], url: str, pool: KernelPool, name: str
) -> None:
    model = families[name]
    async with PlayedEngine(url) as engine:
        attempt = await _attempt(engine, model.chat, pool, max_tokens=90, answer_tokens=30, max_turns=5)
    assert attempt.finish_reason in (FinishReason.TOKEN_LIMIT, FinishReason.FORCED, FinishReason.TURN_LIMIT)
    assert len(engine.asked) > 1  # it was asked for its answer
    for turn, (earlier, later) in enumerate(pairwise(engine.asked)):
        said = earlier + engine.sampled[turn]
        assert later[: len(said)] == said
        assert engine.cached[turn + 1] >= (len(said) - 1) // BLOCK * BLOCK


@pytest.mark.parametrize("name", NAMES)
async def test_an_attempt_at_its_token_limit_answers_when_asked(
    families: dict[str, Family], url: str, pool: KernelPool, name: str
) -> None:
    model = families[name]
    async with PlayedEngine(url) as engine:
        thought = model.call("x = 1")[:3]
        engine.scripts = [[*thought, *model.plain("so many thoughts " * 100)], model.template(f"42}}${model.final_parts[1]}")]
        attempt = await _attempt(engine, model.chat, pool, max_tokens=100, answer_tokens=40)
    assert (attempt.answer, attempt.finish_reason) == (42, FinishReason.FORCED)
    said = engine.asked[0] + engine.sampled[0]
    assert engine.asked[1][: len(said)] == said
    assert engine.cached[1] >= (len(said) - 1) // BLOCK * BLOCK
