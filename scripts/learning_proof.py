"""Shows that training on its own runs makes the pocket model better: rejection sampling, then DPO on length.

    python scripts/learning_proof.py run --out runs/learning        # one GPU; call it again to continue
    python scripts/learning_proof.py table --out runs/learning

The weak family is one that the pocket model never saw (`WEAK_FAMILY`). Every seed draws training problems of the weak family and
of all others, samples and trains for two rounds (`finetune.py rounds`), then trains on pairs of right attempts of which the
shorter is preferred (`finetune.py dpo`). Each model solves the same held-out problems, which training never draws.

The seeds, and the independent steps of a seed, run in parallel, each server on a part of the GPU. Their output is
in ``OUT/*.log``, the seconds of every step in ``OUT/times.jsonl``. After Ctrl-C, the same command continues.
"""

from __future__ import annotations

import csv
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from aimo_solver.lab.runs import LoggedRun, read_runs
from aimo_solver.lab.statistics import Floats, Interval, paired_difference
from aimo_solver.server.machine import detect_gpus
from pocket_problems import FAMILIES, WEAK_FAMILY, Problem
from pocket_problems import problems as draw_problems
from solver_runs import run_command, run_solver, sample

ROOT = Path(__file__).parents[1]
POCKET = ROOT / "data" / "pocket-model"
_FINETUNE = (sys.executable, Path(__file__).with_name("finetune.py"))
SEEDS = (1, 2, 3)
STAGES = ("base", "sft", "dpo")
PARTS = {"weak": (WEAK_FAMILY,), "others": FAMILIES}
_SIDE_BY_SIDE = 8  # problems, each with its attempts
# Without limits, an attempt that never answers fills the context: 20 times the tokens of a right one.
_LIMITS = ("attempt.max_turns=8", "attempt.max_tokens=400")
# At most six servers share the GPU. With a fixed cache none measures the free memory, which the others change meanwhile. A model
# this small decodes fast enough without graphs, whose compilation takes 10 s at every start with a new model.
_SHARED_GPU = (
    "server.memory_share=0.1",
    'server.extra_args=["--enforce-eager","--kv-cache-memory-bytes","4294967296"]',
)

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

Out = Annotated[Path, typer.Option(help="folder for problems, runs and models")]


