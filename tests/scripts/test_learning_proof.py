"""The proof that training helps: what its seeds do side by side, and how it continues."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))  # the scripts import each other

import learning_proof


def test_a_failed_seed_stops_no_other_and_the_next_call_makes_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    broken = {"seed-2/rounds"}

    def run(command: Sequence[str], **_: object) -> SimpleNamespace:
        """Makes what the command would make; fails for what is broken."""
        product = Path(command[command.index("--out") + 1])
        name = product.relative_to(tmp_path).as_posix()
        if name in broken:
            return SimpleNamespace(returncode=1)
        made.append(name)
        if "evaluate" in command:
            product.mkdir(parents=True)
            (product / "summary.json").touch()
        elif "export" in command:
            product.touch()
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(learning_proof, "report", lambda out: [])
    with pytest.raises(typer.Exit):
        learning_proof.run(tmp_path, held_out=3, training=4, seeds=2)
    evaluations = [f"seed-1/{name}" for name in ("sft", "dpo-run", "dpo")]
    assert sorted(made) == sorted(["base", *evaluations, *["seed-1/rounds"] * 2, "seed-1/dpo.parquet", "seed-1/dpo-model"])
    assert made.index("seed-1/dpo.parquet") < made.index("seed-1/dpo-model") < made.index("seed-1/dpo")
    assert (tmp_path / "seed-2" / "train.csv").read_text() != (tmp_path / "seed-1" / "train.csv").read_text()

    broken.clear()
    made.clear()
    learning_proof.run(tmp_path, held_out=3, training=4, seeds=2)
    again = [name for name in made if not name.startswith("seed-2/")]
    assert set(again) == {"seed-1/rounds", "seed-1/dpo-model"}  # these commands leave a model that exists as it is
    assert {"seed-2/sft", "seed-2/dpo"} <= set(made)
