"""Writes the trajectory of one attempt while it runs: every token, tool call and output, in order."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aimo_solver.log.files import json_line, replace_file

_FLUSH_S = 1.0  # how often sampled tokens are written


class TrajectoryWriter:
    """Writes one attempt; made by `RunLog.start_trajectory`, closed when its `Attempt` is logged, or by `close`."""

    def __init__(
        self,
        path: Path,
        problem_id: str,
        index: int,
        *,
        clock: Callable[[], float],
        append: Callable[[Path, bytes], bool],
        on_close: Callable[[TrajectoryWriter], None],
        decode: Callable[[Sequence[int]], str] | None,
    ) -> None:
        """`clock` gives seconds of the run; `append` adds a line to a file, or returns False if it is lost."""
        self.path = path
        self._clock = clock
        self._append = append
        self._on_close = on_close
        self._decode = decode
        self._tokens: list[int] = []
        self._entropies: list[float] = []
        self._since = self._flushed = clock()
        self._closed = self._broken = False
        self._write("start", self._since, problem_id=problem_id, index=index)

    def write_prompt(self, tokens: Sequence[int], text: str) -> None:
        """Writes the first tokens of the conversation."""
        self._write("prompt", self._clock(), tokens=list(tokens), text=text)

    def add_sampled(self, tokens: Sequence[int], entropies: Sequence[float] = ()) -> None:
        """Adds tokens of the current turn. They reach the disk about once a second; `write_turn` supersedes them."""
        self._tokens += tokens
        self._entropies += entropies
        if self._clock() - self._flushed >= _FLUSH_S:
            self._flush()

    def write_turn(
        self,
        tokens: Sequence[int],
        text: str,
        entropies: Sequence[float] = (),
        *,
        seconds: float,
        waited_s: float = 0.0,
        kind: str,
        finish: str,
        cached: int | None = None,
        lost: tuple[int, float] = (0, 0.0),
    ) -> None:
        """Writes a model turn that has just ended.

        Args:
            entropies: nats, one per token; empty if not measured.
            waited_s: the part of `seconds` before the first token.
            kind: "tool_call", "final", "malformed" or "cut".
            finish: why the engine ended it: "stop", "length", or "" if something else did.
            cached: prompt tokens found in the server's prefix cache; None if not reported.
            lost: tokens that the server computed again, and the estimated seconds; written if there are any.
        """
        self._tokens, self._entropies = [], []
        values = {"seconds": round(seconds, 3), "waited_s": round(waited_s, 3), "turn": kind, "finish": finish, "cached": cached}
        values |= {"lost": lost[0], "lost_s": round(lost[1], 3)} if lost[0] else {}
        rounded = [round(value, 3) for value in entropies]
        self._write("turn", self._clock() - seconds, **values, tokens=list(tokens), text=text, entropies=rounded)

    def write_tool_call(
        self, code: str, output: str, *, seconds: float, error_name: str | None = None, timed_out: bool = False
    ) -> None:
        """Writes a tool call that has just ended. `output` is what the model sees; `error_name` names the exception."""
        values = {"seconds": round(seconds, 3), "error_name": error_name, "timed_out": timed_out}
        self._write("tool", self._clock() - seconds, **values, code=code, output=output)

    def write_insertion(self, tokens: Sequence[int], text: str, why: str) -> None:
        """Writes tokens that were not sampled. `why` is "tool_result", "complaint", "ask_answer" or "given_up"."""
        self._write("inserted", self._clock(), tokens=list(tokens), text=text, why=why)

    def close(self) -> None:
        """Ends the trajectory; the file is compressed in the background. A second call does nothing."""
        if self._closed:
            return
        self._flush()
        self._write("end", self._clock())
        self._closed = True
        self._on_close(self)

    def pack(self) -> None:
        """Compresses the closed file, without the pieces of complete turns."""
        pieces: list[bytes] = []
        kept: list[bytes] = []
        for line in self.path.read_bytes().splitlines(keepends=True):
            if line.startswith(b'{"kind":"sampled"'):
                pieces.append(line)
                continue
            if not line.startswith(b'{"kind":"turn"'):
                kept += pieces
            pieces = []
            kept.append(line)
        replace_file(self.path.with_suffix(".jsonl.gz"), gzip.compress(b"".join(kept + pieces), 6, mtime=0))
        self.path.unlink()

    def _flush(self) -> None:
        if self._tokens:
            tokens, self._tokens = self._tokens, []
            entropies, self._entropies = [round(value, 3) for value in self._entropies], []
            text = self._decode(tokens) if self._decode else ""
            since = round(self._since, 3)
            self._write("sampled", self._clock(), since=since, tokens=tokens, text=text, entropies=entropies)
        self._flushed = self._clock()

    def _write(self, kind: str, t: float, **values: Any) -> None:
        if self._closed or self._broken:
            return
        if kind != "sampled":
            self._since = self._clock()
        # What follows a lost step is left out: the file holds the beginning of a conversation, without holes.
        self._broken = not self._append(self.path, json_line({"kind": kind, "t": round(t, 3)} | values))
