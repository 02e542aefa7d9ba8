"""One attempt's trajectory, written as it happens and read back: every token, tool call and output, in order.

The tokens of all steps, one after the other, are the exact conversation the model saw and wrote, up to what was given up.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from aimo_solver.log.jsonl import json_line, read_lines, record_of

_EVERY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One line of a trajectory. `t` is when it began, seconds of the run; fields that its kind lacks are empty.

    Attributes:
        kind: "prompt", "turn" (sampled by the model), "tool" (Python ran) or "inserted" (tokens of ours in between).
        tokens, text: exact token ids, and what they read as. The tokens of all steps in order are the conversation.
        waited_s: the part of a turn's `seconds` before its first token.
        entropies: nats, one per sampled token; empty if not measured.
        turn: what a turn was: "tool_call", "final", "malformed", or "cut" if a limit, a cancellation or a crash fell into it.
        finish: the engine's reason for a turn's end: "stop" or "length", "" if it was something else.
        why: why tokens were inserted: "tool_result", "complaint" or "ask_answer"; "given_up" inserts none: its text says how
            many tokens from the end the conversation goes on without.
    """

    kind: str
    t: float
    seconds: float = 0.0
    waited_s: float = 0.0
    tokens: tuple[int, ...] = ()
    text: str = ""
    entropies: tuple[float, ...] = ()
    turn: str = ""
    finish: str = ""
    why: str = ""
    code: str = ""
    output: str = ""
    error_name: str | None = None
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class TrajectoryRecord:
    """An attempt as it went, from `t` to `ended` (None: it was still running at the last line)."""

    problem_id: str
    index: int
    t: float
    steps: tuple[Step, ...]
    ended: float | None


class Trajectory:
    """Writes one attempt; made by `RunLog.trajectory`, closed when its `Attempt` is logged, or by `close`."""

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float],
        guard: Callable[[Callable[[], object]], None],
        closed: Callable[[Trajectory], None],
        decode: Callable[[Sequence[int]], str] | None,
    ) -> None:
        """`clock` reads seconds of the run, `guard` runs what may fail on disk, `closed` is told once nothing more comes."""
        self.path = path
        self._clock = clock
        self._guard = guard
        self._tell_closed = closed
        self._decode = decode
        self._file: BinaryIO | None = None
        self._tokens: list[int] = []
        self._entropies: list[float] = []
        self._since = self._flushed = clock()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def start(self, problem_id: str, index: int) -> None:
        self._write("start", self._clock(), problem_id=problem_id, index=index)

    def prompt(self, tokens: Sequence[int], text: str) -> None:
        """The tokens the conversation begins with."""
        self._write("prompt", self._clock(), tokens=list(tokens), text=text)

    def sampled(self, tokens: Sequence[int], entropies: Sequence[float] = ()) -> None:
        """Tokens of the turn under way. Cheap: they reach the disk about once a second, and `turn` replaces them."""
        self._tokens += tokens
        self._entropies += entropies
        if self._clock() - self._flushed >= _EVERY_S:
            self._flush()

    def turn(
        self,
        tokens: Sequence[int],
        text: str,
        entropies: Sequence[float] = (),
        *,
        seconds: float,
        waited_s: float = 0.0,
        kind: str,
        finish: str,
    ) -> None:
        """A turn of the model that has just ended.

        Args:
            entropies: nats, one per token; empty if not measured.
            waited_s: the part of `seconds` before the first token.
            kind: what it turned out to be: "tool_call", "final", "malformed" or "cut".
            finish: why the engine ended it: "stop" or "length", "" if something else did.
        """
        self._tokens, self._entropies = [], []
        values = {"seconds": round(seconds, 3), "waited_s": round(waited_s, 3), "turn": kind, "finish": finish}
        rounded = [round(value, 3) for value in entropies]
        self._write("turn", self._clock() - seconds, **values, tokens=list(tokens), text=text, entropies=rounded)

    def tool(self, code: str, output: str, *, seconds: float, error_name: str | None = None, timed_out: bool = False) -> None:
        """Python has just run. `output` is what the model sees; `error_name` is the exception's, None if there was none."""
        values = {"seconds": round(seconds, 3), "error_name": error_name, "timed_out": timed_out}
        self._write("tool", self._clock() - seconds, **values, code=code, output=output)

    def inserted(self, tokens: Sequence[int], text: str, why: str) -> None:
        """Tokens of ours in between: "tool_result", "complaint" or "ask_answer"."""
        self._write("inserted", self._clock(), tokens=list(tokens), text=text, why=why)

    def close(self) -> None:
        """Ends the trajectory; the file is compressed in the background. Does nothing the second time."""
        if self._closed:
            return
        self._flush()
        self._write("end", self._clock())
        self._closed = True
        if self._file is not None:
            self._file.close()
        self._tell_closed(self)

    def pack(self) -> None:
        """Compresses the closed file, without the pieces of turns that are there as a whole."""
        lines = self.path.read_bytes().splitlines(keepends=True)
        pieces: list[bytes] = []
        kept: list[bytes] = []
        for line in lines:
            if line.startswith(b'{"kind":"sampled"'):
                pieces.append(line)
                continue
            if not line.startswith(b'{"kind":"turn"'):
                kept += pieces
            pieces = []
            kept.append(line)
        packed = self.path.with_suffix(".jsonl.gz")
        part = self.path.with_suffix(".part")
        part.write_bytes(gzip.compress(b"".join(kept + pieces), 6, mtime=0))
        os.replace(part, packed)
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
        if self._closed:
            return
        if kind != "sampled":
            self._since = self._clock()
        data = json_line({"kind": kind, "t": round(t, 3)} | values)

        def write() -> None:
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("ab", buffering=0)
            self._file.write(data)

        self._guard(write)


def read_trajectory(path: Path) -> TrajectoryRecord:
    """Reads one attempt. Tokens that a running or killed attempt had sampled so far become a turn that is "cut"."""
    steps: list[Step] = []
    problem_id, index, start, ended = "", 0, 0.0, None
    cut: list[Mapping[str, Any]] = []
    for line in read_lines(path):
        kind = line["kind"] if line else ""
        if line is None:
            continue
        if kind == "sampled":
            cut.append(line)
            continue
        if kind == "start":
            problem_id, index, start = line["problem_id"], line["index"], line["t"]
        elif kind == "end":
            ended = line["t"]
        else:
            if cut and kind != "turn":
                steps.append(_cut_turn(cut))
            cut = []
            listed = {name: tuple(line[name]) for name in ("tokens", "entropies") if line.get(name)}
            steps.append(record_of(Step, {k: v for k, v in line.items() if v is not None} | listed))
    if cut:
        steps.append(_cut_turn(cut))
    return TrajectoryRecord(problem_id, index, start, tuple(steps), ended)


def _cut_turn(sampled: list[Mapping[str, Any]]) -> Step:
    start = sampled[0]["since"]
    return Step(
        kind="turn",
        turn="cut",
        t=start,
        seconds=sampled[-1]["t"] - start,
        tokens=tuple(token for line in sampled for token in line["tokens"]),
        text="".join(line["text"] for line in sampled),
        entropies=tuple(value for line in sampled for value in line["entropies"]),
    )
