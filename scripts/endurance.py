"""Runs hundreds of problems through the notebook's code, with faults at random moments drawn from a seed.

    python scripts/endurance.py --seed 1                         # 500 problems, half an hour on two cores
    python scripts/endurance.py --seed 1 --problems 100 --minutes 8

The pocket model runs on a real vLLM server with real kernels; logs and temporary files are on a small disk of their own,
which needs root. Expected: every problem is answered, 98 % right; memory, descriptors, processes and temporary files do not
grow; nothing is left behind. OUT gets events.jsonl, samples.jsonl, run.log and report.html, also after an interrupt.
"""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the stand-in

from tests.faults import fake_vllm

import endurance_faults as faults
import endurance_middleware as middleware
import endurance_report as report
from aimo_solver.server import keeper
from endurance_faults import KINDS, Fault, Victim
from endurance_report import Outcome, Sample

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "data" / "pocket-model"
_DISK_MB = 1_024  # C++ headers that vLLM precompiles take about 100 MB
_SAMPLE_S = 2.0
_END_S = 90.0  # for the run to end when it is asked to
_GONE_S = 20.0  # for processes to end after the run; then they count as left behind


def main(
    seed: Annotated[int | None, typer.Option(help="of problems and faults; a new one by default")] = None,
    problems: Annotated[int, typer.Option(min=1)] = 500,
    minutes: Annotated[float, typer.Option(min=0.1, help="the run's time limit")] = 30.0,
    out: Annotated[Path, typer.Option(help="folder for the report; replaced if it exists")] = Path("runs/endurance"),
    scale: Annotated[float, typer.Option(help="factor on the duration of faults")] = 1.0,
    stand_in: Annotated[bool, typer.Option(help="a stand-in for vLLM that squares numbers, to try this script")] = False,
) -> None:
    """Solves problems under faults and writes a report; the exit code is 1 if something was not as expected."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM ends the run cleanly, too
    seed = random.randrange(1 << 31) if seed is None else seed
    print(f"seed {seed}, {problems} problems, at most {minutes:g} minutes", flush=True)
    _empty(out)
    truth = _write_problems(out / "problems.csv", seed, problems, stand_in)
    with (
        tempfile.TemporaryDirectory(prefix="aimo-e-", ignore_cleanup_errors=True) as place,
        faults.small_disk(Path(place), _DISK_MB) as disk,
    ):
        Path(place).chmod(0o755)  # as /tmp is: kernels are users of their own
        kinds = tuple(kind for kind in KINDS if disk is not None or kind != "disk full")
        planned = faults.plan(seed, problems, kinds)
        watch = Watch(out.resolve(), Path(place), disk, seed, scale)
        watch.run(_settings(problems, minutes), planned, stand_in)
        left = watch.left_behind()
        shutil.copytree(Path(place) / "runs", out / "runs", dirs_exist_ok=True)
    outcome = Outcome(
        seed=seed, truth=truth, minutes=minutes, events=watch.events, samples=watch.samples, left=left, planned=tuple(planned)
    )
    report.write_page(outcome, out / "report.html")
    print("\n".join(outcome.summary))
    print(f"page: {out / 'report.html'}")
    raise typer.Exit(130 if watch.interrupted else 0 if not outcome.deviations else 1)


def _empty(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(out / "runs", ignore_errors=True)
    for name in ("events.jsonl", "samples.jsonl", "run.log", "report.html", "submission.parquet"):
        (out / name).unlink(missing_ok=True)


def _write_problems(path: Path, seed: int, count: int, stand_in: bool) -> dict[str, int]:
    if stand_in:
        rows = [(f"square-{number}", *fake_vllm.problem(1_001 + number)) for number in range(count)]
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("id", "problem", "answer"), *rows])
    else:
        maker = [sys.executable, str(ROOT / "scripts" / "train_pocket_model.py"), "problems"]
        subprocess.run([*maker, "--seed", str(seed), "--count", str(count), "--out", path], check=True, stdout=subprocess.DEVNULL)
    with path.open(newline="", encoding="utf-8") as file:
        return {row["id"]: int(row["answer"]) for row in csv.DictReader(file)}


def _settings(problems: int, minutes: float) -> dict[str, Any]:
    limit_s = 60.0 * minutes
    return {
        "solver": {"slots": 3, "max_attempts": 3},
        "voting": {"equal": 2},
        "kernels": {"size": 3, "spares": 2},
        "server": {
            "start_timeout_s": 240.0,
            "stall_s": 45.0,  # the first request after a start may compile
            "extra_args": ["--middleware", f"{middleware.__name__}.{middleware.Refusing.__name__}"],
        },
        # Many times what a restart of the server takes, but much less than all problems.
        "budget": {
            "time_limit_s": limit_s,
            "margin_s": 10.0,
            "reserve_s": limit_s / problems / 3,
            "cap_s": 240.0,
            "problems": problems,
        },
    }


class Watch:
    """Starts a run, injects the planned faults and records what happens.

    Attributes:
        events: events of the run and faults, with `t` in seconds from its start.
        interrupted: whether Ctrl-C ended it.
    """

    def __init__(self, out: Path, place: Path, disk: Path | None, seed: int, scale: float) -> None:
        self.events: list[dict[str, Any]] = []
        self.samples: list[Sample] = []
        self.interrupted = False
        self._out = out
        self._temporary = place / "t"
        self._temporary.mkdir()
        self._runs = place / "runs"
        self._refusing = out / "refusing"
        self._disk = disk
        self._random = random.Random(seed)
        self._scale = scale
        self._changed = threading.Condition()
        self._asked = 0
        self._seen: dict[int, psutil.Process] = {}
        self._folders: set[str] = set()  # of its kernels and servers, which may be outside the temporary folder
        self._shared: set[str] = set()  # files in /dev/shm that its processes have mapped
        self._began = time.monotonic()
        self._process: subprocess.Popen[str]

    def run(self, settings: dict[str, Any], planned: list[Fault], stand_in: bool) -> None:
        """Starts the run and returns when it has ended."""
        (self._out / "settings.json").write_text(json.dumps(settings))
        arguments = [self._out / "problems.csv", MODEL, self._out / "settings.json", self._runs]
        if stand_in:
            arguments.append(self._stand_in())
        environment = {
            **os.environ,
            "TMPDIR": str(self._temporary),
            "PYTHONPATH": os.pathsep.join([str(ROOT / "scripts"), os.environ.get("PYTHONPATH", "")]),
            middleware.VARIABLE: str(self._refusing),
        }
        with (self._out / "run.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, ROOT / "scripts" / "endurance_run.py", *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=self._out,
                env=environment,
                text=True,
                start_new_session=True,  # Ctrl-C reaches only this process, which ends the run cleanly
            )
        self._began = time.monotonic()
        threads = [threading.Thread(target=work, daemon=True) for work in (self._listen, self._sample)]
        threads.append(threading.Thread(target=self._harm, args=(planned,), daemon=True))
        for thread in threads:
            thread.start()
        try:
            self._process.wait()
        except KeyboardInterrupt:
            self.interrupted = True
            print("ending the run; its report follows", flush=True)
        finally:
            self._end()
            threads[0].join(10.0)

    def _end(self) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(_END_S)
        except (OSError, subprocess.TimeoutExpired):
            self.note("the run did not end and was killed")
            self._process.kill()
            self._process.wait()
        with self._changed:
            self._changed.notify_all()

    def note(self, kind: str, **values: Any) -> None:
        event = {"t": round(time.monotonic() - self._began, 2), "kind": kind, **values}
        with self._changed:
            self.events.append(event)
            self._asked += kind == "asked"
            if kind == "folder":
                self._folders.add(values["path"])
            with (self._out / "events.jsonl").open("a") as file:
                file.write(json.dumps(event) + "\n")
            self._changed.notify_all()
        if kind in ("fault", "over") or (kind == "answered" and self._asked % 25 == 0):
            print(f"{event['t']:7.1f} s  problem {self._asked}: {kind} {' '.join(map(str, values.values()))}", flush=True)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                event = {"kind": "log", "level": "INFO", "text": line.rstrip()}
            self.note(**event)

    def _harm(self, planned: list[Fault]) -> None:
        for fault in planned:
            with self._changed:
                while self._asked <= fault.problem and self._process.poll() is None:
                    self._changed.wait()
            time.sleep(fault.after_s * self._scale)
            if self._process.poll() is not None:
                return
            for kind in fault.kinds:
                threading.Thread(target=self._do, args=(kind,), daemon=True).start()

    def _do(self, kind: str) -> None:
        self.note("fault", what=kind)
        victim = Victim(
            psutil.Process(self._process.pid), self._disk, self._temporary, self._refusing, self._send, self._random, self._scale
        )
        try:
            self.note("over", what=kind, detail=KINDS[kind](victim))
        except (psutil.Error, OSError) as error:  # the victim has just ended, perhaps by another fault
            self.note("over", what=kind, detail=f"{type(error).__name__}: {error}")

    def _send(self, kind: str, **values: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"kind": kind, **values}) + "\n")
        self._process.stdin.flush()

    def _sample(self) -> None:
        with (self._out / "samples.jsonl").open("w", buffering=1) as file:
            while self._process.poll() is None:
                try:
                    sample = self._look()
                except psutil.Error:
                    continue
                self.samples.append(sample)
                file.write(json.dumps(asdict(sample)) + "\n")
                time.sleep(_SAMPLE_S)

    def _look(self) -> Sample:
        solver = psutil.Process(self._process.pid)
        below = solver.children(recursive=True)
        self._seen.update((process.pid, process) for process in below)
        self._shared |= keeper.shared_memory(below)
        return Sample(
            t=round(time.monotonic() - self._began, 2),
            asked=self._asked,
            memory_mb=round(solver.memory_info().rss / 2**20, 1),
            below_mb=round(sum(map(_memory, below)) / 2**20, 1),
            descriptors=solver.num_fds(),
            threads=solver.num_threads(),
            processes=len(below),
            files=sum(len(names) + len(files) for top in self._temporary.glob("aimo-*") for _, names, files in os.walk(top)),
        )

    def _stand_in(self) -> Path:
        environment = self._out / "wheels"
        if not environment.exists():
            environment.mkdir()
            fake_vllm.installed(environment, None, 0, MODEL)
        return environment

    def left_behind(self) -> tuple[str, ...]:
        """Returns processes, temporary files, folders, shared memory and semaphores that remain after the run."""
        end = time.monotonic() + _GONE_S
        while True:
            left = [f"process {process.pid}" for process in self._seen.values() if _runs(process)]
            left += [path.name for path in self._temporary.iterdir() if path.name.startswith(("aimo-", "vllm_dist_"))]
            left += sorted(path for path in self._folders if os.path.exists(path))
            if not left or time.monotonic() > end:
                break
            time.sleep(0.5)
        return (*left, *sorted(path for path in self._shared if os.path.exists(path)))


def _memory(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    typer.run(main)
