"""The command line, `aimo-solver COMMAND`; each command is a function of this package.

Exit codes: 0 success, 1 internal error, 2 invalid input (with one line that says what to do), 130 interrupted.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from aimo_solver.cli import doctor, export, forecast, measure, prompts, server, statistics, training
from aimo_solver.cli.common import EMBEDDED_MODEL, ConfigFile, Settings, console, guarded
from aimo_solver.cli.evaluation import Evaluation
from aimo_solver.cli.problem_file import read_problems
from aimo_solver.errors import ConfigError
from aimo_solver.lab.report.command import report_runs
from aimo_solver.lab.report.watch import watch
from aimo_solver.server.launch import check_model
from aimo_solver.solve.endpoint import Endpoint, find_endpoint_folder

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Solves olympiad maths problems with an open LLM under a hard time limit.",
)


@app.command("evaluate")
@guarded
def evaluate_command(
    csv: Annotated[Path, typer.Argument(help="CSV file with the columns id, problem (or question) and optionally answer")],
    model: Annotated[
        Path | None, typer.Option(help="model folder for a local vLLM server; default: the embedded pocket model")
    ] = None,
    endpoint: Annotated[
        list[str] | None,
        typer.Option(
            help="URL of a running vLLM server, such as http://10.0.0.1:8000; repeatable: problems are spread over them"
        ),
    ] = None,
    served_model: Annotated[str | None, typer.Option(help="name of the model at the endpoints")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="AIMO_API_KEY", help="API key of the endpoints")] = None,
    out: Annotated[Path | None, typer.Option(help="run directory; default: runs/NAME-TIME")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the interrupted run in --out")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="delete an earlier run in --out")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="only the first N problems")] = None,
    ids: Annotated[str | None, typer.Option(help="only these problems, separated by commas")] = None,
    repeat: Annotated[
        int | None, typer.Option(min=1, help="this many runs, in --out/1, --out/2 ...; seeds count up from --seed")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="same as --set sampling.seed=N")] = None,
    time_limit: Annotated[
        float | None, typer.Option(min=1, help="seconds for the whole run; same as --set budget.time_limit_s=N")
    ] = None,
    problems_in_parallel: Annotated[
        int | None,
        typer.Option(min=1, help="problems solved at the same time, at least one per endpoint; same as --set solver.parallel=N"),
    ] = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Solves the problems of a CSV file and scores the answers whose truth is known.

    A resumed run keeps its options, which --set can change, and its clock: --time-limit includes the time used so far. With
    --repeat, --resume continues the interrupted run and makes those that are missing.
    """
    started = time.monotonic()
    chosen = [part.strip() for part in (ids or "").split(",") if part.strip()]
    problems = partial(read_problems, csv, ids=chosen, limit=limit)
    if not endpoint and (served_model or api_key):
        raise ConfigError("--served-model" if served_model else "--api-key", "needs --endpoint")
    remote = [Endpoint(url, served_model, api_key) for url in dict.fromkeys(endpoint or ())]
    folder = model or (find_endpoint_folder(remote[0]) if remote else EMBEDDED_MODEL)
    check_model(folder)
    if resume and out is None:
        raise ConfigError("--resume", "needs --out with the folder of the interrupted run")
    options = {"sampling.seed": seed, "budget.time_limit_s": time_limit, "solver.parallel": problems_in_parallel}
    given = [*(settings or ()), *(f"{name}={value}" for name, value in options.items() if value is not None)]
    evaluation = Evaluation(problems, folder, remote, config_file, given, resume=resume, overwrite=overwrite)
    out = out or Path("runs") / f"{csv.stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    if repeat is None:
        evaluation.run(out, started)
    else:
        evaluation.run_repeatedly(out, repeat)


@app.command("report")
@guarded
def report_command(
    directories: Annotated[list[Path], typer.Argument(help="a run directory, two to compare, more, or a folder of them")],
    out: Annotated[
        Path | None, typer.Option(help="path of the page; default: report.html in the first directory, runs.html for many runs")
    ] = None,
) -> None:
    """Prints the results of one run, two or many, and writes them as an HTML page."""
    report_runs(directories, console, out)


@app.command("watch")
@guarded
def watch_command(directory: Annotated[Path, typer.Argument(help="the run's directory")]) -> None:
    """Shows a live view of a run in another process until it ends."""
    watch(directory, console)


app.command("doctor")(doctor.doctor_command)
app.command("prompts")(prompts.prompts_command)
app.command("stats")(statistics.stats_command)
app.command("compare")(statistics.compare_command)
app.command("power")(statistics.power_command)
app.command("replay")(measure.replay_command)
app.command("forecast")(forecast.forecast_command)
app.command("serve")(server.serve_command)
app.add_typer(measure.bench, name="bench")
app.add_typer(server.cache, name="cache")
export.export.command("sft")(training.export_sft_command)
export.export.command("dpo")(training.export_dpo_command)
app.add_typer(export.export, name="export")
