"""The notebook as a file. test_notebook.py runs it."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest

from aimo_solver.config import Config, load_config
from tests.builder import NotebookError
from tests.builder import build_notebook as builder
from tests.conftest import ROOT

SCRIPT = ROOT / "scripts" / "build_notebook.py"
NOTEBOOK = ROOT / "notebook" / "aimo_solver.ipynb"


@pytest.fixture(scope="module")
def cells() -> dict[str, str]:
    return {cell["id"]: "".join(cell["source"]) for cell in json.loads(builder.build())["cells"]}


@pytest.fixture
def package(tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    def write(modules: dict[str, str]) -> Path:
        for name, text in ({"__init__": ""} | modules).items():
            path = tmp_path / "aimo_solver" / f"{name}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return tmp_path / "aimo_solver"

    return write


def test_the_notebook_in_the_repository_is_what_its_sources_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert builder.main(["--check"]) == 0, capsys.readouterr().out


@pytest.mark.slow
def test_check_fails_with_a_diff_after_an_edit_until_the_next_build(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "SOURCES", Path(shutil.copytree(builder.SOURCES, tmp_path / "aimo_solver")))
    out = str(tmp_path / "notebook.ipynb")
    assert builder.main(["--out", out]) == 0
    assert builder.main(["--check", "--out", out]) == 0
    clock = tmp_path / "aimo_solver" / "clock.py"
    clock.write_text(clock.read_text().replace("max(0.0, self.end - self.now())", "self.end - self.now()"))
    capsys.readouterr()
    assert builder.main(["--check", "--out", out]) == 1
    diff = capsys.readouterr().out
    assert "-        return max(0.0, self.end - self.now())" in diff
    assert "+        return self.end - self.now()" in diff
    assert builder.main(["--out", out]) == 0
    assert builder.main(["--check", "--out", out]) == 0


def test_check_shows_a_change_outside_the_text_of_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "notebook.ipynb"
    builder.main(["--out", str(out)])
    out.write_text(out.read_text().replace('"nbformat_minor": 5', '"nbformat_minor": 4'))
    assert builder.main(["--check", "--out", str(out)]) == 1
    assert '+ "nbformat_minor": 5' in capsys.readouterr().out


def test_a_missing_notebook_is_out_of_date(tmp_path: Path) -> None:
    assert builder.main(["--check", "--out", str(tmp_path / "none.ipynb")]) == 1


def interpreters() -> list[str]:
    found = [sys.executable]
    for version in ("3.11", "3.12", "3.13"):
        path = shutil.which(f"python{version}")
        # A version manager may have a shim for a version that is not installed.
        if path and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
            found.append(path)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("python", interpreters())
def test_builds_are_reproducible(python: str, tmp_path: Path) -> None:
    for seed in ("1", "2"):
        out = tmp_path / f"{seed}.ipynb"
        subprocess.run(
            [python, SCRIPT, "--out", out], check=True, capture_output=True, env={**os.environ, "PYTHONHASHSEED": seed}
        )
        assert out.read_bytes() == builder.build().encode()


def test_it_is_a_valid_notebook_without_outputs() -> None:
    text = builder.build()
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert "\r" not in text
    assert len(text) < 1_000_000  # Kaggle's limit for the source of a notebook
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_every_module_is_included_verbatim(cells: dict[str, str]) -> None:
    modules = 0
    for id_, text in cells.items():
        magic, _, source = text.partition("\n")
        if id_.startswith("module-"):
            # %%writefile ends the file with a line break of its own.
            assert source + "\n" == (ROOT / "src" / magic.removeprefix("%%writefile ")).read_text(encoding="utf-8")
            modules += 1
    assert modules == len(builder.shipped_modules(builder.SOURCES)) > 30


def test_folders_are_made_before_files_are_written(
    cells: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(cells).index("folders") < next(place for place, id_ in enumerate(cells) if id_.startswith("module-"))
    monkeypatch.chdir(tmp_path)
    exec(cells["folders"])
    for id_, text in cells.items():
        if id_.startswith("module-"):
            assert Path(text.partition("\n")[0].removeprefix("%%writefile ")).parent.is_dir()


def test_packages_come_from_the_top_down_and_modules_before_those_they_import() -> None:
    order = builder.shipped_modules(builder.SOURCES)
    packages = [builder.package_of(name, builder.SOURCES) for name in order]
    assert [package for package, _ in itertools.groupby(packages)] == list(builder.READING_ORDER)
    for place, (name, package) in enumerate(zip(order, packages, strict=True)):
        if place == packages.index(package):
            assert name == package
        else:
            inside = {other for other in builder.imported_modules(builder.SOURCES, name) if other in order}
            assert not {other for other in inside if packages[order.index(other)] == package} & set(order[:place]) - {package}


def test_only_modules_that_the_solver_needs_are_included() -> None:
    order = builder.shipped_modules(builder.SOURCES)
    assert "solve.evaluate" not in order
    assert not [name for name in order if name.startswith(("lab", "cli"))]
    for name in order:
        if builder.package_of(name, builder.SOURCES) == "server.inside":  # runs in vLLM's processes
            continue
        path = builder.SOURCES.joinpath(*name.split(".")).with_suffix(".py")
        text = path.read_text() if path.is_file() else ""
        heavy = re.search(r"^\s*(?:import|from) (?:typer|rich|matplotlib|vllm|torch|transformers)\b", text, re.MULTILINE)
        assert not heavy, name


def test_imports_inside_functions_count(package: Callable[[dict[str, str]], Path]) -> None:
    sources = package(
        {"c": "def f():\n    from aimo_solver.b import x\n", "b": "from aimo_solver import a\n", "a": "", "unused": ""}
    )
    assert builder.shipped_modules(sources, ["c"]) == ["", "c", "b", "a"]


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ({"a": "import aimo_solver.b", "b": "from aimo_solver.c import x", "c": "from aimo_solver import a"}, "in a circle.*a.*"),
        ({"a": "from aimo_solver.gone import x"}, r"gone\.py .* does not exist"),
        ({"a": "from .b import x", "b": ""}, "relative"),
        ({"a": "from aimo_solver.lab import x", "lab/__init__": "", "lab/x": ""}, r"lab\.x must not ship"),
    ],
    ids=["cycle", "missing", "relative", "lab"],
)
def test_modules_that_cannot_be_included_are_an_error(
    package: Callable[[dict[str, str]], Path], modules: dict[str, str], message: str
) -> None:
    with pytest.raises(NotebookError, match=message):
        builder.shipped_modules(package(modules), ["a"])


def test_options_replace_their_settings_only(tmp_path: Path) -> None:
    out = tmp_path / "aimo_solver.ipynb"
    assert builder.main(["--model", 'me/"my" model', "--competition", "my-competition", "--out", str(out)]) == 0
    before, after = builder.build().splitlines(), out.read_text().splitlines()
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == 2
    settings = written_settings(tmp_path)
    assert settings["MODEL"] == 'me/"my" model'
    assert settings["COMPETITION"] == "my-competition"


def written_settings(folder: Path) -> dict[str, Any]:
    cells = json.loads((folder / "aimo_solver.ipynb").read_text())["cells"]
    return run_settings(next("".join(cell["source"]) for cell in cells if cell["id"] == "settings"))


def test_a_user_gets_a_notebook_and_both_metadata_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--user", "ada", "--model", "openai/gpt-oss/transformers/20b/3", "--cache", "ada/jit"]
    command += ["--set", "PROBLEMS=mine.csv", "--set", "solver.slots=4", "--set", "prompt.mix=reasoning"]
    command += ["--out", str(tmp_path / "aimo_solver.ipynb")]
    assert builder.main(command) == 0
    kernel = json.loads((tmp_path / "kernel-metadata.json").read_text())
    wheels = json.loads((tmp_path / "wheels" / "kernel-metadata.json").read_text())
    assert (kernel["id"], wheels["id"]) == ("ada/aimo-solver", "ada/aimo-solver-wheels")
    assert kernel["kernel_sources"] == [wheels["id"]]
    assert kernel["model_sources"] == ["openai/gpt-oss/Transformers/20b/3"]
    assert kernel["dataset_sources"] == ["ada/jit"]
    assert wheels["model_sources"] == wheels["dataset_sources"] == []
    settings = written_settings(tmp_path)
    assert settings["MODEL"] == "openai/gpt-oss/transformers/20b/3"
    assert settings["PROBLEMS"] == "mine.csv"
    config = load_config(settings["SETTINGS"])
    assert config.solver.slots == 4
    assert config.prompt.mix == {"reasoning": 1.0}
    assert builder.main([*command, "--check"]) == 0
    capsys.readouterr()
    command[1] = "eve"
    assert builder.main([*command, "--check"]) == 1
    assert '+  "id": "eve/aimo-solver"' in capsys.readouterr().out


def test_a_model_on_this_machine_is_not_attached_and_a_dataset_is(tmp_path: Path) -> None:
    out = ["--user", "ada", "--out", str(tmp_path / "aimo_solver.ipynb")]
    assert builder.main(["--model", "/models/mine", *out]) == 0
    assert json.loads((tmp_path / "kernel-metadata.json").read_text())["model_sources"] == []
    assert builder.main(["--model", "ada/weights", *out]) == 0
    kernel = json.loads((tmp_path / "kernel-metadata.json").read_text())
    assert (kernel["model_sources"], kernel["dataset_sources"]) == ([], ["ada/weights"])


def test_the_metadata_attaches_what_the_cell_names_in_every_build(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "aimo_solver.ipynb")]
    default = metadata()["model_sources"]
    for arguments, models, datasets in (
        (["--user", "ada", "--model", "a/b/pytorch/c/2", "--draft", "ada/head", "--cache", "ada/jit"], ["a/b/PyTorch/c/2"], 2),
        (["--user", "ada", "--set", "REPEAT=2"], default, 0),
        (["--set", "MODEL=a/b/pytorch/c", "--set", "COMPETITION=other"], ["a/b/PyTorch/c/1"], 0),
        ([], default, 0),
    ):
        assert builder.main([*arguments, *out]) == 0
        kernel = json.loads((tmp_path / "kernel-metadata.json").read_text())
        assert (kernel["model_sources"], len(kernel["dataset_sources"])) == (models, datasets)
        assert kernel["competition_sources"] == [written_settings(tmp_path)["COMPETITION"]]
        assert kernel["id"] == "ada/aimo-solver"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "PROBLEM=x.csv"], "the settings cell has no PROBLEM; known: MODEL, "),
        (["--set", "PROBLEMS=3"], "PROBLEMS is of type str, not 3"),
        (["--set", "REPEAT"], "--set REPEAT: write NAME=VALUE"),
        (["--set", "solver.slotz=4"], "option solver.slotz: unknown; known here: slots"),
        (["--set", "solver.slots=900"], "option solver.slots: 900 is more than"),
        (["--model", "gpt-oss-120b", "--user", "ada"], "gpt-oss-120b: write owner/model/framework/variation"),
        (
            ["--competition", "https://www.kaggle.com/competitions/x", "--user", "ada"],
            "https://www.kaggle.com/competitions/x: write",
        ),
        (["--user", "Ada Lovelace"], "--user Ada Lovelace: write the name as in kaggle.com/NAME"),
    ],
)
def test_what_cannot_be_set_is_one_line_and_exit_code_two(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert builder.main([*arguments, "--out", str(tmp_path / "aimo_solver.ipynb")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"build_notebook: {message}")
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def run_settings(source: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(source, names)
    return names


def test_the_settings_come_first_and_equal_the_defaults(cells: dict[str, str]) -> None:
    first_code = next(id_ for id_ in cells if not id_.startswith("about-"))
    assert first_code == "settings"
    assert cells["settings"].startswith("MODEL = ")
    settings = run_settings(cells["settings"])
    assert load_config(settings["SETTINGS"]) == Config()


def test_each_package_has_a_heading_and_one_line_about_it(cells: dict[str, str]) -> None:
    for package in builder.READING_ORDER:
        name = package or builder.PACKAGE
        heading, about = cells[f"about-{name.replace('.', '-').replace('_', '-')}"].splitlines()
        assert heading == f"### {name}"
        assert about.endswith(".")


def metadata(*folders: str) -> dict[str, Any]:
    return json.loads(ROOT.joinpath("notebook", *folders, "kernel-metadata.json").read_text())  # type: ignore[no-any-return]


def test_the_metadata_attaches_the_sources_in_the_settings(cells: dict[str, str]) -> None:
    kernel, wheels = metadata(), metadata("wheels")
    settings = run_settings(cells["settings"])
    assert (ROOT / "notebook" / kernel["code_file"]) == NOTEBOOK
    assert kernel["competition_sources"] == [settings["COMPETITION"]]
    assert kernel["model_sources"][0].lower().startswith(settings["MODEL"].lower())
    assert kernel["kernel_sources"] == [wheels["id"]]
    assert kernel["machine_shape"] == "NvidiaH100"
    assert kernel["enable_internet"] is False
    assert wheels["enable_internet"] is True
    assert (ROOT / "notebook" / "wheels" / wheels["code_file"]).is_file()
    own = json.loads(builder.build())["metadata"]["kaggle"]
    assert own["isInternetEnabled"] is False
    assert own["accelerator"] == "nvidiaH100"
