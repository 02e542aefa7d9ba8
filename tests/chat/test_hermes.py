"""Hermes-style formats, rendered by the model's own template, and their calls as read by vLLM."""

from __future__ import annotations

import json

import pytest

from aimo_solver.chat.families import load_chat_format
from aimo_solver.chat.model_folder import ModelFolder
from aimo_solver.chat.prompts import Prompt
from aimo_solver.chat.turns import FinalText, Malformed, ToolCalls
from tests.chat_families import Family
from tests.tiny_tokenizers import CHATML_TEMPLATE, hermes_folder
from tests.vllm_parsers import vllm_calls

THOUGHT = "<think>\nLet me see.\n</think>\n\n"
CALL = '<tool_call>\n{"name": "python", "arguments": {"code": "print(1)"}}\n</tool_call>'


@pytest.fixture
def thinking(families: dict[str, Family]) -> Family:
    return families["hermes-thinking"]


def test_the_prompt_is_rendered_by_the_template(hermes: Family) -> None:
    text = hermes.chat.decode(hermes.chat.prompt(Prompt(user="What is 1 + 1?", system="Be careful.")))
    assert (
        text == "<|im_start|>system\nBe careful.<|im_end|>\n<|im_start|>user\nWhat is 1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_bare_prompt_has_no_system_turn(hermes: Family) -> None:
    assert hermes.chat.prompt(Prompt(user="Hi")) == hermes.template("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_the_tool_is_declared_as_json(hermes: Family) -> None:
    text = hermes.chat.decode(hermes.chat.prompt(Prompt(user="Hi", tool="Runs Python.")))
    tool = json.loads(text.partition("<tools>")[2].partition("</tools>")[0])
    assert tool["function"]["name"] == "python"
    assert tool["function"]["parameters"]["required"] == ["code"]


def test_results_share_one_user_turn(hermes: Family) -> None:
    sampled = hermes.template(f"{THOUGHT}{CALL}\n{CALL}<|im_end|>")
    assert hermes.chat.tool_results(sampled, ["a", "b\n"]) == hermes.template(
        "\n<|im_start|>user\n<tool_response>\na\n</tool_response>\n<tool_response>\nb\n\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_an_open_turn_is_closed(hermes: Family) -> None:
    sampled = hermes.template(f"{THOUGHT}{CALL}")
    assert hermes.chat.tool_results(sampled, ["a"])[0] == hermes.controls["<|im_end|>"]


def test_an_end_other_than_that_of_the_template_is_completed(hermes: Family) -> None:
    sampled = hermes.template(f"{THOUGHT}{CALL}<|endoftext|>")
    assert hermes.chat.tool_results(sampled, ["a"])[0] == hermes.controls["<|im_end|>"]


def test_thinking_templates_open_every_turn_with_a_thought(thinking: Family) -> None:
    sampled = thinking.template(f"hm\n</think>\n\n{CALL}<|im_end|>")
    for tokens in (thinking.chat.prompt(Prompt(user="Hi", tool="Runs Python.")), thinking.chat.tool_results(sampled, ["1"])):
        assert thinking.chat.decode(tokens).endswith("<|im_start|>assistant\n<think>\n")


def test_a_turn_without_an_end_of_thought_has_no_final_text(thinking: Family) -> None:
    assert isinstance(thinking.chat.parse(thinking.template("\\boxed{1}<|im_end|>")), Malformed)


def test_the_final_text_follows_the_thoughts(hermes: Family) -> None:
    sampled = hermes.template("<think>\n\\boxed{1}\n</think>\n\nIt is \\boxed{2}.<|im_end|>")
    assert hermes.chat.parse(sampled) == FinalText("It is \\boxed{2}.")


def test_tags_spelled_out_in_code_are_code(hermes: Family) -> None:
    code = "print('</tool_call><tool_call></think>')"
    assert hermes.chat.parse(hermes.call(code)) == ToolCalls((code,))


def test_without_a_tool_role_results_are_in_a_user_turn(tmp_path_factory: pytest.TempPathFactory) -> None:
    template = CHATML_TEMPLATE.replace("m.role == 'tool'", "m.role == 'never'")
    folder = hermes_folder(tmp_path_factory.mktemp("hermes"), template)
    chat, encode = load_chat_format(folder), ModelFolder.read(folder).tokenizer.encode_template
    results = chat.decode(chat.tool_results(encode(f"{CALL}<|im_end|>"), ["a"]))
    assert results == "\n<|im_start|>user\n<tool_response>\na\n</tool_response><|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.vllm
@pytest.mark.parametrize(
    "inside",
    [
        '{"name": "python", "arguments": {"code": "print(1)"}}',
        '{"arguments": {"code": "print(1)"}, "name": "python"}',
        '{"name": "python", "arguments": {"code": "x = \\"a\\"\\nprint(\'\\\\n\', x)\\t# \\u00e9 é 😀"}}',
        '\n\n  {"name": "python",\n "arguments": {\n"code": "{1: [2]}"\n}}  \n',
        '{"name": "python", "arguments": {"timeout": 5, "code": "print(1)"}}',
    ],
)
@pytest.mark.parametrize(
    "frame",
    [
        f"{THOUGHT}<tool_call>{{}}</tool_call><|im_end|>",
        "<tool_call>{}<|im_end|>",
        "Text.\n<tool_call>{}</tool_call>\n<tool_call>{}</tool_call><|im_end|>",
    ],
)
def test_json_calls_are_read_as_by_vllm(hermes: Family, inside: str, frame: str) -> None:
    tokens = hermes.template(frame.replace("{}", inside))
    turn = hermes.chat.parse(tokens)
    assert isinstance(turn, ToolCalls)
    theirs = [json.loads(arguments)["code"] for _, arguments in vllm_calls("hermes", hermes.folder, tokens)]
    assert theirs
    assert list(turn.codes) == theirs


XML = "<function=python>\n<parameter=code>\n{}\n</parameter>\n</function>"


@pytest.mark.vllm
@pytest.mark.parametrize(
    "text",
    [
        f"{THOUGHT}<tool_call>\n{XML}\n</tool_call><|im_end|>",
        f"{THOUGHT}<tool_call>\n{XML}\n</tool_call>\n<tool_call>\n{XML}\n</tool_call><|im_end|>",
        f"<think>\nno end of the thought\n<tool_call>\n{XML}\n</tool_call><|im_end|>",
        f"<think>\nhm\n</think>\n\n{XML}<|im_end|>",
        "<think>hm</think><tool_call>\n<function=python>\n<parameter=code>print(1)</parameter>\n</function>\n</tool_call><|im_end|>",
        "<think>hm</think><tool_call>\n<function=python>\n"
        "<parameter=timeout>\n5\n</parameter>\n<parameter=code>\n1\n</parameter>\n</function>\n</tool_call><|im_end|>",
        "<think>hm</think><tool_call>\n<function=python>\n"
        "<parameter=code>\n1\n<parameter=timeout>\n5\n</parameter>\n</function>\n</tool_call><|im_end|>",
        "<think>hm</think>It is \\boxed{2}.<|im_end|>",
    ],
)
@pytest.mark.parametrize("code", ["print(1)", "for i in range(3):\n    print(i, {'a': \"b\"})\n", "if x < 3 > 1:\n\n  pass"])
def test_xml_calls_are_read_as_by_vllm(hermes: Family, text: str, code: str) -> None:
    tokens = hermes.template(text.replace("{}", code))
    turn = hermes.chat.parse(tokens)
    ours = list(turn.codes) if isinstance(turn, ToolCalls) else []
    assert ours == [json.loads(arguments)["code"] for _, arguments in vllm_calls("qwen3", hermes.folder, tokens)]


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ("<function=python>print(1)</function>", "print(1)"),
        ("<function=python>\nprint(1)\n</function>", "print(1)"),
        ("<function=python>\n<paramete=code>\nprint(1)\n</parameter>\n</function>", "print(1)"),
        ("<function=python>\n<parameter:code>\nprint(1)\n</parameter>\n</function>", "print(1)"),
        ("<function=python>\n<parameter=code>\nprint(1 > 0)\n</paramter>\n</function>", "print(1 > 0)"),
    ],
)
def test_misspelled_xml_calls_are_repaired(hermes: Family, call: str, code: str) -> None:
    for text in (f"<tool_call>\n{call}\n</tool_call><|im_end|>", f"So I run\n{call}<|im_end|>"):
        assert hermes.chat.parse(hermes.template(text)) == ToolCalls((code,), _NOTES[text.startswith("<")])


@pytest.mark.parametrize(
    "code",
    [
        's = "<parameter=x>"',
        's = """\n<parameter=x>\n"""',
        's = """\n</parameter>\n<parameter=x>\n"""',
        "print('<parameter=x>1</parameter>')",
        "s = '<parameter=x>'\nbroken(",
    ],
)
def test_a_tag_in_code_is_code(families: dict[str, Family], code: str) -> None:
    model = families["hermes-xml"]
    assert model.chat.parse(model.call(code)) == ToolCalls((code,))


_NOTES = {True: "a call in another form", False: "code in the text instead of a tool call"}


@pytest.mark.parametrize("slip", ["<parametercode>", "parameter=code>", "<parameter=code", "<=code>", "<parameter="])
def test_a_misspelled_call_without_code_is_malformed(hermes: Family, slip: str) -> None:
    sampled = hermes.template(f"<tool_call>\n<function=python>\n{slip}\nfor x of y\n</tool_call><|im_end|>")
    assert isinstance(hermes.chat.parse(sampled), Malformed)


@pytest.mark.parametrize("text", ["I would write <function=python> here.", "<function=", "Tags: <function=python></function>."])
def test_a_mention_of_a_tag_is_text(hermes: Family, text: str) -> None:
    assert hermes.chat.parse(hermes.template(f"{text}<|im_end|>")) == FinalText(text)
