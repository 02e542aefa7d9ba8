"""The command `forecast`."""

from __future__ import annotations

import json
from typing import Annotated

import numpy as np
import typer

from aimo_solver.cli.common import AsJson, ConfigFile, Curve, Records, Settings, Speed, console, guarded, progress_bar
from aimo_solver.config import load_config
from aimo_solver.errors import ConfigError
from aimo_solver.lab import scoreboard
from aimo_solver.lab.competition import Order
from aimo_solver.lab.forecast import fit_difficulty, fit_errors, fit_uplift, forecast
from aimo_solver.lab.records import Use, read_groups
from aimo_solver.lab.simulate import parse_configuration, select_playable
from aimo_solver.lab.throughput import USUAL_CURVE, USUAL_SPEED, choose_curve

_PRIVATE = ("1=27.5", "3=37.5", "5=40", "20=46")  # gpt-oss-120b without tools on AIMO3's private set, by its host


@guarded
def forecast_command(
    records: Records,
    pass_at: Annotated[
        list[str] | None,
        typer.Option(help="N=PROBLEMS solved in N attempts without tools; repeatable; default: AIMO3's private set"),
    ] = None,
    policy: Annotated[
        list[str] | None, typer.Option(help="configuration as for replay --simulate; repeatable; the first is the reference")
    ] = None,
    problems: Annotated[int, typer.Option(min=2, help="problems in the set that --pass-at refers to")] = 50,
    order: Annotated[Order, typer.Option(help="the problems' order")] = Order.RANDOM,
    lengths: Annotated[
        str, typer.Option(help="take lengths only from runs whose name begins like this; default: all without hints")
    ] = "",
    uplift: Annotated[float | None, typer.Option(min=0.01, help="what tools multiply the odds by; default: fitted")] = None,
    curve: Curve = USUAL_CURVE,
    speed: Speed = USUAL_SPEED,
    sets: Annotated[int, typer.Option(min=1, help="problem sets to draw, each with an uplift of its own")] = 30,
    as_json: AsJson = False,
    config_file: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Forecasts scores from a model's pass@N without tools; tool effects, errors and lengths of attempts are fitted."""
    given = _parse_pass_at(pass_at or _PRIVATE, problems)
    config = load_config(config_file, settings=settings or ())
    plays = {name: parse_configuration(name, config) for name in policy or ("default", "default/equal=6@16")}
    groups = read_groups(records)
    playable = select_playable(groups)
    lenders = [one for one in playable if (one.run.startswith(lengths) if lengths else Use.ACCURACY in one.use)]
    if not lenders:
        raise ConfigError("--lengths", f"no run that can lend lengths begins with {lengths!r}; runs with hints must be named")
    fit = [group for group in groups if Use.ACCURACY in group.use and group.model == lenders[0].model]
    difficulty, errors = fit_difficulty(given), fit_errors(fit)
    uplifts = fit_uplift(fit) if uplift is None else np.array([uplift])
    with progress_bar("problem sets", hidden=as_json) as progress:
        done = forecast(
            difficulty, uplifts, errors, lenders, plays, problems=problems, sets=sets, order=order,
            speed=choose_curve(curve, speed), progress=progress,
        )  # fmt: skip
    fitted = scoreboard.fit_values(difficulty, uplifts, errors, given, problems)
    if as_json:
        print(json.dumps(fitted | {"policies": scoreboard.forecast_values(done)}))
        return
    for name, value in fitted.items():
        console.print(f"{name.replace('_', ' ')}: {value}", highlight=False, soft_wrap=True)
    console.print(scoreboard.forecast_table(done, problems))


def _parse_pass_at(pairs: list[str] | tuple[str, ...], problems: int) -> dict[int, float]:
    given: dict[int, float] = {}
    for pair in pairs:
        count, equals, solved = pair.partition("=")
        try:
            given[int(count)] = float(solved) / problems
        except ValueError:
            equals = ""
        if not equals or int(count) < 1:
            raise ConfigError("--pass-at", f"write N=PROBLEMS, for instance 5=40 (got {pair!r})")
    return given
