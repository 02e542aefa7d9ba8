"""What `aimo-solver evaluate` does: one run, or several of the same configuration."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aimo_solver.cli.common import console
from aimo_solver.cli.progress import TerminalProgress, result_table
from aimo_solver.clock import RunClock
from aimo_solver.config import Config, load_config
from aimo_solver.errors import ConfigError, RunDirectoryError
from aimo_solver.lab.symbolic import SymbolicAnswers
from aimo_solver.log.reader import RunRecord, is_running, read_run
from aimo_solver.log.resume import resume_run
from aimo_solver.log.writer import RunLog
from aimo_solver.options import AnswersConfig
from aimo_solver.problems import Problem
from aimo_solver.server.launch import plan_launch
from aimo_solver.solve.attempt import keep_answer
from aimo_solver.solve.endpoint import Endpoint, endpoint_session
from aimo_solver.solve.evaluate import evaluate
from aimo_solver.solve.session import local_session


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Problems to solve, and how.

    Attributes:
        read: returns the problems, with true answers of the configured kind.
        model: folder with the model, or with the tokenizer of the endpoints' model.
        endpoints: if empty, a server is started for each run.
        resume: continue runs that exist. overwrite: delete them first.
    """

    read: Callable[[AnswersConfig], Sequence[Problem]]
    model: Path
    endpoints: Sequence[Endpoint]
    config_file: Path | None
    settings: Sequence[str]
    resume: bool = False
    overwrite: bool = False

    def run(self, directory: Path, started: float) -> None:
        """Makes or continues one run and prints its results. `started` is its second 0 on the monotonic clock.

        Raises:
            UserError: an option, the model or the run directory cannot be used.
            ServerError, EngineError: the server did not start, or was lost.
        """
        earlier = read_run(directory) if self.resume else None
        config = self._config(earlier)
        problems = self.read(config.answers)
        if self.overwrite and not self.resume:
            _delete_run(directory)
        self._run(directory, started, problems, config, earlier)

    def run_repeatedly(self, out: Path, repeats: int) -> None:
        """Makes the runs ``out/1``, ``out/2`` ...; resuming continues those that exist and makes those that are missing.

        A configured seed counts up from run to run; without one every server draws its own. A resumed run keeps its seed.

        Raises:
            UserError, ServerError, EngineError: as `run`; earlier runs are kept.
        """
        directories = [out / str(number) for number in range(1, repeats + 1)]
        if not self.resume:
            self.read(self._config(None).answers)  # before anything is deleted
        self._prepare(out, directories)
        scores: list[int | None] = []
        for number, directory in enumerate(directories):
            console.print(f"run {number + 1} of {repeats}", style="bold")
            earlier = read_run(directory) if directory.exists() else None
            config = self._config(earlier)
            seed = config.sampling.seed
            if earlier is not None:
                seed = earlier.config["sampling"]["seed"]
            elif seed is not None:
                seed += number
            config = replace(config, sampling=replace(config.sampling, seed=seed))
            scores.append(self._run(directory, time.monotonic(), self.read(config.answers), config, earlier))
        known = [score for score in scores if score is not None]
        if len(known) > 1:
            listed = f"{', '.join(map(str, known))} right, {sum(known) / len(known):.1f} on average"
            console.print(f"{repeats} runs: {listed}; aimo-solver stats {out} has the intervals", soft_wrap=True)

    def _prepare(self, out: Path, directories: Sequence[Path]) -> None:
        """Deletes earlier runs if asked to, and refuses a folder in which the repeats would mix with other runs."""
        if (out / "run.json").exists():
            raise RunDirectoryError(out, "holds a single run; choose another --out for repeats")
        if self.resume:
            return
        if self.overwrite:
            for directory in directories:
                _delete_run(directory)
        if out.is_dir() and any(out.iterdir()):
            raise RunDirectoryError(out, "is not empty; choose another folder, or continue with --resume")

    def _config(self, earlier: RunRecord | None) -> Config:
        least = {"solver": {"parallel": max(1, len(self.endpoints))}}
        config = load_config(least, self.model if earlier is None else earlier.config, self.config_file, settings=self.settings)
        if not self.endpoints:
            plan_launch(self.model, config)  # rejects options that no server can start with, before there is a run
        return config

    def _run(
        self, directory: Path, started: float, problems: Sequence[Problem], config: Config, earlier: RunRecord | None
    ) -> int | None:
        """Returns the right answers, None if no answer is known."""
        if earlier is None:
            log = RunLog.create(directory, config=config, started=started)
        else:
            log = _resume(directory, earlier, config, problems)
        todo = [problem for problem in problems if problem.id not in log.finished]
        with log:
            if todo:
                asyncio.run(_solve(todo, config, log, self.model, self.endpoints, started))
            summary = log.finish({"problems_in_parallel": config.solver.parallel})
        console.print(result_table([log.finished[problem.id] for problem in problems]))
        _print_summary(summary, directory)
        right: int | None = summary["right"]
        return right


