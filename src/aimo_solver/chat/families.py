"""The choice of a chat format: a family by name, or read off the model's folder."""

from __future__ import annotations

from pathlib import Path

from aimo_solver.chat.model_folder import ModelFolder
from aimo_solver.chat.turns import ChatFormat, ReasoningEffort
from aimo_solver.errors import ConfigError, ModelError

FAMILIES = ("harmony", "gemma", "hermes", "fenced")


def load_chat_format(model_dir: Path, family: str = "auto", *, reasoning_effort: ReasoningEffort = "high") -> ChatFormat:
    """The chat format of a model folder.

    Args:
        model_dir: holds ``tokenizer.json`` and, for some families, ``config.json`` and the chat template.
        family: a name in `FAMILIES`, or "auto" to read it off the folder.
        reasoning_effort: for families that are told one (harmony).

    Raises:
        ConfigError: no such family.
        ModelError: the folder is missing or lacks what the family needs, or "auto" cannot tell.
    """
    # Imported here: each family loads a library that the others do without.
    if family not in ("auto", *FAMILIES):
        raise ConfigError("prompt.family", f"unknown family {family!r}; known: auto, {', '.join(FAMILIES)}")
    folder = ModelFolder.read(model_dir)
    chosen = family_of(folder) if family == "auto" else family
    if chosen == "harmony":
        from aimo_solver.chat.harmony import HarmonyFormat

        return HarmonyFormat(reasoning_effort)
    if chosen == "gemma":
        from aimo_solver.chat.gemma import GemmaFormat

        return GemmaFormat(folder)
    if chosen == "hermes":
        from aimo_solver.chat.hermes import HermesFormat

        return HermesFormat(folder)
    from aimo_solver.chat.fenced import FencedFormat

    return FencedFormat(folder)


def family_of(folder: ModelFolder) -> str:
    """The family of a folder, by its model type, its control tokens and its chat template.

    Raises:
        ModelError: the folder fits none.
    """
    if folder.model_type == "gpt_oss":
        return "harmony"
    controls = folder.tokenizer.controls
    if {"<|start|>", "<|channel|>", "<|message|>", "<|call|>"} <= controls.keys():
        return "harmony"
    if {"<|turn>", "<turn|>", "<|tool_call>"} <= controls.keys():
        return "gemma"
    if "<|im_start|>" in controls and "<tool_call>" in folder.template:
        return "hermes"
    if folder.template:
        return "fenced"
    names = ", ".join(FAMILIES)
    raise ModelError(folder.path, f"has no chat template and no known control tokens; set prompt.family to one of {names}")
