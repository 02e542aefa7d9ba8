"""`aimo-solver watch`: a live view of a run in another process, from its run directory."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from aimo_solver.lab.report.data import run_state
from aimo_solver.lab.report.format import duration, plain_value, short_number
from aimo_solver.lab.report.timeline import is_fault, is_notable
from aimo_solver.lab.runs import unfinished_attempt
from aimo_solver.log.reader import Event, ProblemRecord, RunRecord, TrajectoryRecord, VoteRecord, is_running, read_run
from aimo_solver.problems import ProblemResult
from aimo_solver.results import Attempt

_INTERVAL_S = 1.0
_RATE_WINDOW_S = 15.0
_SHOWN_RESULTS = 8
_SHOWN_EVENTS = 5
_ACTIVITY_STYLES = {"thinking": "cyan", "Python": "yellow", "ending": "dim"}


@dataclass(frozen=True, slots=True)
class LiveAttempt:
    """An attempt at an open problem. `activity` is "thinking", "Python", "ending", or "" if it has ended."""

    attempt: Attempt
    activity: str


@dataclass(frozen=True, slots=True)
class LiveProblem:
    """An open problem; `ballot` is None before the first vote."""

    record: ProblemRecord
    attempts: tuple[LiveAttempt, ...]
    ballot: VoteRecord | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run at one moment.

    Attributes:
        t: seconds of the run.
        tokens: sampled so far.
        tokens_per_s: over the last seconds; None for the first snapshot.
        open: problems that are being solved.
    """

    run: RunRecord
    running: bool
    t: float
    tokens: int
    tokens_per_s: float | None
    open: tuple[LiveProblem, ...]


class Follower:
    """Takes snapshots of a run; `clock` returns seconds since 1970."""

    def __init__(self, directory: Path, clock: Callable[[], float] = time.time) -> None:
        self._directory = directory
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()

    def snapshot(self) -> Snapshot:
        """Reads the run.

        Raises:
            RunDirectoryError: there is no run.
        """
        running = is_running(self._directory)  # checked first: a run that ends in between has then written its last lines
        run = read_run(self._directory)
        now = self._clock()
        unsolved = tuple(_live_problem(run, problem) for problem in run.problems if problem.result is None)
        tokens = sum(result.tokens for result in run.results)
        tokens += sum(attempt.attempt.tokens for problem in unsolved for attempt in problem.attempts)
        t = _seconds(run, now) if running else run.last_t
        return Snapshot(run, running, t, tokens, self._rate(now, tokens), unsolved)

    def follow(self, interval_s: float) -> Iterator[Snapshot]:
        """Takes snapshots until the run has ended."""
        while True:
            snapshot = self.snapshot()
            yield snapshot
            if not snapshot.running:
                return
            time.sleep(interval_s)

    def _rate(self, now: float, tokens: int) -> float | None:
        self._seen.append((now, tokens))
        while len(self._seen) > 2 and now - self._seen[0][0] > _RATE_WINDOW_S:
            self._seen.popleft()
        then, before = self._seen[0]
        return max(0.0, (tokens - before) / (now - then)) if now > then else None


def watch(directory: Path, console: Console, *, interval_s: float = _INTERVAL_S) -> None:
    """Shows a run until it ends; without a terminal, prints one line for each problem that ends.

    Raises:
        RunDirectoryError: there is no run.
    """
    snapshots = Follower(directory).follow(interval_s)
    first = next(snapshots)
    if console.is_terminal:
        with Live(render_snapshot(first), console=console, auto_refresh=False, vertical_overflow="crop") as live:
            for snapshot in snapshots:
                live.update(render_snapshot(snapshot), refresh=True)
        return
    printed = 0
    for snapshot in chain([first], snapshots):
        results = _results(snapshot.run)
        for result in results[printed:]:
            console.print(result_line(result), soft_wrap=True)
        printed = len(results)
    console.print(_head(snapshot), soft_wrap=True)


def render_snapshot(snapshot: Snapshot) -> RenderableType:
    parts: list[RenderableType] = [_head(snapshot), ""]
    results = _results(snapshot.run)
    if len(results) > _SHOWN_RESULTS:
        parts.append(Text(f"… {len(results) - _SHOWN_RESULTS} more before", "dim"))
    parts += [result_line(result) for result in results[-_SHOWN_RESULTS:]]
    for problem in snapshot.open:
        parts += ["", _problem(problem, snapshot.t)]
    events = [event for event in snapshot.run.events if is_notable(event)][-_SHOWN_EVENTS:]
    if events:
        parts += ["", *(_event_line(event) for event in events)]
    return Group(*parts)


