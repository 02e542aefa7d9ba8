"""Writes the simulator's speed curves from the tables of gpu_bench.py.

    python scripts/speed_curves.py FOLDER...

Reads decode*.json, decode-skewed.json, decode-speculation.json and routing.json from the folders, and writes
src/aimo_solver/lab/throughput.json. What was not measured is derived as a curve's `source` says.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aimo_solver.lab.throughput import CURVES_FILE, common_grid

Table = Mapping[str, Any]
Steps = dict[float, dict[int, float]]  # milliseconds per step by depth and number of streams

COUNTS = (1, 2, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32)
H100 = {(1_000, 1): 202.0, (1_000, 8): 813.0, (1_000, 16): 1_150.0, (16_000, 8): 737.0}
"""Tokens per second of gpt-oss-120b's shape with uniform routing on one H100 80 GB, vLLM 0.26, by depth and streams."""

ACCEPTED = 2.2
"""Tokens per step at temperature 1 that public heads for gpt-oss-120b reach or exceed, with three drafted."""


def read(folders: Sequence[Path], *names: str) -> list[Table]:
    """Returns the tables of these names that have rows, in the order of the folders."""
    files = [folder / name for folder in folders for name in names]
    tables = [json.loads(file.read_text()) for file in files if file.is_file()]
    return [table for table in tables if table["results"]]


def steps_of(table: Table) -> Steps:
    """The measured steps of a decode table."""
    steps: Steps = {}
    for row in table["results"]:
        steps.setdefault(float(row["depth"]), {})[row["streams"]] = row["ms per step"]
    return steps


def extend(values: Mapping[int, float]) -> dict[int, float]:
    """Extends a quantity measured at a few numbers of streams to all: linear between them and from 0, proportional beyond."""
    known = {0: 0.0} | dict(values)
    most = max(known)
    known[max(COUNTS)] = known[most] * max(COUNTS) / most
    return {count: float(np.interp(count, sorted(known), [known[one] for one in sorted(known)])) for count in COUNTS}


def uniform_steps(tables: Sequence[Table]) -> Steps:
    """The widest table; a deeper row adds to its deepest row what it took beyond its own table's row of that depth."""
    steps = steps_of(max(tables, key=lambda table: sum(row["depth"] == 1_000 for row in table["results"])))
    deepest = max(steps)
    for own in map(steps_of, tables):
        for depth in sorted(own):
            if depth > deepest and deepest in own:
                more = extend({count: own[depth][count] - own[deepest][count] for count in own[depth] if count in own[deepest]})
                steps[depth] = {count: ms + more[count] for count, ms in steps[deepest].items() if count in more}
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


def plus(steps: Steps, more_ms: Mapping[int, float]) -> Steps:
    """Steps with extra milliseconds by number of streams, the same at every depth."""
    return {depth: {count: ms + more_ms[count] for count, ms in row.items() if count in more_ms} for depth, row in steps.items()}


def skew_costs(folders: Sequence[Path]) -> tuple[dict[int, float], str]:
    """Extra milliseconds of a step with skewed routing, which are negative, and how they were found."""
    for folder in reversed(folders):
        skewed, uniform = read([folder], "decode-skewed.json"), read([folder], "decode.json")
        if skewed and uniform:
            at, without = steps_of(skewed[-1])[1_000.0], steps_of(uniform[-1])[1_000.0]
            note = next((note for note in skewed[-1].get("notes", ()) if note.startswith("skew")), "skewed")
            return extend(
                {1: 0.0} | {count: ms - without[count] for count, ms in at.items() if count in without}
            ), f"measured: {note}"
    widest = steps_of(max(read(folders, "decode.json"), key=lambda table: len(table["results"])))[1_000.0]
    rows = read(folders, "routing.json")[-1]["results"]
    experts = {row["streams"]: row["uniform"] for row in rows}
    per_expert = float(np.polyfit(list(experts.values()), [widest[count] for count in experts], 1)[0])
    costs = {row["streams"]: per_expert * (row["experts per layer"] - row["uniform"]) for row in rows if row["skew"] == 1}
    return extend(costs), "derived from the experts that skew 1 takes, as measured, and the time per expert"


def draft_costs(folders: Sequence[Path]) -> dict[int, float] | None:
    """Extra milliseconds of a step with three drafted tokens; None if that was not measured."""
    tables = read(folders, "decode-speculation.json")
    if not tables:
        return None
    by_streams: dict[int, list[float]] = {}
    none = {row["streams"]: row["ms per step"] for row in tables[-1]["results"] if row["variant"] == "preset"}
    for row in tables[-1]["results"]:
        if re.fullmatch(r"3 drafted, [\d.]+ per step", row["variant"]) and row["ms per step"]:
            by_streams.setdefault(row["streams"], []).append(row["ms per step"] - none[row["streams"]])
    return extend({count: sum(costs) / len(costs) for count, costs in by_streams.items()}) if by_streams else None


def curve(steps: Steps, source: str, per_step: float = 1.0) -> dict[str, Any]:
    rounded = [[round(ms, 4) for ms in row] for row in common_grid(steps, COUNTS)]
    return {"source": source, "per_step": per_step, "depths": sorted(steps), "streams": COUNTS, "step_ms": rounded}


def make_curves(folders: Sequence[Path]) -> dict[str, Any]:
    """Returns the curves by name."""
    tables = read(folders, "decode.json", "decode-wide.json", "decode-deep.json")
    if not tables or not read(folders, "routing.json"):
        raise SystemExit("no folder has decode.json and routing.json; name the output folders of gpu_bench.py")
    uniform = uniform_steps(tables)
    (skew, skewed_how), draft = skew_costs(folders), draft_costs(folders)
    sources = {
        "uniform": (uniform, 1.0, "uniform routing"),
        "skewed": (plus(uniform, skew), 1.0, f"skewed routing, {skewed_how}"),
    }
    if draft is not None:
        drafted = f"a head that drafts 3 tokens, {ACCEPTED} tokens per step, measured 1,000 tokens deep"
        sources["drafted"] = (plus(uniform, draft), ACCEPTED, f"uniform routing, {drafted}")
        sources["skewed-drafted"] = (
            plus(plus(uniform, skew), draft), ACCEPTED, f"skewed routing, {skewed_how}; {drafted}, with uniform routing",
        )  # fmt: skip
    slower = h100_factors(uniform)
    measured = f"one H200, {', '.join(f'{depth:,.0f}' for depth in sorted(uniform))} tokens deep"
    scaled = f"; times the H100's relative speed, measured at {len(H100)} points with uniform routing"
    curves = {
        f"h100-{name}": curve(times(steps, slower), f"{measured}; {how}{scaled}", n) for name, (steps, n, how) in sources.items()
    }
    return curves | {f"h200-{name}": curve(steps, f"{measured}; {how}", n) for name, (steps, n, how) in sources.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="output of gpu_bench.py; later ones win")
    curves = make_curves(parser.parse_args().folders)
    CURVES_FILE.write_text(json.dumps(curves, indent=1) + "\n", encoding="utf-8")
    for name, one in curves.items():
        row = zip(one["streams"], one["step_ms"][one["depths"].index(16_000)], strict=True)
        speeds = {count: round(1_000 * count * one["per_step"] / ms) for count, ms in row if count in (1, 8, 12, 16, 32)}
        print(f"{name}: {speeds} tokens/s 16,000 deep; {one['source']}")


if __name__ == "__main__":
    main()
