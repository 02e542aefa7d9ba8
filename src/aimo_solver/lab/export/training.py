"""Training data from runs: attempts for supervised fine-tuning (SFT), and pairs of attempts for preference training (DPO).

Tokens are those that the model read and sampled, as logged; nothing is rendered or tokenised again. The loss mask is 1 on
sampled tokens and 0 on prompts, tool results and other inserted tokens.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from itertools import product
from random import Random
from typing import Any, Generic, TypeVar

from aimo_solver.lab.extras import load_extra
from aimo_solver.lab.runs import LoggedRun
from aimo_solver.log.reader import Step
from aimo_solver.results import Attempt, FinishReason

_ENDED = {FinishReason.ANSWERED, FinishReason.BOXED, FinishReason.NO_ANSWER}  # by themselves, not asked for an answer or cut


class Pairs(StrEnum):
    """What the chosen attempt of a pair is better at: "answer": it is right and the other is wrong; "length": both are right."""

    ANSWER = "answer"
    LENGTH = "length"


class LeftOut(StrEnum):
    """Why an attempt is not used, in the order of the checks."""

    UNFINISHED = "cut off, or asked for its answer"
    WRONG = "wrong"
    SOLVED = "of a problem that every attempt solved"
    UNSOLVED = "of a problem that no attempt solved"
    MALFORMED = "with malformed turns"
    INCOMPLETE = "without all its tokens in the log"
    SHORT = "too short"
    LONG = "too long"
    DUPLICATE = "the same tokens as another one"
    SURPLUS = "enough of its problem without it"
    UNPAIRED = "in no pair"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which attempts and pairs become training data.

    Attributes:
        least_tokens, most_tokens: bounds for all tokens of a conversation; None means no upper bound.
        per_problem: most attempts or pairs of one problem, drawn with `seed`.
        keep_solved: problems that every attempt solved are used too. Those that none solved never are.
        pairs: kinds of pairs.
        length_ratio: the rejected attempt has at least this many times the sampled tokens of the chosen one, for `Pairs.LENGTH`.
        least_similarity, most_similarity: of the sampled tokens of a pair, from 0 (nothing in common) to 1 (equal).
        held_out: share of the problems that is kept for testing, 0..1.
    """

    least_tokens: int = 0
    most_tokens: int | None = None
    per_problem: int = 4
    keep_solved: bool = False
    pairs: tuple[Pairs, ...] = (Pairs.ANSWER,)
    length_ratio: float = 1.5
    least_similarity: float = 0.0
    most_similarity: float = 0.95
    held_out: float = 0.1
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Example:
    """The tokens of one attempt.

    Attributes:
        source: run, problem and number of the attempt.
        problem: the problem's id, the same in all runs.
    """

    source: str
    problem: str
    right: bool
    steps: tuple[Step, ...]

    @cached_property
    def tokens(self) -> list[int]:
        return [token for step in self.steps for token in step.tokens]

    @cached_property
    def mask(self) -> list[int]:
        """1 for each sampled token, 0 for each other one."""
        return [int(step.kind == "turn") for step in self.steps for _ in step.tokens]

    @cached_property
    def prompt_tokens(self) -> int:
        """Tokens before the first sampled one."""
        return self.mask.index(1)

    @cached_property
    def sampled(self) -> list[int]:
        return [token for token, mask in zip(self.tokens, self.mask, strict=True) if mask]

    @property
    def row(self) -> dict[str, Any]:
        """A row for TRL's SFTTrainer."""
        return {"input_ids": self.tokens, "assistant_masks": self.mask, "source": self.source, "problem": self.problem}


@dataclass(frozen=True, eq=False)
class Pair:
    """Two attempts at a problem with the same prompt, of which the first one is better."""

    kind: Pairs
    chosen: Example
    rejected: Example

    @property
    def problem(self) -> str:
        return self.chosen.problem

    @cached_property
    def similarity(self) -> float:
        """1 minus the edit distance between the sampled tokens, divided by the longer length (normalised Levenshtein)."""
        distance = load_extra("rapidfuzz.distance", "pip install -e '.[train]'")
        return float(distance.Levenshtein.normalized_similarity(self.chosen.sampled, self.rejected.sampled))

    @property
    def row(self) -> dict[str, Any]:
        """A row for TRL's DPOTrainer, with the loss masks of both completions."""
        start = self.chosen.prompt_tokens
        return {
            "prompt_ids": self.chosen.tokens[:start],
            "chosen_ids": self.chosen.tokens[start:],
            "rejected_ids": self.rejected.tokens[start:],
            "chosen_mask": self.chosen.mask[start:],
            "rejected_mask": self.rejected.mask[start:],
            "chosen_source": self.chosen.source,
            "rejected_source": self.rejected.source,
            "problem": self.problem,
            "pair": self.kind.value,
        }


Row = TypeVar("Row", Example, Pair)


@dataclass(frozen=True, slots=True)
class TrainingData(Generic[Row]):
    """What was selected.

    Attributes:
        rows: examples or pairs, problem by problem.
        test: those of held-out problems.
        left_out: attempts that are not used, by reason.
        attempts: attempts in all. used: attempts in `rows` or `test`.
    """

    rows: tuple[Row, ...]
    test: tuple[Row, ...]
    left_out: Counter[LeftOut]
    attempts: int
    used: int


