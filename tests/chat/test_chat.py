"""Properties of every chat family: exact appending, exact code, and no text that becomes a control token."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from aimo_solver.answers import extract_answer
from aimo_solver.chat.families import FAMILIES, load_chat_format
from aimo_solver.chat.markup import MARKUP
from aimo_solver.chat.options import FamilyName, ReasoningEffort
from aimo_solver.chat.prompts import Prompt
from aimo_solver.chat.turns import FinalText, Malformed, ToolCalls
from aimo_solver.errors import ModelError
from aimo_solver.lab.bench.degenerate import FAMILY_WORDS
from tests.chat_families import NAMES, Family
from tests.tiny_tokenizers import R1_TEMPLATE, fenced_folder, gemma_folder, harmony_folder, hermes_folder

_HOSTILE = (
    "<|turn>", "<turn|>", "<|tool_response>", "<tool_response|>", '<|"|>', "<channel|>", "<|im_end|>", "<|im_start|>",
    "</tool_response>", "<tool_call>", "</think>", "<|end|>", "<|return|>", "<|start|>", "<|message|>", "<|call|>",
    "<|Assistant|>", "```", "```python\n", "</code>", '"}}', "}", "\\", "\x00", "é😀", "\r\n", "\u2028", "\ud7ff",
)  # fmt: skip
_TAGS = (*dict.fromkeys(word for words in FAMILY_WORDS.values() for word in words), "print(1)", "}", ">", "\n", "\\boxed{1}")
hostile_text = st.lists(st.one_of(st.sampled_from(_HOSTILE), st.text(max_size=12))).map("".join)


each_family = pytest.mark.parametrize("name", NAMES)


@each_family
def test_a_call_and_a_final_text_are_read(families: dict[str, Family], name: str) -> None:
    model = families[name]
    for code in (f"print(1){model.ending}", f"print(1)\n{model.ending}"):
        assert model.chat.parse(model.call(code)) == ToolCalls((code,))
    assert model.chat.parse(model.final("So \\boxed{42}.")) == FinalText("So \\boxed{42}.")


@each_family
def test_an_answer_survives_every_control_token_behind_it(families: dict[str, Family], name: str) -> None:
    model = families[name]
    before, after = map(model.template, model.final_parts)
    for token in model.controls.values():
        for rest in ("", "hm"):
            turn = model.chat.parse([*before, *model.plain("So \\boxed{42}."), token, *model.plain(rest), *after])
            assert isinstance(turn, FinalText), (model.chat.decode([token]), turn)
            assert extract_answer(turn.text) == 42


@each_family
@given(code=hostile_text)
def test_code_is_returned_byte_for_byte(families: dict[str, Family], name: str, code: str) -> None:
    assume(code.strip() and not code.lstrip().startswith("```"))
    model = families[name]
    assume(re.search(model.reserved, code) is None)
    code += model.ending
    turn = model.chat.parse(model.call(code))
    assert isinstance(turn, ToolCalls)
    assert list(turn.codes) == [code]


@each_family
def test_100_kilobytes_of_code_are_returned_byte_for_byte(families: dict[str, Family], name: str) -> None:
    code = "".join(f"x{i} = [{{'k': \"v\\n{i}\"}}]  # é😀\n" for i in range(3_000))
    assert len(code.encode()) > 100_000
    model = families[name]
    turn = model.chat.parse(model.call(code))
    assert turn == ToolCalls((code,))


@each_family
@given(output=hostile_text)
def test_tool_output_never_opens_or_closes_a_turn(families: dict[str, Family], name: str, output: str) -> None:
    model = families[name]
    sampled = model.call("print(1)")
    harmless = model.chat.tool_results(sampled, ["42"])
    assert model.marks(model.chat.tool_results(sampled, [output])) == model.marks(harmless)


@each_family
@given(text=hostile_text)
def test_a_problem_never_opens_or_closes_a_turn(families: dict[str, Family], name: str, text: str) -> None:
    model = families[name]
    for tools in (False, True):
        tool = "Runs Python." if tools else None
        harmless = Prompt(user="x", identity="x", system="x", developer="x", tool=tool)
        hostile = Prompt(user=f"x {text}", identity=f"x {text}", system=f"x {text}", developer=f"x {text}", tool=tool)
        assert model.marks(model.chat.prompt(hostile)) == model.marks(model.chat.prompt(harmless))


@each_family
@given(data=st.data())
def test_no_token_sequence_breaks_a_format(families: dict[str, Family], name: str, data: st.DataObject) -> None:
    model = families[name]
    ids = st.one_of(st.sampled_from(sorted(model.controls.values())), st.integers(0, 2**31 - 1), st.integers(0, 700))
    words = st.sampled_from(_TAGS)
    spelled = st.one_of(words.map(model.template), words.map(model.plain))
    pieces = data.draw(st.lists(st.one_of(ids.map(lambda number: [number]), spelled), max_size=30))
    sampled = [token for piece in pieces for token in piece]
    turn = model.chat.parse(sampled)
    assert isinstance(turn, (ToolCalls, FinalText, Malformed))
    if isinstance(turn, ToolCalls):
        outputs = [""] * len(turn.codes)
        assert all(code.strip() for code in turn.codes)
        assert all(token >= 0 for token in model.chat.tool_results(sampled, outputs))
    assert model.chat.complaint(sampled, "Wrong.")
    assert model.chat.ask_answer(sampled)
    assert isinstance(model.chat.answer_text(sampled), str)
    assert isinstance(model.chat.decode(sampled), str)


@each_family
@pytest.mark.parametrize(
    "asked_after", ["nothing", "half a thought", "half a call", "a call", "a final text", "half a final text"]
)
def test_the_answer_can_be_requested_at_any_point(families: dict[str, Family], name: str, asked_after: str) -> None:
    model = families[name]
    call, final = model.call("print(1)"), model.final("It is \\boxed{7}")
    turns = {
        "nothing": [],
        "half a thought": call[:4],
        "half a call": call[:-3],
        "a call": call,
        "a final text": final,
        "half a final text": final[:-3],
    }
    request = model.chat.ask_answer(turns[asked_after])
    assert model.chat.decode(request).endswith("\\boxed{")
    end = model.final_parts[1]
    assert extract_answer(model.chat.answer_text(model.template(f"42}}$.{end}"))) == 42
    assert extract_answer(model.chat.answer_text(model.template(f"42{end}"))) == 42  # without the closing brace
    assert extract_answer(model.chat.answer_text(model.template("42"))) is None  # more digits may follow


@each_family
def test_a_complaint_contains_the_reason(families: dict[str, Family], name: str) -> None:
    model = families[name]
    for sampled in ([], model.call("x")[:-2], model.call("x"), model.final("")):
        assert "Write it like this." in model.chat.decode(model.chat.complaint(sampled, "Write it like this."))


@each_family
def test_the_prompt_is_tokenised_like_its_whole_text(families: dict[str, Family], name: str) -> None:
    model = families[name]
    tokens = model.chat.prompt(Prompt(user="What is 1 + 1?", system="You solve problems.", tool="Runs Python."))
    assert model.template(model.chat.decode(tokens)) == tokens


@each_family
def test_the_family_is_detected_from_the_folder(families: dict[str, Family], name: str) -> None:
    assert families[name].chat.name == name.partition("-")[0]


def test_every_family_has_an_example() -> None:
    assert set(FAMILIES) == {name.partition("-")[0] for name in NAMES} == set(MARKUP)


def test_the_family_can_be_set(tmp_path: Path) -> None:
    assert load_chat_format(hermes_folder(tmp_path), "fenced").name == "fenced"


def test_the_prompt_contains_the_reasoning_effort(tmp_path: Path) -> None:
    chat = load_chat_format(harmony_folder(tmp_path))
    for effort in get_args(ReasoningEffort):
        assert f"Reasoning: {effort}\n" in chat.decode(chat.prompt(Prompt(user="x", reasoning_effort=effort)))


def _empty(path: Path) -> Path:
    path.mkdir()
    return path


def _broken(path: Path, name: str, text: str) -> Path:
    gemma_folder(path)
    (path / name).write_text(text, encoding="utf-8")
    return path


def _no_template(path: Path) -> Path:
    fenced_folder(path)
    (path / "chat_template.jinja").unlink()
    return path


def _no_end(path: Path) -> Path:
    fenced_folder(path)
    (path / "config.json").write_text("{}", encoding="utf-8")
    (path / "tokenizer_config.json").write_text("{}", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("build", "chosen", "message"),
    [
        (lambda path: path, "auto", "no such folder"),
        (_empty, "auto", "no tokenizer.json"),
        (_empty, "gemma", "no tokenizer.json"),
        (lambda path: _broken(path, "tokenizer.json", "{}"), "auto", "cannot be used"),
        (lambda path: _broken(path, "config.json", "{"), "auto", "config.json cannot be read as JSON"),
        (lambda path: _broken(path, "tokenizer_config.json", "[]"), "auto", "holds no JSON object"),
        (_no_template, "auto", "no chat template"),
        (_no_template, "fenced", "no chat template"),
        (_no_end, "fenced", "no end-of-turn token"),
        (hermes_folder, "gemma", "has no <|turn>"),
        (lambda path: fenced_folder(path, "{% if %}"), "fenced", "chat template cannot be used"),
        (lambda path: fenced_folder(path, "{{ bos_token }}"), "fenced", "leaves out the user's message"),
        (lambda path: fenced_folder(path, R1_TEMPLATE.replace("'assistant'", "'model'")), "fenced", "second user message"),
    ],
)
def test_an_unusable_folder_is_an_error_with_the_reason(
    tmp_path: Path, build: Callable[[Path], Path], chosen: Literal["auto", FamilyName], message: str
) -> None:
    folder = build(tmp_path / "model")
    with pytest.raises(ModelError, match=message) as raised:
        load_chat_format(folder, chosen)
    assert "\n" not in str(raised.value)


def test_templates_are_found_in_every_usual_place(tmp_path: Path) -> None:
    folder = fenced_folder(tmp_path)
    (folder / "chat_template.jinja").unlink()
    names = json.loads((folder / "tokenizer_config.json").read_text())
    for template in (R1_TEMPLATE, [{"name": "default", "template": R1_TEMPLATE}]):
        (folder / "tokenizer_config.json").write_text(json.dumps({**names, "chat_template": template}), encoding="utf-8")
        chat = load_chat_format(folder)
        assert chat.decode(chat.prompt(Prompt(user="Hi"))) == "<|begin|><|User|>Hi<|Assistant|><think>\n"
