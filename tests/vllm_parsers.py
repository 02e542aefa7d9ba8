"""Parses sampled turns with vLLM's own parsers, for comparison."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any


@functools.cache
def _tokenizer(folder: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


def vllm_calls(parser: str, folder: Path, tokens: Sequence[int]) -> list[tuple[str, str]]:
    """Returns name and arguments (JSON or plain code) of every call that vLLM finds.

    Args:
        parser: "gemma4", "qwen3", "hermes" or "harmony".
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _calls(parser, folder, tokens)


def _calls(parser: str, folder: Path, tokens: Sequence[int]) -> list[tuple[str, str]]:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    tool: Any = {"type": "function", "function": {"name": "python", "parameters": {}}}
    request = ChatCompletionRequest(model="m", messages=[{"role": "user", "content": "x"}], tools=[tool])
    if parser == "harmony":
        return _harmony(tokens)
    tokenizer = _tokenizer(folder)
    text = tokenizer.decode(tokens, skip_special_tokens=False)
    if parser == "hermes":
        from vllm.tool_parsers.hermes_tool_parser import Hermes2ProToolParser

        content = text.rpartition("</think>")[2].removesuffix("<|im_end|>")
        found = Hermes2ProToolParser(tokenizer).extract_tool_calls(content, request)
        return [(call.function.name, call.function.arguments) for call in found.tool_calls]
    if parser == "qwen3":
        from vllm.parser.qwen3 import Qwen3Parser

        _, _, calls = Qwen3Parser(tokenizer).parse(text, request, True, tokens)
    else:
        from vllm.parser.gemma4 import Gemma4Parser

        _, _, calls = Gemma4Parser(tokenizer).parse(text, request, True, tokens)
    return [(call.name, call.arguments) for call in calls or []]


def _harmony(tokens: Sequence[int]) -> list[tuple[str, str]]:
    """Returns recipient and text of every message to a tool, as segmented by vLLM's streaming parser."""
    from openai_harmony import HarmonyError
    from vllm.entrypoints.openai.parser.harmony_utils import get_streamable_parser_for_assistant

    reader = get_streamable_parser_for_assistant()
    for token in tokens:
        try:
            reader.process(token)
        except HarmonyError:
            continue  # as vLLM does
    reader.process_eos()
    return [(message.recipient, message.content[0].text) for message in reader.messages if message.recipient]
