"""Options, links, files and modules that the docs name exist. `test_commands.py` runs their commands."""

from __future__ import annotations

import contextlib
import io
import json
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main

from aimo_solver.cli.main import app
from aimo_solver.config import Config, load_config
from aimo_solver.lab.replay import parse_policy
from aimo_solver.lab.simulate import parse_configuration
from tests.conftest import ROOT
from tests.doc_commands import ALL, DOCS, FENCE, INLINE, OURS, SCRIPTS, Command, blocks
from tests.test_packages import MODULES, PACKAGES, SOURCES, may_import, public_modules

LINK = re.compile(r"\]\(([^)\s]+)\)")
OPTION = re.compile(r"--[a-z][a-z-]*")


def parsed(words: tuple[str, ...]) -> tuple[Any, list[str]]:
    """Returns the subcommand that the words select, and the words left for it."""
    command: Any = typer.main.get_command(app)
    rest = list(words[1:])
    while hasattr(command, "commands") and rest:
        name = rest.pop(0)
        assert name in command.commands, f"no command {name}; known: {', '.join(command.commands)}"
        command = command.commands[name]
    return command, rest


def test_the_docs_show_every_command() -> None:
    shown = {c.words[1] for c in OURS if len(c.words) > 1}
    assert shown == set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", OURS, ids=str)
def test_a_command_has_valid_options_and_arguments(command: Command) -> None:
    subcommand, rest = parsed(command.words)
    if command.whole:
        subcommand.make_context(subcommand.name, rest)  # parses and checks every option and argument, runs nothing
    known = {name for parameter in subcommand.params for name in parameter.opts}
    assert {word for word in rest if word.startswith("--")} <= known | {"--help"}
    config = load_config(settings=command.settings)
    for policy in command.policies:
        if "--simulate" in command.words:
            parse_configuration(policy, config)
        else:
            parse_policy(policy, config.voting)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    wanted = {word for c in ALL if c.words[0] == "make" for word in c.words[1:] if "=" not in word}
    assert wanted
    assert wanted <= targets


WITH_SUBCOMMANDS = {"finetune", "learning_proof", "policy_bench", "quantise", "train_pocket_model"}


@pytest.mark.slow
def test_options_and_stages_of_scripts_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    def printed(script: str, *words: str) -> str:
        """Runs the script in this process: together the scripts import torch once."""
        monkeypatch.setattr(sys, "argv", [script, *words])
        with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.suppress(SystemExit):
            runpy.run_path(str(ROOT / script), run_name="__main__")
        assert output.getvalue(), (script, words)
        return output.getvalue()

    helps: dict[tuple[str, ...], str] = {}
    for command in SCRIPTS:
        script, rest = command.words[1], command.words[2:]
        assert (ROOT / script).is_file(), command
        group = rest[:1] if Path(script).stem in WITH_SUBCOMMANDS else ()
        if (script, *group) not in helps:
            flag = "--list" if script.endswith("gpu_bench.py") and "--list" not in rest else "--help"
            helps[script, *group] = printed(script, *group, "--help") + (printed(script, flag) if flag == "--list" else "")
        known = helps[script, *group]
        assert {word for word in rest if word.startswith("--")} <= set(OPTION.findall(known)), command
        if script.endswith("gpu_bench.py") and not rest[0].startswith("--"):
            assert set(rest[1:]) <= {line.split()[0] for line in known.splitlines() if line.strip()}, command
    assert len(helps) >= 3


def test_files_that_commands_name_exist() -> None:
    named = [word for c in ALL for word in c.words if re.fullmatch(r"(tests|scripts|notebook|data)/\S+", word)]
    assert named
    assert [word for word in named if not list(ROOT.glob(word.partition("::")[0]))] == []


def python(folder: Path, *words: object) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def builds(*options: str) -> list[Command]:
    return [c for c in SCRIPTS if c.file.name == "README.md" and "--user" in c.words and set(options) <= {*c.words}]


def test_the_notebook_is_built_and_checked_as_written(tmp_path: Path) -> None:
    build = builds("--model")[0]
    built = tmp_path / "aimo_solver.ipynb"
    words = [word.replace("YOU", "ada") for word in build.words[1:]]
    python(ROOT, *words, "--out", built)
    assert f'MODEL = \\"{words[-1]}\\"' in built.read_text(encoding="utf-8")
    assert any(c.words[1:] == ("scripts/build_notebook.py", "--check") for c in SCRIPTS)
    python(ROOT, *words, "--out", built, "--check")