def select_sft(
    runs: Sequence[LoggedRun], filters: Filters, progress: Callable[[float], object] = lambda share: None
) -> TrainingData[Example]:
    """Selects right attempts that ended by themselves."""
    left_out: Counter[LeftOut] = Counter()
    chosen: list[Example] = []
    for problem, examples in _by_problem(runs, filters, left_out, progress):
        right = [example for example in examples if example.right]
        left_out[LeftOut.WRONG] += len(examples) - len(right)
        _rng(filters, problem).shuffle(right)
        left_out[LeftOut.SURPLUS] += max(0, len(right) - filters.per_problem)
        chosen += right[: filters.per_problem]
    return TrainingData(*_split(chosen, filters), +left_out, _count(runs), len(chosen))


def select_dpo(
    runs: Sequence[LoggedRun], filters: Filters, progress: Callable[[float], object] = lambda share: None
) -> TrainingData[Pair]:
    """Selects pairs of attempts with the same prompt; an attempt is in at most one pair.

    Raises:
        UserError: rapidfuzz is not installed.
    """
    left_out: Counter[LeftOut] = Counter()
    chosen: list[Pair] = []
    used = 0
    for problem, examples in _by_problem(runs, filters, left_out, progress):
        pairs = list(_pairs(examples, filters, _rng(filters, problem)))
        left_out[LeftOut.UNPAIRED] += len(examples) - 2 * len(pairs)
        used += 2 * len(pairs)
        chosen += pairs
    return TrainingData(*_split(chosen, filters), +left_out, _count(runs), used)


def _by_problem(
    runs: Sequence[LoggedRun], filters: Filters, left_out: Counter[LeftOut], progress: Callable[[float], object]
) -> Iterator[tuple[str, list[Example]]]:
    """Yields the usable attempts at each problem over all runs, and counts the others."""
    problems = list(dict.fromkeys(problem for run in runs for problem in run.problems))
    for done, problem in enumerate(problems, start=1):
        attempts = [(run, attempt) for run in runs if problem in run.problems for attempt in run.problems[problem].attempts]
        truth = next(run.problems[problem].truth for run in runs if problem in run.problems)
        ended = [(run, attempt) for run, attempt in attempts if attempt.finish_reason in _ENDED]
        left_out[LeftOut.UNFINISHED] += len(attempts) - len(ended)
        right = sum(attempt.answer == truth for _, attempt in ended)
        if right == 0 or (right == len(ended) and not filters.keep_solved):
            left_out[LeftOut.SOLVED if right else LeftOut.UNSOLVED] += len(ended)
        else:
            yield problem, list(_usable(ended, truth, filters, left_out))
        progress(done / len(problems))


def _usable(
    attempts: Iterable[tuple[LoggedRun, Attempt]], truth: object, filters: Filters, left_out: Counter[LeftOut]
) -> Iterator[Example]:
    seen: set[tuple[int, ...]] = set()
    for run, attempt in attempts:
        if attempt.malformed:
            left_out[LeftOut.MALFORMED] += 1
        elif (example := _read(run, attempt, right=attempt.answer == truth)) is None:
            left_out[LeftOut.INCOMPLETE] += 1
        elif len(example.tokens) < filters.least_tokens:
            left_out[LeftOut.SHORT] += 1
        elif filters.most_tokens is not None and len(example.tokens) > filters.most_tokens:
            left_out[LeftOut.LONG] += 1
        elif (tokens := tuple(example.tokens)) in seen:
            left_out[LeftOut.DUPLICATE] += 1
        else:
            seen.add(tokens)
            yield example


def _read(run: LoggedRun, attempt: Attempt, *, right: bool) -> Example | None:
    """Returns the tokens of an attempt; None if some are missing, or if the conversation was shortened."""
    trajectory = run.record.read_trajectory(attempt.problem_id, attempt.index) if run.record is not None else None
    if trajectory is None or any(step.why == "given_up" for step in trajectory.steps):
        return None
    example = Example(f"{run.name}/{attempt.problem_id}/{attempt.index}", attempt.problem_id, right, trajectory.steps)
    return example if len(example.sampled) == attempt.tokens > 0 else None


def _pairs(examples: Sequence[Example], filters: Filters, rng: Random) -> Iterator[Pair]:
    free = list(examples)
    count = 0
    for kind in filters.pairs:
        candidates = [Pair(kind, *two) for two in product(examples, examples) if _is_better(kind, *two, filters.length_ratio)]
        rng.shuffle(candidates)
        for pair in candidates:
            if count == filters.per_problem:
                return
            if pair.chosen not in free or pair.rejected not in free:
                continue
            if filters.least_similarity <= pair.similarity <= filters.most_similarity:
                free = [example for example in free if example not in (pair.chosen, pair.rejected)]
                count += 1
                yield pair


def _is_better(kind: Pairs, chosen: Example, rejected: Example, length_ratio: float) -> bool:
    start = chosen.prompt_tokens
    if not chosen.right or chosen is rejected or chosen.tokens[:start] != rejected.tokens[: rejected.prompt_tokens]:
        return False
    if kind is Pairs.ANSWER:
        return not rejected.right
    return rejected.right and len(rejected.sampled) >= length_ratio * len(chosen.sampled)


def _split(rows: Sequence[Row], filters: Filters) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    held_out = {row.problem: _rng(filters, f"held out {row.problem}").random() < filters.held_out for row in rows}
    return tuple(row for row in rows if not held_out[row.problem]), tuple(row for row in rows if held_out[row.problem])


def _rng(filters: Filters, what: str) -> Random:
    """Returns a separate generator for each purpose, so that further runs do not change the draws for other problems."""
    return Random(hashlib.sha256(f"{filters.seed} {what}".encode()).digest())


def _count(runs: Sequence[LoggedRun]) -> int:
    return sum(len(problem.attempts) for run in runs for problem in run.problems.values())
