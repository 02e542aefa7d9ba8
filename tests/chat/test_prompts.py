"""What the models are told."""

from __future__ import annotations

import pytest

from aimo_solver.answers import ANSWER_RANGE
from aimo_solver.chat.prompts import VARIANTS, prompt_variants
from aimo_solver.errors import ConfigError
from aimo_solver.options import PromptConfig


def test_names_are_unique() -> None:
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.name != "bare"], ids=lambda variant: variant.name)
def test_every_instruction_states_the_range_and_the_box_and_no_modulus(variant) -> None:  # type: ignore[no-untyped-def]
    told = f"{variant.system} {variant.suffix}"
    assert str(ANSWER_RANGE.stop - 1) in told
    assert "\\boxed{}" in told
    assert "mod" not in told.lower()


def test_bare_is_the_problem_alone() -> None:
    (bare,) = prompt_variants(["bare"])
    assert (bare.system, bare.user("What is 1 + 1?"), bare.tool) == ("", "What is 1 + 1?", False)


def test_a_mix_keeps_its_order_and_repeats() -> None:
    assert [variant.name for variant in prompt_variants(["tool", "reasoning", "tool"])] == ["tool", "reasoning", "tool"]


def test_pure_reasoning_declares_no_tool() -> None:
    assert not any(variant.tool for variant in VARIANTS if "reasoning" in variant.name)


def test_fenced_models_are_told_everything_in_the_user_message() -> None:
    for variant, plain in zip(prompt_variants([v.name for v in VARIANTS], "fenced"), VARIANTS, strict=True):
        assert variant.system == ""
        assert plain.system in variant.user("problem")
        assert variant.user("problem").startswith("problem")


def test_the_default_mix_is_known() -> None:
    assert prompt_variants(PromptConfig().mix)


@pytest.mark.parametrize("mix", [[], ["tool", "toll"]])
def test_an_unknown_or_empty_mix_is_an_error(mix: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"prompt\.mix"):
        prompt_variants(mix)
