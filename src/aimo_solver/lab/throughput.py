"""Decode speed by number of streams and depth of their contexts: the measured curves, and the simulator's use of them.

``throughput.json`` holds the curves. ``scripts/speed_curves.py`` writes it from the files of ``scripts/gpu_bench.py``, and says
what was measured and what was derived.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aimo_solver.errors import ConfigError
from aimo_solver.lab.statistics import Floats

CURVES_FILE = Path(__file__).with_name("throughput.json")
REFERENCE_STREAMS, REFERENCE_DEPTH = 8, 16_000
"""What a speed given as one number refers to. 16,000 tokens is the mean depth of an attempt of 32,000."""

USUAL_CURVE, USUAL_SPEED = "h100-uniform", 640.0
"""The simulations' default: the H100's curve, scaled to the mean of whole runs that public notebooks logged on Kaggle."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """Milliseconds of a decode step by depth and number of streams, interpolated linearly in both and extrapolated in depth.

    Attributes:
        source: where the numbers come from.
        depths: tokens of context, ascending.
        streams: numbers of streams, ascending from 1.
        step_ms: by depth, then by number of streams.
        per_step: tokens that a stream gains per step; above 1 with speculation.
    """

    name: str
    source: str
    depths: tuple[float, ...]
    streams: tuple[int, ...]
    step_ms: tuple[tuple[float, ...], ...]
    per_step: float = 1.0

    def tokens_per_s(self, streams: int, depth: float) -> float:
        """Returns the tokens per second of all streams together."""
        return streams / float(TokenTime(self, streams)(np.array([streams]), np.array([depth]))[0])

    def scaled(self, tokens_per_s: float) -> Throughput:
        """Returns the same shape with this speed at `REFERENCE_STREAMS` and `REFERENCE_DEPTH`."""
        factor = self.tokens_per_s(REFERENCE_STREAMS, REFERENCE_DEPTH) / tokens_per_s
        return replace(self, step_ms=tuple(tuple(factor * one for one in row) for row in self.step_ms))


class TokenTime:
    """Seconds per token of each of n streams; for arrays."""

    def __init__(self, curve: Throughput, most: int) -> None:
        """`most` is the largest number of streams; beyond the curve's last one, steps take longer in proportion."""
        count = np.arange(most + 1)
        rows = [np.interp(count, curve.streams, row) for row in curve.step_ms]
        beyond = np.maximum(1.0, count / curve.streams[-1])
        self._seconds: Floats = np.array(rows).T * beyond[:, None] / (1_000 * curve.per_step)  # by streams, then by depth
        self._depths = np.array(curve.depths, dtype=float)

    def __call__(self, streams: NDArray[np.int64], depth: Floats) -> Floats:
        """Returns seconds, element by element; `depth` is the mean over the streams, tokens."""
        if len(self._depths) == 1:
            shallow: Floats = self._seconds[streams, 0]
            return shallow
        lower = np.clip(np.searchsorted(self._depths, depth) - 1, 0, len(self._depths) - 2)
        part = (depth - self._depths[lower]) / (self._depths[lower + 1] - self._depths[lower])
        low, high = self._seconds[streams, lower], self._seconds[streams, lower + 1]
        between: Floats = low + part * (high - low)
        return between


def flat_curve(tokens_per_s: Mapping[int, float], name: str = "flat") -> Throughput:
    """Returns a curve that does not depend on the depth, from tokens per second by number of streams."""
    counts = sorted(tokens_per_s)
    steps = tuple(1_000 * count / tokens_per_s[count] for count in counts)
    return Throughput(name, "as given", (0.0,), tuple(counts), (steps,))


@cache
def load_curves() -> Mapping[str, Throughput]:
    """Reads the measured curves, by name."""
    read = json.loads(CURVES_FILE.read_text(encoding="utf-8"))
    return {
        name: Throughput(
            name, one["source"], tuple(one["depths"]), tuple(one["streams"]), tuple(map(tuple, one["step_ms"])), one["per_step"]
        )
        for name, one in read.items()
    }


def choose_curve(name: str = USUAL_CURVE, tokens_per_s: float = 0) -> Throughput:
    """Returns a measured curve, scaled to `tokens_per_s` unless that is 0.

    Raises:
        ConfigError: there is no such curve.
    """
    curves = load_curves()
    if name not in curves:
        raise ConfigError("--curve", f"there is no curve {name}; known: {', '.join(curves)}")
    return curves[name].scaled(tokens_per_s) if tokens_per_s else curves[name]


def usual_curve() -> Throughput:
    """Returns the curve that simulations use if none is given."""
    return choose_curve(USUAL_CURVE, USUAL_SPEED)


def common_grid(rows: Mapping[float, Mapping[int, float]], counts: Sequence[int]) -> tuple[tuple[float, ...], ...]:
    """Interpolates milliseconds per step, by depth and number of streams, to the numbers `counts` at every depth."""
    return tuple(
        tuple(np.interp(counts, sorted(row), [row[count] for count in sorted(row)]).tolist()) for _, row in sorted(rows.items())
    )
