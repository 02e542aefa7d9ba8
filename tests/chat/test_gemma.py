"""Gemma 4's format, byte for byte, and its calls as read by vLLM."""

from __future__ import annotations

import json

import pytest

from aimo_solver.chat.prompts import Prompt
from aimo_solver.chat.turns import FinalText, ToolCalls
from tests.chat_families import Family, check_turn
from tests.vllm_parsers import vllm_calls

THOUGHT = "<|channel>thought\nLet me see.\n<channel|>"


@pytest.fixture
def newer(families: dict[str, Family]) -> Family:
    return families["gemma-thinks-after-tool"]


def test_bare_prompt(gemma: Family) -> None:
    tokens = gemma.chat.prompt(Prompt(user="What is 1 + 1?"))
    assert tokens == gemma.template("<bos><|turn>user\nWhat is 1 + 1?<turn|>\n<|turn>model\n")


def test_prompt_with_the_tool_declared(gemma: Family) -> None:
    text = gemma.chat.decode(gemma.chat.prompt(Prompt(user="What is 1 + 1?", system="Be careful.", tool="Runs Python.")))
    opening, declaration, rest = (
        text.partition("<|tool>")[0],
        text.partition("<|tool>")[2].partition("<tool|>")[0],
        text.partition("<tool|>")[2],
    )
    assert opening == "<bos><|turn>system\n<|think|>\nBe careful."
    assert declaration.startswith('declaration:python{description:<|"|>Runs Python.<|"|>,')
    assert declaration.endswith(
        ',parameters:{properties:{code:{description:<|"|>Python code.<|"|>,type:<|"|>STRING<|"|>}},'
        'required:[<|"|>code<|"|>],type:<|"|>OBJECT<|"|>}}'
    )
    assert rest == "<turn|>\n<|turn>user\nWhat is 1 + 1?<turn|>\n<|turn>model\n"


def test_prompt_without_the_tool(gemma: Family) -> None:
    text = gemma.chat.decode(gemma.chat.prompt(Prompt(user="What is 1 + 1?", system="Be careful.")))
    assert text == "<bos><|turn>system\n<|think|>\nBe careful.<turn|>\n<|turn>user\nWhat is 1 + 1?<turn|>\n<|turn>model\n"


def test_stop_tokens_are_the_end_of_turn_and_the_opening_of_a_result(gemma: Family) -> None:
    names = ("<turn|>", "<|tool_response>", "<eos>")
    assert gemma.chat.stop_token_ids == tuple(gemma.controls[name] for name in names)
    assert gemma.chat.stop_strings == ()


def test_a_result_follows_the_sampled_marker(gemma: Family) -> None:
    sampled = gemma.call("print(2)")
    assert gemma.chat.tool_results(sampled, ["2\n"]) == gemma.template('response:python{value:<|"|>2\n<|"|>}<tool_response|>')


def test_each_of_several_results_has_a_marker(gemma: Family) -> None:
    one = '<|tool_call>call:python{code:<|"|>1<|"|>}<tool_call|>'
    sampled = gemma.template(f"{THOUGHT}{one}{one}<|tool_response>")
    assert gemma.chat.tool_results(sampled, ["a", "b"]) == gemma.template(
        'response:python{value:<|"|>a<|"|>}<tool_response|><|tool_response>response:python{value:<|"|>b<|"|>}<tool_response|>'
    )


def test_newer_templates_open_a_thought_after_a_result(newer: Family) -> None:
    sampled = newer.call("print(2)")
    result = 'response:python{value:<|"|>2<|"|>}<tool_response|>'
    assert newer.chat.tool_results(sampled, ["2"]) == newer.template(f"{result}<|channel>thought\n")
    without_thought = newer.template('<|tool_call>call:python{code:<|"|>1<|"|>}<tool_call|><|tool_response>')
    assert newer.chat.tool_results(without_thought, ["2"]) == newer.template(result)


def test_a_turn_that_begins_inside_a_thought(newer: Family) -> None:
    sampled = newer.template("so \\boxed{1} is wrong\n<channel|>It is \\boxed{2}.<turn|>")
    assert newer.chat.parse(sampled) == FinalText("It is \\boxed{2}.")


def test_quotes_spelled_out_in_code_are_code(gemma: Family) -> None:
    code = 'print("<|"|>}<tool_call|>")'
    assert gemma.chat.parse(gemma.call(code)) == ToolCalls((code,))


def test_text_about_python_is_not_a_call(gemma: Family) -> None:
    text = "By hand, or with python (any version) {as usual}, it is 7."
    assert gemma.chat.parse(gemma.final(text)) == FinalText(text)


