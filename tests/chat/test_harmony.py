"""The harmony format of gpt-oss, as rendered by oss-harmony and as read by vLLM."""

from __future__ import annotations

import pytest
from openai_harmony import (
    Author,
    Conversation,
    Message,
    ReasoningEffort,
    Role,
    SystemContent,
)

from aimo_solver.chat.harmony import load_encoding
from aimo_solver.chat.prompts import Prompt
from aimo_solver.chat.turns import FinalText, Malformed, ToolCalls
from tests.chat_families import Family, check_turn
from tests.vllm_parsers import vllm_calls

THOUGHT = "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant"


def test_prompt_with_the_tool(harmony: Family) -> None:
    text = harmony.chat.decode(harmony.chat.prompt(Prompt(user="What is 1 + 1?", developer="Be careful.", tool="Runs Python.")))
    assert text.startswith("<|start|>system<|message|>You are ChatGPT")
    assert "Reasoning: high\n\n# Tools\n\n## python\n\nRuns Python.\n\n" in text
    assert text.endswith(
        "# Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>"
        "<|start|>developer<|message|># Instructions\n\nBe careful.<|end|>"
        "<|start|>user<|message|>What is 1 + 1?<|end|><|start|>assistant"
    )


def test_identity_and_system_text_open_the_system_message(harmony: Family) -> None:
    text = harmony.chat.decode(harmony.chat.prompt(Prompt(user="Hi", identity="You are an expert.", system="Be careful.")))
    assert text.startswith("<|start|>system<|message|>You are an expert.\n\nBe careful.\nKnowledge cutoff")
    assert "developer" not in text


def test_the_tool_declared_by_oss_harmony_gives_the_same_tokens(harmony: Family) -> None:
    opening = SystemContent.new().with_reasoning_effort(ReasoningEffort.HIGH).with_python_tool()
    assert opening.tools is not None
    description = opening.tools["python"].description
    messages = [Message.from_role_and_content(Role.SYSTEM, opening), Message.from_role_and_content(Role.USER, "Hi")]
    encoding = load_encoding()
    rendered = encoding.render_conversation_for_completion(Conversation.from_messages(messages), Role.ASSISTANT)
    assert harmony.chat.prompt(Prompt(user="Hi", tool=description)) == rendered


def test_prompt_without_the_tool_and_without_instructions(harmony: Family) -> None:
    text = harmony.chat.decode(harmony.chat.prompt(Prompt(user="What is 1 + 1?")))
    assert "# Tools" not in text
    assert "developer" not in text
    assert text.endswith("<|end|><|start|>user<|message|>What is 1 + 1?<|end|><|start|>assistant")


def test_stop_tokens_are_call_return_and_end_of_text(harmony: Family) -> None:
    assert harmony.chat.stop_token_ids == (200002, 200012, 199999)


def test_a_result_equals_the_rendering_of_oss_harmony(harmony: Family) -> None:
    encoding = load_encoding()
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
def test_a_result_comes_from_the_recipient_in_the_channel_of_the_call(harmony: Family, header: str, author: str) -> None:
    body = '{"code": "1"}' if "json" in header else "1"
    sampled = harmony.template(f"{header}<|message|>{body}<|call|>")
    assert harmony.chat.parse(sampled) == ToolCalls(("1",))
    assert harmony.chat.decode(harmony.chat.tool_results(sampled, ["r"])) == (
        f"<|start|>{author}<|message|>r<|end|><|start|>assistant"
    )


def test_several_messages_before_the_end(harmony: Family) -> None:
    text = (
        f"{THOUGHT}<|channel|>commentary<|message|>I will compute.<|end|><|start|>assistant<|channel|>final<|message|>2<|return|>"
    )
    assert harmony.chat.parse(harmony.template(text)) == FinalText("2")


def test_the_final_text_is_that_of_the_final_channel(harmony: Family) -> None:
    text = "<|channel|>analysis<|message|>\\boxed{1}<|end|><|start|>assistant<|channel|>final<|message|>\\boxed{2}<|return|>"
    assert harmony.chat.parse(harmony.template(text)) == FinalText("\\boxed{2}")


def test_messages_written_for_the_user_are_not_the_answer(harmony: Family) -> None:
    text = "<|channel|>analysis<|message|>hm<|end|><|start|>user<|message|>\\boxed{3}<|end|>"
    assert isinstance(harmony.chat.parse(harmony.template(text)), Malformed)


@pytest.mark.vllm
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
def test_calls_are_read_as_by_vllm(harmony: Family, text: str) -> None:
    tokens = harmony.template(text)
    turn = harmony.chat.parse(tokens)
    ours = list(turn.codes) if isinstance(turn, ToolCalls) else []
    assert ours == [code for recipient, code in vllm_calls("harmony", harmony.folder, tokens)]


@pytest.mark.parametrize("code", ['{"code": "x"}["code"].upper()', '{"a": 1}\nprint(2)', '{"code": "a=1"}\nprint({"b": 2})'])
def test_code_behind_a_literal_stays_whole(harmony: Family, code: str) -> None:
    assert harmony.chat.parse(harmony.call(code)) == ToolCalls((code,))


