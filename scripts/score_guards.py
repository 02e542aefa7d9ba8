"""Scores the guards of attempts (section `attempt` of the options) on recorded attempts, without a GPU.

python scripts/score_guards.py RUN ...                                # run directories: all guards
python scripts/score_guards.py ../shared/harmony/attempts.npz         # transcripts of gpt-oss: all but the time limit
python scripts/score_guards.py --made-up                              # made-up loops: tokens until the detector fires

What a changed attempt would have answered is known for `stop_at_box` only. For `stop_loops` and `time_limit_s` it counts as
lost, so "right after" is the worst case. An early answer that is questioned may change either way: the share of right ones
among them bounds the gain.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
import statistics
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from openai_harmony import HarmonyEncoding, HarmonyEncodingName, load_harmony_encoding
from rich.console import Console
from rich.table import Table

from aimo_solver.answers import extract_answer, last_box
from aimo_solver.log.reader import read_run
from aimo_solver.policy.loops import WINDOW, LoopDetector, measure_novelty
from aimo_solver.problems import Answer

_ROOT = Path(__file__).resolve().parents[1]
_BOX = re.compile(r"\\boxed\{")
_SENTENCE = "Wait, we need to double-check that the number of such pairs is indeed 24, because the condition must hold. "
_FUNCTION = (
    "def f(n):\n    r = 0\n    for i in range(n):\n        if i % 3 == 0:\n            r += i\n    return r\nprint(f(10))\n"
)

LOOPS: dict[str, Callable[[int], str]] = {
    "a token": lambda n: " so",
    "a phrase": lambda n: "Let me check again. ",
    "a sentence": lambda n: _SENTENCE,
    "two sentences in turn": lambda n: _SENTENCE if n % 2 else "But hold on, is that so? Let me count them one by one. ",
    "a sentence with a number": lambda n: f"Attempt {n}: {_SENTENCE}",
    "a digit": lambda n: "3",
    "a period of digits": lambda n: "142857",
    "counting": lambda n: f"{n}, ",
    "counting, a line each": lambda n: f"{n}\n",
    "counting down": lambda n: f"{100_000 - n} ",
    "odd numbers": lambda n: f"{2 * n + 1}, ",
    "squares": lambda n: f"{n}^2 = {n * n}\n",
    "cases": lambda n: f"n={n}: no. ",
    "cases with a value": lambda n: f"For n = {n}, we get {n * n + 1}, which is not a perfect square.\n",
    "a table": lambda n: f"| {n} | {n * 7 % 13} | {n * n % 17} |\n",
    "lines of code": lambda n: f"x{n} = x{n - 1} + {n}\n",
    "calls in code": lambda n: f"print(f({n}))\n",
    "a function": lambda n: _FUNCTION,
    "nested brackets": lambda n: "(x - ",
    "the same call": lambda n: f"<|start|>assistant<|channel|>analysis to=python code<|message|>{_FUNCTION}<|call|>",
}
"""What a looping model writes, by the number of the repetition."""

TEXTS = {f"a text of {length:,} tokens": length for length in (100, 300, 1_000, 2_000)}
"""Lengths of texts of the documentation that are repeated."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One attempt.

    Attributes:
        turns: sampled tokens by turn, and their texts.
        truth: the right answer; None if unknown.
        seconds: None if not recorded.
        final: its last turn is a final text.
    """

    turns: tuple[Sequence[int], ...]
    texts: tuple[str, ...]
    answer: Answer | None
    truth: Answer | None
    seconds: float | None
    final: bool

    @property
    def tokens(self) -> int:
        return sum(map(len, self.turns))

    @property
    def right(self) -> bool:
        return self.answer is not None and self.answer == self.truth


@dataclass(frozen=True, slots=True)
class GuardScore:
    """One guard on all attempts.

    Attributes:
        changed: attempts that it would have changed; changed_right: those that were right.
        saved: tokens that the changed attempts would not have sampled; None if unknown.
        right, right_after: right attempts without and with it; None if unknown.
    """

    guard: str
    attempts: int
    changed: int
    changed_right: int
    saved: int | None
    right: int
    right_after: int | None


def main(
    paths: Annotated[list[Path] | None, typer.Argument(help="run directories, or attempts.npz")] = None,
    made_up: Annotated[bool, typer.Option("--made-up", help="measure the loop detector on made-up loops instead")] = False,
    time_limit_s: Annotated[float, typer.Option(min=1, help="the limit to score")] = 300.0,
    least_thinking: Annotated[int, typer.Option(min=1, help="the number of tokens to score")] = 5_000,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object instead of tables")] = False,
) -> None:
    """Scores guards on recorded attempts."""
    if made_up:
        fired = {name: fires_at(make_loop(name)) for name in (*LOOPS, *TEXTS)}
        if as_json:
            print(json.dumps(fired))
        else:
            show(
                ["loop", "tokens until it is found"], [[name, "never" if at is None else f"{at:,}"] for name, at in fired.items()]
            )
        raise typer.Exit(1 if None in fired.values() else 0)
    if not paths:
        raise typer.BadParameter("name run directories, or attempts.npz, or use --made-up")
    attempts = [one for path in paths for one in (read_transcripts(path) if path.suffix == ".npz" else read_attempts(path))]
    least = sorted(value for one in attempts if one.right and math.isfinite(value := least_novelty(one.turns)))
    scores = [
        score_loops(attempts),
        score_boxes(attempts),
        score_early(attempts, least_thinking),
        *([score_limit(attempts, time_limit_s)] if any(one.seconds for one in attempts) else []),
    ]
    if as_json:
        print(json.dumps({"scores": [asdict(score) for score in scores], "least_novelty": least}))
        return
    show(
        ["guard", "attempts", "changed", "of them right", "tokens saved", "right", "right after"],
        [["unknown" if value is None else str(value) for value in asdict(score).values()] for score in scores],
    )
    print(describe_margin(least))


def read_transcripts(path: Path, *, texts: bool = True) -> Iterator[Recorded]:
    """Reads transcripts of gpt-oss, ``attempts.npz``: the tokens after the prompt, inserted ones included.

    Without `texts` nothing is decoded, which is faster.
    """
    encoding = _encoding()
    call, end, start, assistant = encoding.encode("<|call|><|return|><|start|>assistant", allowed_special="all")
    with np.load(path) as arrays:
        parts = np.split(arrays["tokens"], arrays["ends"][:-1])
        known = zip(parts, arrays["answer"].tolist(), arrays["right"].tolist(), strict=True)
        for tokens, answer, right in known:
            turns = tuple(split_turns(tokens.tolist(), {call, end}, (start, assistant)))
            decoded = tuple(map(encoding.decode, turns)) if texts else ()
            final = bool(decoded) and "<|channel|>final" in decoded[-1]
            yield Recorded(turns, decoded, answer if answer >= 0 else None, answer if right == 1 else None, None, final)


def split_turns(tokens: Sequence[int], ends: set[int], opening: tuple[int, int]) -> Iterator[Sequence[int]]:
    """Yields what was sampled: up to a token of `ends`, and again after the next `opening`."""
    at = 0
    while at < len(tokens):
        end = next((place for place in range(at, len(tokens)) if tokens[place] in ends), len(tokens) - 1)
        yield tokens[at : end + 1]
        begins = (place for place in range(end + 1, len(tokens) - 1) if (tokens[place], tokens[place + 1]) == opening)
        at = next(begins, len(tokens)) + 2


def read_attempts(directory: Path) -> Iterator[Recorded]:
    """Reads the attempts of a run directory that ended by themselves or at a limit, with their trajectories."""
    run = read_run(directory)
    truths = {problem.problem_id: problem.truth for problem in run.problems}
    for attempt in run.attempts:
        if attempt.finish_reason == "cancelled":
            continue
        trajectory = run.read_trajectory(attempt.problem_id, attempt.index)
        steps = [step for step in trajectory.steps if step.kind == "turn"] if trajectory is not None else []
        yield Recorded(
            tuple(step.tokens for step in steps),
            tuple(step.text for step in steps),
            attempt.answer,
            truths.get(attempt.problem_id),
            attempt.seconds,
            bool(steps) and steps[-1].turn == "final",
        )


def fires_at(tokens: Sequence[int]) -> int | None:
    """Returns after how many tokens the loop detector fires, None if it never does."""
    detector = LoopDetector()
    return next((at + 1 for at, token in enumerate(tokens) if detector.add((token,))), None)


def least_novelty(turns: Sequence[Sequence[int]], step: int = 512) -> float:
    """Returns the least `measure_novelty` of an attempt's windows, one every `step` tokens; infinity if there is none."""
    tokens = array("I", itertools.chain.from_iterable(turns))
    windows = (tokens[end - WINDOW : end] for end in range(WINDOW, len(tokens) + 1, step))
    return min(map(measure_novelty, windows), default=math.inf)


