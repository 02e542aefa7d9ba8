"""`aimo-solver prompts`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from aimo_solver.chat.harmony import load_encoding
from aimo_solver.chat.variants import VARIANTS
from aimo_solver.cli.main import app
from tests.tiny_tokenizers import fenced_folder, gemma_folder, harmony_folder, hermes_folder

PROBLEM = "What is 1 + 1?"
FOLDERS: dict[str, Callable[[Path], Path]] = {
    "harmony": harmony_folder,
    "gemma": gemma_folder,
    "hermes": hermes_folder,
    "fenced": fenced_folder,
}
OPENINGS = {
    "harmony": "<|start|>system<|message|>You are an expert at mathematical olympiads. ",
    "gemma": "<bos><|turn>system\n<|think|>\nYou are an expert at mathematical olympiads. ",
    "hermes": "<|im_start|>system\nYou are an expert at mathematical olympiads. ",
    "fenced": "<|begin|><|User|>You are an expert at mathematical olympiads. ",
}


def prompts(model: Path, *arguments: str) -> Result:
    command = ["prompts", "--model", str(model), "--problem", PROBLEM, *arguments]
    return CliRunner(env={"COLUMNS": "160"}).invoke(app, command)


@pytest.mark.parametrize("family", FOLDERS)
def test_every_variant_is_printed_as_the_model_gets_it(tmp_path: Path, family: str) -> None:
    output = prompts(FOLDERS[family](tmp_path / "model"), "--set", "kernels.timeout_s=7").stdout
    assert f"model: family {family}" in output
    texts = dict(zip(VARIANTS, output.split("\n----- ")[1:], strict=True))
    for name, text in texts.items():
        assert text.startswith(f"{name}, ")
        assert PROBLEM in text
        assert ("A call times out after 7 seconds" in text) == (VARIANTS[name].tool and name != "tool-developer")
    assert texts["tool"].partition("\n")[2].startswith(OPENINGS[family])


def test_a_variant_of_the_configuration_is_listed_with_its_share_and_sampling(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text('[prompt]\nmix = {tool = 3, mine = 1}\n[prompt.variants.mine]\nidentity = "You count."\ntop_k = 40\n')
    result = prompts(harmony_folder(tmp_path / "model"), "--config", str(file), "--variant", "mine", "--variant", "bare")
    _, bare, mine = result.stdout.split("\n----- ")
    heading, _, text = mine.partition("\n")
    tokens = len(load_encoding().encode(text.rstrip("\n"), allowed_special="all"))
    assert heading == f"mine, {tokens} tokens -----"
    assert text.startswith("<|start|>system<|message|>You count.\nKnowledge cutoff")
    assert bare.startswith("bare, ")
    row = next(line for line in result.stdout.splitlines() if "mine" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]][1:] == [
        "25%", str(tokens), "yes", "high", "temperature=1 top_p=1 min_p=0.02 top_k=40",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--variant", "too"), "--variant: there is no variant too; known: tool, tool-developer"),
        (("--set", "prompt.mix=too"), "prompt.mix: there is no variant too"),
        (("--set", "prompt.variants.mine.temperatur=1"), "prompt.variants.mine.temperatur: unknown; known here: base, identity"),
        (("--set", "prompt.family=gemma"), "has no tokenizer.json"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    result = prompts(harmony_folder(tmp_path / "model"), *arguments)
    assert result.exit_code == 2
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    result = prompts(tmp_path / "absent")
    assert result.exit_code == 2
    assert "absent: no such folder" in result.stderr
