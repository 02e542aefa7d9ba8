"""The token-stream client of any vLLM server: token ids in, token ids and entropies out.

It speaks `/v1/completions` over aiohttp. At thousands of chunks a second a general API client's parsing would cost more
than the network does; here a chunk costs one `json.loads`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import aiohttp

from aimo_solver.config import SamplingConfig
from aimo_solver.errors import EndpointError, EngineLost, EngineRejected, EngineUnavailable, ServerError

_LONGEST_ANSWER = 1 << 20  # bytes read of an answer that is no stream, and of one event of a stream


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """One turn to be sampled.

    Attributes:
        tokens: the prompt, token ids.
        max_tokens: most tokens to sample.
        label: who asks; the server's log shows it.
    """

    tokens: Sequence[int]
    max_tokens: int
    stop_token_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    label: str = ""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one message of the stream brought.

    Attributes:
        token_ids: newly sampled tokens, a stop token included.
        entropies: nats, one per token; empty if the server sent no log-probabilities.
        finish: "stop" or "length" on the turn's last tokens, else None.
        cached_tokens: prompt tokens found in the prefix cache; on the last message only, if the server reports it.
    """

    token_ids: tuple[int, ...]
    entropies: tuple[float, ...] = ()
    finish: Literal["stop", "length"] | None = None
    cached_tokens: int | None = None


class Engine(Protocol):
    """What the agent loop needs of a model.

    Attributes:
        context_tokens: longest prompt and answer together; a server that was replaced may hold less.
        faults: how often the server was lost or replaced so far.
    """

    context_tokens: int
    faults: int

    def stream(self, request: CompletionRequest) -> AsyncGenerator[Chunk, None]:
        """Samples one turn. Closing the generator frees the server's slot at once.

        Raises:
            EngineUnavailable: no answer, or the stream broke off; chunks that came before are valid.
            EngineRejected: the server refused the request.
        """
        ...

    async def wait_ready(self) -> None:
        """Returns when the server answers again, with `context_tokens` as the running server says.

        Raises:
            EngineLost: it never will.
        """
        ...


