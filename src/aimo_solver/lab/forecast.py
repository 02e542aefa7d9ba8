"""Forecasts a notebook's score from published pass@N values of the model alone.

The forecast is a simulation of attempts that are drawn from a model of four parts:

    difficulty   the chance p that an attempt without tools is right varies between problems as Beta(a, b), so that
                 pass@N = 1 - E[(1 - p)^N] = 1 - B(a, b + N) / B(a, b); a and b by least squares on the published values
    uplift       tools multiply the odds p / (1 - p) by the Mantel-Haenszel odds ratio of attempts with and without Python calls
                 at the same problem in the same run
    errors       an attempt that is not right has no answer, or a new wrong one, or repeats one of the k wrong ones before it,
                 with the odds theta : k (Chinese restaurant process). Two wrong answers are then equal with the probability
                 c = 1 / (1 + theta), which varies between problems as a Beta distribution whose mean depends on p
    length       tokens are those of a logged attempt in a group of about the same share of right attempts

No score of a notebook is used. The competitions are then played by `simulate`, with its clock, slots and rules.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike

from aimo_solver.config import Config
from aimo_solver.errors import ConfigError
from aimo_solver.lab.competition import Order
from aimo_solver.lab.records import Group, Use
from aimo_solver.lab.simulate import Simulation, simulate
from aimo_solver.lab.statistics import Floats, Interval
from aimo_solver.lab.throughput import Throughput
from aimo_solver.problems import Answer
from aimo_solver.results import Attempt, FinishReason

_ATTEMPTS = 200  # of a made-up group; a competition draws 8 or 16 of them, so hardly any is drawn twice
_NEIGHBOURS = 5  # groups of similar difficulty that lengths are taken from
_CELLS = 200  # of the grid for c
_TRUTH = 0  # answer of a made-up attempt that is right; wrong ones count from 1


@dataclass(frozen=True, slots=True)
class Difficulty:
    """The chance of one attempt without tools over problems: Beta(a, b)."""

    a: float
    b: float

    def pass_at(self, attempts: int) -> float:
        """Returns the expected share of problems that at least one of `attempts` attempts solves."""
        return 1 - math.exp(scipy.special.betaln(self.a, self.b + attempts) - scipy.special.betaln(self.a, self.b))

    def chances(self, problems: int, uplift: float = 1.0) -> Floats:
        """Returns the chances of `problems` problems, hardest first, with the odds multiplied by `uplift`."""
        chance = scipy.special.betaincinv(self.a, self.b, (np.arange(problems) + 0.5) / problems)
        lifted: Floats = uplift * chance / (1 - chance + uplift * chance)
        return lifted


@dataclass(frozen=True, slots=True)
class Errors:
    """Attempts that are not right.

    Attributes:
        silent: share of them without an answer.
        level, slope: two wrong answers to a problem are equal with a probability of mean 1 / (1 + exp(-level - slope * chance)).
        precision: a + b of that probability's Beta(a, b) over problems; the smaller it is, the more problems differ.
    """

    silent: float
    level: float
    slope: float
    precision: float

    def sameness(self, chance: ArrayLike) -> Floats:
        """Returns the mean probability that two wrong answers to problems of these chances are equal."""
        mean: Floats = np.clip(scipy.special.expit(self.level + self.slope * np.asarray(chance)), 0.01, 0.99)
        return mean

    def draw_theta(self, draw: np.random.Generator, chance: float) -> float:
        """Draws the theta of a problem."""
        mean = float(self.sameness(chance))
        same = draw.beta(mean * self.precision, (1 - mean) * self.precision)
        return float(1 / max(same, 1e-3) - 1)


@dataclass(frozen=True, slots=True)
class Forecast:
    """The forecast of one configuration.

    Attributes:
        score: median over the drawn problem sets and uplifts of the expected score, with the interval that holds 95 % of them.
        run_spread: standard deviation between runs on the same problems.
        diff: score minus the first configuration's, with the same kind of interval.
        mean_seconds, mean_tokens: per run, start-up included.
    """

    name: str
    score: Interval
    run_spread: float
    diff: Interval
    mean_seconds: float
    mean_tokens: float


def fit_difficulty(pass_at: Mapping[int, float]) -> Difficulty:
    """Fits Beta(a, b) to shares of problems solved in N attempts, by least squares.

    Raises:
        ConfigError: there are fewer than two values, or one is not between 0 and 1, or they do not rise.
    """
    figures = [pass_at[count] for count in sorted(pass_at)]
    rising = all(low < high for low, high in itertools.pairwise(figures))
    if len(figures) < 2 or not (figures[0] > 0 and figures[-1] < 1) or not rising:
        raise ConfigError("--pass-at", "give at least two figures that rise with N, above 0 and below the number of problems")

    def misses(logs: Floats) -> list[float]:
        difficulty = Difficulty(*np.exp(logs).tolist())
        return [difficulty.pass_at(count) - share for count, share in pass_at.items()]

    return Difficulty(*np.exp(scipy.optimize.least_squares(misses, np.zeros(2), bounds=(-7, 7)).x).tolist())


def fit_uplift(groups: Sequence[Group], samples: int = 2_000, seed: int = 0) -> Floats:
    """Returns the Mantel-Haenszel odds ratio of attempts with Python calls against attempts without, and its bootstrap samples.

    The first value is the estimate, the others come from resampling problems. Only groups with both kinds of attempts count.

    Raises:
        ConfigError: no group has both right and wrong attempts of both kinds.
    """
    by_problem: dict[str, Floats] = {}
    for group in groups:
        used = [attempt.answer == group.truth for attempt in group.ended if attempt.tool_calls]
        alone = [attempt.answer == group.truth for attempt in group.ended if not attempt.tool_calls]
        if used and alone:
            for_tools = np.array([sum(used) * (len(alone) - sum(alone)), sum(alone) * (len(used) - sum(used))], dtype=float)
            by_problem.setdefault(group.problem_id, np.zeros(2))[:] += for_tools / (len(used) + len(alone))
    sums = np.array(list(by_problem.values())).reshape(-1, 2)
    if not sums.sum(axis=0).all():
        raise ConfigError("forecast", "these records have too few problems with attempts both with and without Python calls")
    picked = np.random.default_rng(seed).integers(len(sums), size=(samples, len(sums)))
    resampled = np.concatenate((sums.sum(axis=0)[None], sums[picked].sum(axis=1)))
    resampled = resampled[resampled.all(axis=1)]
    ratios: Floats = resampled[:, 0] / resampled[:, 1]
    return ratios


def fit_errors(groups: Sequence[Group]) -> Errors:
    """Fits how attempts fail, by maximum likelihood; the groups of a problem are pooled, and c is integrated on a grid."""
    wrong: dict[str, Counter[Answer]] = {}
    ended, right, silent = Counter[str](), Counter[str](), 0
    for group in groups:
        answers = [attempt.answer for attempt in group.ended]
        ended[group.problem_id] += len(answers)
        right[group.problem_id] += answers.count(group.truth)
        silent += answers.count(None)
        own = wrong.setdefault(group.problem_id, Counter())
        own.update(answer for answer in answers if answer is not None and answer != group.truth)
    compared = [name for name, own in wrong.items() if own.total() > 1]
    edges = np.linspace(0, 1, _CELLS + 1)
    theta = 2 / (edges[1:] + edges[:-1]) - 1
    counts = np.array([(len(wrong[name]), wrong[name].total()) for name in compared], dtype=float).reshape(-1, 2, 1)
    by_theta = counts[:, 0] * np.log(theta) + scipy.special.gammaln(theta) - scipy.special.gammaln(theta + counts[:, 1])
    chances = np.array([right[name] / ended[name] for name in compared])

    def unlikely(values: Floats) -> float:
        errors = Errors(0.0, values[0], values[1], math.exp(values[2]))
        mean = errors.sameness(chances)[:, None]
        cells = np.diff(scipy.special.betainc(mean * errors.precision, (1 - mean) * errors.precision, edges), axis=1)
        # A weak prior, one standard deviation of 3 each, for records that say little.
        return float((np.square(values) / 18).sum() - scipy.special.logsumexp(by_theta + np.log(cells + 1e-300), axis=1).sum())

    level, slope, log_precision = scipy.optimize.minimize(unlikely, np.zeros(3), method="Nelder-Mead").x.tolist()
    failed = silent + sum(own.total() for own in wrong.values())
    return Errors(silent / max(1, failed), level, slope, math.exp(log_precision))


def make_groups(chances: Floats, errors: Errors, records: Sequence[Group], seed: int) -> tuple[Group, ...]:
    """Returns one group per problem with attempts drawn from the model; their lengths come from `records`."""
    draw = np.random.default_rng(seed)
    shares = np.array([sum(one.answer == group.truth for one in group.ended) / len(group.ended) for group in records])
    groups = []
    for number, chance in enumerate(chances.tolist()):
        near = np.abs(shares - chance + draw.uniform(-1e-6, 1e-6, len(shares))).argsort()[:_NEIGHBOURS]
        lengths = {
            right: [one.tokens for i in near for one in records[i].ended if (one.answer == records[i].truth) == right]
            for right in (True, False)
        }
        attempts, wrong, theta = [], Counter[int](), errors.draw_theta(draw, chance)
        for index in range(_ATTEMPTS):
            answer = _draw_answer(draw, chance, errors.silent, theta, wrong)
            own = lengths[answer == _TRUTH] or lengths[answer != _TRUTH]
            reason = FinishReason.NO_ANSWER if answer is None else FinishReason.ANSWERED
            tokens = own[draw.integers(len(own))]
            attempts.append(Attempt(problem_id=str(number), index=index, answer=answer, finish_reason=reason, tokens=tokens))
        groups.append(
            Group(
                run="forecast",
                model=records[0].model,
                problem_id=str(number),
                truth=_TRUTH,
                ended=tuple(attempts),
                cut=(),
                timed=False,
                use=Use.ACCURACY | Use.STOPPING,
            )
        )
    return tuple(groups)


def _draw_answer(draw: np.random.Generator, chance: float, silent: float, theta: float, wrong: Counter[int]) -> int | None:
    if draw.random() < chance:
        return _TRUTH
    if draw.random() < silent:
        return None
    place = draw.random() * (theta + wrong.total()) - theta
    answer = len(wrong) + 1  # a new one
    for known, count in wrong.items():
        if place < 0:
            break
        answer, place = known, place - count
    wrong[answer] += 1
    return answer


def forecast(
    difficulty: Difficulty,
    uplifts: Floats,
    errors: Errors,
    records: Sequence[Group],
    configs: Mapping[str, Config],
    *,
    problems: int = 50,
    sets: int = 50,
    competitions: int = 20,
    order: Order = Order.RANDOM,
    speed: Throughput | None = None,
    seed: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[Forecast, ...]:
    """Plays competitions on `sets` drawn problem sets, the first with the estimated uplift, the others with resampled ones.

    Args:
        uplifts: from `fit_uplift`.
        records: groups that lengths are taken from; from `simulate.select_playable`.
        configs: by name; the others are compared with the first, on the same sets and attempts.
    """
    played: list[tuple[Simulation, ...]] = []
    for number in range(sets):
        groups = make_groups(difficulty.chances(problems, float(uplifts[number % len(uplifts)])), errors, records, seed + number)
        played.append(
            simulate(
                groups, configs, competitions=competitions, problems=None, order=order, speed=speed, samples=2, seed=seed + number
            )
        )
        progress((number + 1) / sets)
    return tuple(_summary([one[index] for one in played], [one[0] for one in played]) for index in range(len(configs)))


def _summary(own: Sequence[Simulation], first: Sequence[Simulation]) -> Forecast:
    scores = np.array([one.score.mean for one in own])
    diffs = scores - np.array([one.score.mean for one in first])
    return Forecast(
        name=own[0].name,
        score=_middle(scores),
        run_spread=math.sqrt(float(np.mean([one.run_spread**2 for one in own]))),
        diff=_middle(diffs),
        mean_seconds=float(np.mean([one.mean_seconds for one in own])),
        mean_tokens=float(np.mean([one.mean_tokens for one in own])),
    )


def _middle(values: Floats) -> Interval:
    return Interval(float(np.median(values)), *np.quantile(values, (0.025, 0.975)).tolist())
