"""Prompt variants: the library's and those of the configuration."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from aimo_solver.answers import ANSWER_RANGE
from aimo_solver.chat import variants as library
from aimo_solver.chat.variants import VARIANTS, PromptVariant, prompt_variants, take_turns
from aimo_solver.config import Config, load_config
from tests.chat_families import NAMES, Family

PROBLEM = "What is 1 + 1?"


@pytest.mark.parametrize("name", sorted(set(VARIANTS) - {"bare"}))
def test_every_variant_states_the_range_and_the_box_and_no_modulus(name: str) -> None:
    prompt = VARIANTS[name].fill("", Config())
    text = f"{prompt.instructions} {prompt.user}"
    assert str(ANSWER_RANGE.stop - 1) in text
    assert "\\boxed{}" in text
    assert "mod" not in text.lower()


@pytest.mark.parametrize("name", sorted(set(VARIANTS) - {"bare"}))
@pytest.mark.parametrize(
    ("setting", "says", "not_"),
    [
        ("answers.range=[-5, 999]", "999", "99999"),
        ("answers.modulus=1000", "", "1000"),
        ("answers.kind=symbolic", "LaTeX", "99999"),
    ],
)
def test_every_variant_states_other_answers(name: str, setting: str, says: str, not_: str) -> None:
    prompt = VARIANTS[name].fill("", load_config(settings=[setting]))
    text = f"{prompt.instructions} {prompt.user}"
    assert says in text
    assert not_ not in text
    assert "{answer" not in text


def test_names_are_unique() -> None:
    assert len(VARIANTS) == len(library._VARIANTS)


def test_bare_is_the_problem_alone() -> None:
    prompt = VARIANTS["bare"].fill(PROBLEM, Config())
    assert (prompt.instructions, prompt.user, prompt.tool) == ("", PROBLEM, None)


def test_reasoning_variants_declare_no_tool() -> None:
    assert not any(variant.tool for name, variant in VARIANTS.items() if "reasoning" in name)


def test_the_default_has_no_developer_message_and_a_suffix_that_names_the_libraries() -> None:
    prompt = VARIANTS["tool"].fill(PROBLEM, Config())
    assert (prompt.system, prompt.developer) == ("", "")
    assert prompt.user == f"{PROBLEM}\n\nYou can use Python with numpy, sympy and mpmath to solve this problem."


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize("variant", ["tool", "tool-developer"])
def test_what_every_family_says_about_the_tool_follows_the_limits(families: dict[str, Family], family: str, variant: str) -> None:
    chat = families[family].chat
    config = load_config(
        settings=["kernels.timeout_s=2.5", "kernels.output_chars=1234", 'kernels.preload=["json", "no_such", ""]']
    )
    text = chat.decode(chat.prompt(VARIANTS[variant].fill(PROBLEM, config)))
    assert "2.5 seconds" in text
    assert "numpy, sympy, mpmath and json" in text
    assert ("1,234 characters" in text) == (variant == "tool")


@pytest.mark.parametrize("family", NAMES)
def test_no_placeholder_remains(families: dict[str, Family], family: str) -> None:
    chat = families[family].chat
    for variant in VARIANTS.values():
        text = chat.decode(chat.prompt(variant.fill(PROBLEM, Config())))
        assert not any(placeholder in text for placeholder in ("{timeout_s}", "{output_chars}", "{libraries}"))


def test_a_placeholder_in_a_problem_stays() -> None:
    assert VARIANTS["bare"].fill("{libraries}", Config()).user == "{libraries}"


def variants_of(*settings: str) -> dict[str, PromptVariant]:
    return prompt_variants(load_config(settings=settings).prompt)


def test_a_new_variant_takes_the_rest_from_the_default_or_from_its_base() -> None:
    variants = variants_of("prompt.variants.cool.temperature=0.5", "prompt.variants.plain={base='bare', suffix='Go.'}")
    assert variants["cool"].identity == VARIANTS["tool"].identity
    assert variants["cool"].sampling(Config().sampling).temperature == 0.5
    assert variants["cool"].sampling(Config().sampling).min_p == Config().sampling.min_p
    assert variants["plain"].fill("x", Config()).user == "x\n\nGo."
    assert not variants["plain"].tool


def test_a_variant_of_the_library_can_be_changed_in_part() -> None:
    changed = variants_of("prompt.variants.tool-zh.suffix=Go.", "prompt.variants.tool-zh.tool=false")["tool-zh"]
    assert (changed.identity, changed.suffix, changed.tool) == (VARIANTS["tool-zh"].identity, "Go.", False)


def test_an_empty_text_removes_one() -> None:
    assert variants_of("prompt.variants.tool.suffix=''")["tool"].fill("x", Config()).user == "x"


def test_a_variant_has_its_own_effort_or_the_configured_one() -> None:
    config = load_config(settings=["prompt.reasoning_effort=low", "prompt.variants.hard.reasoning_effort=high"])
    variants = prompt_variants(config.prompt)
    assert [variants[name].fill("x", config).reasoning_effort for name in ("tool", "hard")] == ["low", "high"]


@pytest.mark.parametrize("mix", [{"tool": 1.0}, {"tool": 3.0, "bare": 1.0}, {"tool": 0.5, "bare": 0.2, "reasoning": 0.3}])
def test_attempts_follow_the_weights_of_a_mix(mix: dict[str, float]) -> None:
    names = [variant.name for variant in islice(take_turns(VARIANTS, mix), 40)]
    for number in range(1, 41):
        count = Counter(names[:number])
        for name, weight in mix.items():
            assert abs(count[name] - number * weight / sum(mix.values())) < 1
    assert Counter(names) == {name: 40 * weight / sum(mix.values()) for name, weight in mix.items()}