def describe_margin(least: Sequence[float]) -> str:
    """Returns a sentence on the right attempts that come closest to a loop. `least` is sorted."""
    if len(least) < 2:
        return "too few right attempts are as long as a window"
    logs = [math.log(value) for value in least]
    distance = statistics.mean(logs) / (statistics.stdev(logs) or math.inf)
    closest = ", ".join(f"{value:.2f}" for value in least[:5])
    return (
        f"{len(least)} right attempts are as long as a window. Novelty of their least windows, where less than 1 is a loop: "
        f"{closest}, ...; 1 is {distance:.1f} standard deviations below the mean of the logarithms"
    )


def score_loops(attempts: Sequence[Recorded]) -> GuardScore:
    """Scores `stop_loops`, as if the first loop ended an attempt."""
    fired = [(one, at) for one in attempts if (at := fires_at([*itertools.chain(*one.turns)])) is not None]
    return _score("stop_loops", attempts, [one for one, _ in fired], saved=sum(one.tokens - at for one, at in fired), gained=0)


def score_boxes(attempts: Sequence[Recorded]) -> GuardScore:
    """Scores `stop_at_box`: the first box in the thinking is the answer, and the rest is not sampled."""
    changed, saved, gained = [], 0, 0
    for one in attempts:
        thinking = one.texts[:-1] if one.final else one.texts
        for number, text in enumerate(thinking):
            found = first_box(text)
            if found is None:
                continue
            answer, end = found
            rest = sum(map(len, one.turns[number + 1 :])) + round(len(one.turns[number]) * (1 - end / len(text)))
            if rest:
                changed.append(one)
                saved += rest
                gained += answer == one.truth
            break
    return _score("stop_at_box", attempts, changed, saved=saved, gained=gained)


