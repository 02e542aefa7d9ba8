"""Configuration: layers, and how every kind of wrong option is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from aimo_solver.config import Config
from aimo_solver.errors import ConfigError
from aimo_solver.settings import config_from, load_config


def test_defaults_are_the_documented_ones() -> None:
    config = Config()
    assert (config.solver.slots, config.solver.max_attempts, config.kernels.size, config.attempt.max_turns) == (8, 8, 16, 128)
    assert (config.sampling.temperature, config.sampling.min_p, config.voting.equal) == (1.0, 0.02, 4)
    assert (config.budget.reserve_s, config.budget.cap_s, config.budget.time_limit_s) == (300, 900, 18_000)


def test_later_layers_win(tmp_path: Path) -> None:
    first, second = tmp_path / "a.toml", tmp_path / "b.toml"
    first.write_text("[solver]\nslots = 2\nmax_attempts = 3\n[kernels]\nsize = 5\n")
    second.write_text("[solver]\nslots = 3\n")
    config = load_config(first, second, settings=["kernels.size=7"])
    assert (config.solver.slots, config.solver.max_attempts, config.kernels.size) == (3, 3, 7)


def test_a_bare_word_is_text_and_a_list_is_a_tuple() -> None:
    config = load_config(settings=["voting.voter=majority", 'prompt.mix=["tool", "reasoning"]'])
    assert config.voting.voter == "majority"
    assert config.prompt.mix == ("tool", "reasoning")


def test_plain_values_come_back_whole() -> None:
    config = load_config(settings=["solver.max_attempts=32", "solver.slots=16"])
    assert config_from(config.as_dict()) == config


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("solver.slot=3", "solver.slot: unknown; known here: slots, max_attempts"),
        ("server.nothing=3", "unknown"),
        ("sover.slots=3", "option sover: unknown; known here: sampling"),
        ("sampling.temperature=hot", "valid number"),
        ("sampling.temperature=-1", "greater than or equal to 0"),
        ("sampling.temperature=nan", "sampling.temperature"),
        ("budget.time_limit_s=inf", "budget.time_limit_s"),
        ("kernels.size=0", "greater than or equal to 1"),
        ("kernels.size=1.5", "integer"),
        ("solver.slots=9", "more than max_attempts (8)"),
        ("slots=9", "write it as section.option=value"),
        ("solver.slots", "write it as section.option=value"),
    ],
)
def test_wrong_setting_is_refused_in_one_line(setting: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(settings=[setting])
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[solver]\nslotz = 1\n", "solver.slotz: unknown"),
        ("[solver\n", "cannot be read as TOML"),
        ("slots = 1\n", "slots: is no option by itself"),
    ],
)
def test_wrong_toml_is_refused_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert says in str(error.value)


def test_missing_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "absent.toml")
