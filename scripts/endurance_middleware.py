"""Loaded into vLLM by ``--middleware endurance_middleware.Refusing``: answers 503 while a file exists."""

from __future__ import annotations

import os
from typing import Any

VARIABLE = "AIMO_ENDURANCE_REFUSING"


class Refusing:
    """ASGI middleware."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and _refusing():
            await send({"type": "http.response.start", "status": 503, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})
        else:
            await self._app(scope, receive, send)


def _refusing() -> bool:
    return os.path.exists(os.environ[VARIABLE])
