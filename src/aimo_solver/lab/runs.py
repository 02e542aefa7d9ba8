"""Reads finished problems with known answers, run by run, for statistics of one run and of many."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from aimo_solver.errors import RunDirectoryError, UserError
from aimo_solver.lab.records import Group, RecordsError, Use, read_groups
from aimo_solver.lab.statistics import Floats
from aimo_solver.log.reader import ProblemRecord, RunRecord, Step, TrajectoryRecord, read_run
from aimo_solver.policy.options import VotingConfig
from aimo_solver.policy.selection import Method
from aimo_solver.policy.voting import rank
from aimo_solver.problems import Answer
from aimo_solver.results import Attempt, FinishReason

Key = tuple[str, int]
"""A problem's id, and the index of an attempt at it."""


@dataclass(frozen=True, slots=True)
class LoggedProblem:
    """One problem of a run.

    Attributes:
        answer: the run's; None if it gave none.
        attempts: in order of starting, without those of a second look.
    """

    problem_id: str
    truth: Answer
    answer: Answer | None
    attempts: tuple[Attempt, ...]

    @property
    def right(self) -> bool:
        return self.answer == self.truth


@dataclass(frozen=True, slots=True)
class LoggedRun:
    """The problems of a run that ended and whose answer is known.

    Attributes:
        config: its options by section; of a CSV only the model.
        left_out: problems that did not end, whose answer is unknown, or whose records are not fit for counting right answers.
        record: the run directory; None for a CSV.
    """

    name: str
    config: Mapping[str, Any]
    problems: Mapping[str, LoggedProblem]
    left_out: int = 0
    record: RunRecord | None = None

    @property
    def right(self) -> int:
        """Right answers of the run."""
        return sum(problem.right for problem in self.problems.values())

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        return tuple(attempt for problem in self.problems.values() for attempt in problem.attempts)


def read_runs(paths: Sequence[Path]) -> tuple[LoggedRun, ...]:
    """Reads the runs at the paths: run directories, folders of run directories, and the files that `read_groups` reads.

    The answer of a run that is not a run directory is the majority of its attempts' answers.

    Raises:
        RunDirectoryError, RecordsError: a path holds no run, cannot be read, or no problem that ended has a known answer.
    """
    runs = [run for path in paths for run in _runs_at(path)]
    if not any(run.problems for run in runs):
        raise RecordsError(paths[0], "holds no finished problem with a known answer")
    counts = Counter(run.name for run in runs)
    twice = {name for name, count in counts.items() if count > 1}
    return tuple(replace(run, name=str(run.record.directory)) if run.name in twice and run.record else run for run in runs)


def check_truths(runs: Iterable[LoggedRun]) -> None:
    """Checks that the runs are on the same problems.

    Raises:
        UserError: a problem has another true answer in another run.
    """
    truths: dict[str, Answer] = {}
    for problem in (problem for run in runs for problem in run.problems.values()):
        if truths.setdefault(problem.problem_id, problem.truth) != problem.truth:
            known = f"{truths[problem.problem_id]} in one run and {problem.truth} in another"
            raise UserError(f"the true answer of problem {problem.problem_id} is {known}; give runs on the same problems")


def common_problems(runs: Sequence[LoggedRun]) -> list[str]:
    """Returns the problems that all runs have, in the order of the first."""
    return [problem_id for problem_id in runs[0].problems if all(problem_id in run.problems for run in runs)]


def right_answers(runs: Sequence[LoggedRun], problems: Sequence[str]) -> Floats:
    """Returns 1 where a run's answer to a problem is right: (runs, problems)."""
    return np.array([[run.problems[problem_id].right for problem_id in problems] for run in runs], dtype=float)


def tool_error(step: Step) -> str | None:
    """Returns the family of the error that ended a tool call: the exception's class, or "timeout"; None if none did."""
    if step.kind != "tool":
        return None
    return "timeout" if step.timed_out else step.error_name


