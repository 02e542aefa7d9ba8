"""Writes the simulator's speed curves from the files of gpu_bench.py.

    python scripts/speed_curves.py FOLDER...

reads decode.json, decode-deep.json, decode-skewed.json and routing.json from the folders, later ones first, and writes
src/aimo_solver/lab/throughput.json. Where a file is missing, its curve is derived as its `source` says.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aimo_solver.lab.throughput import CURVES_FILE, common_grid

Steps = dict[float, dict[int, float]]  # milliseconds per step by depth and number of streams

COUNTS = (1, 2, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32)
H100 = {(1_000, 1): 202.0, (1_000, 8): 813.0, (1_000, 16): 1_150.0, (16_000, 8): 737.0}
"""Tokens per second of gpt-oss-120b's shape with uniform routing on one H100 80 GB, vLLM 0.26, by depth and streams."""


def find(folders: Sequence[Path], name: str) -> dict[str, Any] | None:
    """Returns the newest table of this name, None if no folder has one with rows."""
    for folder in reversed(folders):
        if (folder / name).is_file():
            table: dict[str, Any] = json.loads((folder / name).read_text())
            if table["results"]:
                return table
    return None


def steps_of(*tables: Mapping[str, Any] | None) -> Steps:
    """The measured steps of decode tables."""
    steps: Steps = {}
    for table in tables:
        for row in table["results"] if table else ():
            steps.setdefault(float(row["depth"]), {})[row["streams"]] = row["ms per step"]
    return steps


def h100_factors(steps: Steps) -> Steps:
    """How much longer the H100 takes for a step than the GPU of `steps`, by depth and number of streams.

    Measured at four points. At 1,000 tokens the speeds' ratio is interpolated over the streams; deeper, it changes with the depth
    as it does at 8 streams.
    """

    def ratio(depth: float, count: int) -> float:
        return H100[int(depth), count] * steps[depth][count] / (1_000 * count)

    counts = sorted(count for depth, count in H100 if depth == 1_000)
    shallow = [ratio(1_000, count) for count in counts]
    deep = ratio(16_000, 8) / ratio(1_000, 8)
    return {
        depth: {
            count: 1 / float(np.interp(count, counts, shallow) * np.interp(depth, (1_000, 16_000), (1, deep))) for count in row
        }
        for depth, row in steps.items()
    }


def times(steps: Steps, factors: Steps) -> Steps:
    return {depth: {count: ms * factors[depth][count] for count, ms in row.items()} for depth, row in steps.items()}


def less(steps: Steps, saved_ms: Mapping[int, float]) -> Steps:
    """Steps that take less by what a step saves, by number of streams, at every depth alike."""
    counts = sorted(saved_ms)
    return {
        depth: {count: ms - float(np.interp(count, counts, [saved_ms[one] for one in counts])) for count, ms in row.items()}
        for depth, row in steps.items()
    }


def saved_by_skew(decode: Mapping[str, Any], routing: Mapping[str, Any]) -> dict[int, float]:
    """Milliseconds that a step saves with a skew of 1, from the experts that it takes less and the time that each costs."""
    shallow = [row for row in decode["results"] if row["depth"] == 1_000]
    experts = [row["experts per layer"] for row in shallow]
    per_expert = float(np.polyfit(experts, [row["ms per step"] for row in shallow], 1)[0])
    skewed = [row for row in routing["results"] if row["skew"] == 1]
    saved = {row["streams"]: per_expert * (row["uniform"] - row["experts per layer"]) for row in skewed}
    most = max(saved)
    return saved | {32: saved[most] * 32 / most}  # 24 and 32 streams were not probed


def curve(steps: Steps, source: str, per_step: float = 1.0) -> dict[str, Any]:
    rounded = [[round(ms, 4) for ms in row] for row in common_grid(steps, COUNTS)]
    return {"source": source, "per_step": per_step, "depths": sorted(steps), "streams": COUNTS, "step_ms": rounded}


def make_curves(folders: Sequence[Path]) -> dict[str, Any]:
    """Returns the curves by name."""
    decode, deep, routing = (find(folders, name) for name in ("decode.json", "decode-deep.json", "routing.json"))
    if decode is None or routing is None:
        raise SystemExit("no folder has both decode.json and routing.json; name the output folders of gpu_bench.py")
    uniform = steps_of(decode, deep)
    depths = ", ".join(f"{depth:,.0f}" for depth in sorted(uniform))
    measured = f"measured on one H200, uniform routing, {depths} tokens deep"
    scaled = f"; times the H100's speed relative to it, measured at {len(H100)} points"
    skewed_table = find(folders, "decode-skewed.json")
    if skewed_table is None:
        saved, how = saved_by_skew(decode, routing), "derived from the experts measured with skew 1 and the time per expert"
    else:
        shallow = {row["streams"]: row["ms per step"] for row in skewed_table["results"] if row["depth"] == 1_000}
        saved, how = {count: uniform[1_000.0][count] - ms for count, ms in shallow.items()}, "skew 1, measured 1,000 tokens deep"
        saved = {1: 0.0} | saved
    skewed = less(uniform, saved)
    slower = h100_factors(uniform)
    return {
        "h200-uniform": curve(uniform, measured),
        "h100-uniform": curve(times(uniform, slower), measured + scaled),
        "h200-skewed": curve(skewed, f"one H200, {how}; deeper, the same milliseconds less than uniform routing"),
        "h100-skewed": curve(times(skewed, slower), f"h200-skewed{scaled}"),
    }


def main() -> None:
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    curves = make_curves([Path(name) for name in sys.argv[1:]])
    CURVES_FILE.write_text(json.dumps(curves, indent=1) + "\n", encoding="utf-8")
    for name, one in curves.items():
        row = zip(one["streams"], one["step_ms"][one["depths"].index(16_000)], strict=True)
        speeds = {count: round(1_000 * count * one["per_step"] / ms) for count, ms in row if count in (1, 8, 12, 16, 32)}
        print(f"{name}: {speeds} tokens/s 16,000 deep; {one['source']}")


if __name__ == "__main__":
    main()
