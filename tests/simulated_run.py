"""Writes run directories from logged attempts with the real run log, for tests and measurements of the report.

    python tests/simulated_run.py OUT --problems 50 --attempts 16

The numbers of each attempt (answer, tokens, seconds, tool calls and errors, entropy) are real; the texts are generated.
"""

from __future__ import annotations

import argparse
import csv
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from aimo_solver.config import Config, load_config
from aimo_solver.log.writer import RunLog
from aimo_solver.problems import Answer, Candidate, Problem, ProblemResult
from aimo_solver.results import Attempt, FinishReason

ATTEMPTS = Path(__file__).parents[1].parent / "shared" / "replay" / "attempts.csv"
SLOTS = 16
ERRORS = ("NameError", "NameError", "ValueError", "TimeoutError", "ZeroDivisionError", "ModuleNotFoundError", "SyntaxError")
WORDS = re.findall(
    r"\w+",
    "the of we that for is and n a to have let prime modulo so then each sum integer if can must because therefore case "
    "consider count number pairs triangle circle angle point radius tangent divisor polynomial root coefficient degree "
    "sequence recurrence bounded maximal minimal value equals assume contradiction suppose check small cases compute brute "
    "force verify expected answer parity even odd residue class order group factor gcd coprime exponent valuation lemma",
)
CODE = """from math import gcd
# count pairs below {n} by brute force
def count(limit):
    total = 0
    for a in range(1, limit):
        for b in range(a, limit):
            if gcd(a, b) == 1 and (a * b) % {m} == 0:
                total += 1
    return total

print(count({n}), "of", {n} ** 2)
"""


