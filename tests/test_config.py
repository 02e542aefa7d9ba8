"""Configuration: its layers, and the errors for wrong options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from aimo_solver.chat.options import BuiltInVariant, VariantConfig
from aimo_solver.chat.variants import VARIANTS
from aimo_solver.config import Config, check_context, load_config
from aimo_solver.errors import ConfigError
from aimo_solver.kernels.pool import KernelPool
from aimo_solver.server.flags import PRESETS
from aimo_solver.server.options import ServerConfig
from aimo_solver.solve.options import SolverConfig


def test_defaults_are_the_documented_ones() -> None:
    config = Config()
    assert (config.solver.slots, config.solver.max_attempts, config.solver.parallel, config.attempt.max_turns) == (8, 8, 1, 128)
    assert (config.sampling.temperature, config.sampling.min_p, config.voting.equal) == (1.0, 0.02, 4)
    assert (config.budget.reserve_s, config.budget.cap_s, config.budget.time_limit_s) == (300, 900, 18_000)


def test_later_layers_win(tmp_path: Path) -> None:
    model, file = tmp_path / "model", tmp_path / "b.toml"
    model.mkdir()
    (model / "aimo.toml").write_text("[solver]\nslots = 2\nmax_attempts = 3\n[kernels]\nsize = 5\nspares = 6\n")
    file.write_text("[solver]\nslots = 3\n")
    config = load_config({"kernels": {"spares": 1, "timeout_s": 2.0}}, model, file, settings=["kernels.size=7"])
    assert (config.solver.slots, config.solver.max_attempts) == (3, 3)
    assert (config.kernels.size, config.kernels.spares, config.kernels.timeout_s) == (7, 6, 2.0)


def test_a_layer_that_is_absent_changes_nothing(tmp_path: Path) -> None:
    assert load_config(None, tmp_path) == Config()


def test_the_mappings_passed_in_are_not_changed() -> None:
    first: dict[str, dict[str, int]] = {"solver": {"slots": 2}}
    load_config(first, {"solver": {"slots": 3}}, settings=["solver.slots=4"])
    assert first == {"solver": {"slots": 2}}


def test_a_bare_word_is_a_string_and_a_list_becomes_a_tuple() -> None:
    config = load_config(settings=["voting.voter=majority", 'kernels.preload=["scipy", "networkx"]'])
    assert config.voting.voter == "majority"
    assert config.kernels.preload == ("scipy", "networkx")


def test_plain_values_load_to_the_same_configuration() -> None:
    config = load_config(settings=["solver.max_attempts=32", "solver.slots=16"])
    assert load_config(config.as_dict()) == config


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
        ("solver.slots=9", "more than solver.max_attempts (8); lower it, or raise that"),
        ("slots=9", "write it as section.option=value"),
        ("solver.slots", "write it as section.option=value"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(setting: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(settings=[setting])
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[solver]\nslotz = 1\n", "solver.slotz: unknown"),
        ("[solver\n", "cannot be read as TOML"),
        ("slots = 1\n", "slots: is not an option; options belong in sections"),
    ],
)
def test_a_wrong_toml_file_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert says in str(error.value)


def test_a_model_folder_with_a_broken_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "aimo.toml").write_text("[solver\n")
    with pytest.raises(ConfigError, match=r"aimo\.toml: cannot be read as TOML"):
        load_config(tmp_path)


def test_a_missing_toml_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "absent.toml")


CONTRADICTIONS = [
    (("solver.slots=9",), ("solver.slots", "solver.max_attempts (8)")),
    (("solver.slots=32", "solver.max_attempts=32", "kernels.size=16"), ("kernels.size", "32 attempts", "solver.slots")),
    (("kernels.size=16", "solver.parallel=4"), ("kernels.size", "32 attempts", "solver.parallel")),
    (("solver.parallel=16",), ("kernels.spares", "4 spares and 128 kernels", "kernels.size", "more than 128")),
    (("solver.grow=true", "kernels.size=8"), ("kernels.size", "16 attempts")),
    (("solver.grow=true", 'server.extra_args=["--max-num-seqs=8"]'), ("server.extra_args", "8 is too few for 16 attempts")),
    (("solver.grow=true", "solver.slots=16", "solver.max_attempts=16"), ("solver.grow", "solver.slots (16)")),
    (("solver.grow=true", "solver.parallel=2"), ("solver.grow", "solver.parallel=1")),
    (("solver.grow=true", "voting.stop=never"), ("solver.grow", "voting.stop=equal")),
    (("solver.grow=true", "voting.equal=6"), ("solver.grow", "voting.equal up to 5")),
    (("kernels.memory_mb=5000", "kernels.pool_memory_mb=4000"), ("kernels.memory_mb", "kernels.pool_memory_mb")),
    (("attempt.answer_tokens=3000", "server.context_tokens=4096"), ("attempt.answer_tokens", "server.context_tokens")),
    (("server.speculative=eagle",), ("server.draft_model", "server.speculative=eagle", "name its folder")),
    (("server.speculative=ngram", "server.draft_model=head"), ("server.draft_model", "leave it out")),
    (("selection.select=use", "budget.cap_s=30"), ("selection.least_s", "budget.cap_s, 30")),
    (("budget.rule=clamp", "budget.cap_s=100"), ("budget.reserve_s", "budget.cap_s (100)")),
    (("voting.consistency=[[3, 2]]",), ("voting.consistency", "3 equal answers of 2")),
    (('server.extra_args=["--max-model-len", "1000"]',), ("server.extra_args", "--max-model-len", "server.context_tokens")),
    (('server.extra_args=["--kv-cache-dtype=fp8"]',), ("server.extra_args", "--kv-cache-dtype", "server.kv_cache_dtype")),
    (('prompt.mix=["tool", "too"]',), ("prompt.mix", "no variant too", "tool-zh")),
    (("prompt.mix={mine=1}", "prompt.variants.own.tool=false"), ("prompt.mix", "no variant mine", "tool-ru, own")),
    (('server.extra_args=["--max-num-seqs", "31"]', "solver.parallel=4"), ("server.extra_args", "31 is too few", "32 attempts")),
    (('server.extra_args=["--max-num-seqs=7"]',), ("server.extra_args", "7 is too few for 8 attempts")),
    (("prompt.mix=[]",), ("prompt.mix", "at least 1 item")),
    (("prompt.mix={tool=0}",), ("prompt.mix.tool", "greater than 0")),
    (("prompt.mix=[[]]",), ("prompt.mix", "dictionary")),
    (("prompt.variants.mine.temperatur=1",), ("prompt.variants.mine.temperatur: unknown; known here: base, identity, system",)),
    (("prompt.variants.mine.temperature=3",), ("prompt.variants.mine.temperature", "less than or equal to 2")),
    (("prompt.variants.mine.top_p=0",), ("prompt.variants.mine.top_p", "greater than 0")),
    (("prompt.variants.mine.min_p=1",), ("prompt.variants.mine.min_p", "less than 1")),
    (("prompt.variants.mine.top_k=-1",), ("prompt.variants.mine.top_k", "greater than or equal to 0")),
    (("prompt.variants.mine.base=own",), ("prompt.variants.mine.base", "'tool-developer'", "got 'own'")),
    (("prompt.variants.mine.reasoning_effort=max",), ("prompt.variants.mine.reasoning_effort", "'high'", "got 'max'")),
    (("prompt.variants.mine=short",), ("prompt.variants.mine", "got 'short'")),
    (("prompt.variants=[1]",), ("prompt.variants", "dictionary")),
    (("prompt.family=llama",), ("prompt.family", "'hermes'", "got 'llama'")),
    (("server.preset=h100",), ("server.preset", "'gpt-oss-120b'", "got 'h100'")),
    (("answers.range=[5, 4]",), ("answers.range", "write [smallest, largest]")),
    (("answers.kind=symbolic", "voting.voter=proximity"), ("voting.voter", "answers.kind=symbolic")),
    (("answers.kind=symbolic", "answers.modulus=1000"), ("answers.modulus", "no remainder")),
]


@pytest.mark.parametrize(("settings", "says"), CONTRADICTIONS, ids=lambda part: part[0] if part[0].count("=") else "")
def test_contradicting_options_are_refused_with_both_names(settings: tuple[str, ...], says: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(settings=settings)
    for word in says:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_variants_of_several_layers_are_merged_and_the_last_mix_counts(tmp_path: Path) -> None:
    (tmp_path / "aimo.toml").write_text(
        '[prompt]\nmix = {tool = 3, "own" = 1}\n[prompt.variants.own]\nidentity = "You count."\ntemperature = 0.5\n'
    )
    notebook = {"prompt": {"variants": {"own": {"temperature": 0.7}, "short": {"base": "bare"}}}}
    prompt = load_config(tmp_path, notebook, settings=["prompt.variants.own.suffix=Be quick."]).prompt
    assert prompt.mix == {"tool": 3.0, "own": 1.0}
    assert prompt.variants == {
        "own": VariantConfig(identity="You count.", temperature=0.7, suffix="Be quick."),
        "short": VariantConfig(base="bare"),
    }
    assert load_config(tmp_path, notebook, {"prompt": {"mix": {"short": 1}}}).prompt.mix == {"short": 1.0}


@pytest.mark.parametrize(("mix", "weights"), [("tool", {"tool": 1}), ('["tool", "bare", "tool"]', {"tool": 2, "bare": 1})])
def test_names_in_a_mix_count_as_their_weights(mix: str, weights: dict[str, float]) -> None:
    assert load_config(settings=[f"prompt.mix={mix}"]).prompt.mix == weights


@pytest.mark.parametrize(
    "settings",
    [
        ("solver.slots=32", "solver.max_attempts=32"),
        ("solver.slots=16", "solver.max_attempts=16", "solver.parallel=4"),
        ("server.speculative=ngram", "prompt.variants.mine.min_p=0.1"),
        ("server.draft_model=small",),
        ("server.speculative=draft", "server.draft_model=small"),
        ("server.speculative=none", "server.draft_model=small"),
        ("budget.time_limit_s=5",),
        ("solver.grow=true", "solver.slots=4", "solver.max_attempts=6"),
    ],
)
def test_consistent_options_pass(settings: tuple[str, ...]) -> None:
    load_config(settings=settings)


def test_a_configuration_made_in_code_is_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"solver\.max_attempts"):
        Config(solver=SolverConfig(slots=9))


def test_the_names_an_option_takes_are_those_defined() -> None:
    assert list(get_args(BuiltInVariant)) == list(VARIANTS)
    assert set(get_args(get_type_hints(ServerConfig, include_extras=True)["preset"])) == {"auto", *PRESETS}


def test_a_context_that_is_too_short_for_the_final_answer_is_refused() -> None:
    check_context(Config(), 4_096)
    with pytest.raises(ConfigError, match=r"attempt\.answer_tokens: keeps 512 of the context's 1000 tokens"):
        check_context(Config(), 1_000)


@pytest.mark.parametrize(("settings", "streams"), [((), 8), (("solver.parallel=3", "solver.slots=4"), 12)])
def test_the_number_of_kernels_follows_from_the_attempts_side_by_side(settings: tuple[str, ...], streams: int) -> None:
    config = load_config(settings=settings)
    assert config.solver.streams == streams
    assert KernelPool.from_config(config.kernels, leases=config.solver.streams).size == streams
    assert KernelPool.from_config(replace(config.kernels, size=20), leases=config.solver.streams).size == 20
