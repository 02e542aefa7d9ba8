"""A run over time: stages of the boot, faults, the activities of an attempt, its entropy over tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import zip_longest

from aimo_solver.lab.runs import tool_error
from aimo_solver.log.reader import Event, Step, TrajectoryRecord
from aimo_solver.results import DraftCounts

ENTROPY_BINS = 40
_BOOKKEEPING = {
    "run_started", "run_resumed", "run_finished", "problem_started", "stage_started", "stage_ended", "server_ready", "drafts",
}  # fmt: skip
_FAULTS = ("fault", "fail", "restart", "died", "error", "hang", "retry")
_GAP_S = 0.02  # shorter pauses between two steps are not waiting


class Activity(StrEnum):
    """What an attempt is doing."""

    THINKING = "thinking"
    TOOL = "tool"
    FAILED = "failed"  # a tool call that ended in an error
    WAITING = "waiting"  # for the first token of a turn, a kernel or a server restart


@dataclass(frozen=True, slots=True)
class BootStage:
    """A stage of the boot, in seconds of the run. `outcome` is "done", "failed", or "cut" if the run ended within it."""

    name: str
    start: float
    end: float
    outcome: str = "done"


@dataclass(frozen=True, slots=True)
class Segment:
    """A time span of an attempt, in seconds from the problem's start."""

    activity: Activity
    start: float
    end: float


def count_active(spans: Iterable[tuple[float, float]]) -> tuple[tuple[float, int], ...]:
    """Returns how many of the spans (start, end) run at a time: (second, number from then on), in order."""
    changes: Counter[float] = Counter()
    for start, end in spans:
        changes[start] += 1
        changes[end] -= 1
    steps, now = [], 0
    for second in sorted(changes):
        now += changes[second]
        steps.append((second, now))
    return tuple(steps)


def split_segments(trajectory: TrajectoryRecord, zero: float) -> tuple[Segment, ...]:
    """Splits an attempt into segments without overlap; `zero` is the problem's start in seconds of the run."""
    found: list[Segment] = []
    now = trajectory.t

    def until(activity: Activity, end: float, least: float = 0.0) -> None:
        nonlocal now
        if end - now > least:
            found.append(Segment(activity, round(now - zero, 3), round(end - zero, 3)))
            now = end

    for step in trajectory.steps:
        if step.kind == "turn":
            until(Activity.WAITING, step.t, _GAP_S)
            until(Activity.WAITING, step.t + step.waited_s)
            until(Activity.THINKING, step.t + step.seconds)
        elif step.kind == "tool":
            until(Activity.WAITING, step.t, _GAP_S)
            until(Activity.FAILED if tool_error(step) else Activity.TOOL, step.t + step.seconds)
    if trajectory.ended is not None:
        until(Activity.WAITING, trajectory.ended, _GAP_S)
    return tuple(found)


def entropy_curve(steps: Sequence[Step], bins: int = ENTROPY_BINS) -> tuple[tuple[int, float], ...]:
    """Returns the mean entropy in nats of at most `bins` equal parts of the sampled tokens, as (tokens up to its end, mean)."""
    values = [value for step in steps for value in step.entropies if value is not None]
    if not values:
        return ()
    size = -(-len(values) // bins)
    parts = [values[start : start + size] for start in range(0, len(values), size)]
    return tuple((index * size + len(part), round(sum(part) / len(part), 3)) for index, part in enumerate(parts))


def boot_stages(events: Sequence[Event], last_t: float) -> tuple[BootStage, ...]:
    """The logged stages; one that never ended lasts until the run was resumed, or until the run's end at `last_t`."""
    found: list[BootStage] = []
    begun: dict[str, float] = {}
    for event in events:
        name = str(event.values.get("stage", ""))
        if event.kind == "stage_started":
            begun[name] = event.t
        elif event.kind == "stage_ended":
            start = begun.pop(name, event.t - event.values["seconds"])
            found.append(BootStage(name, start, event.t, str(event.values["outcome"])))
        elif event.kind == "run_resumed":
            found += [BootStage(name, start, event.t, "cut") for name, start in begun.items()]
            begun.clear()
    found += [BootStage(name, start, last_t, "cut") for name, start in begun.items()]
    return tuple(sorted(found, key=lambda stage: (stage.start, stage.end)))


def count_drafts(events: Sequence[Event]) -> DraftCounts | None:
    """What all servers of a run have drafted; None without speculation. Each counts from its own start."""
    logged = [event.values for event in events if event.kind == "drafts"]
    counts = [DraftCounts(steps=int(of["steps"]), drafted=int(of["drafted"]), accepted=int(of["accepted"])) for of in logged]
    last = [now for now, after in zip_longest(counts, counts[1:]) if after is None or after.steps < now.steps]
    if not last:
        return None
    steps, drafted, accepted = (sum(getattr(of, name) for of in last) for name in ("steps", "drafted", "accepted"))
    return DraftCounts(steps=steps, drafted=drafted, accepted=accepted)


def is_fault(event: Event) -> bool:
    """Whether something went wrong."""
    return event.values.get("outcome") == "failed" or any(word in event.kind for word in _FAULTS)


def is_notable(event: Event) -> bool:
    """Whether the event is more than bookkeeping."""
    return event.kind not in _BOOKKEEPING