def result_line(result: ProblemResult, position: str = "") -> Text:
    """One line for a problem that ended, after its `position` in the run."""
    mark, style = {True: ("✓", "green"), False: ("✗", "red"), None: ("•", "blue")}[result.right]
    truth = "" if result.truth is None or result.right else f"  truth {result.truth}"
    votes, tokens = f"{result.votes} of {result.attempts} votes", f"{short_number(result.tokens)} tokens"
    speed = f"{duration(result.seconds)}, {result.tokens_per_s:,.0f} tokens/s"
    detail = f"  {votes}, {result.tool_calls} calls, {tokens}, {speed}, {result.reason}"
    name = f"{mark} {position}{result.problem_id:<12}"
    return Text.assemble((name, style), f"{result.answer:>6}", (truth, "red"), (detail, "dim"))


def _live_problem(run: RunRecord, problem: ProblemRecord) -> LiveProblem:
    records = {attempt.index: attempt for attempt in run.attempts if attempt.problem_id == problem.problem_id}
    attempts = [LiveAttempt(attempt, "") for attempt in records.values()]
    for index in run.trajectory_indices(problem.problem_id):
        trajectory = None if index in records else run.read_trajectory(problem.problem_id, index)
        if trajectory is not None:
            attempts.append(LiveAttempt(unfinished_attempt(trajectory, problem), _activity(trajectory)))
    ballots = [vote for vote in run.votes if vote.problem_id == problem.problem_id]
    attempts.sort(key=lambda live: live.attempt.index)
    return LiveProblem(problem, tuple(attempts), ballots[-1] if ballots else None)


def _activity(trajectory: TrajectoryRecord) -> str:
    last = trajectory.steps[-1] if trajectory.steps else None
    if trajectory.ended is not None or (last is not None and last.turn == "final"):
        return "ending"
    return "Python" if last is not None and last.turn == "tool_call" else "thinking"


def _seconds(run: RunRecord, now: float) -> float:
    start = next((event for event in reversed(run.events) if event.kind in ("run_started", "run_resumed")), None)
    return run.last_t if start is None else max(run.last_t, start.t + now - datetime.fromisoformat(start.wall).timestamp())


def _results(run: RunRecord) -> list[ProblemResult]:
    """Results in the order in which the problems ended."""
    problems = sorted(run.problems, key=lambda problem: problem.ended or 0.0)
    return [problem.result for problem in problems if problem.result is not None]


def _head(snapshot: Snapshot) -> Text:
    run = snapshot.run
    state = run_state(run, snapshot.running)
    known = [result for result in run.results if result.right is not None]
    style = {"running": "cyan", "finished": "green", "interrupted": "yellow"}[state]
    head = Text.assemble((run.directory.resolve().name, "bold"), "  ", (state, style), f"  {duration(snapshot.t)}")
    head.append(f"  {len(run.results)} {'problem' if len(run.results) == 1 else 'problems'}")
    if known:
        head.append(f", {sum(result.right is True for result in known)} of {len(known)} right")
    head.append(f"  {short_number(snapshot.tokens)} tokens")
    if snapshot.running and snapshot.tokens_per_s is not None:
        head.append(f", {snapshot.tokens_per_s:,.0f}/s")
    return head


def _problem(problem: LiveProblem, t: float) -> RenderableType:
    record = problem.record
    given = "" if record.allotted_s is None else f" of {duration(record.allotted_s)}"
    head = Text.assemble((record.problem_id, "bold"), f"  {duration(max(0.0, t - record.t))}{given}")
    if problem.ballot is not None:
        votes = "  ".join(f"{candidate.answer} ×{candidate.votes}" for candidate in problem.ballot.candidates[:6])
        head.append(f"  {votes}", "green")
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("#", "", "answer", "turns", "calls", "failed", "tokens", "time"):
        table.add_column(name, justify="left" if name == "" else "right")
    for live in problem.attempts:
        attempt = live.attempt
        activity = Text(live.activity or str(attempt.finish_reason).replace("_", " "), _ACTIVITY_STYLES.get(live.activity, "dim"))
        answer = Text("" if attempt.answer is None else str(attempt.answer))
        counts = (attempt.turns, attempt.tool_calls, attempt.tool_errors)
        seconds = max(0.0, t - record.t - attempt.started_s) if live.activity else attempt.seconds
        table.add_row(str(attempt.index), activity, answer, *map(str, counts), short_number(attempt.tokens), duration(seconds))
    return Group(head, table)


def _event_line(event: Event) -> Text:
    values = ", ".join(f"{name} {plain_value(value)}" for name, value in event.values.items())
    line = f"{duration(event.t):>11}  {event.kind.replace('_', ' ')}  {values}".replace("\n", " ")
    return Text(line, "red" if is_fault(event) else "dim", no_wrap=True, overflow="ellipsis")
