"""Reads the responses of a vLLM server: stream events with token ids and entropies, lists of models, metrics, refusals.

Responses are not trusted: one that cannot be read raises `EngineUnavailable`.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from aimo_solver.errors import ContextExceeded, EngineError, EngineRejected, EngineUnavailable
from aimo_solver.results import DraftCounts
from aimo_solver.server.engine import Chunk

_LONGEST_BODY = 1 << 20  # bytes; a list of models and a refusal have a few hundred
_LONGEST_LINE = 1 << 20  # bytes; a chunk of 8 tokens with 20 log-probabilities each has 20,000
# How vLLM 0.10 to 0.32 refuse a request for its length; the number is the context.
_TOO_LONG = re.compile(r"(?:maximum context length(?: is)? \(?|max_model_len=)(\d{1,9})")
_METRIC = re.compile(r"^vllm:(\w{1,100}?)(?:_total)?(?:\{[^}\n]*\})? (\d[\d.e+-]{0,30})$", re.MULTILINE)
_KV_TOKENS = re.compile(r'^vllm:cache_config_info\{[^}\n]*\bkv_cache_size_tokens="(\d{1,12})"', re.MULTILINE)  # for each copy


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that a server lists.

    Attributes:
        context_tokens: longest prompt and answer together; None if the server does not report it.
        root: where the server found the model.
    """

    name: str
    context_tokens: int | None
    root: str


async def read_body(response: aiohttp.ClientResponse) -> str:
    """Returns the text of an answer that is not a stream, cut to 1 MiB."""
    body = b""
    async for data in response.content.iter_chunked(1 << 16):
        body += data
        if len(body) >= _LONGEST_BODY:
            break
    return body[:_LONGEST_BODY].decode("utf-8", "replace")


def read_models(body: str) -> list[ServedModel]:
    """Reads the answer of `/v1/models`.

    Raises:
        EngineUnavailable: it cannot be read.
    """
    try:
        return [
            ServedModel(str(model["id"]), int(model.get("max_model_len") or 0) or None, str(model.get("root") or ""))
            for model in json.loads(body)["data"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise EngineUnavailable("does not list models as an OpenAI-compatible server does") from None


def read_metrics(metrics: str) -> dict[str, list[float]]:
    """Reads the values of `/metrics` by name, without "vllm:" and "_total"; one value for each copy of the model."""
    values: dict[str, list[float]] = {}
    for name, text in _METRIC.findall(metrics):
        with contextlib.suppress(ValueError):
            if math.isfinite(value := float(text)):
                values.setdefault(name, []).append(value)
    return values


def read_kv_tokens(metrics: str) -> int | None:
    """Reads from `/metrics` how many tokens the KV cache holds, over all copies of the model; None if that is not reported."""
    return sum(map(int, _KV_TOKENS.findall(metrics))) or None


def read_drafts(metrics: str) -> DraftCounts | None:
    """Reads the counters of speculation from `/metrics`, over all copies of the model; None if there are none."""
    names = {"steps": "drafts", "drafted": "draft_tokens", "accepted": "accepted_tokens"}
    values = read_metrics(metrics)
    counts = {field: values.get(f"spec_decode_num_{name}", []) for field, name in names.items()}
    return DraftCounts(**{field: int(sum(count)) for field, count in counts.items()}) if any(counts.values()) else None


async def read_messages(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Yields the messages of a server-sent event stream until its [DONE], without the comments that keep it open.

    Raises:
        EngineUnavailable: a message is longer than 1 MiB.
    """
    rest = bytearray()
    async for data in content.iter_any():
        rest += data
        if b"\n" in data:
            *lines, last = bytes(rest).split(b"\n")
            rest = bytearray(last)
            for line in lines:
                if line.startswith(b"data:"):
                    payload = line[5:].strip()
                    if payload == b"[DONE]":
                        return
                    yield payload
        if len(rest) > _LONGEST_LINE:
            raise EngineUnavailable(f"a message of the stream is longer than {_LONGEST_LINE} bytes")


def read_chunk(payload: bytes) -> Chunk:
    """Reads one message of the stream.

    Raises:
        EngineUnavailable: it cannot be read, or the server ended the request.
        EngineRejected, ContextExceeded: it is a refusal.
    """
    try:
        message = json.loads(payload)
        error = message.get("error")
        if error is None:
            return _chunk(message)
        code = error.get("code") if isinstance(error, dict) else None
        failure = refusal(code if isinstance(code, int) else 500, json.dumps(error))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as problem:
        failure = EngineUnavailable(f"a message of the stream cannot be read ({problem!r:.200}): {payload[:200]!r}")
    raise failure


def _chunk(message: Mapping[str, Any]) -> Chunk:
    cached = ((message.get("usage") or {}).get("prompt_tokens_details") or {}).get("cached_tokens")
    if not message["choices"]:
        return Chunk((), cached_tokens=cached)
    choice = message["choices"][0]
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
    token_ids = tuple(choice.get("token_ids") or ())
    if not all(type(token) is int for token in token_ids):
        raise TypeError("token ids are integers")
    return Chunk(token_ids, entropies, reason, cached)


def entropy(candidates: Mapping[str, float]) -> float:
    """Returns the entropy in nats of a next-token distribution, from the log-probabilities of its most likely tokens.

    This is a lower bound: the tokens that are not among the candidates are left out.
    """
    return -sum(math.exp(logprob) * logprob for logprob in candidates.values() if logprob > -50.0)


def refusal(status: int, body: str) -> EngineError:
    """Returns the error for a request that the server refused with that HTTP status and text."""
    # 5xx (a dead engine answers 500), 408 and 429 may pass; any other status is caused by the request.
    if status >= 500 or status in (408, 429):
        return EngineUnavailable(f"server answered {status}: {body[:300]}")
    match = _TOO_LONG.search(body)
    if match is not None or "max_tokens" in body:
        return ContextExceeded(status, body, int(match[1]) if match is not None else None)
    return EngineRejected(status, body)
