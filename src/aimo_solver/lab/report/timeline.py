"""What happened when: stages of the boot, faults, what an attempt did at each moment, its entropy over tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from aimo_solver.log.reader import Event
from aimo_solver.log.trajectory import Step, TrajectoryRecord

ENTROPY_BINS = 40
_BOOKKEEPING = {"run_started", "run_resumed", "run_finished", "problem_started", "stage_started", "stage_ended", "server_ready"}
_FAULTS = ("fault", "fail", "restart", "died", "error", "hang", "retry")
_GAP_S = 0.02  # shorter pauses between two steps are bookkeeping, not waiting


class Doing(StrEnum):
    """What an attempt does at a moment."""

    THINKING = "thinking"
    TOOL = "tool"
    FAILED = "failed"  # a tool call that ended in an error
    WAITING = "waiting"  # for the first token of a turn, a kernel, or a server that is restarted


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of the boot, seconds of the run. `outcome` is "done", "failed", or "cut" if the run ended within it."""

    name: str
    start: float
    end: float
    outcome: str


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of an attempt's time, seconds from the problem's start."""

    doing: Doing
    start: float
    end: float


def busy(spans: Iterable[tuple[float, float]]) -> tuple[tuple[float, int], ...]:
    """How many of the spans (start, end) run at a time: (second, number from then on), in order."""
    changes: Counter[float] = Counter()
    for start, end in spans:
        changes[start] += 1
        changes[end] -= 1
    steps, now = [], 0
    for second in sorted(changes):
        now += changes[second]
        steps.append((second, now))
    return tuple(steps)


def segments(trajectory: TrajectoryRecord, zero: float) -> tuple[Segment, ...]:
    """The stretches of an attempt; `zero` is the problem's start in seconds of the run."""
    found: list[Segment] = []
    now = trajectory.t

    def until(doing: Doing, end: float, least: float = 0.0) -> None:
        nonlocal now
        if end - now > least:
            found.append(Segment(doing, round(now - zero, 3), round(end - zero, 3)))
            now = end

    for step in trajectory.steps:
        if step.kind == "turn":
            until(Doing.WAITING, step.t, _GAP_S)
            until(Doing.WAITING, step.t + step.waited_s)
            until(Doing.THINKING, step.t + step.seconds)
        elif step.kind == "tool":
            until(Doing.WAITING, step.t, _GAP_S)
            until(Doing.FAILED if tool_error(step) else Doing.TOOL, step.t + step.seconds)
    if trajectory.ended is not None:
        until(Doing.WAITING, trajectory.ended, _GAP_S)
    return tuple(found)


def entropy_curve(steps: Sequence[Step], bins: int = ENTROPY_BINS) -> tuple[tuple[int, float], ...]:
    """Mean entropy (nats) of at most `bins` equal stretches of the sampled tokens, each with the tokens up to its end."""
    values = [value for step in steps for value in step.entropies if value is not None]
    if not values:
        return ()
    size = -(-len(values) // bins)
    stretches = [values[start : start + size] for start in range(0, len(values), size)]
    return tuple((index * size + len(part), round(sum(part) / len(part), 3)) for index, part in enumerate(stretches))


def tool_error(step: Step) -> str | None:
    """What ended a tool call, None if nothing did."""
    if step.kind != "tool":
        return None
    return "timeout" if step.timed_out else step.error_name


def stages(events: Sequence[Event], last_t: float) -> tuple[Stage, ...]:
    """The stages that events tell of; one that never ended lasts until the run was resumed, or until `last_t`, its end."""
    found: list[Stage] = []
    begun: dict[str, float] = {}
    for event in events:
        name = str(event.values.get("stage", ""))
        if event.kind == "stage_started":
            begun[name] = event.t
        elif event.kind == "stage_ended":
            start = begun.pop(name, event.t - event.values["seconds"])
            found.append(Stage(name, start, event.t, str(event.values["outcome"])))
        elif event.kind == "run_resumed":
            found += [Stage(name, start, event.t, "cut") for name, start in begun.items()]
            begun.clear()
    found += [Stage(name, start, last_t, "cut") for name, start in begun.items()]
    return tuple(sorted(found, key=lambda stage: (stage.start, stage.end)))


def is_fault(event: Event) -> bool:
    """Events that tell of something that went wrong."""
    return event.values.get("outcome") == "failed" or any(
        word in event.kind for word in ("fault", "fail", "restart", "died", "error", "hang", "retry")
    )


def is_notable(event: Event) -> bool:
    """Events that are more than bookkeeping."""
    return event.kind not in _BOOKKEEPING
