"""Trajectories to read, packed small enough for one page: gzip in base64, unpacked by the browser when one is unfolded."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aimo_solver.trajectory import TrajectoryRecord

_LEAST_CHARS = 400


@dataclass(frozen=True, slots=True)
class TrajectoryText:
    """The steps of one attempt as text. `packed` is base64 of gzip of JSON; `cut_to` is the part of long texts that is left."""

    packed: str
    cut_to: float = 1.0


def trajectory_text(trajectory: TrajectoryRecord) -> TrajectoryText:
    """All of it."""
    return TrajectoryText(_pack(_steps(trajectory)))


def shortened(text: TrajectoryText, share: float) -> TrajectoryText:
    """The same with the middle left out of every long text, so that about `share` of it remains."""
    steps = json.loads(gzip.decompress(base64.b64decode(text.packed)))
    for step in steps:
        for name in ("text", "code", "output"):
            if name in step:
                step[name] = _middle_out(step[name], max(_LEAST_CHARS, int(len(step[name]) * share)))
    return TrajectoryText(_pack(steps), share)


def fit(texts: Sequence[TrajectoryText | None], limit: int) -> list[TrajectoryText | None]:
    """Shortens the largest of them until all together take about `limit` characters at most; small ones stay whole."""
    sizes = sorted(len(text.packed) for text in texts if text)
    if sum(sizes) <= limit:
        return list(texts)
    left, cap = limit, 0
    for done, size in enumerate(sizes):
        cap = left // (len(sizes) - done)
        if size > cap:
            break
        left -= size
    return [text if text is None or len(text.packed) <= cap else shortened(text, 0.95 * cap / len(text.packed)) for text in texts]


def _steps(trajectory: TrajectoryRecord) -> list[dict[str, Any]]:
    steps = []
    for step in trajectory.steps:
        head = {"kind": step.kind, "s": round(step.seconds, 2), "n": len(step.tokens)}
        match step.kind:
            case "tool":
                cause = "timeout" if step.timed_out else step.error_name
                steps.append(head | {"code": step.code, "output": step.output, "error": cause})
            case "inserted":
                steps.append(head | {"why": step.why, "text": step.text})
            case _:
                steps.append(head | {"why": step.turn, "text": step.text})
    return steps


def _pack(steps: list[dict[str, Any]]) -> str:
    data = json.dumps(steps, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return base64.b64encode(gzip.compress(data, 5, mtime=0)).decode("ascii")


def _middle_out(text: str, chars: int) -> str:
    if len(text) <= chars:
        return text
    head, tail = chars * 2 // 3, chars // 3
    note = f"[… {len(text) - head - tail:,} characters left out here; the run directory has them …]"
    return f"{text[:head]}\n\n{note}\n\n{text[-tail:]}"
