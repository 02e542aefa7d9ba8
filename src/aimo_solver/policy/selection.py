"""A second look at a contested problem: the model chooses among its own answers, or tests them by code.

Pure: the questions to ask, and how to count the replies. Both methods are asked as fresh attempts:

    select    generative selection: the model reads the end of the best solution of each candidate and picks one. Half of the
              attempts see the candidates in reversed order, since models favour what they read first (Zheng et al. 2023,
              position bias)
    verify    re-verification: the model sees only the values of the candidates and tests each by code

A reply is the integer that the attempt ends with. A reply that is not one of the candidates picks nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from aimo_solver.chat.variants import PromptVariant
from aimo_solver.policy.options import SelectionConfig
from aimo_solver.policy.voting import evidence
from aimo_solver.problems import Answer, Candidate, Problem
from aimo_solver.results import Attempt


class Method(StrEnum):
    """How a contested problem gets its second look."""

    SELECT = "select"
    VERIFY = "verify"


SELECT_TEXT = """{problem}

Several people have worked on this problem and do not agree. Here is how each of them ends.

{solutions}

At most one of them is right. Go through their arguments, look for the step at which the wrong ones fail, and settle the point \
yourself where they contradict each other. How sure a solution sounds says nothing, and neither does its place in the list."""

SOLUTION_TEXT = """--- Solution {number}, with the answer {answer} ---
{summary}"""

VERIFY_TEXT = """{problem}

These values have been proposed as the answer: {answers}. At most one of them is right."""

PROMPTS: Mapping[Method, PromptVariant] = {
    Method.SELECT: PromptVariant(
        name="select",
        suffix=(
            "Decide which solution has the right answer. Finish with that answer in \\boxed{}, the number alone; it must be one "
            "of the answers above."
        ),
    ),
    Method.VERIFY: PromptVariant(
        name="verify",
        suffix=(
            "Test each value with Python: compute the quantity directly where that is possible, otherwise check small cases, "
            "necessary conditions and an independent way of counting, until all values but one are refuted. Do not trust a "
            "derivation that you have not checked numerically. Finish with the value that stands in \\boxed{}, the number alone."
        ),
    ),
}
"""The prompts of the questions. All text is in the user message: some families have no system role."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A candidate shown to the model. `summary` is the end of the best solution with this answer."""

    answer: Answer
    summary: str


@dataclass(frozen=True, slots=True)
class SelectionResult:
    """The result of a second look.

    Attributes:
        answer: the candidate with the most picks; in a tie, the one ranked higher by the first vote. None without a pick.
        picks: one per reply; None for a reply that picked nothing.
        votes: picks for `answer`.
    """

    method: Method
    answer: Answer | None
    picks: tuple[Answer | None, ...]
    votes: int

    @property
    def clear(self) -> bool:
        """Whether more than half of the replies picked the answer."""
        return 2 * self.votes > len(self.picks)


def is_contested(candidates: Sequence[Candidate], selection: SelectionConfig) -> bool:
    """Whether the vote has several candidates and no clear leader."""
    return len(candidates) > 1 and candidates[0].share < selection.clear_share


def shortlist(
    candidates: Sequence[Candidate], attempts: Sequence[Attempt], finals: Mapping[int, str], selection: SelectionConfig
) -> tuple[Contender, ...]:
    """Returns the best candidates, each with a summary of the attempt with the most `evidence` that has a final text.

    Args:
        finals: final texts by attempt index.
    """
    chosen = []
    for candidate in candidates[: selection.candidates]:
        own = sorted((one for one in attempts if one.answer == candidate.answer), key=lambda one: (-evidence(one), one.index))
        final = next((text for one in own if (text := finals.get(one.index, "").strip())), "")
        chosen.append(Contender(candidate.answer, shorten(final, selection.summary_chars)))
    return tuple(chosen)


def shorten(final: str, chars: int) -> str:
    """Returns the end of a final text, from the beginning of a paragraph or line; at most `chars` characters."""
    text = final.strip()
    if not text:
        return "(no explanation was given)"
    if len(text) <= chars:
        return text
    mark = "[...] "
    end = text[len(text) - max(1, chars - len(mark)) :]
    for border in ("\n\n", "\n", " "):
        place = end.find(border)
        if 0 <= place < len(end) // 2:
            end = end[place:].strip()
            break
    return f"{mark}{end}"[:chars]


def write_questions(
    method: Method, problem: Problem, shown: Sequence[Contender], selection: SelectionConfig
) -> tuple[Problem, ...]:
    """Returns the problem with the candidates, `selection.asks` times; every other text lists them in reversed order."""
    orders = (tuple(shown), tuple(reversed(shown)))
    return tuple(_write_question(method, problem, orders[number % 2]) for number in range(selection.asks))


def _write_question(method: Method, problem: Problem, shown: Sequence[Contender]) -> Problem:
    if method is Method.SELECT:
        solutions = "\n\n".join(
            SOLUTION_TEXT.format(number=number, answer=one.answer, summary=one.summary)
            for number, one in enumerate(shown, start=1)
        )
        text = SELECT_TEXT.format(problem=problem.text, solutions=solutions)
    else:
        text = VERIFY_TEXT.format(problem=problem.text, answers=", ".join(str(one.answer) for one in shown))
    return Problem(problem.id, text, problem.truth)


def count_picks(method: Method, shown: Sequence[Contender], answers: Sequence[Answer | None]) -> SelectionResult:
    """Counts the replies' answers. `shown` is in the order of the first vote."""
    known = {one.answer for one in shown}
    picks = tuple(answer if answer in known else None for answer in answers)
    count = Counter(pick for pick in picks if pick is not None)
    best = max(shown, key=lambda one: count[one.answer], default=None)  # the first of equal ones
    if best is None or not count[best.answer]:
        return SelectionResult(method, None, picks, 0)
    return SelectionResult(method, best.answer, picks, count[best.answer])


def settle(candidates: Sequence[Candidate], results: Sequence[SelectionResult]) -> Answer | None:
    """Returns the answer of the first clear result, else the vote's leader; None if there is no candidate."""
    leader = candidates[0].answer if candidates else None
    return next((result.answer for result in results if result.clear), leader)
