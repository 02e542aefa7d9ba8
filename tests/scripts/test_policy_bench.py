"""The policy bench without its server: its settings, its imperfect model, and its tables on small runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from aimo_solver.config import load_config
from tests.conftest import MODEL, ROOT
from tests.small_run import write_run

sys.path.insert(0, str(ROOT / "scripts"))  # the scripts import each other

import policy_bench
import policy_bench_report
from policy_bench_report import COMMON, LIVE, REPEATS, Live, folder_of, report


@pytest.mark.parametrize("policy", [*LIVE, REPEATS[0]], ids=lambda policy: policy.name)
def test_every_policy_is_a_valid_configuration_of_its_own(policy: Live) -> None:
    plain = load_config(MODEL, settings=COMMON)
    assert load_config(MODEL, settings=(*COMMON, *policy.settings)) != plain


def test_policies_have_folders_of_their_own() -> None:
    assert len({folder_of(Path(), policy) for policy in (*LIVE, *REPEATS)}) == len(LIVE) + len(REPEATS)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_imperfect_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch  # takes seconds, and every worker of pytest imports this module
    from safetensors.torch import load_file, save_file

    monkeypatch.setattr(policy_bench, "POCKET", tmp_path)
    exact = {"matrix": torch.arange(10_000.0).reshape(100, 100), "norm": torch.ones(100)}
    save_file(exact, tmp_path / "model.safetensors")
    models = [tmp_path.parent / f"{tmp_path.name}-{name}" for name in ("one", "two", "other")]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        policy_bench.write_model(model, noise=0.5, seed=seed)
    one, two, other = (load_file(model / "model.safetensors") for model in models)
    assert torch.equal(one["matrix"], two["matrix"])
    assert not torch.equal(one["matrix"], other["matrix"])
    assert torch.equal(one["norm"], exact["norm"])
    noise = (one["matrix"] - exact["matrix"]) / exact["matrix"].std()
    assert float(noise.std()) == pytest.approx(0.5, rel=0.05)


def test_live_policies_are_paired_with_the_complete_run_by_problem(tmp_path: Path) -> None:
    # Majority of the complete run: right, right, wrong, wrong.
    complete: dict[str, tuple[int | None, list[int | None]]] = {
        "a": (7, [7, 7, 8]), "b": (7, [7, 7, 7]), "c": (7, [8, 8, 7]), "d": (7, [None, None]),
    }  # fmt: skip
    write_run(folder_of(tmp_path, LIVE[0]), complete)
    write_run(folder_of(tmp_path, LIVE[1]), {"a": (7, [8]), "b": (7, [7]), "c": (7, [7]), "d": (7, [7])})
    lines = report(tmp_path)
    assert lines[0].startswith(
        "4 problems, 11 attempts: pass@1 0.545, without an answer 0.182, forced 0.000; the truth is present in 3"
    )
    rows = {tuple(cell.strip() for cell in line.split("|")[1:3]): line for line in lines if line.startswith("| ")}
    assert "| 4 | 2 | 50.0 " in rows["majority", "replayed"]
    live = rows[LIVE[1].name, "live"]
    assert "| 4 | 3 | 75.0 " in live
    assert "| +25.0 " in live
    assert "| +2 -1 | 1 | 60 |" in live


def test_repeats_show_their_spread(tmp_path: Path) -> None:
    write_run(folder_of(tmp_path, LIVE[0]), {"a": (7, [7])})
    same = [policy for policy in REPEATS if policy.name.startswith("equal=4")][:4]
    for number, policy in enumerate(same):
        write_run(folder_of(tmp_path, policy), {"a": (7, [7]), "b": (7, [7 + number % 2]), "c": (7, [8])})
    (line,) = [line for line in report(tmp_path) if line.startswith("| equal=4 | 4 |")]
    # Two runs with one right answer, two with two: the variance is 1 / 3.
    assert "| 1.5 of 3 | 0.58 | 0.58 |" in line
    assert policy_bench_report.count_finished(tmp_path, same[0]) == 3
