"""A problem, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass

Answer = int | str
"""An integer, or with ``answers.kind = "symbolic"`` a LaTeX text; equal answers to one problem are then the same text."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem. `truth` is its true answer; None if unknown."""

    id: str
    text: str
    truth: Answer | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """An answer that at least one attempt gave.

    Attributes:
        score: given by the voter; comparable within one ranking only.
        votes: attempts that gave it.
        share: its part of all scores, 0..1.
    """

    answer: Answer
    score: float
    votes: int
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemResult:
    """How one problem ended.

    Attributes:
        truth: of the problem.
        reason: why the problem ended; `Solver.solve` lists the values.
        votes: attempts that gave `answer`.
        attempts, tool_calls, tokens: totals over all attempts.
        slots: most concurrent attempts; 0 in runs of earlier versions.
        seconds, allotted_s: used, and granted by the budget.
        candidates: the last ranking, best first.
    """

    problem_id: str
    answer: Answer
    truth: Answer | None = None
    reason: str
    votes: int = 0
    attempts: int = 0
    slots: int = 0
    tool_calls: int = 0
    tokens: int = 0
    seconds: float = 0.0
    allotted_s: float | None = None
    candidates: tuple[Candidate, ...] = ()

    @property
    def tokens_per_s(self) -> float:
        """Tokens of all attempts per second of the problem, waits for Python included; 0 if it took no time."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def right(self) -> bool | None:
        """Whether the answer is true; None where the truth is unknown."""
        return None if self.truth is None else self.answer == self.truth