@dataclass
class HandClock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Simulation:
    """Schedules the attempts of each problem on `SLOTS` slots and sets the log's clock to the time of each record."""

    log: RunLog
    clock: HandClock
    random: random.Random
    scale: float
    t: float = 0.0
    open: list[float] = field(default_factory=list)

    def boot(self) -> None:
        for name, start, end in (("wheels", 0.0, 0.4), ("kernels", 0.4, 7.1), ("weights", 0.4, 71.0), ("server", 0.6, 96.2)):
            self.clock.now = start
            self.log.event("stage_started", stage=name)
            self.clock.now = end
            self.log.event("stage_ended", stage=name, seconds=round(end - start, 3), outcome="done")
        self.t = 97.0

    def problem(self, problem_id: str, truth: int | None, rows: list[dict[str, str]], *, finish: bool = True) -> None:
        self.clock.now = self.t
        text = f"Let $n$ be the number of ways to tile problem {problem_id}.\nFind the remainder when $n^2$ is divided by $10^5$."
        self.log.problem_started(Problem(problem_id, text, truth), 900.0)
        slots = [0.0] * SLOTS
        attempts = []
        for index, row in enumerate(rows):
            slot = min(range(SLOTS), key=slots.__getitem__)
            attempts.append(self._attempt(problem_id, index, row, slots[slot]))
            slots[slot] += attempts[-1].seconds
        attempts.sort(key=lambda attempt: attempt.started_s + attempt.seconds)
        votes: Counter[Answer] = Counter()
        for order, attempt in enumerate(attempts, 1):
            self.clock.now = self.t + attempt.started_s + attempt.seconds
            self.log.attempt_finished(attempt)
            if attempt.answer is not None:
                votes[attempt.answer] += 1
            self.log.write_votes(problem_id, _candidates(votes))
            if order == len(attempts) // 2 and not finish:
                return
        best = _candidates(votes)
        answer = best[0].answer if best else 0
        seconds = self.clock.now - self.t
        self.log.problem_finished(
            ProblemResult(
                problem_id=problem_id,
                answer=answer,
                truth=truth,
                reason="equal" if best and best[0].votes >= 4 else "attempts",
                votes=best[0].votes if best else 0,
                attempts=len(attempts),
                tool_calls=sum(attempt.tool_calls for attempt in attempts),
                tokens=sum(attempt.tokens for attempt in attempts),
                seconds=seconds,
                allotted_s=900.0,
                candidates=best,
            )
        )
        self.t = self.clock.now + 0.2

    def _attempt(self, problem_id: str, index: int, row: dict[str, str], started: float) -> Attempt:
        answer = int(float(row["answer"])) if row["answer"] else None
        tokens = max(8, int(float(row["tokens"] or 9_000) * self.scale))
        seconds = float(row["seconds"] or float(row["tokens"] or 9_000) / 55)
        calls, errors = int(row["tool_calls"] or 4), int(row["tool_errors"] or 0)
        entropy = float(row["entropy"] or 0.6)
        self.clock.now = self.t + started
        writer = self.log.start_trajectory(problem_id, index)
        writer.write_prompt(self._ids(180), "<|start|>system<|message|>Reasoning: high. Answer in \\boxed{}.<|end|><|start|>user")
        tool_seconds = 0.0
        share, thinking = tokens // (calls + 1), seconds * 0.9 / (calls + 1)
        for call in range(calls + 1):
            final = call == calls
            self.clock.now += thinking
            tail = f"<|channel|>final<|message|>\\boxed{{{answer}}}" if final else CODE.format(n=call + 10, m=index + 2)
            entropies = [self.random.gammavariate(0.4, entropy / 0.4) for _ in range(share)]
            kind = "final" if final else "tool_call"
            text = f"<|channel|>analysis<|message|>{self._words(share)}\n\n{tail}"
            writer.write_turn(self._ids(share), text, entropies, seconds=thinking, waited_s=0.2, kind=kind, finish="stop")
            if not final:
                spent = self.random.uniform(0.01, seconds * 0.1 / calls)
                self.clock.now += spent
                tool_seconds += spent
                name = self.random.choice(ERRORS) if call < errors else None
                output = (
                    f"Traceback (most recent call last):\n{name}: name 'x' is not defined"
                    if name
                    else f"{call * 37} of {call**2}"
                )
                code = CODE.format(n=call + 10, m=index + 2)
                writer.write_tool_call(code, output, seconds=spent, error_name=name, timed_out=name == "TimeoutError")
                writer.write_insertion(
                    self._ids(20), f"<|start|>python<|message|>{output}<|end|><|start|>assistant", "tool_result"
                )
        self.clock.now = self.t + started + seconds
        writer.close()
        return Attempt(
            problem_id=problem_id,
            index=index,
            answer=answer,
            finish_reason=FinishReason.CANCELLED if row["stopped_early"] == "true" else FinishReason.ANSWERED,
            tokens=share * (calls + 1),
            turns=calls + 1,
            tool_calls=calls,
            tool_errors=errors,
            entropy=entropy,
            tail_entropy=entropy * 0.8,
            started_s=started,
            seconds=seconds,
            tool_seconds=tool_seconds,
        )

    def _ids(self, count: int) -> list[int]:
        return self.random.choices(range(200_000), k=count)

    def _words(self, tokens: int) -> str:
        words = self.random.choices(WORDS, weights=[1 / (rank + 1) for rank in range(len(WORDS))], k=tokens // 2)
        numbers = self.random.choices(range(10_000), k=tokens // 2)
        return " ".join(f"{word} {number}" if number % 3 == 0 else word for word, number in zip(words, numbers, strict=True))


def groups(path: Path = ATTEMPTS) -> Iterator[tuple[str, int, list[dict[str, str]]]]:
    """Yields each problem of a run with its truth and its logged attempts; most attempts first."""
    found: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            found[row["run"], row["problem_id"]].append(row)
    for (_, problem_id), rows in sorted(found.items(), key=lambda item: -len(item[1])):
        yield problem_id, int(float(rows[0]["correct_answer"])), rows


def simulate(
    directory: Path,
    *,
    problems: int,
    attempts: int,
    scale: float = 1.0,
    seed: int = 0,
    config: Config | None = None,
    unfinished: bool = False,
) -> Path:
    """Writes a run. `scale` shortens the texts; with `unfinished` the last problem is incomplete and there is no summary."""
    clock = HandClock()
    draw = random.Random(seed)
    config = config or load_config({"solver": {"slots": SLOTS, "max_attempts": max(SLOTS, attempts)}})
    log = RunLog.create(directory, config=config, environment={"python": "3.12.1", "gpus": ["H100"]}, clock=clock)
    simulation = Simulation(log, clock, draw, scale)
    simulation.boot()
    for number, (name, truth, rows) in enumerate(groups()):
        if number == problems:
            break
        chosen = draw.sample(rows, attempts) if len(rows) >= attempts else draw.choices(rows, k=attempts)
        simulation.problem(f"{name}-{number}", truth, chosen, finish=not (unfinished and number == problems - 1))
    log.close() if unfinished else log.finish()
    return directory


def _candidates(votes: Counter[Answer]) -> tuple[Candidate, ...]:
    total = sum(votes.values())
    ranked = sorted(votes.items(), key=lambda item: (-item[1], item[0]))
    return tuple(Candidate(answer=answer, score=float(count), votes=count, share=count / total) for answer, count in ranked)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--problems", type=int, default=50)
    parser.add_argument("--attempts", type=int, default=16)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    simulate(options.out, problems=options.problems, attempts=options.attempts, scale=options.scale, seed=options.seed)
