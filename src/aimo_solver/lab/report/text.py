"""Trajectories as packed text: base64 of gzip of JSON, which the browser unpacks when a reader opens one."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from typing import Any

from aimo_solver.log.reader import TrajectoryRecord

_LEAST_CHARS = 120
_LEAST_SHARE = 0.04  # steps are left out before texts become shorter


def pack_trajectory(trajectory: TrajectoryRecord) -> str:
    return _pack(_steps(trajectory))


def _shorten(packed: str, size: int) -> str:
    """Leaves out the middle of long texts, then steps in the middle, until about `size` packed characters are left."""
    whole = json.loads(gzip.decompress(base64.b64decode(packed)))
    steps, share = whole, 1.0
    while len(packed) > size:
        share *= 0.95 * size / len(packed)
        if share < _LEAST_SHARE and len(steps) > 3:
            steps, share = _without_middle(steps, len(whole)), 1.0
        packed = _pack([_step_cut(step, share) for step in steps])
        if share < _LEAST_SHARE:
            break
    return packed


def fit_texts(texts: Sequence[str | None], limit: int) -> list[str | None]:
    """Shortens the largest texts until all together have about `limit` packed characters."""
    sizes = sorted(len(text) for text in texts if text)
    if sum(sizes) <= limit:
        return list(texts)
    left, cap = limit, 0
    for done, size in enumerate(sizes):
        cap = left // (len(sizes) - done)
        if size > cap:
            break
        left -= size
    return [text if text is None or len(text) <= cap else _shorten(text, cap) for text in texts]


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


def _step_cut(step: dict[str, Any], share: float) -> dict[str, Any]:
    texts = {name: step[name] for name in ("text", "code", "output") if name in step}
    return step | {name: _middle_out(text, max(_LEAST_CHARS, int(len(text) * share))) for name, text in texts.items()}


def _without_middle(steps: list[dict[str, Any]], of: int) -> list[dict[str, Any]]:
    """The first and the last quarter of the steps, with a note between."""
    quarter = max(1, len(steps) // 4)
    head, tail = steps[:quarter], steps[-quarter:]
    note = f"{of - len(head) - len(tail)} steps are left out here; the run directory has them"
    return [*head, {"kind": "inserted", "s": 0, "n": 0, "why": note, "text": ""}, *tail]


def _pack(steps: list[dict[str, Any]]) -> str:
    data = json.dumps(steps, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return base64.b64encode(gzip.compress(data, 5, mtime=0)).decode("ascii")


def _middle_out(text: str, chars: int) -> str:
    if len(text) <= chars:
        return text
    head, tail = chars * 2 // 3, chars // 3
    note = f"[… {len(text) - head - tail:,} characters left out here; the run directory has them …]"
    return f"{text[:head]}\n\n{note}\n\n{text[-tail:]}"