@app.command()
def run(
    out: Out = Path("runs/learning"),
    held_out: Annotated[int, typer.Option(min=2, help="held-out problems of each part")] = 200,
    tries: Annotated[int, typer.Option(min=1, help="attempts at a held-out problem")] = 4,
    training: Annotated[int, typer.Option(min=2, help="training problems of the weak family; half as many of the others")] = 100,
    attempts: Annotated[int, typer.Option(min=2, help="attempts at a training problem, in each round and for DPO")] = 6,
    rounds: Annotated[int, typer.Option(min=1)] = 2,
    epochs: Annotated[float, typer.Option(min=0.1, help="of each round")] = 4.0,
    seeds: Annotated[int, typer.Option(min=1, max=len(SEEDS))] = len(SEEDS),
) -> None:
    """Makes what is missing: problems, runs and models of every seed."""
    test = out / "held-out.csv"
    write_problems(test, dict.fromkeys(PARTS, held_out), 0, for_training=False)
    chosen = SEEDS[:seeds]
    for seed in chosen:
        write_problems(out / f"seed-{seed}" / "train.csv", {"weak": training, "others": training // 2}, seed, for_training=True)
    settings = (*_LIMITS, *(_SHARED_GPU if detect_gpus() else ()))
    with ThreadPoolExecutor(1 + 2 * len(chosen)) as pool:
        proof = Proof(out, test, attempts, tries, rounds, epochs, settings, pool)
        lanes = [pool.submit(proof.evaluate, POCKET, out / "base"), *(pool.submit(proof.learn, seed) for seed in chosen)]
        try:
            for lane in lanes:
                lane.result()
        except KeyboardInterrupt:
            proof.stopped.set()
            raise
    table(out)


@dataclass(frozen=True)
class Proof:
    """The steps of a proof; each leaves existing results unchanged.

    Attributes:
        attempts: at each training problem. tries: at each held-out one.
        settings: options of the solver.
        pool: has a free thread for each lane and for the evaluation that the lane starts.
        stopped: no further step begins.
    """

    out: Path
    test: Path
    attempts: int
    tries: int
    rounds: int
    epochs: float
    settings: tuple[str, ...]
    pool: ThreadPoolExecutor
    stopped: threading.Event = field(default_factory=threading.Event)
    _began: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def learn(self, seed: int) -> None:
        """Trains with one seed: rounds, then DPO on samples of the tuned model while that is evaluated."""
        folder = self.out / f"seed-{seed}"
        shared = ["--batch", 16, "--rows", 16, "--seed", seed]
        for number in range(1, self.rounds + 1):
            learn = ["rounds", "--model", POCKET, "--problems", folder / "train.csv", "--out", folder / "rounds"]
            learn += ["--rounds", number, "--attempts", self.attempts, "--parallel", _SIDE_BY_SIDE, "--keep-solved"]
            learn += ["--epochs", self.epochs, "--learning-rate", 2e-4, *shared]
            learn += [part for setting in self.settings for part in ("--set", setting)]
            self._step(folder / f"round-{number}", partial(run_command, [*_FINETUNE, *learn]))
        tuned, short = folder / "rounds" / str(self.rounds) / "model", folder / "dpo-model"
        evaluation = self.pool.submit(self.evaluate, tuned, folder / "sft")
        self._sample(tuned, folder / "train.csv", folder / "dpo-run", self.attempts, seed)
        pairs = folder / "dpo.parquet"
        if not pairs.exists():
            chosen = ["--pairs", "length", "--length-ratio", 1.1, "--keep-solved", "--held-out", 0, "--seed", seed]
            export = ["export", "dpo", folder / "dpo-run", "--out", pairs, *chosen]
            self._step(folder / "dpo-data", partial(run_solver, *export))
        # Two epochs at 2e-5 did not clearly shorten attempts: -2.0 [-4.2, +0.1] tokens.
        shorten = ["dpo", "--model", tuned, "--data", pairs, "--out", short, "--learning-rate", 5e-5, "--epochs", 3, *shared]
        self._step(short, partial(run_command, [*_FINETUNE, *shorten]))
        self.evaluate(short, folder / "dpo")
        evaluation.result()

    def evaluate(self, model: Path, run: Path) -> None:
        """Solves the held-out problems."""
        self._sample(model, self.test, run, self.tries, 0)

    def _sample(self, model: Path, problems: Path, run: Path, attempts: int, seed: int) -> None:
        self._step(run, partial(sample, model, problems, run, attempts, _SIDE_BY_SIDE, seed, self.settings))

    def _step(self, name: Path, work: Callable[..., None]) -> None:
        """Does `work`, which writes its output to the given file, and records its seconds."""
        if self.stopped.is_set():
            raise typer.Exit(1)
        began = time.monotonic()
        label = name.relative_to(self.out).as_posix()
        log = self.out / f"{label.replace('/', '-')}.log"
        try:
            work(log=log)
        except typer.Exit:
            typer.echo(f"{label} failed or was interrupted; its output is in {log}", err=True)
            raise
        ended = time.monotonic()
        line = {"step": label, "began": round(began - self._began, 1), "seconds": round(ended - began, 1)}
        with self._lock, (self.out / "times.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        typer.echo(f"{line['began']:6.0f} s  {label}: {line['seconds']} s")


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
            right, tokens = [one.right for one in found], [one.tokens for one in found]
            now = Part(np.mean(right, axis=0), np.mean(tokens, axis=0))
            row = [f"{part} ({len(now.right)})", f"{stage} ({len(found)} seeds)" if stage != "base" else stage]
            row += [_mean(right, 100, 1, " %"), _difference(now.right, before.right if before else None, 100)]
            row += [_mean(tokens, 1, 0), _difference(now.tokens, before.tokens if before else None, 1)]
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


def _mean(seeds: Sequence[Floats], scale: float, digits: int, unit: str = "") -> str:
    """Returns the mean over problems, with that of each seed in brackets if there are several."""
    each = [f"{scale * np.nanmean(values):.{digits}f}" for values in seeds]
    return f"{scale * np.nanmean(seeds):.{digits}f}{unit}" + (f" ({', '.join(each)})" if len(each) > 1 else "")


def _difference(now: Floats, before: Floats | None, scale: float) -> str:
    if before is None:
        return ""
    both = ~(np.isnan(now) | np.isnan(before))
    interval: Interval = paired_difference(now[both], before[both]).interval
    return f"{scale * interval.mean:+.1f} [{scale * interval.low:+.1f}, {scale * interval.high:+.1f}]"


def write_problems(path: Path, counts: Mapping[str, int], seed: int, *, for_training: bool) -> None:
    """Writes the given number of problems of each part, with distinct texts; leaves a file that exists as it is."""
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
