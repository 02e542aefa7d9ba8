"""The shell channel of a kernel: the part of ZMTP 3.0 that one Unix socket needs, with bounded messages.

Code in a kernel can send anything on the kernel's socket. libzmq bounds the size of a frame but not the number of frames,
which it holds in the solver's memory, and it disconnects a peer that sent too much without reporting it. This client reads at
most `MAX_CALL_BYTES` per call, and every fault of the peer raises one of two exceptions.

Framing: https://rfc.zeromq.org/spec/23. Messages: https://jupyter-client.readthedocs.io/en/stable/messaging.html.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

from jupyter_client.session import DELIM, Session

from aimo_solver.errors import KernelMessageError

MAX_CALL_BYTES = 2_000_000  # a reply holds two texts of 100,000 characters, each of up to 6 bytes in JSON
_FRAME_BYTES = 1_000  # counted for each frame in addition to its content, which bounds the number of frames
_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_READY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00"
_MORE, _LONG, _COMMAND = 1, 2, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A kernel's reply to a call; the attributes are those of `session.ExecutionResult`."""

    value: str | None = None
    error_name: str | None = None
    traceback: str | None = None


class ShellChannel:
    """A connection to a kernel, made by `open`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str) -> None:
        self._reader = reader
        self._writer = writer
        self._session = Session(key=key.encode())
        self._bytes_left = MAX_CALL_BYTES

    @classmethod
    async def open(cls, connection: Mapping[str, Any]) -> Self:
        """Connects to a kernel; `connection` is the content of its connection file.

        Raises:
            OSError: the socket does not exist.
            EOFError: the connection was closed.
            KernelMessageError: the peer does not use ZMTP 3.
        """
        reader, writer = await asyncio.open_unix_connection(f"{connection['ip']}-{connection['shell_port']}")
        channel = cls(reader, writer, connection["key"])
        with ExitStack() as stack:
            stack.callback(channel.close)
            writer.write(_GREETING)
            greeting = await reader.readexactly(len(_GREETING))
            if greeting[0] != 0xFF or greeting[10] < 3:
                raise KernelMessageError("it does not use ZMTP 3")
            writer.write(_frame(_COMMAND, _READY))
            await channel._receive_frame()  # the peer's READY
            stack.pop_all()
        return channel

    async def execute(self, code: str) -> Reply:
        """Runs a cell and waits for the reply.

        Raises:
            EOFError: the kernel closed the connection.
            KernelMessageError: its message cannot be read.
        """
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}}
        request = self._session.msg("execute_request", content | {"allow_stdin": False, "stop_on_error": False})
        self._bytes_left = MAX_CALL_BYTES
        try:
            *frames, last = self._session.serialize(request)
            self._writer.writelines([*(_frame(_MORE, frame) for frame in frames), _frame(0, last)])
            await self._writer.drain()
            while True:
                reply = _parse_reply(await self._receive(), request["header"]["msg_id"])
                if reply is not None:
                    return reply
        except OSError as error:
            raise EOFError(str(error)) from None

    def close(self) -> None:
        self._writer.transport.abort()

    async def _receive(self) -> list[bytes]:
        """Returns the frames of the next message."""
        frames: list[bytes] = []
        while True:
            flags, content = await self._receive_frame()
            if not flags & _COMMAND:
                frames.append(content)
                if not flags & _MORE:
                    return frames

    async def _receive_frame(self) -> tuple[int, bytes]:
        flags = (await self._reader.readexactly(1))[0]
        size = int.from_bytes(await self._reader.readexactly(8 if flags & _LONG else 1), "big")
        self._bytes_left -= size + _FRAME_BYTES
        if self._bytes_left < 0:
            raise KernelMessageError(f"it sent more than {MAX_CALL_BYTES:,} bytes")
        return flags, await self._reader.readexactly(size)


def _frame(flags: int, content: bytes) -> bytes:
    if len(content) < 256:
        return bytes((flags, len(content))) + content
    return bytes((flags | _LONG,)) + len(content).to_bytes(8, "big") + content


def _parse_reply(frames: list[bytes], message_id: str) -> Reply | None:
    """Returns the reply to a message; None if it is the reply to another one."""
    try:
        _, _, parent, _, content = frames[frames.index(DELIM) + 1 :][:5]
        if json.loads(parent).get("msg_id") != message_id:
            return None
        values = json.loads(content)
        return Reply(
            value=None if values.get("value") is None else _check_text(values["value"]),
            error_name=_check_text(values["ename"]) if values.get("status") == "error" else None,
            traceback="\n".join(values.get("traceback") or ()) or None,
        )
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:  # the message comes from untrusted code
        raise KernelMessageError(f"its reply cannot be read: {type(error).__name__}") from None


def _check_text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
