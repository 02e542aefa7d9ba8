# ruff: noqa: E402  the scripts are no package: their folder goes on the path first
"""The embedded model, its problems and its training data. About 30 s of one core.

Tests import torch and what imports it themselves: every worker of pytest imports the modules of all tests.
"""

from __future__ import annotations

import csv
import sys
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tokenizers import Tokenizer
from typer.testing import CliRunner

from aimo_solver.answers import ANSWER_RANGE
from aimo_solver.chat.gemma import GemmaFormat
from aimo_solver.chat.model_folder import ModelFolder
from aimo_solver.chat.prompts import Prompt
from aimo_solver.config import load_config
from tests.conftest import ROOT

MODEL = ROOT / "data" / "pocket-model"
sys.path.insert(0, str(ROOT / "scripts"))

import pocket_data as data
import pocket_evaluation as evaluation
import pocket_problems as source
import pocket_transcripts as transcripts

pytestmark = pytest.mark.slow

families = pytest.mark.parametrize("family", source.FAMILIES, ids=lambda family: family.name)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


@pytest.fixture(scope="module")
def network() -> Any:
    import torch
    import transformers

    torch.set_num_threads(1)  # threads that spin while other tests use the cores make a small network ten times slower
    return transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.bfloat16).eval()


@pytest.fixture(scope="module")
def warmup() -> list[dict[str, str]]:
    with (ROOT / "data" / "warmup.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# The model


def test_the_folder_is_complete_and_small() -> None:
    names = {path.name for path in MODEL.iterdir()}
    assert names >= {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "README.md", "aimo.toml"}
    assert [path.name for path in MODEL.glob("*.safetensors")] == ["model.safetensors"]
    assert (MODEL / "model.safetensors").stat().st_size <= 12_000_000


def test_its_settings_are_valid() -> None:
    prompt = load_config(MODEL / "aimo.toml").prompt
    assert (prompt.family, prompt.mix) == ("gemma", {"bare": 1})


def test_careful_attempts_solve_every_family(network: Any, tokenizer: Tokenizer) -> None:
    attempts = evaluation.attempt_all(network, tokenizer, evaluation.evaluation_problems(31, 16), temperature=0, min_p=0)
    assert {a.problem.family.name for a in attempts} == {family.name for family in source.FAMILIES}
    assert [a.text for a in attempts if not a.right] == []
    assert all(a.calls >= 1 for a in attempts)


def test_sampled_attempts_are_right_and_some_need_a_second_call(network: Any, tokenizer: Tokenizer) -> None:
    import torch

    torch.manual_seed(5)
    attempts = evaluation.attempt_all(network, tokenizer, evaluation.evaluation_problems(32, 12), temperature=1.0, min_p=0.02)
    assert sum(a.right for a in attempts) >= 11
    mended = [a for a in attempts if "Error: " in a.text and a.calls >= 2 and a.right]
    assert mended


def test_answers_come_from_the_tool(network: Any, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model answers with the tool's output, even if that is wrong."""
    monkeypatch.setattr(evaluation, "run_cell", lambda code, namespace: transcripts.CellOutput("60713\n", None, None))
    for attempt in evaluation.attempt_all(network, tokenizer, evaluation.evaluation_problems(33, 8), temperature=0, min_p=0):
        assert attempt.text.endswith("The answer is \\boxed{60713}.<turn|>")


# Its format


def test_control_tokens_and_digits_are_single_tokens(tokenizer: Tokenizer) -> None:
    for token in transcripts.SPECIAL_TOKENS:
        assert tokenizer.encode(token).ids == [tokenizer.token_to_id(token)]
    assert tokenizer.encode("x = 90210").tokens[-5:] == ["9", "0", "2", "1", "0"]
    for text in ("naïve 数学 \\frac{1}{2}\n\t", "for x in range(12):\n    pass"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_stop_tokens_are_in_the_generation_config(tokenizer: Tokenizer) -> None:
    stops = {tokenizer.token_to_id(token) for token in ("<turn|>", "<|tool_response>", "<eos>")}
    assert set(ModelFolder.read(MODEL).stop_ids) == stops


def test_the_chat_template_renders_the_training_format() -> None:
    def call(code: str) -> dict[str, object]:
        function = {"name": "python", "arguments": {"code": code}}
        calls = [{"type": "function", "function": function}]
        return {"role": "assistant", "content": "", "reasoning_content": "Try.", "tool_calls": calls}

    import transformers

    template = transformers.AutoTokenizer.from_pretrained(MODEL).apply_chat_template
    messages: list[dict[str, object]] = [{"role": "user", "content": "How many?"}]
    assert template(messages, tokenize=False, add_generation_prompt=True) == transcripts.prompt_text("How many?")
    messages += [call("f(1)"), {"role": "tool", "content": "NameError: f"}, call("print(2)"), {"role": "tool", "content": "2\n"}]
    messages.append({"role": "assistant", "content": "The answer is \\boxed{2}."})
    assert template(messages, tokenize=False) == (
        "<bos><|turn>user\nHow many?<turn|>\n<|turn>model\n"
        '<|channel>thought\nTry.<channel|><|tool_call>call:python{code:<|"|>f(1)<|"|>}<tool_call|>'
        '<|tool_response>response:python{value:<|"|>NameError: f<|"|>}<tool_response|>'
        '<|channel>thought\nTry.<channel|><|tool_call>call:python{code:<|"|>print(2)<|"|>}<tool_call|>'
        '<|tool_response>response:python{value:<|"|>2\n<|"|>}<tool_response|>'
        "The answer is \\boxed{2}.<turn|>\n"
    )


def test_the_library_uses_the_training_format(tokenizer: Tokenizer) -> None:
    chat = GemmaFormat(ModelFolder.read(MODEL))
    for segments in islice(data.training_transcripts(seed=9, chunk=0), 60):
        ids = [tokenizer.encode(segment.text).ids for segment in segments]
        user = segments[0].text.removeprefix("<bos><|turn>user\n").partition("<turn|>")[0]
        assert chat.prompt(Prompt(user=user)) == ids[0]
        for sampled, host, segment in zip(ids[1::2], ids[2::2], segments[2::2], strict=False):
            output = segment.text.removeprefix('response:python{value:<|"|>').partition('<|"|>}')[0]
            assert chat.tool_results(sampled, [output]) == host


# Its problems


@families
def test_every_program_agrees_with_the_other_method_and_every_slip_fails(family: source.Family) -> None:
    own = (p for p in source.problems("agreement", for_training=False) if p.family is family)
    for problem in islice(own, 4):
        for program in family.programs:
            result = transcripts.run_cell(problem.fill(program.code.replace("=> ", "")), transcripts.fresh_namespace())
            assert result.value == str(problem.answer), (problem.text, program.code, result)
            for old, new in program.slips:
                assert old in program.code
                broken = problem.fill(program.code.replace(old, new, 1).replace("=> ", ""))
                assert transcripts.run_cell(broken, transcripts.fresh_namespace()).error is not None, broken


@families
def test_every_wording_names_every_number(family: source.Family) -> None:
    numbers = family.draw(Random(1))
    for wording in family.wordings:
        assert all(f"<{name}>" in wording for name in numbers), wording


def test_training_and_held_out_problems_are_disjoint() -> None:
    training = list(islice(source.problems("1/0", for_training=True), 4_000))
    evaluated = list(islice(source.problems("1/0", for_training=False), 800))
    assert not {p.text for p in training} & {p.text for p in evaluated}
    assert all(source.held_out(p.family.name, p.numbers) for p in evaluated)
    assert not any(source.held_out(p.family.name, p.numbers) for p in training)


def test_the_seed_determines_the_data() -> None:
    def texts(seed: int, chunk: int) -> list[str]:
        return ["".join(s.text for s in segments) for segments in islice(data.training_transcripts(seed, chunk), 80)]

    assert texts(1, 0) == texts(1, 0)
    assert texts(1, 0) != texts(1, 1)
    assert texts(1, 0) != texts(2, 0)


def test_about_a_fifth_of_the_transcripts_correct_a_failed_call() -> None:
    made = list(islice(data.training_transcripts(seed=4, chunk=0), 800))
    failed = [segments for segments in made if "Error" in segments[2].text]
    assert 0.14 <= len(failed) / len(made) <= 0.22
    assert all(segments[-2].text.count("Error") == 0 and "\\boxed{" in segments[-1].text for segments in failed)


def test_the_loss_is_on_the_models_own_tokens_only(tokenizer: Tokenizer) -> None:
    rows = data._chunk_rows(4, tokenizer.to_str(), 0)
    segments = next(data.training_transcripts(4, 0))
    ids, targets = next(rows[length] for length in data.LENGTHS if length in rows and len(_ids(tokenizer, segments)) <= length)[0]
    learnt = tokenizer.decode([i for i in targets if i >= 0], skip_special_tokens=False)
    assert tokenizer.decode([i for i in ids if i != data.PAD], skip_special_tokens=False).startswith("<bos><|turn>user\n")
    assert learnt.startswith("<|channel>thought\n")
    assert "response:python" not in learnt
    assert learnt.endswith("}.<turn|>")


def _ids(tokenizer: Tokenizer, segments: list[transcripts.Segment]) -> list[int]:
    return [i for segment in segments for i in tokenizer.encode(segment.text).ids]


# The commands


def test_warmup_is_thirty_held_out_problems_with_confirmed_answers(warmup: list[dict[str, str]]) -> None:
    problems = evaluation.evaluation_problems(2026, 30)
    assert [(row["problem"], int(row["answer"])) for row in warmup] == [(p.text, p.answer) for p in problems]
    assert len({row["id"] for row in warmup}) == len({row["problem"] for row in warmup}) == 30
    for problem in problems:
        assert problem.answer in ANSWER_RANGE
        for program in problem.family.programs:
            result = transcripts.run_cell(problem.fill(program.code.replace("=> ", "")), transcripts.fresh_namespace())
            assert result.value == str(problem.answer)


def test_problems_reproduces_the_warmup_file(tmp_path: Path) -> None:
    import train_pocket_model as script

    result = CliRunner().invoke(script.app, ["problems", "--out", str(tmp_path / "again.csv")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "again.csv").read_bytes() == (ROOT / "data" / "warmup.csv").read_bytes()


def test_a_small_training_run_writes_a_folder_that_loads(tmp_path: Path) -> None:
    import transformers

    import train_pocket_model as script

    size = ["--transcripts", "1000", "--steps", "3", "--tokens-per-step", "1600", "--hidden", "64", "--layers", "1"]
    result = CliRunner().invoke(script.app, ["train", "--out", str(tmp_path), "--workers", "1", *size])
    assert result.exit_code == 0, result.output
    network = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert network.config.num_hidden_layers == 1
    assert (
        transformers.AutoTokenizer.from_pretrained(tmp_path).chat_template
        == transformers.AutoTokenizer.from_pretrained(MODEL).chat_template
    )
    GemmaFormat(ModelFolder.read(tmp_path))
