"""Simulated competitions, compared with the solver's own rules on one play at a time."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from aimo_solver.config import Config, load_config
from aimo_solver.errors import ConfigError
from aimo_solver.lab.competition import PROMPT_TOKENS, RUNS, Competitions, Order, draw_problems
from aimo_solver.lab.records import Group, Use, read_groups
from aimo_solver.lab.simulate import parse_configuration, select_playable, simulate, sweep
from aimo_solver.lab.throughput import TokenTime, flat_curve, usual_curve
from aimo_solver.policy.budget import BUDGET_RULES, allot
from aimo_solver.policy.stopping import STOP_RULES, decide
from aimo_solver.policy.voting import VOTERS, rank
from aimo_solver.results import Attempt, FinishReason
from tests.lab.groups import PUBLIC, make_attempt, make_group, public

PROBLEMS, STARTUP_S = 6, 100.0


def group_of_tuples(number: int, attempts: list[tuple[int | None, int, int, float]], truth: int = 1) -> Group:
    """Attempts as (answer, tokens, tool errors, entropy); answers after an odd number of tokens were asked for."""
    ended = [
        make_attempt(i, answer, problem_id=str(number), tokens=tokens, tool_errors=errors, entropy=entropy)
        for i, (answer, tokens, errors, entropy) in enumerate(attempts)
    ]
    ended = [
        replace(one, finish_reason=FinishReason.FORCED) if one.tokens % 2 and one.answer is not None else one for one in ended
    ]
    return make_group(ended, problem_id=str(number), truth=truth, timed=False)


# Ten errors weigh half a vote: equal scores with unequal votes are common.
attempts = st.tuples(st.none() | st.integers(0, 3), st.integers(100, 60_000), st.sampled_from([0, 10]), st.floats(0.01, 2))
pools = st.lists(st.lists(attempts, min_size=1, max_size=10), min_size=1, max_size=5).map(
    lambda groups: [group_of_tuples(number, answers) for number, answers in enumerate(groups)]
)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    slots = draw(st.integers(1, 8))
    return load_config(
        {
            "solver": {"slots": slots, "max_attempts": slots + draw(st.integers(0, 4))},
            "voting": {
                "voter": draw(st.sampled_from(sorted(VOTERS))),
                "stop": draw(st.sampled_from(sorted(STOP_RULES))),
                "forced_weight": draw(st.sampled_from([0.5, 1.0, 2.0])),
                "equal": draw(st.integers(1, 5)),
                "no_answers": draw(st.none() | st.integers(1, 4)),
            },
            "budget": {
                "rule": draw(st.sampled_from(sorted(BUDGET_RULES))),
                "time_limit_s": draw(st.floats(100, 3_000)),
                "margin_s": 0,
                "reserve_s": draw(st.floats(0, 200)),
            },
        }
    )


def play_one(
    groups: list[Group], config: Config, drawn: NDArray[np.int64], competition: int, run: int, seed: int
) -> tuple[list[bool], float, float]:
    """Plays one run with the solver's own functions, attempt by attempt; returns right answers, seconds and tokens."""
    pace = TokenTime(usual_curve(), config.solver.slots)
    limit = config.budget.time_limit_s - config.budget.margin_s
    plays = len(drawn) * RUNS
    used, spent, right = STARTUP_S, 0.0, []
    for number in range(PROBLEMS):
        draw = np.random.default_rng((seed, number))
        group = groups[drawn[competition, number]]
        uniform = draw.random((config.solver.max_attempts, plays))[:, RUNS * competition + run]
        queue = [group.attempts[int(one * len(group.attempts))] for one in uniform]
        given_ = allot(limit - used, PROBLEMS - number - 1, config.budget)
        allowed = min(config.solver.max_attempts, given_.max_attempts or math.inf)
        slots = min(config.solver.slots, allowed)
        waiting = list(enumerate(queue[: int(allowed)]))
        running: dict[int, float] = {}
        ended: list[Attempt] = []
        now = 0.0
        while given_.seconds > 0:
            while waiting and len(running) < slots:
                index, attempt = waiting.pop(0)
                running[index] = float(max(1, attempt.tokens))
            if not running:
                break
            next_ = min(running, key=lambda index: running[index])
            sampled = [queue[index].tokens - left for index, left in running.items()]
            depth = PROMPT_TOKENS + sum(sampled) / len(running) + running[next_] / 2
            seconds = running[next_] * float(pace(np.array([len(running)]), np.array([depth]))[0])
            step = min(seconds, given_.seconds - now)
            late = now + seconds > given_.seconds
            tokens = running[next_] * (step / seconds if seconds else 1)
            spent += tokens * len(running)
            now += step
            running = {index: left - tokens for index, left in running.items()}
            if late:
                break
            del running[next_]
            ended.append(queue[next_])
            if decide(ended, config.voting, max_attempts=int(allowed), confidence=given_.confidence):
                break
        used += now
        ranked = rank(ended, config.voting)
        right.append(bool(ranked) and ranked[0].answer == group.truth)
    return right, used, spent