async def _solve(
    problems: Sequence[Problem], config: Config, log: RunLog, model: Path, endpoints: Sequence[Endpoint], started: float
) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    clock = RunClock.begin(config.budget, time.monotonic, log.started)
    async with AsyncExitStack() as stack:
        unify = keep_answer
        if config.answers.kind == "symbolic":
            unify = (await stack.enter_async_context(SymbolicAnswers(log.event))).unify
        progress = stack.enter_context(TerminalProgress(console, len(problems)))
        if not endpoints:
            console.print(f"starting vLLM on {model}, log in {log.directory / 'server.log'}", highlight=False)
            opening = local_session(model, config, log, [progress], unify=unify)
        else:
            opening = endpoint_session(endpoints, model, config, log, [progress], unify=unify)
        async with opening as session:
            console.print(f"ready after {time.monotonic() - started:.0f} s", highlight=False)
            if session.plan is not None and session.plan.adjustments.steps:
                steps = "; ".join(session.plan.adjustments.steps)
                console.print(f"starts of the server failed; it runs with {steps}", style="yellow", highlight=False)
            if session.warning:
                console.print(session.warning, style="yellow", highlight=False)
            solve, parallel = session.solver.solve, config.solver.parallel
            await evaluate(solve, problems, config.budget, clock, parallel=parallel, lost=lambda: session.lost)


def _resume(directory: Path, earlier: RunRecord, config: Config, problems: Sequence[Problem]) -> RunLog:
    done = {result.problem_id for result in earlier.results}
    todo = sum(problem.id not in done for problem in problems)
    clock = RunClock.begin(config.budget, lambda: earlier.last_t, 0.0)
    if todo and clock.left_s <= 0:
        used = f"the run has used {earlier.last_t:.0f} of its {clock.end:.0f} s, and {todo} problems are open"
        raise ConfigError("--time-limit", f"{used}; give a longer limit, counted from the start of the first run")
    return resume_run(directory, config=config)


def _delete_run(directory: Path) -> None:
    if not directory.exists():
        return
    if not (directory / "run.json").is_file():
        raise RunDirectoryError(directory, "is not a run directory, so it is not overwritten; choose another --out")
    if is_running(directory):
        raise RunDirectoryError(directory, "is being written by another process; wait for it, or choose another --out")
    shutil.rmtree(directory)


def _print_summary(summary: Mapping[str, Any], directory: Path) -> None:
    score = "" if summary["right"] is None else f"{summary['right']} of {summary['problems']} right ({summary['accuracy']:.1%}), "
    speed = f"{summary['seconds']:.0f} s, {summary['tokens']} tokens, {summary['tokens_per_s']:.0f} tokens/s"
    console.print(f"{score}{speed}; written to {directory}", soft_wrap=True)
