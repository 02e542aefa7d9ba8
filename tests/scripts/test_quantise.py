"""Quantising: what it calibrates on, what it refuses, the table, and one real run where llm-compressor is installed."""

from __future__ import annotations

import json
import shutil
import sys
from itertools import pairwise
from pathlib import Path
from random import Random

import polars as pl
import pytest
import typer
from typer.testing import CliRunner

from aimo_solver.config import load_config
from aimo_solver.lab.runs import read_runs
from tests.conftest import MODEL, ROOT
from tests.small_run import write_run

sys.path.insert(0, str(ROOT / "scripts"))

import quantise

ROWS = [[Random(number).randrange(1_280) for _ in range(10 * number)] for number in range(1, 21)]


def export(path: Path, rows: list[list[int]], column: str = "input_ids") -> Path:
    pl.DataFrame({column: rows}, schema={column: pl.List(pl.Int32)}).write_parquet(path)
    return path


def refusal(*arguments: object) -> str:
    result = CliRunner().invoke(quantise.app, [str(part) for part in arguments], env={"COLUMNS": "500", "TERM": "dumb"})
    assert result.exit_code == 2
    return result.output


def test_calibration_takes_rows_of_the_export_as_they_are_and_cuts_long_ones(tmp_path: Path) -> None:
    data = export(tmp_path / "sft.parquet", ROWS)
    drawn = quantise.calibration(data, rows=6, max_tokens=100, vocabulary=1_280, seed=1)
    assert len(drawn) == 6
    assert all(row in [one[:100] for one in ROWS] for row in drawn)
    assert drawn == quantise.calibration(data, rows=6, max_tokens=100, vocabulary=1_280, seed=1)
    assert drawn != quantise.calibration(data, rows=6, max_tokens=100, vocabulary=1_280, seed=2)
    everything = quantise.calibration(data, rows=100, max_tokens=1_000, vocabulary=1_280, seed=1)
    assert sorted(everything) == sorted(ROWS)


@pytest.mark.parametrize(
    ("rows", "column", "reason"),
    [
        (ROWS, "text", "no column input_ids"),
        ([], "input_ids", "has no rows"),
        ([[5], [1_280]], "input_ids", "token 1280, and the model's vocabulary 1280"),
    ],
)
def test_an_export_that_does_not_fit_is_refused(tmp_path: Path, rows: list[list[int]], column: str, reason: str) -> None:
    data = export(tmp_path / "sft.parquet", rows, column)
    with pytest.raises(typer.BadParameter, match=f"{reason}.*aimo-solver export sft"):
        quantise.calibration(data, rows=4, max_tokens=100, vocabulary=1_280, seed=0)


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sft.parquet").write_text("id,problem\n")
    assert "aimo-solver export sft" in refusal(
        *("w4a16", "--model", MODEL, "--data", tmp_path / "sft.parquet", "--out", tmp_path / "new")
    )


def test_what_cannot_be_quantised_is_refused_with_a_remedy(tmp_path: Path) -> None:
    new, packed, old = tmp_path / "new", tmp_path / "packed", tmp_path / "old"
    for folder in (packed, old):
        folder.mkdir()
    assert "name another with --python" in refusal("fp8", "--model", MODEL, "--out", new, "--python", tmp_path / "none")
    assert "exists and is no model folder" in refusal("fp8", "--model", MODEL, "--out", old)
    assert "has no config.json" in refusal("fp8", "--model", old, "--out", new)
    (packed / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "mxfp4"}}))
    (packed / "tokenizer.json").write_text("{}")
    assert "is quantised already (mxfp4)" in refusal("fp8", "--model", packed, "--out", new)
    (tmp_path / "new.check").mkdir()
    assert "runs of an earlier new" in refusal("fp8", "--model", MODEL, "--out", new, "--python", sys.executable)
    assert not new.exists()


def test_a_folder_that_exists_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    quantise._quantise("fp8", MODEL, tmp_path, tmp_path / "no-interpreter")
    assert (tmp_path / "config.json").read_text() == "{}"


