"""Compares policies live on an imperfect pocket model, on two CPU cores.

    python scripts/policy_bench.py run --out runs/policies --problems 200     # an hour or two; Ctrl-C, then again to continue
    python scripts/policy_bench.py table --out runs/policies

The imperfect model is the embedded one with noise on its weights: it fails on some problems always, on most sometimes, and in
different ways. `run` makes it and its problems, starts one vLLM server, and runs `aimo-solver evaluate` once per policy of
`LIVE`, each into its own folder. The first run, `complete`, waits for all attempts, so voters and stop rules are replayed on
it. What changes the sampling is run live. `table` prints both as Markdown, with 95 % bootstrap intervals over problems.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from aimo_solver.server.process import free_port
from policy_bench_report import COMMON, LIVE, REPEATS, Live, count_finished, folder_of, report

ROOT = Path(__file__).parents[1]
POCKET = ROOT / "data" / "pocket-model"
NOISE = 0.64  # of each matrix's standard deviation; pass@1 is 0.90 at 0.5, 0.73 at 0.6 and 0.29 at 0.7
WEIGHT_SEED, PROBLEM_SEED = 1, 15
_START_S = 300.0
_END_S = 60.0

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

Out = Annotated[Path, typer.Option(help="folder of the model, the problems and the runs")]


@app.command()
def run(
    out: Out = Path("runs/policies"),
    problems: Annotated[int, typer.Option(min=2, help="problems per policy")] = 200,
    only: Annotated[list[str] | None, typer.Option(help="a policy to run; repeatable; all by default")] = None,
    endpoint: Annotated[str | None, typer.Option(help="a running server of OUT/model instead of a new one")] = None,
    minutes: Annotated[float | None, typer.Option(help="stop after this long; the next call continues")] = None,
    parallel: Annotated[int, typer.Option(min=1, max=15, help="problems at the same time, 8 attempts each")] = 8,
    repeats: Annotated[bool, typer.Option("--repeats", help="also run two of the rules ten times")] = False,
) -> None:
    """Runs the policies that are not complete yet; a call continues where the last one ended."""
    every = (*LIVE, *REPEATS)
    if unknown := set(only or ()) - {policy.name for policy in every}:
        raise typer.BadParameter(f"no policy {', '.join(sorted(unknown))}; known: {', '.join(policy.name for policy in every)}")
    chosen = [policy for policy in every if (policy.name in only if only else repeats or policy in LIVE)]
    end = float("inf") if minutes is None else time.monotonic() + 60 * minutes
    write_model(out / "model")
    table_ = out / "problems.csv"
    if not table_.exists():
        maker = [sys.executable, str(ROOT / "scripts" / "train_pocket_model.py"), "problems", "--seed", str(PROBLEM_SEED)]
        subprocess.run([*maker, "--count", "1000", "--out", table_], check=True)
    open_ = [policy for policy in chosen if count_finished(out, policy) < problems]
    if not open_:
        typer.echo("all policies are complete")
        return
    with _server(out, endpoint, 8 * parallel) as url:
        for policy in open_:
            typer.echo(f"{policy.name}: {count_finished(out, policy)} of {problems} problems so far")
            if not _evaluate(out, policy, problems, parallel, url, end):
                typer.echo("not complete; call again to continue")
                raise typer.Exit(130)


@app.command()
def table(out: Out = Path("runs/policies")) -> None:
    """Prints what the runs in OUT show, as Markdown."""
    typer.echo("\n".join(report(out)))


def write_model(folder: Path, noise: float = NOISE, seed: int = WEIGHT_SEED) -> None:
    """Writes the pocket model with Gaussian noise on its matrices; does nothing if the folder is there."""
    import torch  # here, since it takes seconds
    from safetensors.torch import load_file, save_file

    if folder.exists():
        return
    part = folder.with_name(f"{folder.name}.part")
    shutil.copytree(POCKET, part, dirs_exist_ok=True)
    weights, random = load_file(POCKET / "model.safetensors"), np.random.default_rng(seed)
    for name in sorted(weights):
        if weights[name].dim() > 1:
            exact = weights[name].float()
            drawn = torch.from_numpy(random.standard_normal(tuple(exact.shape), dtype=np.float32))
            weights[name] = (exact + noise * exact.std() * drawn).to(weights[name].dtype)
    save_file(weights, part / "model.safetensors", metadata={"format": "pt"})
    part.rename(folder)


@contextmanager
def _server(out: Path, endpoint: str | None, slots: int) -> Iterator[str]:
    """Yields the URL of a server of OUT/model, which ends with the block unless it was running before."""
    if endpoint is not None:
        yield endpoint
        return
    port = free_port()
    command = [sys.executable, "-m", "aimo_solver.cli", "serve", "--model", str(out / "model"), "--port", str(port)]
    with (out / "server.log").open("w") as log:
        server = subprocess.Popen([*command, "--slots", str(slots)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + _START_S
        while not _healthy(f"http://127.0.0.1:{port}/health"):
            if server.poll() is not None or time.monotonic() > deadline:
                typer.echo(f"the server did not start; see {out / 'server.log'}", err=True)
                raise typer.Exit(2)
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(_END_S)


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def _evaluate(out: Path, policy: Live, problems: int, parallel: int, url: str, end: float) -> bool:
    """Runs or continues one policy until `end`, a time of the monotonic clock; returns whether it is complete."""
    folder = folder_of(out, policy)
    resume = ["--resume"] if (folder / "run.json").exists() else []
    settings = [part for setting in (*COMMON, *policy.settings) for part in ("--set", setting)]
    command = [sys.executable, "-m", "aimo_solver.cli", "evaluate", str(out / "problems.csv"), "--limit", str(problems)]
    command += ["--endpoint", url, "--model", str(out / "model"), "--out", str(folder), *resume, "--time-limit", "1000000"]
    child = subprocess.Popen([*command, "--problems-in-parallel", str(parallel), *settings])
    try:
        return child.wait(None if end == float("inf") else max(1.0, end - time.monotonic())) == 0
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        child.send_signal(signal.SIGINT)
        child.wait(_END_S)
        return False


if __name__ == "__main__":
    app()
