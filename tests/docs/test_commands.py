"""Runs every command of the docs, except those listed in `EXCLUDED` with a reason. About a minute and a half.

Commands are run as they are in a folder with the files that the docs mention. `Workspace` fills in placeholders (MODEL, a
port); appended options make long runs short.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from aimo_solver.cli.main import app
from aimo_solver.lab.bench import boot as bench_boot
from aimo_solver.server import launch
from aimo_solver.server.launch import LaunchPlan, plan_launch
from aimo_solver.server.process import ServerCommand
from aimo_solver.solve import session
from tests.conftest import MODEL, ROOT, Served
from tests.doc_commands import ALL, blocks
from tests.small_run import write_run

pytestmark = pytest.mark.timeout(900)  # slow commands wait for each other

COMMANDS = {command.text for command in ALL if command.complete}
POCKET = "--endpoint ENDPOINT --set solver.slots=2 --set solver.max_attempts=2"
GPU_STAGES = "needs a GPU and minutes; --list and the stages that need neither are run"
PUBLIC_RECORDS = "tests/lab/test_forecast.py reads them if present"
IN_SUITE = "part of this suite"
KAGGLE = "needs a Kaggle account"
KAGGLE_MACHINE = "writes to /kaggle; tests/kaggle and tests/scripts run its parts"
NETWORK = "installs from the network"


@dataclass(frozen=True)
class Case:
    """A command to run.

    Attributes:
        prints: text that its output contains.
        more: options appended to make it short or to use the session's server.
        makes: a file that exists afterwards.
        before: commands to run first.
    """

    command: str
    prints: str
    more: str = ""
    makes: str = ""
    before: tuple[Case, ...] = ()

    @property
    def needs_kernels(self) -> bool:
        return self.needs_endpoint or "bench kernels" in self.command

    @property
    def needs_endpoint(self) -> bool:
        return any("--endpoint" in f"{case.command} {case.more}" for case in (self, *self.before))


CASES = (
    Case(
        "aimo-solver evaluate problems.csv --model /models/gpt-oss-120b --out runs/first",
        "of 2 right",
        more=f"--overwrite {POCKET}",
        makes="runs/first/summary.json",
    ),
    Case(
        "aimo-solver evaluate problems.csv --out runs/first --model /models/gpt-oss-120b --resume",
        "of 2 right",
        more=POCKET,
        makes="runs/first/summary.json",
        before=(
            Case(
                "aimo-solver evaluate problems.csv --model /models/gpt-oss-120b --out runs/first",
                "of 1 right",
                more=f"--overwrite --limit 1 {POCKET}",
            ),
        ),
    ),
    Case(
        "aimo-solver evaluate problems.csv --config my.toml"
        " --set solver.slots=16 --set solver.max_attempts=16 --set voting.equal=6",
        "of 1 right",
        more="--limit 1 --endpoint ENDPOINT",
    ),
    Case("aimo-solver evaluate problems.csv --time-limit 600", "of 1 right", more=f"--limit 1 {POCKET}"),
    Case(
        "aimo-solver evaluate problems.csv --set voting.stop=uncatchable --set budget.rule=marginal",
        "of 1 right",
        more=f"--limit 1 {POCKET}",
    ),
    Case(
        "aimo-solver evaluate fresh.csv",
        "of 1 right",
        more=f"--limit 1 {POCKET}",
        before=(
            Case(
                "python scripts/train_pocket_model.py problems --seed 777001 --count 200 --out fresh.csv", "", makes="fresh.csv"
            ),
        ),
    ),
    Case(
        "aimo-solver evaluate problems.csv --endpoint http://127.0.0.1:8000 --problems-in-parallel 4",
        "of 2 right",
    ),
    Case(
        "aimo-solver evaluate problems.csv --endpoint http://127.0.0.1:8000 --endpoint http://127.0.0.1:8001",
        "of 1 right",
        more="--limit 1",
    ),
    Case(
        "aimo-solver evaluate problems.csv --model /models/gpt-oss-120b --set server.draft_model=/models/eagle3-head",
        "of 1 right",
        more=f"--limit 1 {POCKET}",
    ),
    Case("aimo-solver prompts --model /models/gpt-oss-120b --config my.toml", "family gemma"),
    Case("aimo-solver watch runs/first", "p1"),
    Case("aimo-solver report runs/first", "page:", makes="runs/first/report.html"),
    Case("aimo-solver report runs/first runs/second", "second against first", makes="runs/first/report.html"),
    Case("aimo-solver report runs", "Two-run score", makes="runs/runs.html"),
    Case("aimo-solver report out/runs/run-1", "page:", makes="out/runs/run-1/report.html"),
    Case(
        "aimo-solver evaluate problems.csv --model /models/gpt-oss-120b --out runs/five --repeat 5",
        "2 runs: ",
        more=f"--repeat 2 --limit 1 --overwrite {POCKET}",
        makes="runs/five/2/summary.json",
    ),
    Case("aimo-solver stats runs/five", "Pairs of runs (1), 2 problems"),
    Case("aimo-solver stats runs/hot", "Pairs of runs (1), 2 problems"),
    Case("aimo-solver power runs/hot --difference 3 --problems 30", "2 runs of 2 problems"),
    Case("aimo-solver stats runs/ten --plots plots", "Pairs of runs (1), 2 problems", makes="plots/attempts.svg"),
    Case("aimo-solver compare runs/first runs/second", "Against runs/first"),
    Case("aimo-solver compare runs/first runs/five", "Against runs/first"),
    Case("aimo-solver power --difference 1 --problems 50", "47 runs of each"),
    Case("aimo-solver power runs/ten --difference 2 --problems 50", "2 runs of 2 problems"),
    Case("aimo-solver replay runs/first --policy majority --policy default/equal=3", "default/equal=3"),
    Case("aimo-solver replay RUN --policy majority --policy default --policy default/equal=3", "default/equal=3"),
    Case(
        "aimo-solver replay RUN --policy default@greedy --policy default@marginal --policy default/equal=6@16 --simulate",
        "20 competitions of 2 problems",
        more="--competitions 20 --problems 2",
    ),
    Case(
        "aimo-solver replay RUN --policy default@greedy --policy default@marginal --simulate --order hard-first",
        "run to run",
        more="--competitions 10 --problems 2",
    ),
    Case("aimo-solver replay RUN --policy default --policy select --policy verify", "verify"),
    Case("aimo-solver replay RUN --policy default --policy default:0.5 --policy default:2", "default:2"),
    Case("aimo-solver replay DIR/attempts.jsonl", "majority"),
    Case("aimo-solver export parquet runs/first --out tables", "turns.parquet", makes="tables/attempts.parquet"),
    Case("aimo-solver export parquet runs/first runs/second --out tables", "turns.parquet", makes="tables/attempts.parquet"),
    Case(
        "aimo-solver export sft runs/first runs/second --out sft.parquet",
        "sft.json",
        more="--keep-solved --held-out 0",
        makes="sft.parquet",
    ),
    Case("aimo-solver export inspect runs/first --out logs", "first.eval", makes="logs/first.eval"),
    Case("aimo-solver bench kernels", "plain jupyter_client", more="--kernels 2 --rounds 1"),
    Case("aimo-solver bench parse", "over a limit", more="--family fenced --sizes 100,1000"),
    Case("aimo-solver bench readahead --folder /disk/scratch --gigabytes 30", "warm", more="--gigabytes 0.05"),
    Case(
        "aimo-solver cache pack --model MODEL --archive gpt-oss.aimocache",
        "gpt-oss.aimocache",
        more="--root jit",
        makes="gpt-oss.aimocache",
    ),
    Case("python scripts/gpu_bench.py --list", "boot-cold"),
    Case("python scripts/score_guards.py RUN", "stop_loops"),
    Case("python scripts/score_guards.py --made-up", "counting"),
    Case("source .venv/bin/activate", str(Path(sys.prefix)), more="&& command -v python"),
    Case("make run", "aimo-solver evaluate data/warmup.csv", more="--dry-run"),
    Case("make fast", "-m 'not vllm and not kernels and not slow'", more="--dry-run"),
    Case("make test", "pytest -q", more="--dry-run"),
    Case("make fuzz", "tests/chat/test_fuzz.py", more="--dry-run"),
    Case("make endurance", "scripts/endurance.py", more="--dry-run"),
    Case("make endurance SEED=3", "scripts/endurance.py --seed 3", more="--dry-run"),
    Case("make check", "mypy", more="--dry-run"),
    Case("make notebook", "scripts/build_notebook.py", more="--dry-run"),
    Case("make lock", "requirements.lock.new", more="--dry-run"),
)

START_SERVERS = {
    "aimo-solver evaluate problems.csv --time-limit 3600 --set budget.rule=marginal --seed 1": ("", "of 2 right"),
    "aimo-solver bench engine --model MODEL": ("--streams 2 --tokens 40 --turn-tokens 20", "loop, tools"),
    "aimo-solver bench decode --model MODEL": ("--streams 2 --depths 100 --tokens 40", "ms per step"),
    "aimo-solver bench boot --model MODEL": ("--set solver.slots=2", "side by side"),
}

SESSION_SERVER = "conftest.py::vllm"
ELSEWHERE = {
    "aimo-solver serve --model /models/gpt-oss-120b --port 8000": SESSION_SERVER,
    "aimo-solver serve --port 8000 --slots 32 --set sampling.seed=0": SESSION_SERVER,
    "python scripts/fault_table.py --times once --out cells.jsonl health": (
        "faults/test_table.py::test_the_script_prints_the_rows_that_are_asked_for"
    ),
    "python scripts/build_notebook.py --check": (
        "kaggle/test_build_notebook.py::test_the_notebook_in_the_repository_is_what_its_sources_say"
    ),
    "python scripts/build_notebook.py --user YOU --model danielhanchen/gpt-oss-120b/transformers/default": (
        "docs/test_docs.py::test_the_notebook_is_built_and_checked_as_written"
    ),
    "python scripts/build_notebook.py --user YOU --cache YOU/aimo-solver-cache"
    " --model danielhanchen/gpt-oss-120b/transformers/default": "docs/test_docs.py::test_kaggle_steps_fit_the_metadata",
    "aimo-solver doctor --model /models/gpt-oss-120b": "cli/test_doctor.py::test_doctor_checks_everything",
}
"""Commands run by a test or a fixture in another module."""

EXCLUDED = {
    "aimo-solver evaluate problems.csv --out runs/ten --repeat 10 --seed 1": "starts ten servers; --repeat is run above",
    "aimo-solver evaluate problems.csv --endpoint http://127.0.0.1:8000 --out runs/hot --repeat 10 --problems-in-parallel 8"
    " --set sampling.temperature=2 --set sampling.min_p=0 --set solver.slots=2 --set solver.max_attempts=2"
    " --set voting.stop=never --set attempt.max_turns=6": "minutes; --repeat is run above",
    "python -m tests.lab.coverage": "half a minute; the suite runs a part of it",
    "pip install --upgrade kaggle": NETWORK,
    "pip install -e .": NETWORK,
    "pip install -e '.[gpu]'": NETWORK,
    "pip install -e '.[symbolic]'": NETWORK,
    "pip install -e '.[inspect]'": NETWORK,
    "pip install -e '.[train]'": NETWORK,
    "aimo-solver report A B": "placeholders; two runs are compared above",
    **dict.fromkeys(
        (
            "aimo-solver evaluate aime.csv --set 'answers.range=[0,999]'",
            "aimo-solver evaluate problems.csv --set answers.modulus=1000",
            "aimo-solver evaluate math500.csv --set answers.kind=symbolic",
        ),
        "tests/solve/test_other_answers.py solves such files with a scripted model",
    ),
    **dict.fromkeys(
        (
            "pip install -e '.[train]'",
            "aimo-solver evaluate train.csv --model MODEL --out runs/train --set voting.stop=never --set solver.max_attempts=16",
            "aimo-solver export sft runs/train --out sft.parquet",
            "python scripts/finetune.py sft --model MODEL --data sft.parquet --out models/sft --lora 32",
            "aimo-solver export dpo runs/train --pairs answer --pairs length --out dpo.parquet",
            "python scripts/finetune.py dpo --model models/sft --data dpo.parquet --out models/dpo --lora 32",
            "python scripts/finetune.py rounds --model MODEL --problems train.csv --out models/rounds --rounds 2",
        ),
        "tests/scripts/test_finetune.py trains on such files",
    ),
    "python -m venv .venv-quantise": NETWORK,
    ".venv-quantise/bin/python -m pip install -r requirements-quantise.txt": NETWORK,
    **dict.fromkeys(
        (
            "python scripts/quantise.py fp8 --model models/sft --out models/sft-fp8",
            "python scripts/quantise.py w4a16 --model models/sft --data sft.parquet --out models/sft-w4a16",
            "python scripts/quantise.py check --model models/sft --out models/sft-fp8 --repeat 4 --set voting.stop=never",
        ),
        "needs llm-compressor; tests/scripts/test_quantise.py",
    ),
    "python scripts/quantise.py check": "named in a sentence",
    "aimo-solver export sft --keep-solved": "shows an option; tests/lab/test_training_data.py",
    "python scripts/learning_proof.py run --out runs/learning": "half an hour on a GPU; its parts have tests",
    "python scripts/learning_proof.py table --out runs/learning": "needs the runs of the command before it",
    "aimo-solver export dpo runs/first runs/second --pairs answer --pairs length --out dpo.parquet": (
        "tests/lab/test_training_data.py makes pairs; the runs here may have none"
    ),
    "aimo-solver export wandb runs/first --out wandb-runs": "tests/lab/test_export.py does it where wandb is installed",
    "kaggle auth login": KAGGLE,
    "cp out/compile-cache.aimocache notebook/cache/": KAGGLE,
    "kaggle datasets create -p notebook/cache": KAGGLE,
    "kaggle datasets status YOU/aimo-solver-cache": KAGGLE,
    "kaggle kernels push -p notebook/wheels": KAGGLE,
    "kaggle kernels status YOU/aimo-solver-wheels": KAGGLE,
    "kaggle kernels push -p notebook": KAGGLE,
    "kaggle kernels status YOU/aimo-solver": KAGGLE,
    "kaggle kernels logs YOU/aimo-solver": KAGGLE,
    "kaggle kernels output YOU/aimo-solver -p out": KAGGLE,
    "kaggle competitions submit -c ai-mathematical-olympiad-progress-prize-3 -k YOU/aimo-solver -v 1 -f submission.parquet"
    " -m first": KAGGLE,
    "python scripts/kv_cache_simulation.py": "a quarter of a minute; needs vLLM",
    "python scripts/gpu_bench.py --tables OUT": "tests/lab/test_load.py renders saved results",
    "python scripts/answer_table.py": "needs math-verify; half a minute",
    "python scripts/fault_table.py": "minutes; the suite runs a cell of each row, and one row with this script",
    "python scripts/policy_bench.py run --out runs/policies --problems 200": "an hour; its parts have tests",
    "python scripts/policy_bench.py table --out runs/policies": "needs the runs of the command before it",
    "python scripts/decisions.py ../shared/replay/attempts.csv --out decisions": "minutes; tests/scripts/test_decisions.py",
    "python scripts/speed_curves.py FOLDER": "writes into the sources; tests/scripts/test_speed_curves.py",
    "aimo-solver forecast ../shared/replay/attempts.csv --uplift 2": PUBLIC_RECORDS,
    "aimo-solver forecast ../shared/replay/attempts.csv": PUBLIC_RECORDS,
    "aimo-solver forecast ../shared/replay/attempts.csv --lengths tonghuikang/": PUBLIC_RECORDS,
    "python scripts/score_guards.py ../shared/harmony/attempts.npz": "tests/policy/test_loops.py reads them if present",
    "pytest tests/policy/test_voting.py": IN_SUITE,
    "pytest tests/kaggle/test_notebook.py": IN_SUITE,
    "pytest tests/solve/test_solver_vllm.py": IN_SUITE,
    "pytest -m 'not vllm and not kernels and not slow'": IN_SUITE,
    "aimo-solver evaluate --out DIR": "shows an option; there are no problems to solve",
    "aimo-solver cache build --model MODEL --archive gpt-oss.aimocache": "compiles for a GPU, in two server starts",
    **dict.fromkeys((one for one in COMMANDS if one.startswith("python scripts/gpu_bench.py OUT ")), GPU_STAGES),
    **dict.fromkeys((one for one in COMMANDS if one.startswith("python scripts/kaggle_machine.py ")), KAGGLE_MACHINE),
}  # fmt: skip


def covered() -> list[str]:
    cases = [one.command for case in CASES for one in (case, *case.before)]
    alone = list(START_SERVERS)
    return [*dict.fromkeys(cases), *alone, *ELSEWHERE]


def test_every_command_is_run_or_excluded_with_a_reason() -> None:
    assert COMMANDS - {*covered(), *EXCLUDED} == set()


def test_every_command_in_the_tables_is_in_the_docs() -> None:
    assert {*covered(), *EXCLUDED} - COMMANDS == set()


def test_no_command_is_both_run_and_excluded() -> None:
    assert len(covered()) == len(set(covered()))
    assert set(covered()) & EXCLUDED.keys() == set()


@pytest.mark.parametrize("place", list(ELSEWHERE.values()))
def test_tests_elsewhere_exist(place: str) -> None:
    module, name = place.split("::")
    assert re.search(rf"^def {name}\(", (ROOT / "tests" / module).read_text(encoding="utf-8"), re.MULTILINE)


@dataclass
class Workspace:
    """A folder with what the commands need: the repository's files, problems and finished runs; fills in placeholders."""

    folder: Path
    endpoint: str = ""

    def __post_init__(self) -> None:
        for name in ("Makefile", "scripts", "data", "requirements.lock", "requirements-image.txt", "pyproject.toml"):
            (self.folder / name).symlink_to(ROOT / name)
        (self.folder / ".venv").symlink_to(sys.prefix)
        warmup = (ROOT / "data" / "warmup.csv").read_text(encoding="utf-8").splitlines(keepends=True)
        (self.folder / "problems.csv").write_text("".join(warmup[:3]), encoding="utf-8")
        (self.folder / "my.toml").write_text(blocks((ROOT / "README.md").read_text(encoding="utf-8"), "toml")[0])
        answers: dict[str, tuple[int | None, list[int | None]]] = {"p1": (7, [7, 7, 7, 3]), "p2": (5, [4, 4, 5, None])}
        for name in (
            "runs/first",
            "runs/second",
            "runs/five/1",
            "runs/five/2",
            "runs/ten/1",
            "runs/ten/2",
            "runs/hot/1",
            "runs/hot/2",
            "out/runs/run-1",
        ):
            write_run(self.folder / name, answers)
        (self.folder / "jit" / "vllm").mkdir(parents=True)
        (self.folder / "jit" / "vllm" / "compiled").write_text("graph")

    def words(self, text: str) -> list[str]:
        filled = {
            "/models/gpt-oss-120b": str(MODEL),
            "MODEL": str(MODEL),
            "RUN": "runs/first",
            "DIR/attempts.jsonl": "runs/first/attempts.jsonl",
            "/disk/scratch": ".",
            "http://127.0.0.1:8000": self.endpoint,
            "http://127.0.0.1:8001": self.endpoint.replace("127.0.0.1", "localhost"),  # the same server
            "ENDPOINT": self.endpoint,
        }
        return [filled.get(word, word) for word in shlex.split(text)]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PATH": f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "160"}

    def run(self, case: Case) -> subprocess.CompletedProcess[str]:
        words = self.words(f"{case.command} {case.more}")
        if words[0] == "aimo-solver" and "bench kernels" not in case.command:  # in this process, which saves a second of imports
            with contextlib.chdir(self.folder):
                done = CliRunner(env={"COLUMNS": "160"}).invoke(app, words[1:])
            return subprocess.CompletedProcess(words, done.exit_code, done.output, "")
        if words[0] == "source":
            words = ["bash", "-c", " ".join(words)]
        return subprocess.run(words, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False)


