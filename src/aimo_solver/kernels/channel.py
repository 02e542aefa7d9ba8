"""The solver's end of a kernel's shell channel: as much of ZMTP 3.0 as one Unix socket needs, and every message bounded.

Code in a kernel can send what it likes on the kernel's socket. libzmq bounds the size of a frame, but not the frames of a
message, which it holds in the solver's memory; and a peer that sent too much it disconnects without telling its user. Here
what comes is read up to `CALL_BYTES` for a call and not further, and whatever is wrong with it ends as one exception.

Framing: https://rfc.zeromq.org/spec/23. Messages: https://jupyter-client.readthedocs.io/en/stable/messaging.html.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from jupyter_client.session import DELIM, Session

from aimo_solver.errors import KernelMessageError

CALL_BYTES = 2_000_000  # a reply holds two texts of 100,000 characters, each of up to 6 bytes in JSON
_FRAME_BYTES = 1_000  # what a frame counts for beside its content, so that their number is bounded, too
_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_READY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER\x08Identity\x00\x00\x00\x00"
_MORE, _LONG, _COMMAND = 1, 2, 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a kernel says of a call.

    Attributes:
        value: the last expression's value as a notebook shows it; None if there was none.
        error_name: class of the exception that ended the call; None if none did.
        traceback: trimmed, ending in ``ErrorName: message``.
    """

    value: str | None
    error_name: str | None
    traceback: str | None


class ShellChannel:
    """A connection to a kernel. `open` makes one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: str) -> None:
        self._reader = reader
        self._writer = writer
        self._session = Session(key=key.encode())
        self._room = CALL_BYTES

    @classmethod
    async def open(cls, connection: Mapping[str, Any]) -> Self:
        """Connects to the kernel of a connection file.

        Raises:
            OSError: nobody listens.
            EOFError: the connection was closed.
            KernelMessageError: the peer does not speak ZMTP 3.
        """
        reader, writer = await asyncio.open_unix_connection(f"{connection['ip']}-{connection['shell_port']}")
        channel = cls(reader, writer, connection["key"])
        try:
            writer.write(_GREETING)
            greeting = await reader.readexactly(len(_GREETING))
            if greeting[0] != 0xFF or greeting[10] < 3:
                raise KernelMessageError("it does not speak ZMTP 3")
            writer.write(_frame(_COMMAND, _READY))
            await channel._receive_frame()  # its own READY
        except BaseException:
            channel.close()
            raise
        return channel

    async def execute(self, code: str) -> Reply:
        """Sends a cell and waits for the reply.

        Raises:
            EOFError: the kernel closed the connection.
            KernelMessageError: what came cannot be read.
        """
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}}
        request = self._session.msg("execute_request", content | {"allow_stdin": False, "stop_on_error": False})
        self._room = CALL_BYTES
        try:
            self._send(self._session.serialize(request))
            await self._writer.drain()
            while True:
                reply = _reply(await self._receive(), request["header"]["msg_id"])
                if reply is not None:
                    return reply
        except OSError as error:
            raise EOFError(str(error)) from None

    def close(self) -> None:
        self._writer.transport.abort()

    def _send(self, frames: Sequence[bytes]) -> None:
        for frame in frames[:-1]:
            self._writer.write(_frame(_MORE, frame))
        self._writer.write(_frame(0, frames[-1]))

    async def _receive(self) -> list[bytes]:
        """The frames of the next message."""
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
        self._room -= size + _FRAME_BYTES
        if self._room < 0:
            raise KernelMessageError(f"it sent more than {CALL_BYTES:,} bytes")
        return flags, await self._reader.readexactly(size)


def _frame(flags: int, content: bytes) -> bytes:
    if len(content) < 256:
        return bytes((flags, len(content))) + content
    return bytes((flags | _LONG,)) + len(content).to_bytes(8, "big") + content


def _reply(frames: list[bytes], message_id: str) -> Reply | None:
    """The reply to a message; None if it answers another."""
    try:
        _, _, parent, _, content = frames[frames.index(DELIM) + 1 :][:5]
        if json.loads(parent).get("msg_id") != message_id:
            return None
        values = json.loads(content)
        return Reply(
            value=None if values.get("value") is None else _text(values["value"]),
            error_name=_text(values["ename"]) if values.get("status") == "error" else None,
            traceback="\n".join(values.get("traceback") or ()) or None,
        )
    except Exception as error:  # noqa: BLE001 - the message comes from code that nobody has read
        raise KernelMessageError(f"its reply cannot be read: {type(error).__name__}") from None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
