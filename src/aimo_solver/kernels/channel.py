"""The calls to a kernel and its replies: lines of JSON over one Unix socket.

Code in a kernel can send anything there. Reads are bounded, and every fault of the kernel raises one of two exceptions.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
from dataclasses import dataclass

from aimo_solver.errors import KernelMessageError

MAX_REPLY_BYTES = 2_500_000  # a reply holds two texts of 100,000 characters, each of up to 12 bytes in JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A kernel's reply to a call; the attributes are those of `session.ExecutionResult`."""

    value: str | None = None
    error_name: str | None = None
    traceback: str | None = None


class CallChannel:
    """The solver's end of a kernel's socket."""

    def __init__(self, calls: socket.socket) -> None:
        self._socket = calls
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._numbers = itertools.count()

    async def execute(self, code: str) -> Reply:
        """Runs a cell and waits for the reply.

        Raises:
            EOFError: the kernel closed the connection.
            KernelMessageError: its reply cannot be read.
        """
        if self._streams is None:
            self._streams = await asyncio.open_unix_connection(sock=self._socket, limit=MAX_REPLY_BYTES)
        reader, writer = self._streams
        number = next(self._numbers)
        try:
            writer.write(json.dumps({"call": number, "code": code}).encode() + b"\n")
            await writer.drain()
            line = await reader.readuntil()
        except asyncio.LimitOverrunError:
            raise KernelMessageError(f"its reply is longer than {MAX_REPLY_BYTES:,} bytes") from None
        except OSError as error:
            raise EOFError(str(error)) from None
        return _parse_reply(line, number)

    def close(self) -> None:
        if self._streams is None:
            self._socket.close()
        else:
            self._streams[1].transport.abort()


def _parse_reply(line: bytes, number: int) -> Reply:
    try:
        match json.loads(line):
            case {"call": call, "value": str() | None as value, "error": str() | None as name, "traceback": str() | None as text}:
                if call == number:
                    return Reply(value=value, error_name=name, traceback=text)
    except (ValueError, RecursionError):
        pass
    raise KernelMessageError("its reply cannot be read")