@pytest.mark.vllm
@pytest.mark.parametrize(
    "text",
    [
        f'{THOUGHT}<|tool_call>call:python{{code:<|"|>print(1)\n<|"|>}}<tool_call|><|tool_response>',
        '<|tool_call>call:python{code:<|"|>x = {"a": [1, 2]}\nprint(x["a"], \'}\')<|"|>}<tool_call|><|tool_response>',
        f'{THOUGHT}Now I compute.<|tool_call>call:python{{code:<|"|>1<|"|>}}<tool_call|>'
        '<|tool_call>call:python{code:<|"|>2<|"|>}<tool_call|><|tool_response>',
        '<|channel>thought\nno end of the thought <|tool_call>call:python{code:<|"|>1<|"|>}<tool_call|><|tool_response>',
        '<|tool_call>:python{code:<|"|>1<|"|>}<tool_call|>',
        '<|tool_call>call:python(code:<|"|>1<|"|>)<tool_call|>',
        '<|tool_call>call:python{<|"|>code<|"|>:<|"|>print(1)<|"|>}<tool_call|>',
        '<|tool_call>call:python{code:<|"|>print(1)<|"|>,timeout:5}<tool_call|>',
        '<|tool_call>call:python{timeout:5,code:<|"|>print(1)<|"|>}<tool_call|>',
        '<|tool_call>call:python{\n code: <|"|>print(1)<|"|> }<tool_call|>',
        '<|tool_call>call:python{code:<|"|>print(1)',
        '<|tool_call>call:python{code:<|"|>print(1)<|"|>}<turn|>',
        f"{THOUGHT}It is \\boxed{{2}}.<turn|>",
        "thought\nlabel without a channel<channel|>It is \\boxed{2}.<turn|>",
    ],
)
def test_calls_are_read_as_by_vllm(gemma: Family, text: str) -> None:
    tokens = gemma.template(text)
    turn = gemma.chat.parse(tokens)
    ours = list(turn.codes) if isinstance(turn, ToolCalls) else []
    theirs = vllm_calls("gemma4", gemma.folder, tokens)
    assert ours == [json.loads(arguments)["code"] for _, arguments in theirs]


_ONE = '<|tool_call>call:python{code:<|"|>1<|"|>}<tool_call|>'


@pytest.mark.timeout(60)  # a reader that is not linear takes minutes
@pytest.mark.parametrize(
    ("opening", "unit", "expected"),
    [
        ("<|tool_call>", "\n", "holds no code"),
        ("<|tool_call>call", "\n", "holds no code"),
        ("<|tool_call>", "a", "holds no code"),
        ("<|tool_call>", "(", "holds no code"),
        ("<|tool_call>call:python{", "\n", "holds no code"),
        ("<|tool_call>call:python{", '<|"|>', "holds no code"),
        ("<|tool_call>call:python{code:", '<|"|>\n', "holds no code"),
        ("<|tool_call>call:python{code:", "\n", "holds no code"),
        ('<|tool_call>call:python{code:<|"|>x', "\n", ["x"]),
        ('<|tool_call>call:python{code:<|"|>x', '<|"|>', "holds no code"),
        ("<|tool_call>call:python{x", "}", ["x" + "}" * 99_999]),
        ("<|tool_call>call:other{code:", "a=1\n", "no tool other"),
        ("<|tool_call>", "<|tool_call>", "holds no code"),
        ("", "call:", "call:"),
        ("call:python", "\n", "call:python"),
        ("", "<call>python", "<call>python"),
    ],
    ids=ascii,
)
def test_a_unit_repeated_100_000_times(gemma: Family, opening: str, unit: str, expected: list[str] | str) -> None:
    sampled = [*gemma.template(opening), *gemma.template(unit) * 100_000, *gemma.template("<turn|>")]
    check_turn(gemma, sampled, expected)


def test_the_code_is_found_among_many_arguments(gemma: Family) -> None:
    others = "".join(f'k{n}:<|"|>v<|"|>,' for n in range(400))
    sampled = gemma.template(f'<|tool_call>call:python{{{others}code:<|"|>print(1)<|"|>}}<tool_call|><|tool_response>')
    assert gemma.chat.parse(sampled) == ToolCalls(("print(1)",), "a call in another form")


def test_the_first_eight_calls_are_read_and_the_others_counted(gemma: Family) -> None:
    sampled = gemma.template(_ONE) * 10_000 + gemma.template("<|tool_response>")
    assert gemma.chat.parse(sampled) == ToolCalls(("1",) * 8, None, left_out=9_992)
    assert len(gemma.chat.ask_answer(sampled)) < 500
    open_call = [*sampled[:-1], *gemma.template("<|tool_call>call:python{")]
    assert gemma.chat.parse(open_call) == ToolCalls(("1",) * 8, None, left_out=9_993)
