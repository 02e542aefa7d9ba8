"""A second look at a contested problem: the model chooses among its own answers, or tests them by code.

Pure: what to ask, and what the replies mean. Both ways are asked as fresh attempts, by the texts below:

    select    generative selection: the model reads what speaks for each candidate and picks one. Asked several times, half of
              them in reversed order, since models favour what they read first (Zheng et al. 2023, position bias)
    verify    re-verification: the model is given the candidates' values alone and tests each by code

A reply is the integer it ends with. It is a pick if it is one of the candidates; anything else picks nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from aimo_solver.chat.prompts import PromptVariant
from aimo_solver.options import SelectionConfig
from aimo_solver.policy.voting import Candidate, evidence
from aimo_solver.problems import Problem
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
        system="",
        suffix=(
            "Decide which solution has the right answer. Finish with that answer in \\boxed{}, the number alone; it must be one "
            "of the answers above."
        ),
        tool=True,
    ),
    Method.VERIFY: PromptVariant(
        name="verify",
        system="",
        suffix=(
            "Test each value with Python: compute the quantity directly where that is possible, otherwise check small cases, "
            "necessary conditions and an independent way of counting, until all values but one are refuted. Do not trust a "
            "derivation that you have not checked numerically. Finish with the value that stands in \\boxed{}, the number alone."
        ),
        tool=True,
    ),
}
"""Everything is in the user message, which every family of models reads alike."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A candidate that is shown to the model. `summary` is the end of the solution that speaks best for it."""

    answer: int
    votes: int
    summary: str


@dataclass(frozen=True, slots=True)
class Ask:
    """One fresh attempt to run: `problem` under `prompt`. `shown` are the candidates' answers in the order shown."""

    method: Method
    problem: Problem
    prompt: PromptVariant
    shown: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """What a second look came to.

    Attributes:
        answer: the candidate with most picks, of equal ones the one that the first vote had higher; None without a pick.
        picks: one per reply; None for a reply that picked nobody.
        votes: picks for `answer`.
    """

    method: Method
    answer: int | None
    picks: tuple[int | None, ...]
    votes: int

    @property
    def clear(self) -> bool:
        """More than half of the replies picked the answer."""
        return 2 * self.votes > len(self.picks)


def contested(candidates: Sequence[Candidate], selection: SelectionConfig) -> bool:
    """Whether a finished vote has no clear winner: the leader's share is below `clear_share` and somebody else has votes."""
    return len(candidates) > 1 and candidates[0].share < selection.clear_share


def contenders(
    candidates: Sequence[Candidate], attempts: Sequence[Attempt], finals: Mapping[int, str], selection: SelectionConfig
) -> tuple[Contender, ...]:
    """The first `candidates` of the vote with their summaries, best first.

    Args:
        candidates: of `voting.rank`, best first.
        finals: final texts by attempt index. A candidate is summarised by the attempt with most `evidence` that has one.
    """
    chosen = []
    for candidate in candidates[: selection.candidates]:
        own = [attempt for attempt in attempts if attempt.answer == candidate.answer]
        own.sort(key=lambda attempt: (-evidence(attempt), attempt.index))
        texts = [finals[attempt.index] for attempt in own if finals.get(attempt.index, "").strip()]
        chosen.append(Contender(candidate.answer, candidate.votes, summarise(texts[0] if texts else "", selection.summary_chars)))
    return tuple(chosen)


def summarise(final: str, chars: int) -> str:
    """The end of a final text, where the argument comes together, from a paragraph's or a line's beginning; at most `chars`."""
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


def asks(method: Method, problem: Problem, shown: Sequence[Contender], selection: SelectionConfig) -> tuple[Ask, ...]:
    """The attempts to run, `asks` of them, every second one with the candidates in reversed order."""
    orders = (tuple(shown), tuple(reversed(shown)))
    return tuple(_ask(method, problem, orders[number % 2]) for number in range(selection.asks))


def _ask(method: Method, problem: Problem, shown: Sequence[Contender]) -> Ask:
    if method is Method.SELECT:
        solutions = "\n\n".join(
            SOLUTION_TEXT.format(number=number, answer=one.answer, summary=one.summary)
            for number, one in enumerate(shown, start=1)
        )
        text = SELECT_TEXT.format(problem=problem.text, solutions=solutions)
    else:
        text = VERIFY_TEXT.format(problem=problem.text, answers=", ".join(str(one.answer) for one in shown))
    return Ask(method, Problem(problem.id, text, problem.answer), PROMPTS[method], tuple(one.answer for one in shown))


def choose(method: Method, shown: Sequence[Contender], answers: Sequence[int | None]) -> Choice:
    """The choice that follows from the replies' answers; `shown` in the order of the first vote."""
    known = {one.answer for one in shown}
    picks = tuple(answer if answer in known else None for answer in answers)
    count = Counter(pick for pick in picks if pick is not None)
    best = max(shown, key=lambda one: count[one.answer], default=None)  # the first of equal ones
    if best is None or not count[best.answer]:
        return Choice(method, None, picks, 0)
    return Choice(method, best.answer, picks, count[best.answer])


def settle(candidates: Sequence[Candidate], choices: Sequence[Choice]) -> int | None:
    """The final answer: that of the first clear choice, else the vote's leader; None if there is no candidate."""
    for choice in choices:
        if choice.clear:
            return choice.answer
    return candidates[0].answer if candidates else None
