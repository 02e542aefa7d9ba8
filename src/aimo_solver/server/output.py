"""What a server writes, read from a pipe as it comes: its end is kept in memory, all of it in a file as far as there is room."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

_READ_BYTES = 1 << 16
_TAIL_BYTES = 1 << 16
_LINE_CHARS = 500


class ServerOutput:
    """Reads a pipe to its end in a thread of its own, whatever becomes of the file.

    A full pipe would block the server, and an error at writing, which a server with the file as its standard error would
    get, ends a worker of vLLM.
    """

    def __init__(self, pipe: int, path: Path | None) -> None:
        """Takes over the descriptor `pipe`. What it brings is appended to the file `path`, if there is one.

        Raises:
            RuntimeError: the system has no thread left.
        """
        self._pipe = pipe
        self._path = path
        self._file: int | None = None
        self._lost = 0  # bytes that did not go into the file
        self._tail = b""
        self._thread = threading.Thread(target=self._read, name="server-output", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            os.close(pipe)
            raise

    @property
    def ended(self) -> bool:
        """True when every process that could write is gone, and all that they wrote is read."""
        return not self._thread.is_alive()

    def tail(self, lines: int) -> list[str]:
        """The last lines, each cut to a readable length."""
        text = self._tail.decode("utf-8", errors="replace")
        return [line[:_LINE_CHARS] for line in text.splitlines()[-lines:]]

    def _read(self) -> None:
        while data := os.read(self._pipe, _READ_BYTES):
            self._tail = (self._tail + data)[-_TAIL_BYTES:]
            if self._path is not None:
                self._keep(data, self._path)
        os.close(self._pipe)
        self._close_file()

    def _keep(self, data: bytes, path: Path) -> None:
        note = b"\n[%d bytes are missing here: the file could not be written]\n" % self._lost if self._lost else b""
        written = 0
        try:
            if self._file is None:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            if os.write(self._file, note) == len(note):
                self._lost = 0
                written = os.write(self._file, data)
        except OSError:
            # Opened anew for the next piece: the disk may have room again, or the folder may be back.
            self._close_file()
        self._lost += len(data) - written

    def _close_file(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = None
