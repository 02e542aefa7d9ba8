"""Shows that training on its own runs makes the pocket model better: rejection sampling, then DPO on length.

    python scripts/learning_proof.py run --out runs/learning        # one GPU; call it again to continue
    python scripts/learning_proof.py table --out runs/learning

The weak family is one that the pocket model never saw (`WEAK_FAMILY`). Every seed draws training problems of the weak family and
of all others, samples and trains for two rounds (`finetune.py rounds`), then trains on pairs of right attempts of which the
shorter is preferred (`finetune.py dpo`). Each model solves the same held-out problems, which training never draws.
"""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from aimo_solver.lab.runs import LoggedRun, read_runs
from aimo_solver.lab.statistics import Floats, Interval, paired_difference
from finetune import run_command, run_solver, sample
from pocket_problems import FAMILIES, WEAK_FAMILY, Problem
from pocket_problems import problems as draw_problems

ROOT = Path(__file__).parents[1]
POCKET = ROOT / "data" / "pocket-model"
_FINETUNE = (sys.executable, Path(__file__).with_name("finetune.py"))
SEEDS = (1, 2, 3)
STAGES = ("base", "sft", "dpo")
PARTS = {"weak": (WEAK_FAMILY,), "others": FAMILIES}
_SIDE_BY_SIDE = 8  # problems, each with its attempts

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

Out = Annotated[Path, typer.Option(help="folder for problems, runs and models")]


@app.command()
def run(
    out: Out = Path("runs/learning"),
    held_out: Annotated[int, typer.Option(min=2, help="held-out problems of each part")] = 200,
    training: Annotated[int, typer.Option(min=2, help="training problems of the weak family; half as many of the others")] = 200,
    attempts: Annotated[int, typer.Option(min=2, help="per problem, in training and evaluation")] = 8,
    rounds: Annotated[int, typer.Option(min=1)] = 2,
    epochs: Annotated[float, typer.Option(min=0.1)] = 4.0,
    seeds: Annotated[int, typer.Option(min=1, max=len(SEEDS))] = len(SEEDS),
) -> None:
    """Makes what is missing: problems, runs and models of every seed."""
    began = time.monotonic()
    test = out / "held-out.csv"
    write_problems(test, dict.fromkeys(PARTS, held_out), 0, for_training=False)
    sample(POCKET, test, out / "base", attempts, _SIDE_BY_SIDE, 0)
    for seed in SEEDS[:seeds]:
        folder = out / f"seed-{seed}"
        problems = folder / "train.csv"
        write_problems(problems, {"weak": training, "others": training // 2}, seed, for_training=True)
        shared = ["--batch", 16, "--rows", 16, "--seed", seed]
        learn = ["rounds", "--model", POCKET, "--problems", problems, "--out", folder / "rounds", "--rounds", rounds]
        learn += ["--attempts", attempts, "--parallel", _SIDE_BY_SIDE, "--epochs", epochs, "--learning-rate", 2e-4, *shared]
        run_command([*_FINETUNE, *learn])
        tuned = folder / "rounds" / str(rounds) / "model"
        sample(tuned, test, folder / "sft", attempts, _SIDE_BY_SIDE, 0)
        pairs, short = folder / "dpo.parquet", folder / "dpo-model"
        sample(tuned, problems, folder / "dpo-run", attempts, _SIDE_BY_SIDE, seed)
        if not pairs.exists():
            chosen = ["--pairs", "length", "--length-ratio", 1.1, "--keep-solved", "--held-out", 0, "--seed", seed]
            run_solver("export", "dpo", folder / "dpo-run", "--out", pairs, *chosen)
        shorten = ["dpo", "--model", tuned, "--data", pairs, "--out", short, "--learning-rate", 2e-5, "--epochs", 2, *shared]
        run_command([*_FINETUNE, *shorten])
        sample(short, test, folder / "dpo", attempts, _SIDE_BY_SIDE, 0)
    typer.echo(f"{time.monotonic() - began:.0f} s")
    table(out)


@app.command()
def table(out: Out = Path("runs/learning")) -> None:
    """Prints what the runs in OUT show, as Markdown."""
    typer.echo("\n".join(report(out)))


@dataclass(frozen=True, slots=True)
class Part:
    """What a model does on one part of the held-out problems, by problem.

    Attributes:
        right: share of right attempts.
        tokens: mean sampled tokens of right attempts, NaN where none is.
    """

    right: Floats
    tokens: Floats


def report(out: Path) -> list[str]:
    """Returns the table, one row per part and model; differences are against the model of the row before, paired by problem."""
    folders = sorted(out.glob("seed-*"))
    lines = [
        "| problems | model | attempts right | difference, points | tokens per right attempt | difference, tokens |",
        "|---|---|---|---|---|---|",
    ]
    for part in PARTS:
        before: Part | None = None
        for stage in STAGES:
            runs = [out / "base"] if stage == "base" else [folder / stage for folder in folders]
            found = [measure(read_runs([run])[0], part) for run in runs if (run / "summary.json").exists()]
            if not found:
                continue
            now = Part(np.mean([one.right for one in found], axis=0), np.mean([one.tokens for one in found], axis=0))
            row = [f"{part} ({len(now.right)})", f"{stage} ({len(found)} seeds)" if stage != "base" else stage]
            row += [f"{100 * now.right.mean():.1f} %", _difference(now.right, before.right if before else None, 100)]
            row += [f"{np.nanmean(now.tokens):.0f}", _difference(now.tokens, before.tokens if before else None, 1)]
            lines.append("| " + " | ".join(row) + " |")
            before = now
    return lines


def measure(run: LoggedRun, part: str) -> Part:
    """Returns what a run shows on a part of its problems, in the order of their ids. An attempt without an answer is wrong."""
    right, tokens = [], []
    for problem_id in sorted(name for name in run.problems if name.startswith(f"{part}-")):
        problem = run.problems[problem_id]
        hits = [attempt.tokens for attempt in problem.attempts if attempt.answer == problem.truth]
        right.append(len(hits) / len(problem.attempts))
        tokens.append(np.mean(hits) if hits else np.nan)
    return Part(np.array(right), np.array(tokens))


def _difference(now: Floats, before: Floats | None, scale: float) -> str:
    if before is None:
        return ""
    both = ~(np.isnan(now) | np.isnan(before))
    interval: Interval = paired_difference(now[both], before[both]).interval
    return f"{scale * interval.mean:+.1f} [{scale * interval.low:+.1f}, {scale * interval.high:+.1f}]"


def write_problems(path: Path, counts: Mapping[str, int], seed: int, *, for_training: bool) -> None:
    """Writes so many problems of each part, with distinct texts; leaves a file that exists as it is."""
    if path.exists():
        return
    rows = []
    for part, count in counts.items():
        drawn: dict[str, Problem] = {}
        for problem in draw_problems(seed, for_training=for_training, families=PARTS[part]):
            drawn.setdefault(problem.text, problem)
            if len(drawn) == count:
                break
        rows += [(f"{part}-{seed}-{k:03}", problem.text, problem.answer) for k, problem in enumerate(drawn.values())]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("id", "problem", "answer"), *rows])


if __name__ == "__main__":
    app()