def test_a_python_without_llm_compressor_says_what_to_install(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as left:
        quantise._quantise("fp8", MODEL, tmp_path / "new", Path(sys.executable))
    assert left.value.exit_code == 2
    assert "requirements-quantise.txt" in capfd.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_pins_exclude_what_the_solver_needs() -> None:
    """As long as they do, llm-compressor cannot be in the solver's environment."""

    def pins(name: str) -> dict[str, str]:
        return dict(line.split("==") for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if line[0] != "#")

    own, solver = pins("requirements-quantise.txt"), pins("requirements.lock")
    assert "llmcompressor" in own
    assert {name for name in ("transformers", "compressed-tensors") if own[name] != solver[name]}
    assert f"torch=={own['torch']}" in (ROOT / "scripts" / "install.sh").read_text(encoding="utf-8")


def test_four_bit_models_ask_for_a_type_that_cpus_have_a_kernel_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recommended = tmp_path / "aimo.toml"
    quantise._let_vllm_choose_the_type(recommended)
    assert load_config(recommended).server.extra_args == ("--dtype", "auto")
    shutil.copy(MODEL / "aimo.toml", recommended)
    quantise._let_vllm_choose_the_type(recommended)
    config = load_config(recommended)
    assert (config.server.extra_args, config.prompt) == (("--dtype", "auto"), load_config(MODEL).prompt)
    before = recommended.read_text()
    quantise._let_vllm_choose_the_type(recommended)
    assert recommended.read_text() == before
    assert "--dtype" in capsys.readouterr().out


@pytest.mark.parametrize(("code", "told"), [(1, True), (130, False)])
def test_a_server_that_fails_says_what_to_remove_and_an_interruption_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int, told: bool
) -> None:
    def run_solver(*arguments: object) -> None:
        assert ("--set", "server.restarts=0") in pairwise(arguments)
        raise typer.Exit(code)

    monkeypatch.setattr(quantise, "run_solver", run_solver)
    with pytest.raises(typer.Exit) as left:
        quantise.check_again(MODEL, MODEL, runs=tmp_path)
    assert left.value.exit_code == code
    assert (f"{tmp_path / 'after'} says why" in capsys.readouterr().err) == told


def test_the_table_compares_right_answers_problem_by_problem(tmp_path: Path) -> None:
    before = write_run(tmp_path / "before", {f"p{k}": (7, [7 if k else 8, 7]) for k in range(4)})
    after = write_run(tmp_path / "after", {f"p{k}": (7, [7, 7]) for k in range(4)})
    table = quantise.tabulate({MODEL: read_runs([before]), tmp_path: read_runs([after])})
    (old, new) = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    assert (old["right"], new["right"]) == ("3 of 4", "4 of 4")
    assert (old["difference, points"], old["difference of attempts, points"]) == (None, None)
    assert str(new["difference, points"]).startswith("+25.0 [")
    assert (old["attempts right"], new["attempts right"]) == ("87.5 %", "100.0 %")
    assert str(new["difference of attempts, points"]).startswith("+12.5 [")
    assert new["tokens/s of a stream"] == pytest.approx(60 / 3.0)  # 4 s, of which 1 s in the tool
    assert new["tokens of an attempt"] == 60
    assert old["MB"] == pytest.approx(10.3, abs=0.1)


@pytest.mark.skipif(not quantise.PYTHON.exists(), reason="no llm-compressor: docs/training.md installs it in .venv-quantise")
@pytest.mark.slow
def test_four_bits_make_a_whole_folder(tmp_path: Path) -> None:
    data, out = export(tmp_path / "sft.parquet", ROWS[4:8]), tmp_path / "new"
    quantise.w4a16(MODEL, out, data, max_tokens=50, python=quantise.PYTHON, check=False)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    weights = config["quantization_config"]["config_groups"]["group_0"]["weights"]
    assert (weights["num_bits"], weights["group_size"]) == (4, 64)  # 704 inputs have no group of 128
    for file in MODEL.iterdir():
        assert (out / file.name).exists()
    assert not list(tmp_path.glob("*.part"))
