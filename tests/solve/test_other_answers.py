"""Problems with other answers than integers up to 99999, from the CSV file to the verdict, on a scripted model.

The column `boxes` of each sample has what three attempts put in their boxes, and `result` the verdict on their majority.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import pytest

from aimo_solver.chat.families import load_chat_format
from aimo_solver.chat.model_folder import ModelFolder
from aimo_solver.cli.problem_file import read_problems
from aimo_solver.config import load_config
from aimo_solver.lab.symbolic import SymbolicAnswers
from aimo_solver.log.writer import NullLog
from aimo_solver.policy.budget import Allotment
from aimo_solver.problems import Problem, ProblemResult
from aimo_solver.solve.attempt import Resources, Unify, keep_answer
from aimo_solver.solve.solver import Solver
from tests.conftest import ROOT
from tests.fakes import ScriptedEngine, ScriptedPool, ScriptedTurn
from tests.tiny_tokenizers import gemma_folder

SAMPLES = ROOT / "tests" / "data" / "answers"
RANGE = "answers.range=[0, 999]"
MODULUS = "answers.modulus=1000"
SYMBOLIC = "answers.kind=symbolic"


class Sample:
    """The problems of a sample, solved with attempts that give the answers in its column `boxes`."""

    def __init__(self, name: str, folder: Path, setting: str, unify: Unify = keep_answer) -> None:
        more = ["attempt.max_turns=1", "solver.slots=3", "solver.max_attempts=3", "voting.voter=majority", "voting.stop=never"]
        self._config = load_config(settings=[setting, *more])
        self.problems = read_problems(SAMPLES / name, self._config.answers)
        with (SAMPLES / name).open(encoding="utf-8", newline="") as file:
            self._rows = list(csv.DictReader(file))
        self._model = gemma_folder(folder)
        self._unify = unify

    @property
    def expected(self) -> list[str]:
        return [row["result"] for row in self._rows]

    async def solve(self) -> list[ProblemResult]:
        return [await self._solve(*both) for both in zip(self.problems, self._rows, strict=True)]

    async def _solve(self, problem: Problem, row: dict[str, str]) -> ProblemResult:
        tokenizer, boxes = ModelFolder.read(self._model).tokenizer, row["boxes"].split(" ;; ")

        def script(index: int) -> Sequence[ScriptedTurn]:
            texts = (f"So it is $\\boxed{{{boxes[index]}}}$.<turn|>", "}<turn|>")
            return [ScriptedTurn(tokenizer.encode_template(text), delay_s=0.001 * index, chunk=10_000) for text in texts]

        engine, chat = ScriptedEngine(script), load_chat_format(self._model, "gemma")
        resources = Resources(engine=engine, chat=chat, pool=ScriptedPool(), config=self._config, unify=self._unify)
        return await Solver(resources, NullLog()).solve(problem, Allotment(60.0))


def verdict(result: ProblemResult) -> str:
    return "no answer" if not result.votes else "right" if result.right else "wrong"


@pytest.mark.parametrize(("name", "setting"), [("aime.csv", RANGE), ("modulus.csv", MODULUS)])
async def test_integers_in_a_range_and_with_a_modulus(name: str, setting: str, tmp_path: Path) -> None:
    sample = Sample(name, tmp_path, setting)
    assert len(sample.problems) == 20
    assert [verdict(result) for result in await sample.solve()] == sample.expected


@pytest.mark.kernels
async def test_symbolic_values(tmp_path: Path) -> None:
    events: list[str] = []
    async with SymbolicAnswers(lambda kind, **values: events.append(kind), comparison_s=3.0) as symbolic:
        sample = Sample("symbolic.csv", tmp_path, SYMBOLIC, symbolic.unify)
        assert len(sample.problems) == 20
        results = await sample.solve()
    assert [verdict(result) for result in results] == sample.expected
    assert events.count("comparison_failed") >= 1  # the tower of powers
