"""Speed curves: interpolation, scale, and the file against the points that were measured."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from aimo_solver.errors import ConfigError
from aimo_solver.lab.throughput import (
    REFERENCE_DEPTH,
    REFERENCE_STREAMS,
    Throughput,
    TokenTime,
    choose_curve,
    flat_curve,
    load_curves,
)
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

from speed_curves import H100

STEEP = Throughput("steep", "", depths=(1_000.0, 3_000.0), streams=(1, 3), step_ms=((10.0, 20.0), (12.0, 40.0)))


@pytest.mark.parametrize(
    ("streams", "depth", "seconds"),
    [(1, 1_000, 0.010), (3, 3_000, 0.040), (2, 1_000, 0.015), (2, 2_000, 0.0205), (3, 5_000, 0.060), (6, 1_000, 0.040)],
)
def test_steps_are_interpolated_over_streams_and_depth(streams: int, depth: float, seconds: float) -> None:
    assert TokenTime(STEEP, 6)(np.array([streams]), np.array([depth])) == pytest.approx([seconds])


def test_a_curve_gives_back_its_tokens_per_second() -> None:
    curve = flat_curve({1: 100.0, 8: 640.0, 16: 1_200.0})
    assert [curve.tokens_per_s(count, 9_000) for count in (1, 8, 16)] == pytest.approx([100, 640, 1_200])
    assert curve.scaled(1_280).tokens_per_s(16, 0) == pytest.approx(2_400)


def test_a_step_with_speculation_gives_several_tokens() -> None:
    drafted = Throughput("drafted", "", (0.0,), (1, 8), ((10.0, 20.0),), per_step=2.2)
    assert drafted.tokens_per_s(8, 0) == pytest.approx(8 * 2.2 / 0.020)


@pytest.mark.parametrize("name", sorted(load_curves()))
def test_a_curve_of_the_file_is_plausible(name: str) -> None:
    curve = load_curves()[name]
    assert curve.source
    for depth in curve.depths:
        speeds = [curve.tokens_per_s(count, depth) for count in (1, 8, 16, 32)]
        assert speeds == sorted(speeds)
        assert 16 * curve.tokens_per_s(1, depth) > speeds[2]  # no stream is faster beside others
    assert curve.tokens_per_s(8, 60_000) < curve.tokens_per_s(8, 1_000)
    assert curve.scaled(640).tokens_per_s(REFERENCE_STREAMS, REFERENCE_DEPTH) == pytest.approx(640)


def test_the_h100s_curve_meets_the_points_measured_on_one() -> None:
    curve = choose_curve("h100-uniform")
    for (depth, streams), tokens_per_s in H100.items():
        assert curve.tokens_per_s(streams, depth) == pytest.approx(tokens_per_s, rel=2e-3)


def test_an_unknown_curve_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="there is no curve h300; known: h100-uniform, h100-skewed, "):
        choose_curve("h300")
