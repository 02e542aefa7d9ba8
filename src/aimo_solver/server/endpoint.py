"""What an OpenAI-compatible endpoint serves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from aimo_solver.errors import EndpointError

LONGEST_ANSWER = 1 << 20  # bytes; a list of models and a refusal have a few hundred


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
            status, body = response.status, await answer_text(response)
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


async def answer_text(response: aiohttp.ClientResponse) -> str:
    """The text of an answer that is no stream, cut to `LONGEST_ANSWER` bytes."""
    body = b""
    async for data in response.content.iter_chunked(1 << 16):
        body += data
        if len(body) >= LONGEST_ANSWER:
            break
    return body[:LONGEST_ANSWER].decode("utf-8", "replace")