def first_box(text: str) -> tuple[Answer, int] | None:
    """Returns the first boxed answer of a text, and where its box ends."""
    starts = [place.start() for place in _BOX.finditer(text)]
    for start, after in itertools.pairwise([*starts, len(text)]):
        box = last_box(text[start:after])
        answer = None if box is None else extract_answer(f"\\boxed{{{box}}}")
        if box is not None and answer is not None:
            return answer, text.index("}", start + len("\\boxed{") + len(box)) + 1
    return None


def score_early(attempts: Sequence[Recorded], tokens: int) -> GuardScore:
    """Scores `least_thinking`: how many answers it would question."""
    changed = [one for one in attempts if one.final and one.answer is not None and one.tokens < tokens]
    return _score(f"least_thinking={tokens}", attempts, changed, saved=None, gained=None)


def score_limit(attempts: Sequence[Recorded], seconds: float) -> GuardScore:
    """Scores `time_limit_s`, as if no attempt that is cut gave an answer."""
    changed = [one for one in attempts if (one.seconds or 0.0) > seconds]
    saved = sum(round(one.tokens * (1 - seconds / (one.seconds or seconds))) for one in changed)
    return _score(f"time_limit_s={seconds:g}", attempts, changed, saved=saved, gained=0)


def _score(
    guard: str, attempts: Sequence[Recorded], changed: Sequence[Recorded], *, saved: int | None, gained: int | None
) -> GuardScore:
    right, lost = sum(one.right for one in attempts), sum(one.right for one in changed)
    after = None if gained is None else right - lost + gained
    return GuardScore(guard, len(attempts), len(changed), lost, saved, right, after)


def make_loop(name: str, tokens: int = 8_000) -> list[int]:
    """Returns a made-up loop in the tokens of gpt-oss, after a window of normal text."""
    if name in TEXTS:
        return [*prose()[:WINDOW], *(prose()[: TEXTS[name]] * (tokens // TEXTS[name]))]
    text = "".join(map(LOOPS[name], range(1, 3 * tokens)))[: 12 * tokens]
    return [*prose()[:WINDOW], *_encoding().encode(text, allowed_special="all")[:tokens]]


@functools.cache
def prose() -> list[int]:
    """Returns a part of the documentation in the tokens of gpt-oss."""
    text = "".join((_ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("architecture.md", "policies.md"))
    return list(_encoding().encode(text, disallowed_special=()))


@functools.cache
def _encoding() -> HarmonyEncoding:
    return load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)


def show(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table."""
    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    Console(width=130).print(table)


if __name__ == "__main__":
    typer.run(main)
