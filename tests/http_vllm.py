"""An HTTP server that checks, refuses and streams like vLLM, and fails on demand.

`python -m tests.http_vllm PORT CONTEXT` serves until it is killed.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from aimo_solver.options import SamplingConfig
from aimo_solver.server.client import VllmEngine

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class HttpVllm:
    """A server with a context of `context_tokens` that samples `turn` for every request.

    Attributes:
        faults: statuses or handlers for the next requests, instead of a turn. `for_good`: the same for all later ones.
        requests: bodies of all completion requests.
        ranks: for each of them the copy of the model that it is for, None if it is for any.
    """

    def __init__(self, context_tokens: int = 65_536, turn: Sequence[int] = (7, 8, 9)) -> None:
        self.context_tokens = context_tokens
        self.turn = turn
        self.faults: deque[int | Handler] = deque()
        self.for_good: int | Handler | None = None
        self.health = 200
        self.token_ids = True
        self.models: str | None = None  # instead of the list of models
        self.requests: list[dict[str, Any]] = []
        self.ranks: list[int | None] = []

    @asynccontextmanager
    async def engine(self, context_tokens: int = 65_536, copies: int = 1) -> AsyncIterator[VllmEngine]:
        """Runs the server and yields a client of that many copies of the model."""
        runner = web.AppRunner(self.application(), handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        try:
            url = f"http://127.0.0.1:{port}"
            async with VllmEngine(url, "m", SamplingConfig(), context_tokens=context_tokens, copies=copies) as engine:
                yield engine
        finally:
            await runner.cleanup()

    def application(self) -> web.Application:
        application = web.Application(client_max_size=1 << 24)
        application.router.add_post("/v1/completions", self._completions)
        application.router.add_get("/health", self._health)
        application.router.add_get("/v1/models", self._models)
        return application

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=self.health)

    async def _models(self, request: web.Request) -> web.Response:
        model = {"id": "m", "object": "model", "root": "/models/m", "max_model_len": self.context_tokens}
        return web.Response(text=self.models if self.models is not None else json.dumps({"object": "list", "data": [model]}))

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        rank = request.headers.get("X-data-parallel-rank")  # vllm.entrypoints: _get_data_parallel_rank, 0.26 and 0.32
        self.ranks.append(None if rank is None else int(rank))
        fault = self.faults.popleft() if self.faults else self.for_good
        if isinstance(fault, int):
            return web.Response(status=fault, text=json.dumps({"error": {"message": "overloaded", "code": fault}}))
        if fault is not None:
            return await fault(request)
        return self.completion(body)

    def completion(self, body: dict[str, Any]) -> web.Response:
        """Returns the response of a server without faults."""
        return self._refusal(body) or self._stream(body)

    def _refusal(self, body: dict[str, Any]) -> web.Response | None:
        """Checks what vllm.renderers.params.TokenizeParams checks, with the same messages (vLLM 0.32)."""
        prompt, wanted, context = len(body["prompt"]), body["max_tokens"], self.context_tokens
        if wanted > context:
            return _bad_request(
                f"max_tokens={wanted} cannot be greater than max_model_len={context}. "
                f"Please request fewer output tokens. (parameter=max_tokens, value={wanted})",
                "max_tokens",
            )
        if prompt > context:
            return _bad_request(
                f"This model's maximum context length is {context} tokens. However, your prompt contains {prompt} input tokens, "
                "which exceeds this limit even without any output tokens. Please reduce the length of the input prompt. "
                f"(parameter=input_tokens, value={prompt})",
                "input_tokens",
            )
        return None

    def _stream(self, body: dict[str, Any]) -> web.Response:
        # Like vllm.entrypoints.serve.utils.api_utils.get_max_tokens: max_tokens is silently reduced to the room after the prompt.
        room = min(body["max_tokens"], self.context_tokens - len(body["prompt"]))
        tokens = list(self.turn[:room])
        choice: dict[str, Any] = {
            "index": 0,
            "text": "abc",
            "finish_reason": "stop" if len(tokens) == len(self.turn) else "length",
        }
        if self.token_ids:
            choice["token_ids"] = tokens
        return web.Response(text=event({"choices": [choice]}) + "data: [DONE]\n\n", content_type="text/event-stream")


def event(message: object) -> str:
    return f"data: {json.dumps(message)}\n\n"


def sends(text: str, *, headers: dict[str, str] | None = None) -> Handler:
    """Returns a fault: the connection sends the text and closes."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        await response.write(text.encode())
        assert request.transport is not None
        request.transport.close()
        return response

    return handler


async def reset(request: web.Request) -> web.StreamResponse:
    """A fault: the connection is reset before any response."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


def _bad_request(message: str, parameter: str) -> web.Response:
    error = {"message": message, "type": "BadRequestError", "param": parameter, "code": 400}
    return web.Response(status=400, text=json.dumps({"error": error}))


if __name__ == "__main__":
    port, context = map(int, sys.argv[1:])
    web.run_app(HttpVllm(context).application(), host="127.0.0.1", port=port)
