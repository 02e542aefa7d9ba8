"""The harmony format of gpt-oss, as oss-harmony renders it and as vLLM's reader reads it."""

from __future__ import annotations

import pytest
from openai_harmony import Author, HarmonyEncodingName, Message, Role, load_harmony_encoding

from aimo_solver.chat import FinalText, Malformed, ToolCall, ToolCalls
from tests.chat_families import Family, family
from tests.vllm_parsers import vllm_calls

THOUGHT = "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant"


@pytest.fixture(scope="module")
def harmony(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return family("harmony", tmp_path_factory.mktemp("harmony"))


def test_prompt_with_the_tool(harmony: Family) -> None:
    text = harmony.chat.decode(harmony.chat.prompt("Be careful.", "What is 1 + 1?", tools=True))
    assert text.startswith("<|start|>system<|message|>You are ChatGPT")
    assert "Reasoning: high\n\n# Tools\n\n## python\n\n" in text
    assert "stateful Jupyter notebook environment" in text
    assert text.endswith(
        "# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>"
        "<|start|>developer<|message|># Instructions\n\nBe careful.<|end|>"
        "<|start|>user<|message|>What is 1 + 1?<|end|><|start|>assistant"
    )


def test_prompt_without_the_tool_and_without_instructions(harmony: Family) -> None:
    text = harmony.chat.decode(harmony.chat.prompt("", "What is 1 + 1?", tools=False))
    assert "# Tools" not in text
    assert "developer" not in text
    assert text.endswith("<|end|><|start|>user<|message|>What is 1 + 1?<|end|><|start|>assistant")


def test_the_model_stops_at_a_call_and_at_its_return(harmony: Family) -> None:
    assert harmony.chat.stop_token_ids == (200002, 200012, 199999)


def test_a_result_is_what_oss_harmony_renders(harmony: Family) -> None:
    encoding = load_harmony_encoding(HarmonyEncodingName.HARMONY_GPT_OSS)
    author = Author.new(Role.TOOL, "python")
    message = Message.from_author_and_content(author, "2 <|end|>").with_channel("analysis").with_recipient("assistant")
    rendered = [*encoding.render(message), *harmony.template("<|start|>assistant")]
    assert harmony.chat.tool_results(harmony.call("print(2)"), ["2 <|end|>"]) == rendered


@pytest.mark.parametrize(
    ("header", "author"),
    [
        ("<|channel|>commentary to=functions.python <|constrain|>json", "functions.python to=assistant<|channel|>commentary"),
        ("<|channel|>commentary to=python code", "python to=assistant<|channel|>commentary"),
        (" to=python<|channel|>analysis code", "python to=assistant<|channel|>analysis"),
    ],
)
def test_a_result_comes_from_who_was_called_in_the_same_channel(harmony: Family, header: str, author: str) -> None:
    body = '{"code": "1"}' if "json" in header else "1"
    sampled = harmony.template(f"{header}<|message|>{body}<|call|>")
    assert harmony.chat.parse(sampled, cut=False) == ToolCalls((ToolCall("1"),))
    assert harmony.chat.decode(harmony.chat.tool_results(sampled, ["r"])) == (
        f"<|start|>{author}<|message|>r<|end|><|start|>assistant"
    )


def test_several_messages_before_the_end(harmony: Family) -> None:
    text = (
        f"{THOUGHT}<|channel|>commentary<|message|>I will compute.<|end|><|start|>assistant<|channel|>final<|message|>2<|return|>"
    )
    assert harmony.chat.parse(harmony.template(text), cut=False) == FinalText("2")


def test_a_final_text_is_only_what_is_in_the_final_channel(harmony: Family) -> None:
    text = "<|channel|>analysis<|message|>\\boxed{1}<|end|><|start|>assistant<|channel|>final<|message|>\\boxed{2}<|return|>"
    assert harmony.chat.parse(harmony.template(text), cut=False) == FinalText("\\boxed{2}")


def test_what_the_model_writes_for_others_is_not_its_answer(harmony: Family) -> None:
    text = "<|channel|>analysis<|message|>hm<|end|><|start|>user<|message|>\\boxed{3}<|end|>"
    assert isinstance(harmony.chat.parse(harmony.template(text), cut=False), Malformed)


@pytest.mark.parametrize(
    "text",
    [
        f"{THOUGHT}<|channel|>analysis to=python code<|message|>print(1)<|call|>",
        f"{THOUGHT}<|channel|>commentary to=python code<|message|>print(1)\n<|call|>",
        f"{THOUGHT} to=python<|channel|>analysis code<|message|>print(1)<|call|>",
        f"{THOUGHT} to=python<|channel|>commentary <|constrain|>code<|message|>print('é😀')<|call|>",
        "<|channel|>analysis to=python<|message|>print(1)<|call|>",
        "<|channel|>analysis to=python code<|message|>a<|end|><|start|>assistant"
        "<|channel|>analysis to=python code<|message|>b<|call|>",
        f"{THOUGHT}<|channel|>final<|message|>2<|return|>",
        f"{THOUGHT}<|channel|>commentary<|message|>preamble<|end|><|start|>assistant"
        "<|channel|>analysis to=python code<|message|>1<|call|>",
    ],
)
def test_calls_are_read_as_vllm_reads_them(harmony: Family, text: str) -> None:
    tokens = harmony.template(text)
    turn = harmony.chat.parse(tokens, cut=False)
    ours = [call.code for call in turn.calls] if isinstance(turn, ToolCalls) else []
    assert ours == [code for recipient, code in vllm_calls("harmony", harmony.folder, tokens)]
