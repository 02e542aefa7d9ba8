"""The client of a vLLM server: token ids in, token ids and entropies out.

It uses `/v1/completions` over aiohttp. At thousands of chunks a second, a general API client would spend more time on
parsing than on the network; here a chunk costs one `json.loads`.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Self

import aiohttp

from aimo_solver import errors
from aimo_solver.options import SamplingConfig
from aimo_solver.server import completions
from aimo_solver.server.engine import Chunk, CompletionRequest
from aimo_solver.server.speculation import without_min_p

RANK_HEADER = "X-data-parallel-rank"  # vLLM: which copy of the model serves a request
_NO_TOKEN_IDS = "a turn without token ids (return_token_ids); vLLM sends them from version 0.10.2 on"


class VllmEngine:
    """Client of one vLLM server, or of a router in front of several.

    Attributes:
        context_tokens: the served model's longest prompt and answer together.
        tokens_streamed: all tokens so far.
        running: requests in progress.
        failures: consecutive requests that failed before their first token.
        faults: how often the supervisor found the server lost or hung.
        lost: why the server is gone for good; set by the supervisor.
        speculates: whether the server drafts tokens, and so takes no min_p: `without_min_p` replaces it in every request.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        sampling: SamplingConfig,
        *,
        context_tokens: int,
        api_key: str | None = None,
        copies: int = 1,
        speculates: bool = False,
    ) -> None:
        """Makes a client whose session opens with the first request, in that request's event loop.

        Args:
            base_url: without ``/v1``.
            copies: of the model (data parallel). Each has a prefix cache of its own, so all turns of a conversation go to the
                same one: the one with the fewest running requests when the conversation began.
        """
        self.base_url = base_url.rstrip("/")
        self.model = model
        self.context_tokens = context_tokens
        self.tokens_streamed = 0
        self.running = 0
        self.failures = 0
        self.faults = 0
        self.lost: errors.ServerError | None = None
        self._sampling = sampling
        self._ranks: dict[str, int] = {}  # of conversations
        self._running_on = [0] * copies
        self.speculates = speculates
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[Chunk, None]:
        """Samples one turn; see `Engine.stream`."""
        # No seed per request: vLLM draws seeded requests one by one, and its CPU build ends when a seeded prompt is
        # processed in pieces.
        headers = {"X-Request-Id": f"{request.label}-{secrets.token_hex(4)}"}
        rank = self._rank(request.conversation)
        if rank is not None:
            headers[RANK_HEADER] = str(rank)
            self._running_on[rank] += 1
        url = f"{self.base_url}/v1/completions"
        self.running += 1
        self.failures += 1  # until a token arrives
        try:
            async with self._open().post(url, json=self._body(request), headers=headers) as response:
                try:
                    if response.status != 200:
                        raise completions.refusal(response.status, await completions.read_body(response))
                    sampled, finished = 0, False
                    async for message in completions.read_messages(response.content):
                        chunk = completions.read_chunk(message)
                        sampled += len(chunk.token_ids)
                        if chunk.token_ids:
                            self.tokens_streamed += len(chunk.token_ids)
                            self.failures = 0
                        finished = finished or chunk.finish is not None
                        if finished and not sampled:
                            raise errors.EngineRejected(200, _NO_TOKEN_IDS)
                        yield chunk
                    if not finished:
                        raise errors.EngineUnavailable("the stream ended without a finish reason")
                finally:
                    # The server aborts the request when the connection is closed, not when it is returned to the pool.
                    response.close()
        except errors.ContextExceeded as error:
            self.context_tokens = min(self.context_tokens, error.context_tokens or self.context_tokens)
            raise
        except (aiohttp.ClientError, OSError) as error:
            raise errors.EngineUnavailable(f"{type(error).__name__}: {error}") from error
        finally:
            self.running -= 1
            if rank is not None:
                self._running_on[rank] -= 1

    def _rank(self, conversation: str) -> int | None:
        """Returns the copy of the model that serves a conversation; None leaves the choice to the server."""
        if len(self._running_on) == 1 or not conversation:
            return None
        return self._ranks.setdefault(conversation, self._running_on.index(min(self._running_on)))

    async def answers(self, timeout_s: float) -> bool:
        """Returns whether the server is healthy and, if the last requests failed, samples a token."""
        if not await self.healthy(timeout_s):
            return False
        try:
            if self.failures:
                await self.probe(timeout_s)
        except errors.EngineError:
            return False
        return True

    async def probe(self, timeout_s: float = 60.0) -> None:
        """Samples one token.

        Raises:
            EngineError: the server refuses, or takes longer.
        """
        try:
            async with asyncio.timeout(timeout_s), aclosing(self.stream(CompletionRequest(tokens=[1], max_tokens=1))) as chunks:
                async for _ in chunks:
                    pass
        except TimeoutError:
            raise errors.EngineUnavailable(f"no token within {timeout_s:.0f} s") from None

    async def wait_ready(self) -> None:
        """Waits for a server that answers; see `Engine.wait_ready`."""
        while not await self.ready():
            if self.lost is not None:
                raise errors.EngineLost(str(self.lost)) from self.lost
            await asyncio.sleep(0.25)

    async def ready(self) -> bool:
        """Returns whether the server is healthy; reads its context then."""
        if not await self.healthy():
            return False
        # A list that cannot be read does no harm: a request that is too long is refused, and then shortened.
        with contextlib.suppress(errors.EngineError):
            contexts = {served.name: served.context_tokens for served in await self.served_models()}
            self.context_tokens = contexts.get(self.model) or self.context_tokens
        return True

    async def served_models(self) -> list[completions.ServedModel]:
        """Returns the models that the server lists.

        Raises:
            EngineError: it does not answer or refuses, or its answer cannot be read.
        """
        return completions.read_models(await self._get("/v1/models", 20.0))

    async def kv_cache_tokens(self) -> int | None:
        """Returns how many tokens the server's KV cache holds; None if it does not report that."""
        return completions.read_kv_tokens(await self.metrics())

    async def metrics(self) -> str:
        """Returns the text of `/metrics`, "" if there is none."""
        try:
            return await self._get("/metrics", 5.0)
        except errors.EngineError:
            return ""

    async def healthy(self, timeout_s: float = 5.0) -> bool:
        """Returns whether the server's `/health` returns 200 in time."""
        try:
            await self._get("/health", timeout_s)
        except errors.EngineError:
            return False
        return True

    async def _get(self, page: str, timeout_s: float) -> str:
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._open().get(self.base_url + page, timeout=timeout) as response:
                body = await completions.read_body(response)
        except (aiohttp.ClientError, OSError) as error:
            raise errors.EngineUnavailable(f"does not answer ({type(error).__name__})") from error
        if response.status != 200:
            raise completions.refusal(response.status, body)
        return body

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            # One connection per request: uvicorn drops idle ones after 5 s, and a request sent at that moment is lost.
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, headers=self._headers)
        return self._session

    def _body(self, request: CompletionRequest) -> dict[str, Any]:
        sampling = request.sampling or self._sampling
        if self.speculates:
            sampling = without_min_p(sampling)
        return {
            "model": self.model,
            "prompt": list(request.tokens),
            "max_tokens": request.max_tokens,
            "stop_token_ids": list(request.stop_token_ids),
            "stop": list(request.stop_strings),
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "top_k": sampling.top_k,
            "logprobs": sampling.top_logprobs,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,  # distinguishes candidates with equal texts
            "skip_special_tokens": False,
            "include_stop_str_in_output": True,
        }
