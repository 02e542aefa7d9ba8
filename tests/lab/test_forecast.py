"""The parts of a forecast, each against figures drawn from the model itself or computed by hand."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimo_solver.config import Config
from aimo_solver.errors import ConfigError
from aimo_solver.lab.forecast import Difficulty, Errors, fit_difficulty, fit_errors, fit_uplift, forecast, make_groups
from aimo_solver.lab.records import Group, read_groups
from aimo_solver.lab.simulate import select_playable
from tests.lab.groups import PUBLIC, group, make_attempt, make_group, public

EVEN = Errors(silent=0.0, level=-1.0, slope=0.0, precision=5.0)
shapes = st.builds(Difficulty, st.floats(0.2, 4), st.floats(0.2, 4))


@given(shapes, st.integers(1, 20))
def test_pass_at_n_is_that_of_drawn_chances(shape: Difficulty, attempts: int) -> None:
    drawn = np.random.default_rng(0).beta(shape.a, shape.b, 20_000)
    assert shape.pass_at(attempts) == pytest.approx((1 - (1 - drawn) ** attempts).mean(), abs=0.015)
    assert shape.chances(2_000).mean() == pytest.approx(shape.pass_at(1), abs=0.002)


@given(shapes)
def test_the_fit_finds_the_difficulty_behind_the_figures(shape: Difficulty) -> None:
    found = fit_difficulty({count: shape.pass_at(count) for count in (1, 3, 5, 20)})
    for count in (1, 2, 8, 50):
        assert found.pass_at(count) == pytest.approx(shape.pass_at(count), abs=1e-3)


def test_the_hosts_figures_are_fitted_within_half_a_problem() -> None:
    for figures in ((27.5, 37.5, 40, 46), (26.5, 37.5, 41.5, 48)):
        pass_at = {count: solved / 50 for count, solved in zip((1, 3, 5, 20), figures, strict=True)}
        found = fit_difficulty(pass_at)
        assert all(abs(50 * found.pass_at(count) - 50 * share) < 0.7 for count, share in pass_at.items())


@pytest.mark.parametrize("figures", [{1: 0.5}, {1: 0.5, 3: 0.4}, {1: 0.0, 3: 0.4}, {1: 0.5, 3: 1.0}])
def test_figures_that_cannot_be_fitted_are_refused(figures: dict[int, float]) -> None:
    with pytest.raises(ConfigError, match="at least two figures that rise"):
        fit_difficulty(figures)


def test_an_uplift_multiplies_the_odds() -> None:
    plain, lifted = (Difficulty(1, 1).chances(9, uplift) for uplift in (1, 3))
    assert lifted / (1 - lifted) == pytest.approx(3 * plain / (1 - plain))


def group_with_tools(number: int, used: list[int], alone: list[int]) -> Group:
    calls = [(answer, 1) for answer in used] + [(answer, 0) for answer in alone]
    ended = [make_attempt(i, answer, tool_calls=count, problem_id=str(number)) for i, (answer, count) in enumerate(calls)]
    return make_group(ended, problem_id=str(number))


def test_the_uplift_is_the_mantel_haenszel_odds_ratio() -> None:
    groups = [group_with_tools(0, [1, 1, 2], [1, 2, 2]), group_with_tools(1, [1, 1], [1, 2]), group_with_tools(2, [1, 2], [])]
    # (2 * 2 / 6 + 2 * 1 / 4) / (1 * 1 / 6 + 0 * 1 / 4); the third group has no attempt without calls.
    assert fit_uplift(groups, samples=100)[0] == pytest.approx((4 / 6 + 2 / 4) / (1 / 6))
    with pytest.raises(ConfigError, match="too few problems"):
        fit_uplift(groups[1:])


@pytest.mark.slow
@pytest.mark.parametrize("errors", [Errors(0.3, 1.0, -2.0, 2.0), Errors(0.1, -1.5, 1.0, 12.0)])
def test_errors_are_fitted_as_they_are_drawn(errors: Errors) -> None:
    records = [group([1, 2])]
    made = make_groups(np.linspace(0.05, 0.75, 80), errors, records, seed=1)
    found = fit_errors(made)
    assert found.silent == pytest.approx(errors.silent, abs=0.02)
    ends = np.array([0.1, 0.7])
    assert found.sameness(ends) == pytest.approx(errors.sameness(ends), abs=0.1)
    assert found.precision == pytest.approx(errors.precision, rel=0.5)


def test_a_made_group_has_its_chance_and_the_lengths_of_groups_as_hard() -> None:
    easy = [make_group([make_attempt(0, 1, tokens=10), make_attempt(1, 1, tokens=11)]) for _ in range(5)]
    hard = [make_group([make_attempt(0, 2, tokens=70), make_attempt(1, 2, tokens=71)]) for _ in range(5)]
    low, high = make_groups(np.array([0.05, 0.95]), EVEN, [*easy, *hard], seed=0)
    assert {one.tokens for one in low.ended} == {70, 71}
    assert {one.tokens for one in high.ended} == {10, 11}
    shares = [Counter(one.answer == 0 for one in made.ended)[True] / len(made.ended) for made in (low, high)]
    assert shares == pytest.approx([0.05, 0.95], abs=0.06)


def test_easier_problems_and_more_uplift_score_more() -> None:
    records = [group([1, 2, 1, 2])]
    hard, easy, lifted = (
        forecast(shape, np.array([uplift]), EVEN, records, {"x": Config()}, problems=12, sets=2, competitions=10)[0]
        for shape, uplift in ((Difficulty(1, 2), 1.0), (Difficulty(2, 1), 1.0), (Difficulty(1, 2), 4.0))
    )
    assert hard.score.mean < lifted.score.mean
    assert hard.score.mean < easy.score.mean < 12
    assert hard.diff.mean == 0
    assert 0 < hard.run_spread < 12**0.5 / 2 + 1


@public
def test_published_repeats_lie_in_the_forecast_from_the_public_records() -> None:
    groups = read_groups([PUBLIC])
    records = select_playable(groups)
    fit = [one for one in groups if one.use and one.model == records[0].model]
    difficulty = fit_difficulty({1: 0.55, 3: 0.75, 5: 0.8, 20: 0.92})
    (result,) = forecast(difficulty, fit_uplift(fit), fit_errors(fit), records, {"x": Config()}, sets=2, competitions=5)
    assert 36 < result.score.mean < 46
    assert 0.8 < result.run_spread < 2.2
