"""Small runs with known results, written by the run log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from aimo_solver.config import Config
from aimo_solver.log.writer import RunLog
from aimo_solver.problems import Answer, Candidate, Problem, ProblemResult
from aimo_solver.results import Attempt, FinishReason

HOSTILE = '</script><script>window.hacked = 1</script><img src=x onerror="window.hacked = 2">'


def write_run(
    directory: Path,
    answers: Mapping[str, tuple[Answer | None, Sequence[Answer | None]]],
    *,
    end: bool = True,
    config: Config | None = None,
) -> Path:
    """Writes a run with one attempt per given answer; problems are id -> (truth, answers), the first answer is the run's."""
    now = 0.0
    log = RunLog.create(directory, config=config or Config(), environment={"gpus": ["H100"]}, clock=lambda: now)
    log.event("stage_started", stage="server")
    log.event("stage_ended", stage="server", seconds=0.0, outcome="done")
    for problem_id, (truth, choices) in answers.items():
        log.problem_started(Problem(problem_id, f"Find $n$. {HOSTILE}", truth), 900.0)
        for index, answer in enumerate(choices):
            trajectory = log.start_trajectory(problem_id, index)
            trajectory.write_prompt([1, 2], "prompt")
            now += 2
            trajectory.write_turn(
                [3] * 50, f"thinking {HOSTILE}", [0.5] * 50, seconds=2.0, waited_s=0.5, kind="tool_call", finish="stop"
            )
            now += 1
            trajectory.write_tool_call(f"print(1) # {HOSTILE}", "1", seconds=1.0, error_name="NameError" if index == 1 else None)
            now += 1
            trajectory.write_turn([4] * 10, f"\\boxed{{{answer}}}", [0.1] * 10, seconds=1.0, kind="final", finish="stop")
            finish = FinishReason.NO_ANSWER if answer is None else FinishReason.ANSWERED
            log.attempt_finished(
                Attempt(
                    problem_id=problem_id,
                    index=index,
                    answer=answer,
                    finish_reason=finish,
                    tokens=60,
                    turns=2,
                    tool_calls=1,
                    tool_errors=int(index == 1),
                    started_s=4.0 * index,
                    seconds=4.0,
                    tool_seconds=1.0,
                )
            )
        ballot = [answer for answer in choices if answer is not None]
        candidates = tuple(
            Candidate(a, ballot.count(a), ballot.count(a), ballot.count(a) / len(ballot)) for a in dict.fromkeys(ballot)
        )
        log.write_votes(problem_id, candidates)
        leader = candidates[0].answer if candidates else 0
        log.problem_finished(
            ProblemResult(
                problem_id=problem_id,
                answer=leader,
                truth=truth,
                reason="attempts",
                votes=candidates[0].votes if candidates else 0,
                attempts=len(choices),
                tokens=60 * len(choices),
                seconds=4.0 * len(choices),
                allotted_s=900.0,
                candidates=candidates,
            )
        )
    if end:
        log.finish()
    log.close()
    return directory


ANSWERS: dict[str, tuple[int | None, list[int | None]]] = {
    "right": (7, [7, 7, None]),
    "outvoted": (7, [8, 8, 7]),
    "missed": (7, [8, 9, None]),
    "silent": (7, [None, None]),
    "unknown": (None, [5, 5]),
}
