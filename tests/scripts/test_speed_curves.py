"""The simulator's speed curves from tables of the GPU benchmark."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))  # the scripts import each other

import speed_curves


def save(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps({"results": rows, "notes": ["skew 0.5, searched for"]}))


def decode(depth: int, steps: dict[int, float]) -> list[dict[str, Any]]:
    return [{"depth": depth, "streams": streams, "ms per step": ms} for streams, ms in steps.items()]


def variant(name: str, steps: dict[int, float]) -> list[dict[str, Any]]:
    return [{"variant": name, "streams": streams, "ms per step": ms} for streams, ms in steps.items()]


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    old, new = tmp_path / "old", tmp_path / "new"
    shallow = {1: 4.0, 8: 9.0, 16: 13.0, 32: 19.0}
    save(old, "decode.json", [*decode(1_000, shallow), *decode(16_000, {n: ms + 0.1 * n for n, ms in shallow.items()})])
    experts = {1: (4.0, 4.0), 8: (28.0, 18.0), 16: (52.0, 28.0)}
    routing = [{"skew": 1, "streams": n, "uniform": every, "experts per layer": some} for n, (every, some) in experts.items()]
    save(old, "routing.json", routing)
    later = ({8: 10 + depth / 2e4, 16: 14 + depth / 1e4} for depth in (1_000, 16_000, 60_000))  # each step 1 ms longer
    save(new, "decode.json", [row for depth in (1_000, 16_000, 60_000) for row in decode(depth, next(later))])
    return [old, new]


def at(curve: dict[str, Any], depth: float, streams: int) -> float:
    return float(curve["step_ms"][curve["depths"].index(depth)][curve["streams"].index(streams)])


def test_deeper_rows_add_their_own_difference_to_the_widest_table(folders: list[Path]) -> None:
    curve = speed_curves.make_curves(folders)["h200-uniform"]
    assert (at(curve, 1_000, 1), at(curve, 16_000, 32)) == (4.0, 19 + 3.2)
    # 44,000 tokens deeper cost 2.2 ms with 8 streams and 4.4 with 16, so 0.275 with 1 and 8.8 with 32.
    assert [at(curve, 60_000, n) for n in (1, 8, 16, 32)] == pytest.approx([4.1 + 0.275, 9.8 + 2.2, 14.6 + 4.4, 22.2 + 8.8])


def test_skewed_steps_are_derived_from_experts_until_they_are_measured(folders: list[Path]) -> None:
    derived = speed_curves.make_curves(folders)["h200-skewed"]
    assert "derived" in derived["source"]
    assert at(derived, 1_000, 1) == pytest.approx(4.0)
    assert at(derived, 1_000, 8) == pytest.approx(9 - 10 * 0.1875, abs=0.1)  # 9 ms for 48 more experts
    save(folders[1], "decode-skewed.json", decode(1_000, {8: 8.05, 16: 11.1}))
    measured = speed_curves.make_curves(folders)["h200-skewed"]
    assert "measured: skew 0.5" in measured["source"]
    assert [at(measured, 1_000, n) for n in (1, 8, 16)] == pytest.approx([4.0, 9 - 2.0, 13 - 3.0])
    assert at(measured, 60_000, 8) == pytest.approx(12 - 2.0)


def test_drafted_steps_cost_what_servers_with_a_head_took_more(folders: list[Path]) -> None:
    assert "h100-drafted" not in speed_curves.make_curves(folders)
    rows = [
        *variant("preset", {1: 5.0, 8: 10.0}),
        *variant("3 drafted, 2.5 per step", {1: 7.0, 8: 17.0}),
        *variant("3 drafted, 2 per step", {1: 8.0, 8: 19.0}),
        *variant("1 drafted, 1.6 per step", {1: 99.0}),
    ]
    save(folders[1], "decode-speculation.json", rows)
    curve = speed_curves.make_curves(folders)["h200-drafted"]
    assert curve["per_step"] == 2.2
    assert [at(curve, 1_000, n) for n in (1, 8, 16)] == pytest.approx([4 + 2.5, 9 + 8, 13 + 16])


def test_folders_without_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"name the output folders of gpu_bench\.py"):
        speed_curves.make_curves([tmp_path])