@pytest.mark.parametrize("end", ["<|return|>", "<|endoftext|>"])
def test_an_answer_without_a_header_is_read(harmony: Family, end: str) -> None:
    text = "The answer is \\boxed{5}"
    turn = harmony.chat.parse(harmony.template(f"{text}{end}"))
    assert turn == FinalText(text, "the final text was not in the final channel")
    assert isinstance(harmony.chat.parse(harmony.template(f"I do not know{end}")), Malformed)
    assert isinstance(harmony.chat.parse(harmony.template(f"{text}<|end|>")), Malformed)


@pytest.mark.parametrize("end", ["", "<|call|>", "<|end|>"])
def test_results_are_never_in_the_final_channel(harmony: Family, end: str) -> None:
    sampled = harmony.template(f"{THOUGHT}<|channel|>final to=python code<|message|>print(1){end}")
    for tokens in (
        harmony.chat.ask_answer(sampled),
        harmony.chat.tool_results(sampled, ["1"]),
        harmony.chat.complaint(sampled, "Wrong."),
    ):
        assert "<|start|>python to=assistant<|channel|>analysis<|message|>" in harmony.chat.decode(tokens)


def test_asking_for_the_answer_closes_the_call_with_a_result_of_its_recipient(harmony: Family) -> None:
    sampled = harmony.template('<|channel|>commentary to=functions.python <|constrain|>json<|message|>{"code": "1"}<|call|>')
    asked = harmony.chat.decode(harmony.chat.ask_answer(sampled))
    assert asked.startswith(
        "<|start|>functions.python to=assistant<|channel|>commentary<|message|>[no result: time is up]<|end|>"
    )


@pytest.mark.timeout(60)  # a reader that is not linear takes minutes
@pytest.mark.parametrize("unit", ["😀", "数", "a", " ", "\n", "=", "\0", "\u0301", "!😀", "\u2028", "1", "`"])
def test_an_output_of_a_unit_repeated_100_000_times(harmony: Family, unit: str) -> None:
    output = unit * 100_000
    assert output in harmony.chat.decode(harmony.chat.tool_results(harmony.call("1"), [output]))


def test_only_long_pieces_are_encoded_in_parts(harmony: Family) -> None:
    for text in ("=" * 255, " " * 255, "数" * 31, "[1, 2, " * 500, "word " * 1_000, "0123456789" * 100, "\n\n\t" * 80):
        (tail,) = [harmony.chat.tool_results([], [text])]
        assert harmony.plain(text) == tail[-len(harmony.plain(text)) - 3 : -3]


@pytest.mark.timeout(60)  # a reader that is not linear takes minutes
@pytest.mark.parametrize(
    ("opening", "unit", "expected"),
    [
        ("<|channel|>analysis to=", "a", "without a call"),
        ("<|channel|>analysis to=", " ", "without a call"),
        ("<|channel|>", "1", "without a call"),
        ("<|channel|>analysis to=python code<|message|>", "\n", "holds no code"),
        ("<|channel|>analysis to=python code<|message|>{", "\n", ["{"]),
        ('<|channel|>analysis to=python code<|message|>{"code": "1\n"2"', "\n}", ['1\n"2']),
        ("<|channel|>analysis to=other code<|message|>", "a=1\n", "There is no tool other"),
        ("<|channel|>final<|message|>", "```python\n", "```python"),
        ("", "<|start|>", "without a call"),
        ("", "<|channel|>", "without a call"),
        ("", "<|message|>", "without a call"),
        ("", "to=python", "without a call"),
    ],
    ids=ascii,
)
def test_a_unit_repeated_100_000_times(harmony: Family, opening: str, unit: str, expected: list[str] | str) -> None:
    sampled = [*harmony.template(opening), *harmony.template(unit) * 100_000, *harmony.template("<|return|>")]
    check_turn(harmony, sampled, expected)


def test_a_long_recipient_is_cut(harmony: Family) -> None:
    header = [*harmony.template("<|channel|>analysis to="), *harmony.template("a") * 100_000]
    known = harmony.chat.parse([*header, *harmony.template("<|message|>print(1)<|call|>")])
    assert known == ToolCalls(("print(1)",), f"unknown recipient {'a' * 40!r}")
    unknown = harmony.chat.parse([*header, *harmony.template("<|message|>to do<|call|>")])
    assert unknown == Malformed(f"There is no tool {'a' * 40}; the only one is python, which runs Python code.")


def test_the_first_eight_calls_are_read_and_the_others_counted(harmony: Family) -> None:
    one = "<|channel|>analysis to=python code<|message|>1<|end|><|start|>assistant"
    sampled = harmony.template(one) * 10_000
    assert harmony.chat.parse(sampled) == ToolCalls(("1",) * 8, "the call's end was missing", left_out=9_992)
    assert len(harmony.chat.ask_answer(sampled)) < 500
