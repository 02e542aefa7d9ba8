"""Prompt variants."""

from __future__ import annotations

import pytest

from aimo_solver.answers import ANSWER_RANGE
from aimo_solver.chat import prompts
from aimo_solver.chat.prompts import VARIANTS


@pytest.mark.parametrize("name", sorted(set(VARIANTS) - {"bare"}))
def test_every_variant_states_the_range_and_the_box_and_no_modulus(name: str) -> None:
    text = f"{VARIANTS[name].system} {VARIANTS[name].suffix}"
    assert str(ANSWER_RANGE.stop - 1) in text
    assert "\\boxed{}" in text
    assert "mod" not in text.lower()


def test_names_are_unique() -> None:
    assert len(VARIANTS) == len(prompts._VARIANTS)


def test_bare_is_the_problem_alone() -> None:
    bare = VARIANTS["bare"]
    assert (bare.system, bare.user("What is 1 + 1?"), bare.tool) == ("", "What is 1 + 1?", False)


def test_reasoning_variants_declare_no_tool() -> None:
    assert not any(variant.tool for name, variant in VARIANTS.items() if "reasoning" in name)
