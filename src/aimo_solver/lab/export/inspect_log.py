"""A run as a log of Inspect (inspect_ai), written by Inspect's own writer, so that ``inspect view`` opens it.

Each problem is a sample and each attempt an epoch of it. Two scores: `attempt` judges the attempt's own answer, `vote` the answer
that the run gave for the problem.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from aimo_solver.lab.export.tables import name_run
from aimo_solver.lab.extras import load_extra
from aimo_solver.log.reader import ProblemRecord, RunRecord, Step
from aimo_solver.results import Attempt, FinishReason

_REMEDY = "pip install 'aimo-solver[inspect]'"
_LIMITS = {FinishReason.TURN_LIMIT: "turn", FinishReason.TOKEN_LIMIT: "token", FinishReason.DEADLINE: "time"}
_CUT = {FinishReason.CANCELLED, FinishReason.DEADLINE, FinishReason.ENGINE_ERROR}
_STOPS = {"stop": "stop", "length": "max_tokens"}


def write_inspect_log(run: RunRecord, folder: Path, progress: Callable[[float], object] = lambda share: None) -> Path:
    """Writes ``NAME.eval`` for a run, replacing an earlier one, and returns its path.

    Attempts that are still running are left out. `progress` takes the share done.

    Raises:
        UserError: inspect_ai is not installed.
        OSError: the file cannot be written.
    """
    log = load_extra("inspect_ai.log", _REMEDY)
    model = model_name(run)
    samples = []
    for sample in _samples(run, model):
        samples.append(sample)
        progress(len(samples) / len(run.attempts))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name_run(run)}.eval"
    path.unlink(missing_ok=True)
    log.write_eval_log(
        log.EvalLog(
            status="started" if run.summary is None else "success",
            eval=_spec(log, run, model),
            results=_results(log, run, samples),
            stats=log.EvalStats(
                started_at=run.started, completed_at=_wall(run, run.last_t), model_usage={model: _usage(run.attempts)}
            ),
            samples=samples,
        ),
        str(path),
    )
    return path


def _spec(log: Any, run: RunRecord, model: str) -> Any:
    name = name_run(run)
    return log.EvalSpec(
        eval_id=f"{name}-{run.started}",
        run_id=name,
        task=name,
        task_id=name,
        created=run.started,
        dataset=log.EvalDataset(samples=len(run.problems), sample_ids=[problem.problem_id for problem in run.problems]),
        model=model,
        config=log.EvalConfig(epochs=max((attempt.index + 1 for attempt in run.attempts), default=1)),
        packages=dict(run.environment.get("versions", {})),
        metadata={"config": dict(run.config), "environment": dict(run.environment)},
    )


def model_name(run: RunRecord) -> str:
    """Returns the folder name of the model that the run's server loaded, with "vllm/" before it as Inspect names models."""
    for event in run.events:
        words = event.values["command"].split() if event.kind == "server_starting" else []
        if "--model" in words or "serve" in words:
            place = words.index("--model" if "--model" in words else "serve")
            return f"vllm/{Path(words[place + 1]).name}"
    return "vllm/unknown"


def _samples(run: RunRecord, model: str) -> Iterator[Any]:
    for problem in run.problems:
        own = (attempt for attempt in run.attempts if attempt.problem_id == problem.problem_id)
        for attempt in sorted(own, key=lambda one: one.index):
            trajectory = run.read_trajectory(attempt.problem_id, attempt.index)
            yield _sample(run, problem, attempt, () if trajectory is None else trajectory.steps, model)


def _sample(run: RunRecord, problem: ProblemRecord, attempt: Attempt, steps: Sequence[Step], model: str) -> Any:
    log, api = load_extra("inspect_ai.log", _REMEDY), load_extra("inspect_ai.model", _REMEDY)
    messages = _messages(steps)
    usage = _usage([attempt])
    last = next((message for message in reversed(messages) if message.role == "assistant"), None)
    turns = [step for step in steps if step.kind == "turn"]
    stop = _STOPS.get(turns[-1].finish, "unknown") if turns else "unknown"
    choices = [] if last is None else [api.ChatCompletionChoice(message=last, stop_reason=stop)]
    started = problem.t + attempt.started_s
    failed = attempt.finish_reason is FinishReason.ENGINE_ERROR
    error = attempt.error or "engine error"
    return log.EvalSample(
        id=problem.problem_id,
        epoch=attempt.index + 1,
        input=problem.text,
        target="" if problem.truth is None else str(problem.truth),
        messages=messages,
        output=api.ModelOutput(model=model, choices=choices, usage=usage, time=attempt.seconds - attempt.tool_seconds),
        scores=_scores(problem, attempt),
        metadata=asdict(attempt),
        model_usage={model: usage},
        started_at=_wall(run, started),
        completed_at=_wall(run, started + attempt.seconds),
        total_time=attempt.seconds,
        working_time=attempt.seconds,
        limit=_limit(log, run, problem, attempt),
        error=log.EvalError(message=error, traceback=error, traceback_ansi=error) if failed else None,
        turn_count=attempt.turns,
    )


