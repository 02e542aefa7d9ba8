"""Runs attempts of the pocket model without the library: sampled by transformers, with every call executed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

from tokenizers import Tokenizer

from pocket_problems import Problem
from pocket_problems import problems as draw_problems
from pocket_transcripts import fresh_namespace, prompt_text, rendered, response_text, run_cell


def evaluation_problems(seed: int, count: int) -> list[Problem]:
    """Returns held-out problems with distinct texts."""
    chosen: dict[str, Problem] = {}
    for problem in draw_problems(seed, for_training=False):
        chosen.setdefault(problem.text, problem)
        if len(chosen) == count:
            break
    return list(chosen.values())


@dataclass
class EvaluationAttempt:
    """One attempt, while it runs and afterwards."""

    problem: Problem
    ids: list[int]
    namespace: dict[str, Any]
    random: Random
    text: str = ""
    calls: int = 0
    tokens: int = 0
    done: bool = False

    @property
    def right(self) -> bool:
        return self.text.endswith(f"\\boxed{{{self.problem.answer}}}.<turn|>")


def attempt_all(
    model: Any, tokenizer: Tokenizer, chosen: list[Problem], temperature: float, min_p: float, max_turns: int = 6
) -> list[EvaluationAttempt]:
    """Runs one attempt per problem, all in parallel, and executes every call."""
    import torch  # here, since it takes seconds

    attempts = [
        EvaluationAttempt(problem, tokenizer.encode(prompt_text(problem.text)).ids, fresh_namespace(), Random(problem.text))
        for problem in chosen
    ]
    sampling = (
        {"do_sample": True, "temperature": temperature, "min_p": min_p, "top_k": 0} if temperature else {"do_sample": False}
    )
    pad: Any = tokenizer.token_to_id("<pad>")
    for _ in range(max_turns):
        running = [attempt for attempt in attempts if not attempt.done]
        if not running:
            break
        longest = max(len(attempt.ids) for attempt in running)
        ids = torch.tensor([[pad] * (longest - len(a.ids)) + a.ids for a in running], device=model.device)
        mask = torch.tensor([[0] * (longest - len(a.ids)) + [1] * len(a.ids) for a in running], device=model.device)
        output = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=400, **sampling)
        for attempt, row in zip(running, output[:, longest:].tolist(), strict=True):
            _take_turn(attempt, [i for i in row if i != pad], tokenizer)
    return attempts


def _take_turn(attempt: EvaluationAttempt, sampled: list[int], tokenizer: Tokenizer) -> None:
    attempt.tokens += len(sampled)
    text = tokenizer.decode(sampled, skip_special_tokens=False)
    attempt.text += text
    code, called, _ = text.partition('call:python{code:<|"|>')[2].partition('<|"|>}<tool_call|>')
    if not (called and text.endswith("<|tool_response>")):
        attempt.done = True
        return
    attempt.calls += 1
    with _time_limit(6):
        shown = response_text(rendered(run_cell(code, attempt.namespace), code, attempt.random))
    attempt.text += shown
    attempt.ids += sampled + tokenizer.encode(shown).ids


@contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    """Raises TimeoutError inside the block, where `run_cell` treats it as the cell's own error."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"stopped after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