def test_kaggle_steps_fit_the_metadata(tmp_path: Path) -> None:
    """The metadata of the notebook, the wheels and the cache contain the names that the other steps use."""
    words = [word.replace("YOU", "ada") for word in builds("--cache")[0].words[1:]]
    python(ROOT, *words, "--out", tmp_path / "notebook" / "aimo_solver.ipynb")
    solver, wheels = (
        json.loads((tmp_path / "notebook" / folder / "kernel-metadata.json").read_text()) for folder in ("", "wheels")
    )
    cache = json.loads((tmp_path / "notebook" / "cache" / "dataset-metadata.json").read_text())
    assert solver["kernel_sources"] == [wheels["id"]]
    assert solver["dataset_sources"] == [cache["id"]]
    kaggle = [c.words for c in ALL if c.file.name == "README.md" and c.words[0] == "kaggle"]
    kernels = {word.replace("YOU", "ada") for words in kaggle for word in words if word.startswith("YOU/")}
    assert kernels == {solver["id"], wheels["id"], cache["id"]}
    pushed = [Path(words[-1]) for words in kaggle if words[1:3] == ("kernels", "push")]
    assert {(tmp_path / folder / "kernel-metadata.json").is_file() for folder in pushed} == {True}
    submit = next(words for words in kaggle if words[1:3] == ("competitions", "submit"))
    assert submit[submit.index("-c") + 1] in solver["competition_sources"]
    assert solver["model_sources"][0].lower().startswith(words[-1].lower() + "/")


@pytest.mark.parametrize("file", DOCS, ids=lambda file: file.name)
def test_links_are_valid(file: Path) -> None:
    for link in LINK.findall(file.read_text(encoding="utf-8")):
        if link.startswith(("https://", "http://")):
            continue
        target, _, anchor = link.partition("#")
        page = (file.parent / target).resolve() if target else file
        assert page.is_relative_to(ROOT), link
        assert page.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, link


@pytest.mark.parametrize("file", DOCS, ids=lambda file: file.name)
def test_options_in_the_docs_exist(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    known = Config().as_dict()
    for code in INLINE.findall(FENCE.sub("", text)):
        for section, option in re.findall(r"(?<![\w/.])([a-z]+)\.([a-z_]+)(?=[ =,`]|$)", code):
            if section in known and option not in ("py", "jsonl", "log") and f"{section}.{option}" not in PACKAGES:
                assert option in known[section], code
    for toml in blocks(text, "toml"):
        load_config(tomllib.loads(toml))


def test_the_map_lists_each_package_with_its_public_modules_and_imports() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## Map")[2].partition("\n## ")[0]
    rows = [[set(INLINE.findall(cell)) for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == len(PACKAGES)
    for name, _, public, imports in rows:
        (package,) = name
        assert public == public_modules(package), package
        assert imports == may_import(package) - {"", package}, package
    top = {module for module in MODULES if "." not in module}
    assert top == set(INLINE.findall(text.rpartition("|")[2])) & set(MODULES)


def test_the_way_of_one_problem_names_classes_and_methods() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## The path of one problem")[2]
    sources = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES.rglob("*.py"))
    named = re.findall(r"^ +([A-Z]\w+)\.(\w+) ", text, re.MULTILINE)
    assert named
    assert [name for name, _ in named if f"\nclass {name}" not in sources] == []
    assert [name for _, name in named if f" def {name}(" not in sources] == []


@pytest.mark.parametrize("file", DOCS, ids=lambda file: file.name)
def test_files_that_the_docs_name_exist(file: Path) -> None:
    named = re.findall(r"`([a-z_./-]+(?:\.py|\.md|/))`", file.read_text(encoding="utf-8"))
    assert [path for path in named if not (ROOT / path).exists() and not (SOURCES / path).exists()] == []


def test_the_docs_list_every_kind_of_event() -> None:
    text = (ROOT / "docs" / "run-directory.md").read_text(encoding="utf-8").partition("### events.jsonl")[2].partition("###")[0]
    listed = {kind for line in text.splitlines() if line.startswith("| `") for kind in INLINE.findall(line.split("|")[1])}
    sources = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES.rglob("*.py"))
    assert set(re.findall(r"(?:event|record_fault|_tell)\(\s*\"([a-z_]+)\"", sources)) <= listed
    assert [kind for kind in listed if f'"{kind}"' not in sources] == []
