"""What the log says about a lost problem: what ended its attempts, server downtime, answers that were nearly given."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

from aimo_solver.config import load_config
from aimo_solver.errors import KernelError
from aimo_solver.log.reader import Event, ProblemRecord, Step, TrajectoryRecord
from aimo_solver.policy.loops import LoopDetector
from aimo_solver.policy.options import VotingConfig
from aimo_solver.policy.selection import Method
from aimo_solver.problems import Answer, ProblemResult
from aimo_solver.results import Attempt, FinishReason

_INTEGER = re.compile(r"(?<![\d.])\d+(?!\d|\.\d)")
_KERNEL_ERRORS = tuple(kind.__name__ for kind in KernelError.__subclasses__())


class Cause(StrEnum):
    """Why a problem was lost, in few words."""

    OUTVOTED = "outvoted"  # an attempt gave the truth, another answer won the vote
    OVERRULED = "overruled"  # the truth won the vote, a second look chose another answer
    UNFINISHED = "unfinished"  # an attempt had the truth in sight, but gave no answer in time
    NOT_STARTED = "not started"
    SERVER = "server"  # lost, or took too long to restart
    DEFECT = "defect"
    LOOP = "loop"
    CONTEXT = "context full"
    TOKENS = "token limit"  # of attempt.max_tokens
    TURNS = "turn limit"
    TIME = "out of time"
    PYTHON = "no Python"
    NO_ANSWER = "no answer"  # final texts without an integer
    NOT_FOUND = "not found"  # attempts ended by themselves, none had it

    @property
    def near(self) -> bool:
        """Whether an attempt had the truth."""
        return self in (Cause.OUTVOTED, Cause.OVERRULED, Cause.UNFINISHED)

    @property
    def technical(self) -> bool:
        """Whether a technical fault, not the model, was the cause."""
        return self in (Cause.NOT_STARTED, Cause.SERVER, Cause.DEFECT, Cause.PYTHON)


_LIMITS = {
    FinishReason.LOOP: Cause.LOOP,
    FinishReason.TOKEN_LIMIT: Cause.CONTEXT,
    FinishReason.TURN_LIMIT: Cause.TURNS,
    FinishReason.DEADLINE: Cause.TIME,
    FinishReason.ENGINE_ERROR: Cause.SERVER,
    FinishReason.NO_ANSWER: Cause.NO_ANSWER,
}


@dataclass(frozen=True)
class LostProblem:
    """What the log says about a problem that was lost. `config` holds plain values by section."""

    problem: ProblemRecord
    all_attempts: tuple[Attempt, ...]
    trajectories: Mapping[int, TrajectoryRecord]
    events: tuple[Event, ...]
    config: Mapping[str, Any]

    @cached_property
    def attempts(self) -> tuple[Attempt, ...]:
        """Attempts at the problem itself; a second look has no vote."""
        return tuple(attempt for attempt in self.all_attempts if attempt.prompt not in set(Method))

    @property
    def result(self) -> ProblemResult:
        assert self.problem.result is not None, "the problem has not ended"
        return self.problem.result

    @cached_property
    def voting(self) -> VotingConfig:
        return read_voting(self.config)

    @cached_property
    def right(self) -> tuple[Attempt, ...]:
        return tuple(attempt for attempt in self.attempts if attempt.answer == self.problem.truth)

    @cached_property
    def votes(self) -> dict[Answer, int]:
        """Votes by answer in the last ranking."""
        return {candidate.answer: candidate.votes for candidate in self.result.candidates}

    @cached_property
    def down(self) -> tuple[float, ...]:
        """Seconds without a server during this problem, one value for each loss of the server."""
        start, end = self.problem.t, self.problem.t + self.result.seconds
        spans: list[float] = []
        lost: float | None = None
        for event in (*self.events, Event(float("inf"), "", "server_ready", {})):
            if event.kind == "server_fault":
                lost = event.t if lost is None else lost
            elif event.kind == "server_ready" and lost is not None:
                if lost < end and event.t > start:
                    spans.append(min(end, event.t) - max(start, lost))
                lost = None
        return tuple(spans)

    def option(self, section: str, name: str) -> Any:
        return self.config.get(section, {}).get(name)

    @cached_property
    def limits(self) -> dict[int, Cause]:
        """What ended the attempts that did not end with their own answer, by index."""
        found = {attempt.index: self._limit(attempt) for attempt in self.attempts}
        return {index: cause for index, cause in found.items() if cause is not None}

    def _limit(self, attempt: Attempt) -> Cause | None:
        reason, trajectory = attempt.finish_reason, self.trajectories.get(attempt.index)
        if reason not in (FinishReason.FORCED, FinishReason.CANCELLED, *_LIMITS):
            return None
        if trajectory is not None and is_looping(trajectory):
            return Cause.LOOP
        calls = [step for step in trajectory.steps if step.kind == "tool"] if trajectory is not None else []
        if calls and all(step.error_name in _KERNEL_ERRORS for step in calls):
            return Cause.PYTHON
        most = self.option("attempt", "max_tokens")
        match reason:
            case FinishReason.FORCED | FinishReason.TOKEN_LIMIT if most is not None and attempt.tokens >= most:
                return Cause.TOKENS
            case FinishReason.FORCED:
                return self._forced_by(attempt, trajectory)
            case FinishReason.CANCELLED:
                return {"time": Cause.TIME, "server": Cause.SERVER}.get(self.result.reason)
            case _:
                return _LIMITS[reason]

    def _forced_by(self, attempt: Attempt, trajectory: TrajectoryRecord | None) -> Cause | None:
        """Why an attempt was asked for its answer; None if the log does not show it."""
        allotted = self.problem.allotted_s
        if attempt.turns >= (self.option("attempt", "max_turns") or float("inf")):
            return Cause.TURNS
        reserve = min(self.option("attempt", "answer_s") or 0.0, (allotted or 0.0) / 3) + 2.0
        if allotted is not None and attempt.started_s + attempt.seconds >= allotted - reserve:
            return Cause.TIME
        turns = [step for step in trajectory.steps if step.kind == "turn"] if trajectory is not None else []
        if len(turns) < 2:  # the last one is the answer that was asked for
            return None
        last = turns[-2]
        if last.turn == "cut" and last.finish != "length":
            return None
        return Cause.NO_ANSWER if last.turn == "final" else Cause.CONTEXT


def read_voting(config: Mapping[str, Any]) -> VotingConfig:
    """Returns the voting options of a run; options of another version are left out."""
    own = {name: value for name, value in config.get("voting", {}).items() if name in VotingConfig.__dataclass_fields__}
    return load_config({"voting": own}).voting


def in_sight(steps: Sequence[Step], truth: str) -> str:
    """How an attempt had the truth: boxed in its text, or as the last integer of the last output of a call that worked."""
    if any(step.kind == "turn" and re.search(rf"\\boxed\{{\s*{re.escape(truth)}\s*\}}", step.text) for step in steps):
        return "wrote"
    outputs = [step.output for step in steps if step.kind == "tool" and step.error_name is None and not step.timed_out]
    found = _INTEGER.findall(outputs[-1]) if outputs else []
    return "computed" if found and found[-1] == truth else ""


def is_looping(trajectory: TrajectoryRecord) -> bool:
    """Returns whether the last tokens that the attempt sampled repeat themselves, by `policy.loops`."""
    return LoopDetector().add([token for step in trajectory.steps if step.kind == "turn" for token in step.tokens])
