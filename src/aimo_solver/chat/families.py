"""The choice of a chat format: by name, or detected from the model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, assert_never, get_args

from aimo_solver.chat.model_folder import ModelFolder
from aimo_solver.chat.options import FamilyName
from aimo_solver.chat.turns import ChatFormat
from aimo_solver.errors import ModelError

FAMILIES: tuple[FamilyName, ...] = get_args(FamilyName)


def load_chat_format(model_dir: Path, family: Literal["auto", FamilyName] = "auto") -> ChatFormat:
    """Returns the chat format of a model folder.

    Args:
        model_dir: holds ``tokenizer.json`` and, for some families, ``config.json`` and the chat template.
        family: one of `FAMILIES`, or "auto" to detect it.

    Raises:
        ModelError: the folder is missing or lacks what the family needs, or no family fits.
    """
    folder = ModelFolder.read(model_dir)
    chosen = _detect_family(folder) if family == "auto" else family
    # The modules are imported here because each loads libraries that the others do not need.
    match chosen:
        case "harmony":
            from aimo_solver.chat.harmony import HarmonyFormat

            return HarmonyFormat()
        case "gemma":
            from aimo_solver.chat.gemma import GemmaFormat

            return GemmaFormat(folder)
        case "hermes":
            from aimo_solver.chat.hermes import HermesFormat

            return HermesFormat(folder)
        case "fenced":
            from aimo_solver.chat.fenced import FencedFormat

            return FencedFormat(folder)
    assert_never(chosen)


def _detect_family(folder: ModelFolder) -> FamilyName:
    """The family by model type, control tokens and chat template. Raises ModelError if none fits."""
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
