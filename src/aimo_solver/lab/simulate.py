"""Simulates whole competitions from logged attempts, thousands at a time.

Each competition draws its problems from the groups, and each problem its attempts from the group's, both with replacement; or
it plays every group once. Problems can be ordered by difficulty.
Attempts run in parallel in the slots, with backfill, at the speed of `Throughput`; the stop rule is evaluated after each
attempt, and the budget before each problem. Voters, stop rules and budgets are the solver's own functions, applied to arrays.
Each competition runs twice on the same problems, as the private set does. Under the same seed all policies see the same
problems and attempts, so differences between them are paired.

Not simulated: prefill and Python, except as far as a `Throughput` is scaled to whole runs; answers requested at a deadline (an
attempt that is cut has no answer); the time to cancel a request.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from aimo_solver.config import Config, load_config
from aimo_solver.errors import ConfigError
from aimo_solver.lab.competition import RUNS, Competitions, Order, draw_problems
from aimo_solver.lab.records import Group, Use
from aimo_solver.lab.replay import parse_policy
from aimo_solver.lab.statistics import Bootstrap, Interval
from aimo_solver.lab.throughput import Throughput, usual_curve
from aimo_solver.policy.budget import BUDGET_RULES


@dataclass(frozen=True, slots=True)
class Simulation:
    """The result of one configuration.

    Attributes:
        score: right answers of one run, with the bootstrap interval over the problems in the records.
        spread: standard deviation of one run's score across competitions.
        run_spread: standard deviation of the score between runs on the same problems.
        two_run: expected two-run score (both right 1, one right 0.5).
        diff: score minus the first configuration's, paired.
        mean_seconds, mean_tokens: per run, start-up included.
        longest_seconds: of the longest run.
        overruns: runs that took longer than the time limit minus the margin.
        undecided: share of the problems that ran out of time.
        score_of: expected right answers by group of the pool, for pairing.
    """

    name: str
    competitions: int
    problems: int
    score: Interval
    spread: float
    run_spread: float
    two_run: float
    diff: Interval
    mean_seconds: float
    longest_seconds: float
    mean_tokens: float
    overruns: int
    undecided: float
    score_of: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """All configurations under one time limit."""

    time_limit_s: float
    simulations: tuple[Simulation, ...]


def select_playable(groups: Sequence[Group]) -> tuple[Group, ...]:
    """Returns the groups to simulate from: fit for stopping, tokens logged, of the most frequent model.

    Raises:
        ConfigError: there is none.
    """
    fit = [g for g in groups if Use.STOPPING in g.use and g.ended and all(attempt.tokens > 0 for attempt in g.ended)]
    if not fit:
        raise ConfigError("simulate", "these records have no group that was not cut by its own stop rule, with tokens logged")
    models = [group.model for group in fit]
    model = max(dict.fromkeys(models), key=models.count)
    return tuple(group for group in fit if group.model == model)


def simulate(
    groups: Sequence[Group],
    configs: Mapping[str, Config],
    *,
    competitions: int = 10_000,
    problems: int | None = 50,
    order: Order = Order.RANDOM,
    startup_s: float = 300.0,
    speed: Throughput | None = None,
    samples: int = 10_000,
    seed: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[Simulation, ...]:
    """Plays the competitions under each configuration; all others are compared with the first.

    Args:
        configs: by name; voting, budget and solver are used.
        problems: of one competition, drawn with replacement; None means every group once.
        startup_s: seconds from process start until the first problem.
        samples: bootstrap samples of the problems in `groups`.
        progress: called with the share done, 0..1.
    """
    speed = speed or usual_curve()
    draws = Bootstrap([group.problem_id for group in groups], samples, seed)
    drawn = draw_problems(groups, competitions, problems, seed, order)
    done: list[Simulation] = []
    for number, (name, config) in enumerate(configs.items()):
        played = Competitions(groups, config, drawn, startup_s, speed, seed)
        for problem in range(drawn.shape[1]):
            played.play(problem)
            progress((number + (problem + 1) / drawn.shape[1]) / len(configs))
        done.append(_result(name, played, draws, done[0].score_of if done else None))
    return tuple(done)


def sweep(
    groups: Sequence[Group],
    configs: Mapping[str, Config],
    time_limits_s: Sequence[float],
    *,
    competitions: int = 1_000,
    speed: Throughput | None = None,
    seed: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[SweepPoint, ...]:
    """Simulates the competitions under each of the time limits, seconds."""
    points: list[SweepPoint] = []
    for number, limit in enumerate(time_limits_s):
        limited = {name: replace(config, budget=replace(config.budget, time_limit_s=limit)) for name, config in configs.items()}
        points.append(SweepPoint(limit, simulate(groups, limited, competitions=competitions, speed=speed, seed=seed)))
        progress((number + 1) / len(time_limits_s))
    return tuple(points)


def parse_configuration(name: str, config: Config) -> Config:
    """Returns the configuration of a name: a policy, then ``@BUDGET``, ``@SLOTS``, ``@SLOTSxATTEMPTS`` or ``@grow`` in any order.

    What the name leaves out is as configured: ``default@marginal``, ``majority/equal=6@greedy@16``, ``default@8x12``.

    Raises:
        ConfigError: there is no such voter, stop rule or budget, or a value is impossible.
    """
    policy, *rest = name.split("@")
    chosen = parse_policy(policy, config.voting, stop=config.voting.stop)
    if chosen.method is not None:
        raise ConfigError(f"policy {name}", "a second look cannot be simulated")
    config = replace(config, voting=chosen.voting)
    for part in rest:
        if part in BUDGET_RULES:
            config = replace(config, budget=replace(config.budget, rule=cast(Any, part)))
        elif part == "grow":
            config = load_config(config.as_dict(), {"solver": {"grow": True}})
        elif (count := re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", part)) is not None:
            slots, attempts = int(count[1]), int(count[2] or count[1])
            config = load_config(config.as_dict(), {"solver": {"slots": slots, "max_attempts": attempts}})
        else:
            raise ConfigError(
                f"policy {name}", f"@{part} is neither SLOTS nor SLOTSxATTEMPTS nor grow nor a budget ({', '.join(BUDGET_RULES)})"
            )
    return config


def _result(name: str, played: Competitions, draws: Bootstrap, first: Sequence[float] | None) -> Simulation:
    competitions, problems = played.drawn.shape
    each = played.right.reshape(competitions, RUNS, problems).mean(axis=1)  # 1, 0.5 or 0: the two-run score
    count = np.bincount(played.drawn.ravel(), minlength=played.groups)
    sums = np.bincount(played.drawn.ravel(), weights=each.ravel(), minlength=played.groups)
    score_of = np.where(count > 0, sums / np.maximum(count, 1), each.mean())  # few competitions may draw none
    scores = played.right.sum(axis=1)
    return Simulation(
        name=name,
        competitions=competitions,
        problems=problems,
        score=replace(draws.mean(problems * score_of), mean=float(scores.mean())),
        spread=float(scores.std()),
        run_spread=math.sqrt(scores.reshape(competitions, RUNS).var(axis=1, ddof=1).mean()),
        two_run=float(each.sum(axis=1).mean()),
        diff=draws.mean(problems * (score_of - (score_of if first is None else first))),
        mean_seconds=float(played.used.mean()),
        longest_seconds=float(played.used.max()),
        mean_tokens=float(played.tokens.mean()),
        overruns=int((played.used > played.limit + 1e-6).sum()),
        undecided=played.undecided / played.right.size,
        score_of=tuple(score_of.tolist()),
    )