@pytest.mark.slow
@given(pools, configs(), st.integers(0, 1_000))
def test_the_arrays_play_exactly_like_the_solvers_rules(groups: list[Group], config: Config, seed: int) -> None:
    drawn = draw_problems(groups, 3, PROBLEMS, seed)
    played = Competitions(groups, config, drawn, STARTUP_S, usual_curve(), seed)
    for number in range(PROBLEMS):
        played.play(number)
    for play in range(3 * RUNS):
        right, used, spent = play_one(groups, config, drawn, play // RUNS, play % RUNS, seed)
        assert played.right[play].tolist() == right
        assert played.used[play] == pytest.approx(used)
        assert played.tokens[play] == pytest.approx(spent)


@pytest.mark.slow
@given(pools, configs(), st.floats(0, 5_000))
def test_no_play_exceeds_its_limit(groups: list[Group], config: Config, startup_s: float) -> None:
    (result,) = simulate(groups, {"x": config}, competitions=20, problems=PROBLEMS, startup_s=startup_s, samples=10)
    assert result.overruns == (
        0 if startup_s <= config.budget.time_limit_s else 20 * RUNS
    )  # starting too late is no budget's fault
    assert result.longest_seconds <= max(startup_s, config.budget.time_limit_s) + 1e-6
    assert 0 <= result.two_run <= PROBLEMS


def test_certain_attempts_give_a_certain_score() -> None:
    groups = [group_of_tuples(0, [(1, 1_000, 0, 0.5)]), group_of_tuples(1, [(2, 1_000, 0, 0.5)], truth=2)]
    (result,) = simulate(groups, {"x": Config()}, competitions=10, problems=5, samples=100, speed=flat_curve({1: 100, 8: 640}))
    assert (result.score.mean, result.score.low, result.score.high, result.two_run, result.spread) == (5, 5, 5, 5, 0)
    # Four of eight equal streams of 1,000 tokens decide, all at once.
    assert result.mean_seconds == pytest.approx(300 + 5 * 1_000 / (640 / 8))


def test_policies_see_the_same_problems_and_attempts() -> None:
    groups = [group_of_tuples(n, [(n % 3, 500 * (n + 1), 0, 0.5), (1, 900, 0, 0.5), (None, 100, 0, 0.5)]) for n in range(6)]
    one, same, other = simulate(
        groups,
        {"a": Config(), "b": Config(), "c": parse_configuration("majority/first", Config())},
        competitions=50, problems=10, samples=100,
    )  # fmt: skip
    assert replace(one, name="b") == same
    assert (same.diff.mean, same.diff.low, same.diff.high) == (0, 0, 0)
    assert other.diff.mean == pytest.approx(10 * (np.mean(other.score_of) - np.mean(one.score_of)))


def test_a_free_slot_takes_the_next_attempt_at_once() -> None:
    groups = [group_of_tuples(0, [(None, 800, 0, 0.5)])]
    config = load_config({"solver": {"slots": 8, "max_attempts": 16}, "voting": {"stop": "never"}})
    (result,) = simulate(
        groups, {"x": config}, competitions=2, problems=1, startup_s=0, samples=10, speed=flat_curve({1: 100, 8: 640})
    )
    assert result.mean_seconds == pytest.approx(2 * 800 / 80)
    assert result.mean_tokens == pytest.approx(16 * 800)


@pytest.mark.slow
def test_a_run_grows_where_time_is_left_and_stays_small_where_it_is_short() -> None:
    groups = [group_of_tuples(n, [(1, 8_000, 0, 0.5), (None, 8_000, 0, 0.5), (2, 8_000, 0, 0.5)]) for n in range(9)]
    configs = {name: parse_configuration(name, Config()) for name in ("default", "default/equal=8@16", "default@grow")}
    for tokens_per_s, like in ((150.0, 0), (4_000.0, 1)):
        speed = flat_curve({1: tokens_per_s / 8, 8: tokens_per_s, 16: 1.4 * tokens_per_s})
        played = simulate(groups, configs, competitions=30, samples=10, speed=speed)
        assert played[2].mean_tokens == pytest.approx(played[like].mean_tokens, rel=0.1)
        assert played[2].overruns == 0


def test_less_time_never_scores_more() -> None:
    groups = [group_of_tuples(n, [(n % 2, 20_000, 0, 0.5), (1, 90_000, 0, 0.5)]) for n in range(6)]
    points = sweep(groups, {"x": Config()}, [1_000, 4_000, 16_000], competitions=50)
    scores = [point.simulations[0].score.mean for point in points]
    assert scores == sorted(scores)
    assert scores[0] < scores[-1]


@pytest.mark.parametrize("problems", [None, 7, 8])
def test_problems_can_be_ordered_by_difficulty(problems: int | None) -> None:
    groups = [group_of_tuples(n, [(1 if i < n else 2, 9, 0, 0.5) for i in range(9)]) for n in range(9)]
    drawn = {order: draw_problems(groups, 20, problems, 3, order) for order in Order}
    for order, rows in drawn.items():  # the same problems in another order
        assert np.array_equal(np.sort(rows), np.sort(drawn[Order.RANDOM])), order
    assert (np.diff(drawn[Order.FIRST]) >= 0).all()
    assert (np.diff(drawn[Order.LAST]) <= 0).all()
    for row in drawn[Order.MIDDLE]:
        hardest = int(np.argmin(row))
        assert abs(hardest - len(row) // 2) <= 1
        assert (np.diff(row[: hardest + 1]) <= 0).all()
        assert (np.diff(row[hardest:]) >= 0).all()


def test_without_a_number_every_group_is_played_once() -> None:
    groups = [group_of_tuples(n, [(1, 1_000, 0, 0.5), (2, 1_000, 0, 0.5)]) for n in range(5)]
    (result,) = simulate(groups, {"x": Config()}, competitions=40, problems=None, samples=10)
    assert result.problems == 5
    assert (np.sort(draw_problems(groups, 40, None, 0)) == np.arange(5)).all()
    # The problems are the same, so all of the spread is between runs.
    assert result.run_spread == pytest.approx(result.spread, rel=0.3)


def test_only_uncut_groups_of_the_most_frequent_model_are_played() -> None:
    good = [group_of_tuples(n, [(1, 10, 0, 0.5)]) for n in range(3)]
    others = [
        replace(good[0], use=Use.ACCURACY),
        replace(good[0], model="other"),
        group_of_tuples(7, [(1, 0, 0, 0.5)]),
        replace(good[0], ended=()),
    ]
    assert select_playable([*others, *good]) == tuple(good)
    with pytest.raises(ConfigError, match="no group that was not cut"):
        select_playable(others[:1])


def test_names_choose_voter_stop_rule_and_budget() -> None:
    config = load_config({"voting": {"stop": "margin", "margin": 2}})
    assert parse_configuration("default", config) == config
    assert parse_configuration("default@even", config).budget.rule == "even"
    chosen = parse_configuration("majority/equal=5@marginal", config)
    assert (chosen.voting.voter, chosen.voting.stop, chosen.voting.equal) == ("majority", "equal", 5)
    wide = parse_configuration("default@even@16", config)
    assert (wide.solver.slots, wide.solver.max_attempts, wide.budget.rule) == (16, 16, "even")
    assert parse_configuration("default@8x12", config).solver.max_attempts == 12
    with pytest.raises(ConfigError, match="@lavish is neither SLOTS nor SLOTSxATTEMPTS nor grow nor a budget"):
        parse_configuration("default@lavish", config)
    with pytest.raises(ConfigError, match=r"8 is more than solver\.max_attempts"):
        parse_configuration("default@8x4", config)
    with pytest.raises(ConfigError, match="a second look cannot be simulated"):
        parse_configuration("select", config)
    with pytest.raises(ConfigError, match="proximity cannot be simulated"):
        simulate([group_of_tuples(0, [(1, 1, 0, 0.5)])], {"proximity": parse_configuration("proximity", config)}, competitions=1)


@public
@pytest.mark.parametrize("budget", sorted(BUDGET_RULES))
def test_public_records_never_overrun(budget: str) -> None:
    groups = select_playable(read_groups([PUBLIC]))
    for time_limit_s in (1_000.0, 18_000.0):
        config = load_config({"budget": {"rule": budget, "time_limit_s": time_limit_s}})
        (result,) = simulate(groups, {budget: config}, competitions=200, samples=100)
        assert result.overruns == 0
        assert 0 < result.score.mean < 50
