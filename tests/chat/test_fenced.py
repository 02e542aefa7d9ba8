"""Python in Markdown blocks, for models without tool training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from aimo_solver.chat.families import load_chat_format
from aimo_solver.chat.prompts import Prompt
from aimo_solver.chat.turns import FinalText, Malformed, ToolCalls
from tests.chat_families import Family
from tests.tiny_tokenizers import hermes_folder


def _codes(fenced: Family, text: str) -> list[str]:
    turn = fenced.chat.parse(fenced.template(text))
    assert isinstance(turn, ToolCalls)
    return list(turn.codes)


def test_without_a_system_role_the_system_message_is_in_the_user_turn(fenced: Family) -> None:
    text = fenced.chat.decode(fenced.chat.prompt(Prompt(user="What is 1 + 1?", system="Be careful.")))
    assert text == "<|begin|><|User|>Be careful.\n\nWhat is 1 + 1?<|Assistant|><think>\n"


def test_the_tool_is_described_in_the_prompt(fenced: Family) -> None:
    text = fenced.chat.decode(fenced.chat.prompt(Prompt(user="What is 1 + 1?", tool="Runs Python.")))
    assert text.startswith("<|begin|><|User|>What is 1 + 1?\n\nTo run Python, write it in a block")
    assert "```output" in text
    assert text.endswith(" Runs Python.<|Assistant|><think>\n")


def test_only_the_system_text_is_a_system_message(tmp_path: Path) -> None:
    chat = load_chat_format(hermes_folder(tmp_path), "fenced")  # a template with a system role
    prompt = Prompt(user="What is 1 + 1?", identity="You are an expert.", developer="Be careful.", tool="Runs Python.")
    text = chat.decode(chat.prompt(prompt))
    assert text.startswith("<|im_start|>user\nYou are an expert.\n\nBe careful.\n\nWhat is 1 + 1?\n\nTo run Python, ")
    text = chat.decode(chat.prompt(replace(prompt, system="Reason first.")))
    assert text.startswith("<|im_start|>system\nReason first.<|im_end|>\n<|im_start|>user\nYou are an expert.\n\n")


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("So:\n```python\nprint(1)\n```\n", ["print(1)\n"]),
        ("```py\nprint(1)\n```", ["print(1)\n"]),
        ("``` Python\nprint(1)\n```\n", ["print(1)\n"]),
        ("~~~python\nprint(1)\n~~~\n", ["print(1)\n"]),
        ("1. First:\n   ```python\n   for i in x:\n       print(i)\n   ```\n", ["for i in x:\n    print(i)\n"]),
        ("- ```python\n  print(1)\n  ```\n", ["print(1)\n"]),
        ("\t```python\n\tif 1:\n\t\tprint(1)\n\t```\n", ["if 1:\n\tprint(1)\n"]),
        ("````python\ns = '''\n```\n'''\n````\n", ["s = '''\n```\n'''\n"]),
        ("<code>\nprint(1)\n</code>", ["print(1)"]),
        ("<tool_call>\nprint(1)\n</tool_call>", ["print(1)"]),
        ("```python\na\n```output", ["a\n"]),
        ("```python\na\n```\n```output", ["a\n"]),
        ("```python {cmd=true}\na\n```\n", ["a\n"]),
        ("```python\na\n```\nand\n```python\nb\n```\n", ["a\n", "b\n"]),
    ],
)
def test_a_block_is_run_when_it_closes(fenced: Family, text: str, codes: list[str]) -> None:
    assert _codes(fenced, text) == codes


@pytest.mark.parametrize("text", ["A table:\n```\n", "```text\nx\n```\n", "```json\n{}\n```\n", "a ```\n", "```\nx\n```\n"])
def test_the_turn_continues_after_a_fence_that_closes_no_python(fenced: Family, text: str) -> None:
    sampled = fenced.template(text)
    assert fenced.chat.parse(sampled) == ToolCalls(())
    assert fenced.chat.tool_results(sampled, []) == []


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("```python\n1\n```\n", "```output\n1\n```\n"),
        ("```python\n1\n```", "\n```output\n1\n```\n"),
        ("```python\n1\n```\n```output", "\n1\n```\n"),
        ("```python\n1\n```<|end|>", "<|User|>```output\n1\n```\n<|Assistant|><think>\n"),
    ],
)
def test_the_output_follows_in_its_own_block(fenced: Family, text: str, result: str) -> None:
    assert fenced.chat.decode(fenced.chat.tool_results(fenced.template(text), ["1\n"])) == result


def test_an_output_with_a_fence_gets_a_longer_fence(fenced: Family) -> None:
    sampled = fenced.template("```python\n1\n```\n")
    assert fenced.chat.decode(fenced.chat.tool_results(sampled, ["a\n```\nb"])) == "````output\na\n```\nb\n````\n"


def test_stop_strings_and_stop_tokens(fenced: Family) -> None:
    assert "```\n" in fenced.chat.stop_strings
    assert fenced.chat.stop_token_ids == (fenced.controls["<|end|>"],)


def test_an_unclosed_last_block_is_run(fenced: Family) -> None:
    turn = fenced.chat.parse(fenced.template("hm\n```python\nprint(1)\n<|end|>"))
    assert turn == ToolCalls(("print(1)\n",), "an unclosed last block")


def test_code_that_only_illustrates_an_answer_is_not_run(fenced: Family) -> None:
    text = "hm</think>Checked with\n```python\nprint(1)\n```  \nIt is \\boxed{1}."
    assert fenced.chat.parse(fenced.template(f"{text}<|end|>")) == FinalText(text.partition("</think>")[2])


def test_thoughts_are_not_the_final_text(fenced: Family) -> None:
    assert fenced.chat.parse(fenced.template("\\boxed{1}\n</think>\n\\boxed{2}<|end|>")) == FinalText("\\boxed{2}")
    assert isinstance(fenced.chat.parse(fenced.template("only thoughts<|end|>")), Malformed)


def test_empty_tags_are_not_code(fenced: Family) -> None:
    sampled = fenced.template("hm</think> <code></code> \\boxed{42}<|end|>")
    assert fenced.chat.parse(sampled) == FinalText("<code></code> \\boxed{42}")
    assert fenced.chat.decode(fenced.chat.ask_answer(sampled)).endswith("\\boxed{")


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("<code>\n```python\na\n```\n</code>", ["a\n"]),
        ("```python\n# <code>a</code>\n```\n", ["# <code>a</code>\n"]),
        ("<code>a <tool_call>b</tool_call>", ["b"]),
        ("<tool_call>a</code> b</tool_call>", ["a</code> b"]),
        ("```\n<code>a</code>", ["a"]),
    ],
)
def test_closed_blocks_win_over_open_ones(fenced: Family, text: str, codes: list[str]) -> None:
    assert _codes(fenced, text) == codes
