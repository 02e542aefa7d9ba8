"""Options of the prompts, and the names of families and built-in variants."""

from __future__ import annotations

from collections import Counter
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from aimo_solver.options import STRICT, MinP, Positive, Share, Temperature, TopK

FamilyName = Literal["harmony", "gemma", "hermes", "fenced"]
ReasoningEffort = Literal["low", "medium", "high"]
BuiltInVariant = Literal[
    "tool", "tool-developer", "bare", "reasoning", "tool-suffix", "reasoning-suffix", "code-first", "tool-zh", "reasoning-zh",
    "tool-ru",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VariantConfig:
    """A prompt variant. Fields that are None are taken from `base`, sampling and effort from their own sections.

    In the texts, {timeout_s}, {output_chars} and {libraries} stand for the limits of a call and for the modules that are
    imported, and {answer} for what an answer is, such as "an integer from 0 to 99999". `aimo-solver prompts` shows what a
    model gets.

    Attributes:
        base: a variant of the library (chat/variants.py); by default the one of the same name, or else "tool".
        identity: opens the system message. In the family fenced, it goes before the problem instead.
        system: the rest of the system message.
        developer: the developer message of gpt-oss; other families treat it like `identity`.
        suffix: follows the problem in the user message.
        tool, tool_description: whether the Python tool is declared, and what is said about it.
    """

    base: BuiltInVariant | None = None
    identity: str | None = None
    system: str | None = None
    developer: str | None = None
    suffix: str | None = None
    tool: bool | None = None
    tool_description: str | None = None
    reasoning_effort: ReasoningEffort | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    min_p: MinP | None = None
    top_k: TopK | None = None


def _count_names(mix: Any) -> Any:
    """Turns a name or a list of names into weights; leaves the rest to validation."""
    names = [mix] if isinstance(mix, str) else mix
    return dict(Counter(names)) if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names) else mix


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PromptConfig:
    """The prompts.

    Attributes:
        family: name of the chat format; "auto" detects it from the model.
        variants: prompt variants of your own, by name.
        mix: the variants that attempts use, with weights: {tool = 3, reasoning = 1}, a list of names or one name.
        reasoning_effort: for models that have such a setting (gpt-oss).
    """

    family: Literal["auto", FamilyName] = "auto"
    variants: dict[str, VariantConfig] = field(default_factory=dict)
    mix: Annotated[dict[str, Positive], BeforeValidator(_count_names), Field(min_length=1)] = field(
        default_factory=lambda: {"tool": 1.0}
    )
    reasoning_effort: ReasoningEffort = "high"
