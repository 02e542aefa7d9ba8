"""Why a problem was lost, and what would have saved it.

A pure function of what `log.reader` read. A trajectory shows more than the attempt's record: a right value before the end, or a
loop. What would have saved a problem is computed where it can be (another voter on the same attempts); otherwise it is the option
that limited the attempts, as a hint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aimo_solver.lab.lost_problem import Cause, LostProblem, in_sight
from aimo_solver.lab.replay import parse_policy
from aimo_solver.log.reader import Event, ProblemRecord, RunRecord, TrajectoryRecord
from aimo_solver.policy.voting import VOTER_NAMES, rank
from aimo_solver.results import Attempt, FinishReason


@dataclass(frozen=True, slots=True)
class Loss:
    """Why a problem was lost.

    Attributes:
        reason: in words.
        remedy: what would have saved it, or may have.
        attempt: index of the attempt that best shows why; None if there is none.
    """

    cause: Cause
    reason: str
    remedy: str
    attempt: int | None


def explain_run(run: RunRecord) -> dict[str, Loss]:
    """Explains all lost problems of a run, by id. Reads the trajectories of these problems only."""
    losses = {}
    for problem in run.problems:
        if problem.result is not None and problem.result.right is False:
            attempts = [attempt for attempt in run.attempts if attempt.problem_id == problem.problem_id]
            indices = run.trajectory_indices(problem.problem_id)
            read = {index: run.read_trajectory(problem.problem_id, index) for index in indices}
            trajectories = {index: trajectory for index, trajectory in read.items() if trajectory is not None}
            losses[problem.problem_id] = explain_loss(problem, attempts, trajectories, run.events, run.config)
    return losses


def explain_loss(
    problem: ProblemRecord,
    attempts: Sequence[Attempt],
    trajectories: Mapping[int, TrajectoryRecord],
    events: Sequence[Event],
    config: Mapping[str, Any],
) -> Loss:
    """Explains why a problem that ended with a wrong answer was lost.

    Args:
        attempts: all attempts at this problem.
        trajectories: by attempt; missing ones are taken to show nothing.
        events: of the whole run.
        config: of the run, plain values by section.
    """
    case = LostProblem(problem, tuple(attempts), trajectories, tuple(events), config)
    rules = (_not_started, _overruled, _outvoted, _unfinished, _failed, _server, _limited)
    return next((loss for rule in rules if (loss := rule(case)) is not None), None) or _not_found(case)


def _not_started(case: LostProblem) -> Loss | None:
    if case.attempts:
        return None
    given = case.problem.allotted_s
    reason = "no attempt began" if given is None else f"no attempt began in {_seconds(given)}"
    return Loss(
        Cause.NOT_STARTED, reason, "a server that is ready sooner, or more time for it: see the boot and the events", None
    )


def _overruled(case: LostProblem) -> Loss | None:
    truth = case.problem.truth
    if not case.votes or next(iter(case.votes)) != truth:
        return None
    methods = [
        e.values["method"] for e in case.events if e.kind == "selection" and _is_about(e, case) and e.values["answer"] != truth
    ]
    method = methods[-1] if methods else "select"
    reason = f"overruled: {truth} won the vote, the second look ({method}) chose {case.result.answer}"
    return Loss(Cause.OVERRULED, reason, f"selection.{method}=log", case.right[0].index if case.right else None)


def _outvoted(case: LostProblem) -> Loss | None:
    truth, answer = case.problem.truth, case.result.answer
    if not case.right or truth not in case.votes:
        return None
    own, other = case.votes[truth], case.votes.get(answer, 0) if answer is not None else 0
    reason = f"outvoted {other} to {own}: {answer} won over {truth}"
    if other <= own:
        reason = f"outvoted by weight: {truth} had {_votes(own)}, {answer} had {_votes(other)} that weighed more"
    return Loss(Cause.OUTVOTED, reason, _other_votes(case, other - own + 1), case.right[0].index)


def _other_votes(case: LostProblem, missing: int) -> str:
    """The voters that choose the truth from the same attempts, or else what is missing."""
    others = [name for name in VOTER_NAMES if name != case.voting.voter]
    ranked = {name: rank(case.attempts, parse_policy(name, case.voting).voting) for name in others}
    better = [name for name, candidates in ranked.items() if candidates and candidates[0].answer == case.problem.truth]
    if better:
        return f"another voter on the same attempts: {', '.join(better)}"
    cut = sum(attempt.finish_reason is FinishReason.CANCELLED for attempt in case.attempts)
    votes = _votes(max(1, missing), "more ")
    if cut and _stopped(case):
        return f"{votes} for it; the stop rule ({case.result.reason}) left {_attempts(cut)} unfinished"
    return f"{votes} for it"


def _unfinished(case: LostProblem) -> Loss | None:
    truth = case.problem.truth
    for attempt in case.attempts:
        trajectory = case.trajectories.get(attempt.index)
        if attempt.answer == truth:
            where = "gave"
        elif attempt.answer is None and trajectory is not None and (seen := in_sight(trajectory.steps, str(truth))):
            where = seen
        else:
            continue
        when, remedy = _cut_short(case, attempt)
        return Loss(
            Cause.UNFINISHED, f"attempt {attempt.index} {where} {truth} but did not finish: {when}", remedy, attempt.index
        )
    return None


@dataclass(frozen=True, slots=True)
class _Words:
    """What a limit did to one attempt, and to a part of them."""

    one: str
    many: str
    remedy: str


_STABLE_SERVER = "a server that stays up: see server.log"
_LIMIT_WORDS = {
    Cause.TIME: _Words("time ran out", "out of time: {part} unfinished after {given}", ""),  # see _more_time
    Cause.SERVER: _Words("the server was lost", "requests failed in {part}", _STABLE_SERVER),
    Cause.CONTEXT: _Words(
        "its context was full", "context full in {part}", "a larger server.context_tokens, or a smaller kernels.output_chars"
    ),
    Cause.TOKENS: _Words("its tokens were used up", "token limit reached in {part}", "a larger attempt.max_tokens"),
    Cause.LOOP: _Words(
        "it repeated itself",
        "loop: {part} repeated themselves",
        "another sampling.temperature or min_p; attempt.stop_loops=true ends them",
    ),
    Cause.TURNS: _Words("it had no turn left", "turn limit reached in {part}", "a larger attempt.max_turns"),
    Cause.PYTHON: _Words("it lost its Python session", "no Python session in {part}", "kernels that start: see the error"),
    Cause.NO_ANSWER: _Words(
        "its final text has no readable answer", "{part} ended without an integer", "a prompt that asks for \\boxed{}"
    ),
}


def _remedy(case: LostProblem, cause: Cause) -> str:
    return _more_time(case) if cause is Cause.TIME else _LIMIT_WORDS[cause].remedy


def _cut_short(case: LostProblem, attempt: Attempt) -> tuple[str, str]:
    """What ended an attempt, and what would have let it finish."""
    cause = case.limits.get(attempt.index)
    if cause is None:
        return f"the stop rule ({case.result.reason}) ended the problem", "a stop rule that waits longer (voting.stop)"
    when, remedy = _LIMIT_WORDS[cause].one, _remedy(case, cause)
    if cause is Cause.TIME and case.down:
        return f"{when} after {_restarts(case)}", _STABLE_SERVER
    return when, remedy


def _more_time(case: LostProblem) -> str:
    given, cap = case.problem.allotted_s, case.option("budget", "cap_s")
    limit, end = case.option("budget", "time_limit_s"), max((event.t for event in case.events), default=0.0)
    if given is not None and cap is not None and given < cap:
        return f"an earlier place in the run: it was given {_seconds(given)}, the cap is {_seconds(cap)}"
    if limit is not None and limit - end > 60:
        return f"a larger budget.cap_s: the run ended with {_seconds(limit - end)} of its time unused"
    return "more time, or faster attempts"


def _failed(case: LostProblem) -> Loss | None:
    faults = [event for event in case.events if event.kind in ("attempt_fault", "problem_fault") and _is_about(event, case)]
    fatal = case.result.reason == "fault" or 2 * sum(event.kind == "attempt_fault" for event in faults) >= len(case.attempts)
    if not fatal:
        return None
    last = str(faults[-1].values.get("traceback", "")).strip().splitlines()[-1:] if faults else []
    index = next((event.values["index"] for event in faults if "index" in event.values), None)
    reason = f"a defect ended it{': ' if last else ''}{last[0][:200] if last else ''}"
    return Loss(Cause.DEFECT, reason, "a fix: the traceback is in events.jsonl", index)


def _server(case: LostProblem) -> Loss | None:
    cut = [index for index, cause in case.limits.items() if cause in (Cause.SERVER, Cause.TIME)]
    if case.result.reason != "server" and not (case.down and 2 * len(cut) >= len(case.attempts)):
        return None
    reason = f"{_restarts(case)}, then {_attempts(len(cut))} of {len(case.attempts)} unfinished"
    if case.result.reason == "server":
        reason = f"the server was lost repeatedly: {_restarts(case)}" if case.down else "the server was lost repeatedly"
    return Loss(Cause.SERVER, reason, _STABLE_SERVER, cut[0] if cut else None)


def _restarts(case: LostProblem) -> str:
    spans = " and ".join(_seconds(span) for span in case.down)
    return f"a server restart of {spans}" if len(case.down) == 1 else f"{len(case.down)} server restarts of {spans}"


def _limited(case: LostProblem) -> Loss | None:
    """The loss by the most common limit, if limits ended half of the attempts or more."""
    if 2 * len(case.limits) < len(case.attempts):
        return None
    cause, count = Counter(case.limits.values()).most_common(1)[0]
    index = next(index for index, own in case.limits.items() if own is cause)
    part, given = f"{count} of {len(case.attempts)} attempts", _seconds(case.problem.allotted_s or case.result.seconds)
    return Loss(cause, _LIMIT_WORDS[cause].many.format(part=part, given=given), _remedy(case, cause), index)


def _not_found(case: LostProblem) -> Loss:
    """The loss of a problem whose truth no attempt had, and whose attempts mostly ended by themselves."""
    given = Counter(attempt.answer for attempt in case.attempts if attempt.answer is not None).most_common()
    count = len(case.attempts)
    if not given:
        return Loss(Cause.NO_ANSWER, f"none of {count} attempts gave an answer", "more attempts", case.attempts[0].index)
    answer, most = given[0]
    others = f"{most} gave {answer}" if len(given) == 1 else f"{most} gave {answer}, the most of {len(given)} answers"
    index = next(attempt.index for attempt in case.attempts if attempt.answer == answer)
    reason = f"no attempt of {count} had {case.problem.truth}: {others}"
    if 2 * most > count:
        return Loss(Cause.NOT_FOUND, reason, "another prompt or model: most attempts agree on the wrong answer", index)
    cut = sum(attempt.finish_reason is FinishReason.CANCELLED for attempt in case.attempts)
    allowed = case.option("solver", "max_attempts") or count
    remedy = "more attempts, or another prompt or model"
    if _stopped(case) and (cut or count < allowed):
        left = f"{cut} unfinished" if cut else f"{allowed - count} not begun"
        remedy = f"more attempts: the stop rule ({case.result.reason}) left {left}"
    elif case.problem.allotted_s and case.result.seconds < case.problem.allotted_s / 2:
        remedy = f"more attempts: it used {_seconds(case.result.seconds)} of {_seconds(case.problem.allotted_s)}"
    return Loss(Cause.NOT_FOUND, reason, remedy, index)


def _stopped(case: LostProblem) -> bool:
    """Whether a stop rule ended the problem."""
    return case.result.reason not in ("attempts", "time", "server", "fault")


def _is_about(event: Event, case: LostProblem) -> bool:
    return event.values.get("problem_id") == case.problem.problem_id


def _votes(count: int, more: str = "") -> str:
    return f"1 {more}vote" if count == 1 else f"{count} {more}votes"


def _attempts(count: int) -> str:
    return "1 attempt" if count == 1 else f"{count} attempts"


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds >= 1 else f"{seconds:.1f} s"
