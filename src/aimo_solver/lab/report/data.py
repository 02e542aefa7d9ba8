"""The content of a report, computed from a run directory.

Seconds are counted from the run's start for problems, from the problem's start for attempts and votes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from aimo_solver.lab.losses import Loss, explain_loss
from aimo_solver.lab.lost_problem import Cause
from aimo_solver.lab.report.text import pack_trajectory
from aimo_solver.lab.report.timeline import (
    Activity,
    BootStage,
    Segment,
    boot_stages,
    count_active,
    entropy_curve,
    is_fault,
    is_notable,
    split_segments,
)
from aimo_solver.lab.runs import tool_error, unfinished_attempt
from aimo_solver.log.reader import Event, ProblemRecord, RunRecord, TrajectoryRecord, VoteRecord, is_running
from aimo_solver.problems import Candidate
from aimo_solver.results import Attempt


class Verdict(StrEnum):
    """The outcome of a problem."""

    RIGHT = "right"
    OUTVOTED = "outvoted"  # an attempt gave the truth, another answer won
    NOT_FOUND = "not found"  # no attempt gave the truth
    NO_ANSWER = "no answer"  # no attempt gave an answer
    UNKNOWN = "unknown"  # the truth is not known
    OPEN = "open"  # not ended


LOST = (Verdict.OUTVOTED, Verdict.NOT_FOUND, Verdict.NO_ANSWER)
"""The verdicts of lost problems."""


@dataclass(frozen=True, slots=True)
class AttemptReport:
    """One attempt.

    Attributes:
        attempt: its record; if it never ended (`running`), computed from its trajectory.
        segments: in order, without overlap.
        entropy: see `timeline.entropy_curve`.
        tool_errors: failed calls by cause.
        text: the packed trajectory; None if none was kept.
    """

    attempt: Attempt
    running: bool
    segments: tuple[Segment, ...]
    entropy: tuple[tuple[int, float], ...]
    tool_errors: Counter[str]
    text: str | None

    @property
    def end(self) -> float:
        return self.attempt.started_s + self.attempt.seconds


@dataclass(frozen=True, slots=True)
class ProblemReport:
    """One problem.

    Attributes:
        why: the outcome in words.
        loss: of a lost problem.
        answers: the last ballot.
        right_votes: attempts that gave the truth.
        events: faults, and the choice of a second look.
    """

    record: ProblemRecord
    verdict: Verdict
    why: str
    loss: Loss | None
    attempts: tuple[AttemptReport, ...]
    votes: tuple[VoteRecord, ...]
    answers: tuple[Candidate, ...]
    right_votes: int
    events: tuple[Event, ...]

    @property
    def id(self) -> str:
        return self.record.problem_id

    @property
    def outcome(self) -> Verdict | Cause:
        """The cause of a loss, or else the verdict."""
        return self.verdict if self.loss is None else self.loss.cause

    @property
    def seconds(self) -> float:
        result = self.record.result
        return result.seconds if result else max((attempt.end for attempt in self.attempts), default=0.0)

    @property
    def tokens_per_s(self) -> float:
        """Tokens of all attempts per second of the problem."""
        return sum(attempt.attempt.tokens for attempt in self.attempts) / self.seconds if self.seconds else 0.0

    @property
    def slots(self) -> int:
        """Most concurrent attempts; 0 if it has not ended, or in runs of earlier versions."""
        return self.record.result.slots if self.record.result else 0


@dataclass(frozen=True, slots=True)
class TimeShares:
    """Seconds of all slots by use. A slot without an attempt, while its problem is being solved, is idle."""

    thinking: float
    tool: float
    waiting: float
    idle: float


@dataclass(frozen=True, slots=True)
class RunReport:
    """A run.

    Attributes:
        state: "finished", "running" or "interrupted".
        right, known: problems answered right, and all that ended and whose truth is known.
        oracle: those of `known` whose truth at least one attempt gave.
        boot: stages that began before the first problem, by start.
        notable: events other than bookkeeping, faults within problems included.
        streams, kernels: (second, number busy from then on).
    """

    run: RunRecord
    name: str
    state: str
    seconds: float
    problems: tuple[ProblemReport, ...]
    right: int
    known: int
    oracle: int
    tokens: int
    tool_calls: int
    tool_errors: Counter[str]
    shares: TimeShares
    boot: tuple[BootStage, ...]
    notable: tuple[Event, ...]
    streams: tuple[tuple[float, int], ...]
    kernels: tuple[tuple[float, int], ...]

    @property
    def attempts(self) -> tuple[AttemptReport, ...]:
        return tuple(attempt for problem in self.problems for attempt in problem.attempts)

    @property
    def slots(self) -> int:
        """Most attempts that ran concurrently at one problem."""
        return max((problem.slots for problem in self.problems), default=0) or int(self.run.config["solver"]["slots"])

    @property
    def outcomes(self) -> list[tuple[Verdict | Cause, int]]:
        """See `order_outcomes`."""
        return order_outcomes(problem.outcome for problem in self.problems)


def order_outcomes(outcomes: Iterable[Verdict | Cause]) -> list[tuple[Verdict | Cause, int]]:
    """Counts outcomes: right ones, losses in which an attempt had the truth, other losses, the rest; each by frequency."""

    def order(item: tuple[Verdict | Cause, int]) -> tuple[int, int]:
        outcome, count = item
        place = (1 if outcome.near else 2) if isinstance(outcome, Cause) else 0 if outcome is Verdict.RIGHT else 3
        return place, -count

    return sorted(Counter(outcomes).items(), key=order)


def load_report(run: RunRecord) -> RunReport:
    """Reads the trajectories of a run and computes its report."""
    problems = tuple(_problem(run, record) for record in run.problems)
    attempts = [attempt for problem in problems for attempt in problem.attempts]
    ended = [problem for problem in problems if problem.record.result and problem.record.truth is not None]
    first = min((problem.record.t for problem in problems), default=run.last_t)
    return RunReport(
        run=run,
        name=run.directory.resolve().name,
        state=run_state(run, is_running(run.directory)),
        seconds=run.last_t,
        problems=problems,
        right=sum(problem.verdict is Verdict.RIGHT for problem in ended),
        known=len(ended),
        oracle=sum(problem.right_votes > 0 for problem in ended),
        tokens=sum(attempt.attempt.tokens for attempt in attempts),
        tool_calls=sum(attempt.attempt.tool_calls for attempt in attempts),
        tool_errors=sum((attempt.tool_errors for attempt in attempts), Counter()),
        shares=_shares(run, problems),
        boot=tuple(stage for stage in boot_stages(run.events, run.last_t) if stage.start < first),
        notable=tuple(
            event for event in run.events if is_notable(event) and ("problem_id" not in event.values or is_fault(event))
        ),
        streams=_count_busy(problems, Activity.THINKING),
        kernels=_count_busy(problems, Activity.TOOL, Activity.FAILED),
    )


def run_state(run: RunRecord, running: bool) -> str:
    return "running" if running else "finished" if run.summary is not None else "interrupted"


def _problem(run: RunRecord, record: ProblemRecord) -> ProblemReport:
    records = {attempt.index: attempt for attempt in run.attempts if attempt.problem_id == record.problem_id}
    indices = sorted(records.keys() | set(run.trajectory_indices(record.problem_id)))
    trajectories = {index: run.read_trajectory(record.problem_id, index) for index in indices}
    attempts = tuple(_attempt(record, records.get(index), trajectory) for index, trajectory in trajectories.items())
    votes = tuple(
        VoteRecord(round(max(0.0, vote.t - record.t), 3), vote.problem_id, vote.candidates)
        for vote in run.votes
        if vote.problem_id == record.problem_id
    )
    answers = record.result.candidates if record.result else votes[-1].candidates if votes else ()
    right_votes = sum(attempt.attempt.answer == record.truth for attempt in attempts) if record.truth is not None else 0
    verdict = _verdict(record, right_votes, answers)
    loss = None
    if verdict in LOST:
        found = {index: trajectory for index, trajectory in trajectories.items() if trajectory is not None}
        loss = explain_loss(record, [attempt.attempt for attempt in attempts], found, run.events, run.config)
    why = _why(record, attempts, loss)
    events = tuple(event for event in run.events if is_notable(event) and event.values.get("problem_id") == record.problem_id)
    return ProblemReport(record, verdict, why, loss, attempts, votes, answers, right_votes, events)


def _attempt(problem: ProblemRecord, attempt: Attempt | None, trajectory: TrajectoryRecord | None) -> AttemptReport:
    if trajectory is None:
        assert attempt is not None
        whole = Segment(Activity.THINKING, attempt.started_s, attempt.started_s + attempt.seconds)
        return AttemptReport(attempt, False, (whole,), (), Counter(), None)
    parts = split_segments(trajectory, problem.t)
    errors = Counter(cause for step in trajectory.steps if (cause := tool_error(step)))
    running = attempt is None
    if attempt is None:
        attempt = unfinished_attempt(trajectory, problem)
    text = pack_trajectory(trajectory)
    return AttemptReport(attempt, running, parts, entropy_curve(trajectory.steps), errors, text)


def _verdict(record: ProblemRecord, right_votes: int, answers: Sequence[Candidate]) -> Verdict:
    if record.result is None:
        return Verdict.OPEN
    if record.truth is None:
        return Verdict.UNKNOWN
    if record.result.answer == record.truth:
        return Verdict.RIGHT
    if right_votes:
        return Verdict.OUTVOTED
    return Verdict.NOT_FOUND if answers else Verdict.NO_ANSWER


def _why(record: ProblemRecord, attempts: Sequence[AttemptReport], loss: Loss | None) -> str:
    if loss is not None:
        return loss.reason
    if record.result is None:
        return f"not ended; {len(attempts)} attempts begun"
    return f"{record.result.votes} of {len(attempts)} attempts agreed"


def _count_busy(problems: Sequence[ProblemReport], *activities: Activity) -> tuple[tuple[float, int], ...]:
    return count_active(
        (problem.record.t + segment.start, problem.record.t + segment.end)
        for problem in problems
        for attempt in problem.attempts
        for segment in attempt.segments
        if segment.activity in activities
    )


def _shares(run: RunRecord, problems: Sequence[ProblemReport]) -> TimeShares:
    spent = dict.fromkeys(Activity, 0.0)
    idle = 0.0
    for problem in problems:
        slots = problem.slots or int(run.config["solver"]["slots"])
        for attempt in problem.attempts:
            for segment in attempt.segments:
                spent[segment.activity] += segment.end - segment.start
        running = count_active((attempt.attempt.started_s, attempt.end) for attempt in problem.attempts)
        edges = [(0.0, 0), *running, (problem.seconds, 0)]
        idle += sum(max(0, slots - count) * max(0.0, later - now) for (now, count), (later, _) in pairwise(edges))
    return TimeShares(spent[Activity.THINKING], spent[Activity.TOOL] + spent[Activity.FAILED], spent[Activity.WAITING], idle)
