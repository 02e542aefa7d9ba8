"""Stages of `gpu_bench.py` that run the built notebook from top to bottom, with a local gateway."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_common import POCKET, ROOT, WORK, shape_folder, stage

_PROBLEM_S = 20  # of the shape's problems, whose attempts never answer by themselves
LIMIT_S = {"notebook": 240, "notebook-shape": 280}


@stage
def notebook(out: Path, tiny: bool) -> Any:
    """Runs the built notebook from top to bottom, with the embedded model and a local gateway."""
    return _run(out, "notebook", POCKET, problems=4 if tiny else 30)


@stage
def notebook_shape(out: Path, tiny: bool) -> Any:
    """Runs the notebook with gpt-oss-120b's shape and random weights that route, whose attempts give no answers."""
    values = ["ALLOW_FALLBACK=True", f"budget.cap_s={2 * _PROBLEM_S if tiny else _PROBLEM_S}", "budget.problems=3"]
    if not tiny:
        values.append("server.load_format=aimo-random")
    return _run(out, "notebook-shape", shape_folder(tiny), values, problems=3)


def _run(out: Path, name: str, model: Path, values: Sequence[str] = (), *, problems: int) -> dict[str, Any]:
    """Runs the notebook with these settings in a separate folder; returns seconds and answers."""
    import polars as pl

    folder = WORK / name
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "aimo_solver").mkdir(parents=True)
    # The notebook holds no benchmarks; vLLM looks for the load format below them.
    (folder / "aimo_solver" / "lab").symlink_to(ROOT / "src" / "aimo_solver" / "lab")
    table = pl.read_csv(ROOT / "data" / "warmup.csv").head(problems)
    table.select("id", "problem").write_csv(folder / "test.csv")
    began = time.monotonic()
    _execute(out, name, folder, [f"MODEL={model}", f"PROBLEMS={folder / 'test.csv'}", *values])
    seconds = time.monotonic() - began
    answers = pl.read_parquet(folder / "submission.parquet")
    known = answers.join(table.select("id", truth=pl.col("answer").cast(pl.Int64)), on="id")
    return {
        "seconds": seconds,
        "problems": len(known),
        "right": int((known["answer"] == known["truth"]).sum()),
        "valid": answers.schema == {"id": pl.String, "answer": pl.Int64} and bool(answers["answer"].is_between(0, 99_999).all()),
        "answers": dict(answers.select("id", "answer").rows()),
    }


def _execute(out: Path, name: str, folder: Path, values: Sequence[str]) -> None:
    """Executes the notebook; leaves OUT/NAME.executed.ipynb, its run directory, the server's log, and prints what it printed."""
    import nbclient
    import nbformat

    from notebook_settings import UserSettings

    book = nbformat.read(ROOT / "notebook" / "aimo_solver.ipynb", as_version=4)
    settings = next(cell for cell in book.cells if cell.source.startswith("MODEL = "))
    settings.source = UserSettings(values=values).edit_cell(settings.source)
    place = {"metadata": {"path": str(folder)}}
    client = nbclient.NotebookClient(book, timeout=LIMIT_S[name], iopub_timeout=60, kernel_name="python3", resources=place)
    try:
        client.execute()
    finally:
        nbformat.write(book, out / f"{name}.executed.ipynb")
        for log in folder.rglob("server.log"):
            shutil.copy(log, out / f"{name}.server.log")
        for run in folder.rglob("run.json"):
            shutil.copytree(run.parent, out / f"{name}-run", dirs_exist_ok=True)
        printed = [output for cell in book.cells[-6:] for output in cell.get("outputs", ())]
        print("".join("".join(output.get("text", "")) for output in printed), flush=True)
