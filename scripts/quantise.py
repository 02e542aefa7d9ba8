"""Quantises a model with llm-compressor, and checks the new one at once: vLLM serves it, and it solves the same problems.

    python scripts/quantise.py fp8 --model MODEL --out NEW
    python scripts/quantise.py w4a16 --model MODEL --data sft.parquet --out NEW        # data of aimo-solver export sft
    python scripts/quantise.py check --model MODEL --out NEW                           # once more, or on another machine

llm-compressor needs other versions of transformers and compressed-tensors than the solver, so it is installed in a separate
environment (requirements-quantise.txt), whose interpreter `--python` names. The check runs in this one. The same command again
continues: a folder that exists is not made again, and problems that were solved are not solved again.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import polars as pl
import typer
from rich.console import Console

from aimo_solver.errors import ModelError
from aimo_solver.lab.bench.table import BenchResult, Value
from aimo_solver.lab.runs import LoggedRun, common_problems, read_runs, right_answers
from aimo_solver.lab.statistics import Floats, paired_difference
from aimo_solver.server.launch import check_model
from aimo_solver.server.speculation import read_model_config
from solver_runs import run_command, run_solver

ROOT = Path(__file__).resolve().parent.parent
_INTERRUPTED = 130  # exit code of aimo-solver; the same command continues
_WEIGHTS = (".safetensors", ".bin", ".pt", ".index.json")
COLUMNS = (
    *("model", "MB", "right", "difference, points", "attempts right", "difference of attempts, points"),
    *("tokens/s", "tokens/s of a stream", "tokens of an attempt"),
)

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

Model = Annotated[Path, typer.Option(exists=True, file_okay=False, help="model folder with weights in BF16 or FP16")]
Out = Annotated[Path, typer.Option(help="folder of the quantised model")]
Python = Annotated[Path, typer.Option(help="interpreter that has llm-compressor; also AIMO_QUANTISE_PYTHON")]
Check = Annotated[bool, typer.Option(help="serve both models and compare them")]
Problems = Annotated[Path, typer.Option(exists=True, dir_okay=False, help="CSV with id, problem and answer")]
Runs = Annotated[Path | None, typer.Option(help="folder of the runs and check.json; default: OUT.check")]
Repeat = Annotated[int, typer.Option(min=1, help="runs of each model")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="option of the solver, section.option=value")]

PYTHON = Path(os.environ.get("AIMO_QUANTISE_PYTHON", ROOT / ".venv-quantise" / "bin" / "python"))
WARMUP = ROOT / "data" / "warmup.csv"


@app.command()
def fp8(
    model: Model,
    out: Out,
    python: Python = PYTHON,
    problems: Problems = WARMUP,
    check: Check = True,
) -> None:
    """8-bit floats: weights with a scale per output channel, activations with one per token, computed on the fly.

    Needs no data. vLLM computes in FP8 on Ada, Hopper and newer GPUs.
    """
    _quantise("fp8", model, out, python)
    if check:
        check_again(model, out, problems)


@app.command()
def w4a16(
    model: Model,
    out: Out,
    data: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="parquet file of `aimo-solver export sft`")],
    rows: Annotated[int, typer.Option(min=1, help="attempts to calibrate on, drawn at random")] = 256,
    max_tokens: Annotated[int, typer.Option(min=16, help="of an attempt; the rest is cut")] = 4_096,
    seed: Annotated[int, typer.Option()] = 0,
    python: Python = PYTHON,
    problems: Problems = WARMUP,
    check: Check = True,
) -> None:
    """4-bit integers by GPTQ, calibrated on attempts that the model made: their tokens as they were sampled."""
    vocabulary = int(_config(model)["vocab_size"])
    _quantise("w4a16", model, out, python, calibration(data, rows, max_tokens, vocabulary, seed))
    if check:
        check_again(model, out, problems)


@app.command("check")
def check_again(
    model: Model, out: Out, problems: Problems = WARMUP, runs: Runs = None, repeat: Repeat = 1, settings: Settings = None
) -> None:
    """Serves a quantised model and the one that it was made from, on the same problems; saves the table as check.json."""
    _config(out)
    folder = runs or _runs(out)
    for name, path in (("after", out), ("before", model)):  # a model that vLLM cannot serve ends the check at once
        if len(list((folder / name).rglob("summary.json"))) < repeat:
            _solve(path, problems, folder / name, repeat, settings or ())
    result = tabulate({model: read_runs([folder / "before"]), out: read_runs([folder / "after"])})
    result.show(Console(width=200))
    result.save(folder / "check.json")


def calibration(data: Path, rows: int, max_tokens: int, vocabulary: int, seed: int) -> list[list[int]]:
    """Draws rows of an export, cut to `max_tokens` token ids.

    Raises:
        typer.BadParameter: it is not an export, holds no row, or holds tokens that the model lacks.
    """
    remedy = "give the file that `aimo-solver export sft` wrote of this model's runs"
    try:
        table = pl.read_parquet(data, columns=["input_ids"])
    except (pl.exceptions.PolarsError, OSError) as error:
        raise typer.BadParameter(f"{data} has no column input_ids ({str(error).splitlines()[0]}); {remedy}") from None
    if table.is_empty():
        raise typer.BadParameter(f"{data} has no rows; {remedy}, with right attempts in them")
    tokens: list[list[int]] = table["input_ids"].to_list()
    largest = max(max(row, default=0) for row in tokens)
    if largest >= vocabulary:
        raise typer.BadParameter(f"{data} has token {largest}, and the model's vocabulary {vocabulary}; {remedy}")
    drawn = random.Random(seed).sample(tokens, min(rows, len(tokens)))
    return [row[:max_tokens] for row in drawn]


def _quantise(scheme: str, model: Path, out: Path, python: Path, rows: Sequence[Sequence[int]] | None = None) -> None:
    """Writes the folder of the quantised model in one step, with the other files of the model's."""
    config = _config(model)
    if "quantization_config" in config:
        method = config["quantization_config"].get("quant_method")
        raise typer.BadParameter(f"{model} is quantised already ({method}); give the model with weights in BF16")
    if out.exists():
        if not (out / "config.json").exists():
            raise typer.BadParameter(f"{out} exists and is no model folder; name another")
        typer.echo(f"{out} exists already; nothing to quantise")
        return
    if _runs(out).exists():
        raise typer.BadParameter(f"{_runs(out)} has runs of an earlier {out.name}; remove it, or name another folder")
    if not python.exists():
        make = f"python -m venv {ROOT / '.venv-quantise'}; install requirements-quantise.txt in it"
        raise typer.BadParameter(f"no interpreter {python}: {make}, or name another with --python")
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        options: list[object] = []
        if rows is not None:
            saved = Path(scratch) / "rows.json"
            saved.write_text(json.dumps(rows), encoding="utf-8")
            options = ["--calibration", saved]
            typer.echo(f"calibrates on {len(rows)} attempts, {sum(map(len, rows)):,} tokens")
        run_command([python, ROOT / "scripts" / "quantise_weights.py", model, part, scheme, *options])
    for file in model.iterdir():  # tokenizer, chat template, options
        if file.is_file() and not file.name.endswith(_WEIGHTS) and not (part / file.name).exists():
            shutil.copy(file, part)
    if scheme == "w4a16":
        _let_vllm_choose_the_type(part / "aimo.toml")
    part.rename(out)
    typer.echo(f"{out}: {_megabytes(model):,.1f} -> {_megabytes(out):,.1f} MB")


