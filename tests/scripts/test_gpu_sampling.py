"""The tests that the GPU bench applies to sampled tokens: they find a difference, and none where there is none."""

from __future__ import annotations

import sys

import numpy as np

from aimo_solver.results import DraftCounts
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

from gpu_sampling import Sampled, distribution_p, paired_p, tabulate

OWN = np.array([0.5, 0.3, 0.1, 0.05, 0.03, 0.01, 0.01])
SHARPER = OWN**1.3 / (OWN**1.3).sum()


def drawn(distribution: np.ndarray, seed: int, count: int = 4_096) -> list[int]:
    return [*map(int, np.random.default_rng(seed).choice(len(distribution), size=count, p=distribution))]


def test_equal_distributions_give_uniform_p() -> None:
    found = [distribution_p(drawn(OWN, seed), drawn(OWN, 100 + seed)) for seed in range(20)]
    assert 0.3 < float(np.mean(found)) < 0.7
    assert min(found) > 0.001


def test_a_slightly_sharper_distribution_is_found() -> None:
    assert distribution_p(drawn(OWN, 1), drawn(SHARPER, 2)) < 0.001


def test_one_category_does_not_differ() -> None:
    assert distribution_p([1] * 100, [1] * 90) == 1.0


def test_differences_by_problem_of_one_sign_are_found() -> None:
    assert paired_p([0.1] * 30) < 0.001
    assert paired_p([0.1, -0.1] * 15) > 0.5


def test_the_table_compares_attempts_tokens_and_steps() -> None:
    def server(distribution: np.ndarray, seeds: int, right: float, drafts: DraftCounts | None) -> Sampled:
        samples = [tuple(drawn(distribution, 10_000 * seeds + number, 6)) for number in range(2_000)]
        problems = [f"p{number}" for number in range(30)]
        return Sampled(
            samples={"x": samples}, right=dict.fromkeys(problems, right), tokens=dict.fromkeys(problems, 100.0), drafts=drafts
        )

    table = tabulate(server(OWN, 0, 1.0, None), server(SHARPER, 1, 0.5, DraftCounts(steps=10, drafted=30, accepted=20)))
    rows = {str(row[0]): row[1:] for row in table.rows}
    assert rows["right attempts"][:2] == (1.0, 0.5)
    assert rows["right attempts"][2] < 0.001  # type: ignore[operator]
    assert rows["tokens per attempt"] == (100.0, 100.0, 1.0)
    assert rows["tokens per step"] == (1.0, 3.0, None)
    assert all(rows[f"x: commonest token {number}"][2] < 0.01 for number in range(1, 7))  # type: ignore[operator]