def _usage(attempts: Sequence[Attempt]) -> Any:
    read, sampled = (sum(getattr(one, name) for one in attempts) for name in ("prompt_tokens", "tokens"))
    cached = sum(attempt.cached_tokens for attempt in attempts)
    usage = load_extra("inspect_ai.model", _REMEDY).ModelUsage
    return usage(input_tokens=read, output_tokens=sampled, total_tokens=read + sampled, input_tokens_cache_read=cached)


def _messages(steps: Sequence[Step]) -> list[Any]:
    """The conversation. Texts are exact, with control tokens; a tool's output occurs once, as the tool's message."""
    api, tool = load_extra("inspect_ai.model", _REMEDY), load_extra("inspect_ai.tool", _REMEDY)
    messages: list[Any] = []
    calls: list[Any] = []  # of the last turn
    for number, step in enumerate(steps):
        values = {"t": step.t, "seconds": step.seconds, "waited_s": step.waited_s, "tokens": len(step.tokens), "why": step.why}
        timing = {name: value for name, value in values.items() if value}
        if step.kind == "turn":
            calls = []
            messages.append(api.ChatMessageAssistant(content=step.text, tool_calls=calls, source="generate", metadata=timing))
            calls = messages[-1].tool_calls
        elif step.kind == "tool":
            call = tool.ToolCall(id=f"call-{number}", function="python", arguments={"code": step.code})
            calls.append(call)
            messages.append(
                api.ChatMessageTool(
                    content=step.output, tool_call_id=call.id, function="python", error=_tool_error(step), metadata=timing
                )
            )
        elif step.why != "tool_result":
            messages.append(api.ChatMessageUser(content=step.text, metadata=timing))
    return messages


def _tool_error(step: Step) -> Any:
    """The error of a call that failed. The viewer shows its message instead of the output, so the message is the output."""
    if step.error_name is None and not step.timed_out:
        return None
    kind = "timeout" if step.timed_out else "unknown"
    return load_extra("inspect_ai.tool", _REMEDY).ToolCallError(kind, step.output or step.error_name or "timed out")


def _limit(log: Any, run: RunRecord, problem: ProblemRecord, attempt: Attempt) -> Any:
    kind = _LIMITS.get(attempt.finish_reason)
    if kind is None:
        return None
    reached = {"turn": attempt.turns, "token": attempt.tokens, "time": attempt.seconds}
    return log.EvalSampleLimit(type=kind, limit=float(reached[kind]), reason=attempt.finish_reason.value)


def _scores(problem: ProblemRecord, attempt: Attempt) -> dict[str, Any]:
    """The scores of an attempt; one that was cut off without an answer has no score of its own."""
    if problem.truth is None:
        return {}
    score = load_extra("inspect_ai.scorer", _REMEDY).Score
    scores = {}
    if attempt.answer is not None or attempt.finish_reason not in _CUT:
        value = "N" if attempt.answer is None else "C" if attempt.answer == problem.truth else "I"
        scores["attempt"] = score(value=value, answer=None if attempt.answer is None else str(attempt.answer))
    if problem.result is not None:
        share = f"{problem.result.votes} of {problem.result.attempts} attempts, ended by {problem.result.reason}"
        value = "C" if problem.result.right else "I"
        scores["vote"] = score(value=value, answer=str(problem.result.answer), explanation=share)
    return scores


def _results(log: Any, run: RunRecord, samples: Sequence[Any]) -> Any:
    """The share of right attempts and of right problems, of those that have a score."""
    own = [sample.scores["attempt"].value == "C" for sample in samples if "attempt" in sample.scores]
    votes = [result.right for result in run.results if result.right is not None]
    scores = []
    for name, rights in (("vote", votes), ("attempt", own)):
        if rights:
            metrics = {"accuracy": log.EvalMetric(name="accuracy", value=sum(rights) / len(rights))}
            scores.append(log.EvalScore(name=name, scorer=name, scored_samples=len(rights), metrics=metrics))
    return log.EvalResults(total_samples=len(samples), completed_samples=len(samples), scores=scores)


def _wall(run: RunRecord, t: float) -> str:
    return (datetime.fromisoformat(run.started) + timedelta(seconds=t)).isoformat(timespec="milliseconds")