def _let_vllm_choose_the_type(options: Path) -> None:
    """Adds to a model's options that activations have the type of its configuration: vLLM's 4-bit kernel for CPUs has no float32,
    which the solver asks for there; on a GPU it is the default."""
    text = options.read_text(encoding="utf-8") if options.exists() else ""
    if "server" in tomllib.loads(text):
        typer.echo('aimo.toml has options of the server; on a CPU they need extra_args = ["--dtype", "auto"], too')
        return
    own = '[server]\nextra_args = ["--dtype", "auto"]  # 4-bit weights: no kernel for CPUs takes float32\n'
    options.write_text(f"{text}\n{own}".lstrip(), encoding="utf-8")


def _config(model: Path) -> dict[str, Any]:
    try:
        check_model(model)
        return dict(read_model_config(model))
    except ModelError as error:
        raise typer.BadParameter(str(error)) from None


def _solve(model: Path, problems: Path, run: Path, repeat: int, settings: Sequence[str]) -> None:
    """Makes or continues the runs of one model. The server is not restarted: a fallback would be measured instead."""
    resume = ["--resume"] if run.exists() else []
    chosen = [part for setting in ("server.restarts=0", *settings) for part in ("--set", setting)]
    try:
        run_solver("evaluate", problems, "--model", model, "--out", run, "--repeat", repeat, "--seed", 0, *resume, *chosen)
    except typer.Exit as left:
        if left.exit_code != _INTERRUPTED:  # problems may have got a wrong answer since the server was gone
            typer.echo(f"{model} was not served to the end; {run} says why. Remove that folder before the next check", err=True)
        raise