def unfinished_attempt(trajectory: TrajectoryRecord, problem: ProblemRecord) -> Attempt:
    """Builds the record of an attempt that never ended from its trajectory."""
    turns = [step for step in trajectory.steps if step.kind == "turn"]
    tools = [step for step in trajectory.steps if step.kind == "tool"]
    entropies = [value for step in turns for value in step.entropies]
    last = max((step.t + step.seconds for step in trajectory.steps), default=trajectory.t)
    return Attempt(
        problem_id=problem.problem_id,
        index=trajectory.index,
        answer=None,
        finish_reason=FinishReason.CANCELLED,
        tokens=sum(len(step.tokens) for step in turns),
        cached_tokens=sum(step.cached or 0 for step in turns),
        lost_turns=sum(step.lost > 0 for step in turns),
        lost_tokens=sum(step.lost for step in turns),
        lost_s=sum(step.lost_s for step in turns),
        turns=len(turns),
        tool_calls=len(tools),
        tool_errors=sum(tool_error(step) is not None for step in tools),
        entropy=sum(entropies) / len(entropies) if entropies else None,
        started_s=trajectory.t - problem.t,
        seconds=last - trajectory.t,
        tool_seconds=sum(step.seconds for step in tools),
    )


def read_tool_errors(
    runs: Sequence[LoggedRun], progress: Callable[[float], None] = lambda share: None
) -> list[dict[Key, Counter[str]]]:
    """Returns, for each run, the failed tool calls by attempt and family, without attempts that have no trajectory (as in a CSV).

    Only trajectories of attempts with failed calls are read. `progress` is called with the share done, 0..1.
    """
    errors: list[dict[Key, Counter[str]]] = [{} for _ in runs]
    attempts = [(number, attempt) for number, run in enumerate(runs) for attempt in run.attempts if run.record is not None]
    for done, (number, attempt) in enumerate(attempts, start=1):
        progress(done / len(attempts))
        key, record = (attempt.problem_id, attempt.index), runs[number].record
        if not attempt.tool_errors:
            errors[number][key] = Counter()
        elif record is not None and (trajectory := record.read_trajectory(*key)) is not None:
            errors[number][key] = Counter(family for step in trajectory.steps if (family := tool_error(step)))
    return errors


def _runs_at(path: Path) -> Iterable[LoggedRun]:
    if not path.is_dir() or ((path / "attempts.jsonl").exists() and not (path / "run.json").exists()):
        by_run: dict[str, list[Group]] = {}
        for group in read_groups([path]):
            by_run.setdefault(group.run, []).append(group)
        return [_of_groups(name, groups) for name, groups in by_run.items()]
    if (path / "run.json").exists():
        return [_of_record(read_run(path))]
    found = [child for child in path.iterdir() if (child / "run.json").exists()]
    if not found:
        raise RunDirectoryError(path, "holds no run; name the folder that was given to --out")
    return [_of_record(read_run(child)) for child in sorted(found, key=_numbers_in_order)]


def _of_record(record: RunRecord) -> LoggedRun:
    attempts: dict[str, list[Attempt]] = {}
    for attempt in sorted(record.attempts, key=lambda attempt: attempt.index):
        if attempt.prompt not in set(Method):
            attempts.setdefault(attempt.problem_id, []).append(attempt)
    problems = {
        result.problem_id: LoggedProblem(
            result.problem_id, result.truth, result.answer, tuple(attempts.get(result.problem_id, ()))
        )
        for result in record.results
        if result.truth is not None
    }
    name = record.directory.resolve().name
    return LoggedRun(name, record.config, problems, len(record.problems) - len(problems), record)


def _of_groups(name: str, groups: Sequence[Group]) -> LoggedRun:
    problems = {
        group.problem_id: LoggedProblem(
            group.problem_id, group.truth, _majority(group), tuple(sorted(group.attempts, key=lambda attempt: attempt.index))
        )
        for group in groups
        if Use.ACCURACY in group.use
    }
    return LoggedRun(name, {"model": {"name": groups[0].model}}, problems, len(groups) - len(problems))


def _majority(group: Group) -> Answer | None:
    candidates = rank(group.ended, VotingConfig(voter="majority"))
    return candidates[0].answer if candidates else None


def _numbers_in_order(path: Path) -> tuple[tuple[int, str], ...]:
    """A sort key that puts run-2 before run-10."""
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name))
