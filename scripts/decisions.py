"""Simulates slots, attempts, stop rules and budgets at several speeds, for the tables of docs/policies.md.

    python scripts/decisions.py RECORDS --out FOLDER [--competitions 2000]

Each speed is saved in FOLDER when it is done, and not simulated again; the tables are printed at the end.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aimo_solver.config import Config
from aimo_solver.lab.records import Group, read_groups
from aimo_solver.lab.scoreboard import simulation_values
from aimo_solver.lab.simulate import parse_configuration, select_playable, simulate
from aimo_solver.lab.throughput import choose_curve, load_curves

POLICIES = (
    "default",
    "default/equal=3",
    "default/equal=5",
    "default/uncatchable",
    "default/posterior=0.95",
    "default/margin=3",
    "default/consistency",
    "default/share=0.7",
    "default/never",
    "default@8x12",
    "default/equal=5@8x12",
    "default@8x16",
    "default/equal=5@12",
    "default/uncatchable@12",
    "default/equal=5@16",
    "default/equal=6@16",
    "default/equal=8@16",
    "default/uncatchable@16",
    "default/equal=8@16x24",
    "default@even",
    "default@clamp",
    "default@tiers",
    "default@marginal",
    "default/equal=5@12@marginal",
    "default/equal=8@16@marginal",
    "default@grow",
    "default@grow@marginal",
    "default@grow@tiers",
)


@dataclass(frozen=True, slots=True)
class Case:
    """A curve, and the tokens per second at 8 streams that it is scaled to; 0: as measured."""

    curve: str
    tokens_per_s: float = 0.0

    @property
    def name(self) -> str:
        if self.tokens_per_s:
            return f"{self.curve} at {self.tokens_per_s:,.0f}"
        return f"{self.curve} ({choose_curve(self.curve).tokens_per_s(8, 16_000):,.0f})"


REQUIRED = tuple(Case("h100-uniform", speed) for speed in (640.0, 813.0, 1_050.0))
"""The default changes only for a policy whose difference excludes zero at all of these."""


def cases() -> list[Case]:
    return [*REQUIRED, *(Case(curve) for curve in load_curves() if curve.startswith("h100"))]


def play(groups: Sequence[Group], case: Case, competitions: int, progress: Callable[[float], None]) -> Mapping[str, Any]:
    """The simulated values of every policy, by name."""
    configs = {name: parse_configuration(name, Config()) for name in POLICIES}
    speed = choose_curve(case.curve, case.tokens_per_s)
    played = simulate(groups, configs, competitions=competitions, speed=speed, progress=progress)
    return simulation_values(played)


def tables(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table: differences from the default by speed; bold: the interval lies above zero."""
    head = "| difference to the default | " + " | ".join(results) + " |"
    first = [one["default"] for one in results.values()]
    lines = [head, "|---" * (len(results) + 1) + "|"]
    lines.append("| default: score | " + " | ".join(f"{one['score']:.1f}" for one in first) + " |")
    lines.append("| default: seconds | " + " | ".join(f"{one['mean_seconds']:,.0f}" for one in first) + " |")
    for policy in POLICIES[1:]:
        cells = [_difference(one[policy]) for one in results.values()]
        lines.append(f"| `{policy}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _difference(values: Mapping[str, float]) -> str:
    text = f"{values['diff']:+.2f} [{values['diff_low']:+.2f}, {values['diff_high']:+.2f}]"
    return f"**{text}**" if values["diff_low"] > 0 else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--competitions", type=int, default=2_000)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    groups = select_playable(read_groups([options.records]))
    results: dict[str, Mapping[str, Any]] = {}
    for case in cases():
        saved = options.out / f"{case.curve}-{case.tokens_per_s:.0f}-{options.competitions}.json"
        if not saved.exists():
            shown = functools.partial(_show, case, time.monotonic())
            saved.write_text(json.dumps(play(groups, case, options.competitions, shown)))
        results[case.name] = json.loads(saved.read_text())["policies"]
    print(tables(results))
    better = [name for name in POLICIES[1:] if all(results[case.name][name]["diff_low"] > 0 for case in REQUIRED)]
    print(f"\nBetter than the default at all of {', '.join(case.name for case in REQUIRED)}: {', '.join(better) or 'none'}")


def _show(case: Case, began: float, share: float) -> None:
    end = "\n" if share >= 1 else "\r"
    print(f"{case.name}: {share:4.0%}, {time.monotonic() - began:.0f} s", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
