"""Runs the wheels notebook and the built notebook on a machine laid out like Kaggle's, without Kaggle.

    python scripts/kaggle_machine.py wheels FOLDER        the wheels notebook; FOLDER holds wheels instead of the internet
    python scripts/kaggle_machine.py commit CSV OUT       the notebook, as a commit runs it
    python scripts/kaggle_machine.py rerun CSV OUT        the notebook, as the competition runs it

Made for a machine or a container of its own: it writes to /kaggle, with the rights to do so. Its Python takes the place of
Kaggle's image (requirements-image.txt). Put models below /kaggle/input/models first, as Kaggle mounts them; a commit's compile
cache below /kaggle/input/datasets is found too. `--model` and `--set` are those of build_notebook.py. CSV becomes the
competition's test.csv, or in a rerun the problems of its gateway. The gateway's package is the tests' stand-in.

OUT gets everything that the notebook wrote to /kaggle/working, and executed.ipynb; the exit code is 1 if a cell failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from notebook_settings import ROOT

INPUT, WORKING = Path("/kaggle/input"), Path("/kaggle/working")
WHEELS = INPUT / "notebooks" / "you" / "aimo-solver-wheels"
COMPETITION = INPUT / "competitions" / "ai-mathematical-olympiad-progress-prize-3"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("wheels").add_argument("folder", type=existing)
    for kind in ("commit", "rerun"):
        run = kinds.add_parser(kind)
        run.add_argument("csv", type=existing)
        run.add_argument("out", type=Path)
        run.add_argument("--model", default="danielhanchen/gpt-oss-120b/transformers/default")
        run.add_argument("--set", action="append", default=[], dest="values", metavar="KEY=VALUE")
    options = parser.parse_args()
    try:
        if options.kind == "wheels":
            return build_wheels(options.folder)
        return run_notebook(options.kind, options.csv, options.out, options.model, options.values)
    except PermissionError as error:
        parser.error(f"{error.filename} cannot be written; run it in a container, with the rights to write to /kaggle")


def existing(text: str) -> Path:
    path = Path(text)
    if not path.exists():
        raise argparse.ArgumentTypeError(f"{path} does not exist")
    return path


def build_wheels(folder: Path) -> int:
    """Runs the wheels notebook, whose output becomes an input of the solver's."""
    WHEELS.mkdir(parents=True, exist_ok=True)
    program = ROOT / "notebook" / "wheels" / "build_wheels.py"
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder.resolve())}
    return subprocess.run([sys.executable, program], cwd=WHEELS, env={**os.environ, **offline}).returncode


def run_notebook(kind: str, csv: Path, out: Path, model: str, values: list[str]) -> int:
    """Builds the notebook as step 1 of the README says, runs it in an empty /kaggle/working, and copies what it wrote."""
    shutil.rmtree(COMPETITION, ignore_errors=True)
    shutil.copytree(ROOT / "tests" / "kaggle_stand_in", COMPETITION)
    shutil.copy(csv, COMPETITION / "test.csv")
    WORKING.mkdir(parents=True, exist_ok=True)
    for entry in WORKING.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    settings = [part for value in values for part in ("--set", value)]
    build = [sys.executable, str(ROOT / "scripts" / "build_notebook.py"), "--model", model, *settings]
    subprocess.run([*build, "--out", str(WORKING / "notebook.ipynb")], check=True)
    (WORKING / "competition").symlink_to(COMPETITION)
    mode = ["local", str(WORKING)] if kind == "commit" else ["rerun", str(WORKING), str(COMPETITION / "test.csv")]
    began = time.monotonic()
    code = subprocess.run([sys.executable, str(ROOT / "tests" / "notebook_run.py"), *mode]).returncode
    print(f"{kind}: exit code {code} after {time.monotonic() - began:.0f} s", flush=True)
    shutil.copytree(WORKING, out, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns("aimo_solver"))
    return code


if __name__ == "__main__":
    sys.exit(main())