def tabulate(runs: Mapping[Path, Sequence[LoggedRun]]) -> BenchResult:
    """Returns the table of models by folder; shares are compared with the first model's, paired by problem."""
    shared = common_problems([run for own in runs.values() for run in own])
    first: tuple[Floats, Floats] | None = None
    rows: list[tuple[Value, ...]] = []
    for model, own in runs.items():
        shares = right_answers(own, shared).mean(axis=0), np.array([_right_attempts(own, problem) for problem in shared])
        points = [None, None] if first is None else [_points(*pair) for pair in zip(shares, first, strict=True)]
        first = first or shares
        right = f"{sum(run.right for run in own)} of {sum(len(run.problems) for run in own)}"
        of_attempts = f"{100 * shares[1].mean():.1f} %"
        rows.append((model.name, _megabytes(model), right, points[0], of_attempts, points[1], *_speeds(own)))
    notes = (
        "right: by vote; attempts right: of those that answered, mean over problems; with 95 % intervals for problems like these",
        "tokens/s: of all streams, from the first problem on; of a stream: over an attempt's seconds outside of tools",
    )
    return BenchResult(name="quantised", columns=COLUMNS, rows=tuple(rows), notes=notes)


def _right_attempts(runs: Sequence[LoggedRun], problem: str) -> float:
    """Returns the share of right ones among the attempts that answered; 0 if none did."""
    answered = [one.answer for run in runs for one in run.problems[problem].attempts if one.answer is not None]
    return answered.count(runs[0].problems[problem].truth) / max(1, len(answered))


def _points(now: Floats, before: Floats) -> str:
    difference = paired_difference(now, before).interval
    return f"{100 * difference.mean:+.1f} [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"


def _speeds(runs: Sequence[LoggedRun]) -> tuple[float, float, float]:
    """Returns tokens per second of all streams and of one, and the tokens of an attempt that answered."""
    records = [run.record for run in runs if run.record is not None]
    solved = sum(result.tokens for record in records for result in record.results)
    passed = sum(max(one.ended or 0.0 for one in record.problems) - record.problems[0].t for record in records)
    attempts = [attempt for run in runs for attempt in run.attempts]
    sampled, seconds = sum(one.tokens for one in attempts), sum(one.seconds - one.tool_seconds for one in attempts)
    answered = [one.tokens for one in attempts if one.answer is not None]
    return solved / passed, sampled / seconds, float(np.mean(answered))


def _runs(out: Path) -> Path:
    return out.with_name(f"{out.name}.check")


def _megabytes(model: Path) -> float:
    return sum(file.stat().st_size for file in model.glob("*.safetensors")) / 1e6


if __name__ == "__main__":
    app()