class VllmEngine:
    """Client of one vLLM server (or of a router in front of many).

    Attributes:
        context_tokens: the served model's longest prompt and answer together.
        tokens_streamed, running: all tokens so far and requests under way, for whoever watches progress.
        faults: how often the server was lost or replaced; its supervisor counts.
        lost: why there is no server any more, set by whoever gave it up.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        sampling: SamplingConfig,
        *,
        context_tokens: int,
        api_key: str | None = None,
    ) -> None:
        """`base_url` without the ``/v1``. The session opens with the first request, in that request's event loop."""
        self.base_url = base_url.rstrip("/")
        self.model = model
        self.context_tokens = context_tokens
        self.tokens_streamed = 0
        self.running = 0
        self.faults = 0
        self.lost: ServerError | None = None
        self._sampling = sampling
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[Chunk, None]:
        """See `Engine.stream`."""
        self.running += 1
        # No seed per request: vLLM draws seeded requests one by one, and its CPU build ends when a seeded prompt is
        # processed in pieces.
        headers = {"X-Request-Id": f"{request.label}-{secrets.token_hex(4)}"}
        try:
            async with self._open().post(
                f"{self.base_url}/v1/completions", json=self._body(request), headers=headers
            ) as response:
                try:
                    if response.status != 200:
                        raise _refusal(response.status, await response.text())
                    finished = False
                    async for message in _messages(response.content):
                        chunk = _chunk(message)
                        self.tokens_streamed += len(chunk.token_ids)
                        finished = finished or chunk.finish is not None
                        yield chunk
                    if not finished:
                        raise EngineUnavailable("the stream ended without a finish reason")
                finally:
                    # Closing the connection, not returning it, is what makes the server abort the request.
                    response.close()
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            raise EngineUnavailable(f"{type(error).__name__}: {error}") from error
        finally:
            self.running -= 1

    async def wait_ready(self) -> None:
        """See `Engine.wait_ready`."""
        while not await self.ready():
            if self.lost is not None:
                raise EngineLost(str(self.lost)) from self.lost
            await asyncio.sleep(0.25)

    async def ready(self) -> bool:
        """True if the server is healthy; its context is known then, as far as it tells."""
        if not await self.healthy():
            return False
        # A list that cannot be read costs nothing: a request that is too long is answered by asking for less.
        with contextlib.suppress(EndpointError):
            served = await find_model(self.base_url, self.model, session=self._open())
            self.context_tokens = served.context_tokens or self.context_tokens
        return True

    async def healthy(self, timeout_s: float = 5.0) -> bool:
        """True if the server's health page answers in time."""
        try:
            timeout = aiohttp.ClientTimeout(total=timeout_s)
            async with self._open().get(f"{self.base_url}/health", timeout=timeout) as response:
                return response.status == 200
        except (aiohttp.ClientError, ConnectionError, TimeoutError):
            return False

    async def running_requests(self) -> int:
        """Requests that the server itself says are running or waiting."""
        async with self._open().get(f"{self.base_url}/metrics") as response:
            text = await response.text()
        counts = re.findall(r"^vllm:num_requests_(?:running|waiting)\{[^}]*\} ([0-9.e+]+)$", text, re.MULTILINE)
        return int(sum(float(count) for count in counts))

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            # One connection per request: uvicorn drops idle ones after 5 s, and a request sent at that moment is lost.
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, headers=self._headers)
        return self._session

    def _body(self, request: CompletionRequest) -> dict[str, Any]:
        sampling = self._sampling
        return {
            "model": self.model,
            "prompt": list(request.tokens),
            "max_tokens": request.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "logprobs": sampling.top_logprobs,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,  # keeps candidates with equal texts apart
            "skip_special_tokens": False,
            "stop_token_ids": list(request.stop_token_ids),
            "stop": list(request.stop_strings),
            "include_stop_str_in_output": True,
        }


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that an endpoint serves.

    Attributes:
        context_tokens: longest prompt and answer together; None if the server does not tell.
        root: where the server itself found the model.
    """

    name: str
    context_tokens: int | None
    root: str


async def find_model(
    base_url: str,
    served_model: str | None = None,
    *,
    api_key: str | None = None,
    session: aiohttp.ClientSession | None = None,
) -> ServedModel:
    """The model to use at an endpoint: the named one, or the only one there.

    Args:
        session: for the request; without one it is a session of its own, with `api_key`.

    Raises:
        EndpointError: nothing answers there, or it does not serve that model; the message names those it serves.
    """
    url = base_url.rstrip("/")
    if session is None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        async with aiohttp.ClientSession(headers=headers) as own:
            return await find_model(url, served_model, session=own)
    try:
        async with session.get(f"{url}/v1/models", timeout=aiohttp.ClientTimeout(total=20)) as response:
            status, body = response.status, await _bounded(response)
    except (aiohttp.ClientError, aiohttp.InvalidURL, OSError) as error:
        problem = f"does not answer ({type(error).__name__}); start the server, or check host and port"
        raise EndpointError(url, problem) from None
    if status != 200:
        raise EndpointError(url, f"answers {status} to /v1/models; is it a vLLM server, and the API key right?")
    try:
        models = [_served(model) for model in json.loads(body)["data"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise EndpointError(url, "does not list models as an OpenAI-compatible server does") from None
    names = ", ".join(model.name for model in models)
    if served_model is None and len(models) != 1:
        raise EndpointError(url, f"serves {names or 'no model'}; choose one with --served-model")
    for model in models:
        if served_model in (None, model.name):
            return model
    raise EndpointError(url, f"does not serve {served_model}; it serves {names}")


def _served(model: Mapping[str, Any]) -> ServedModel:
    context = model.get("max_model_len")
    return ServedModel(str(model["id"]), int(context) if context else None, str(model.get("root") or ""))


async def _bounded(response: aiohttp.ClientResponse) -> str:
    """The text of an answer that is no stream, at most `_LONGEST_ANSWER` bytes of it."""
    body = b""
    async for data in response.content.iter_chunked(1 << 16):
        body += data
        if len(body) >= _LONGEST_ANSWER:
            break
    return body[:_LONGEST_ANSWER].decode("utf-8", "replace")


def entropy(candidates: Mapping[str, float]) -> float:
    """Entropy in nats of a next-token distribution given by the log-probabilities of its likeliest tokens.

    The sum runs over the candidates given; what they leave out is not estimated, so this is a lower bound.
    """
    return -sum(math.exp(logprob) * logprob for logprob in candidates.values() if logprob > -50.0)


async def _messages(content: aiohttp.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """The JSON messages of a server-sent event stream, until its [DONE]."""
    buffer = b""
    async for data in content.iter_any():
        buffer += data
        *events, buffer = buffer.split(b"\n\n")
        for event in events:
            payload = event.removeprefix(b"data:").strip()
            if payload == b"[DONE]":
                return
            if payload:
                yield json.loads(payload)


def _chunk(message: Mapping[str, Any]) -> Chunk:
    if "error" in message:
        raise EngineUnavailable(f"the server broke off: {message['error']}")
    cached = ((message.get("usage") or {}).get("prompt_tokens_details") or {}).get("cached_tokens")
    if not message["choices"]:
        return Chunk((), cached_tokens=cached)
    choice = message["choices"][0]
    token_ids = tuple(choice.get("token_ids") or ())
    logprobs = choice.get("logprobs") or {}
    candidates = logprobs.get("top_logprobs") or ()
    if candidates and len(candidates[0] or ()) > 1:
        entropies = tuple(entropy(token) if token else 0.0 for token in candidates)
    else:
        # -log p of the drawn token: its expectation is the entropy.
        entropies = tuple(-value if value is not None else 0.0 for value in logprobs.get("token_logprobs") or ())
    reason = choice.get("finish_reason")
    if reason not in (None, "stop", "length"):
        raise EngineUnavailable(f"the server ended the request: {reason}")
    return Chunk(token_ids, entropies, reason, cached)


def _refusal(status: int, body: str) -> EngineRejected | EngineUnavailable:
    # 5xx (a dead engine answers 500) and 429 pass; anything else is our request's fault.
    if status >= 500 or status == 429:
        return EngineUnavailable(f"server answered {status}: {body[:300]}")
    return EngineRejected(status, body)