def check(case: Case, workspace: Workspace) -> None:
    """Runs the command after those that come before it, and checks its exit code, output and file."""
    for one in (*case.before, case):
        result = workspace.run(one)
        assert result.returncode == 0, result.stdout + result.stderr
        assert one.prints in result.stdout + result.stderr
        assert not one.makes or (workspace.folder / one.makes).stat().st_size > 0


def marked(case: Case) -> object:
    needs = {"vllm": case.needs_endpoint, "kernels": case.needs_kernels}
    return pytest.param(case, id=case.command, marks=[getattr(pytest.mark, name) for name, needed in needs.items() if needed])


@pytest.mark.slow
@pytest.mark.parametrize("case", [marked(case) for case in CASES])
def test_command(case: Case, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    endpoint = request.getfixturevalue("vllm").url if case.needs_endpoint else ""
    if case.command.startswith("source") and not (Path(sys.prefix) / "bin" / "activate").exists():
        pytest.skip("this Python is in no virtual environment")
    workspace = Workspace(tmp_path, endpoint)
    if "--folder" in case.command and "stay in the page cache" in workspace.run(case).stderr:
        pytest.skip("files here do not leave the page cache")
    check(case, workspace)


@pytest.mark.vllm
@pytest.mark.kernels
@pytest.mark.parametrize("command", list(START_SERVERS))
def test_command_that_starts_servers(command: str, vllm: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uses the session's server instead of starting servers, which takes a minute and a half for three."""

    def planned(*args: Any) -> LaunchPlan:
        return replace(plan_launch(*args), port=int(vllm.url.rpartition(":")[2]), served_name=vllm.name)

    for module in (session, bench_boot):
        monkeypatch.setattr(module, "plan_launch", planned)
    monkeypatch.setattr(launch, "ServerCommand", lambda args, env: ServerCommand(("sleep", "infinity"), {}))
    more, prints = START_SERVERS[command]
    check(Case(command, prints, more), Workspace(tmp_path))


@pytest.mark.slow
def test_gpu_script_runs_without_a_gpu(tmp_path: Path) -> None:
    command = "python scripts/gpu_bench.py OUT files readahead"
    result = Workspace(tmp_path).run(Case(command, "", more="--tiny"))
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "OUT" / "readahead.json").exists()
