"""Tables and values of replays and simulations."""

from __future__ import annotations

import io
import json

from rich.console import Console

from aimo_solver.config import Config
from aimo_solver.lab.replay import Replay, parse_policy, replay
from aimo_solver.lab.scoreboard import (
    replay_tables,
    replay_values,
    simulation_table,
    simulation_values,
)
from aimo_solver.lab.simulate import Simulation, parse_configuration, simulate
from tests.lab.groups import six_groups


def replayed(**values: bool) -> Replay:
    policies = [parse_policy(name, Config().voting) for name in ("majority", "default/equal=2")]
    return replay(six_groups(**values), policies, samples=50)


def simulated() -> tuple[Simulation, ...]:
    return simulate(
        six_groups(),
        {name: parse_configuration(name, Config()) for name in ("default", "default@even")},
        competitions=5,
        samples=50,
    )


def text(*tables: object) -> str:
    output = io.StringIO()
    Console(file=output, width=200).print(*tables)
    return output.getvalue()


def test_values_are_plain_and_complete() -> None:
    values = json.loads(json.dumps(replay_values(replayed())))
    assert values["oracle"] == 6
    assert list(values["policies"]) == ["majority", "default/equal=2"]
    for policy in values["policies"].values():
        assert {"groups", "right", "accuracy", "mean_seconds", "mean_tokens", "diff", "diff_low", "diff_high"} <= policy.keys()
        assert policy["accuracy"] == policy["right"] / policy["groups"]
        assert sum(run["right"] for run in policy["runs"].values()) == policy["right"]
    played = json.loads(json.dumps(simulation_values(simulated())))
    assert list(played["policies"]) == ["default", "default@even"]
    assert played["policies"]["default"]["overruns"] == 0


def test_tables_name_every_policy_and_run() -> None:
    shown = text(*replay_tables(replayed(), strata=True))
    for word in ("majority", "default/equal=2", "run0", "run1", "6 groups of 6 problems"):
        assert word in shown
    shown = text(simulation_table(simulated()))
    assert "default@even" in shown
    assert "overruns" in shown


def test_what_was_not_logged_is_said() -> None:
    assert "not logged" in text(*replay_tables(replayed(timed=False)))
    assert "not logged" not in text(*replay_tables(replayed()))
