"""The built notebook as a file. test_notebook.py runs it."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest

from aimo_solver.config import Config, load_config
from tests.conftest import ROOT

SCRIPT = ROOT / "scripts" / "build_notebook.py"
NOTEBOOK = ROOT / "notebook" / "aimo_solver.ipynb"


@pytest.fixture
def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_notebook", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cells(builder: ModuleType) -> dict[str, str]:
    return {cell["id"]: "".join(cell["source"]) for cell in json.loads(builder.build())["cells"]}


@pytest.fixture
def package(tmp_path: Path) -> Callable[..., Path]:
    def write(**modules: str) -> Path:
        for name, text in ({"__init__": ""} | modules).items():
            (tmp_path / f"{name}.py").write_text(text)
        return tmp_path

    return write


def test_the_notebook_in_the_repository_is_what_its_sources_say(builder: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert builder.main(["--check"]) == 0, capsys.readouterr().out


def test_an_edited_module_turns_the_check_red_with_a_diff_and_a_build_turns_it_green(
    builder: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder, "SOURCES", Path(shutil.copytree(builder.SOURCES, tmp_path / "src")))
    out = str(tmp_path / "notebook.ipynb")
    assert builder.main(["--out", out]) == 0
    assert builder.main(["--check", "--out", out]) == 0
    clock = tmp_path / "src" / "clock.py"
    clock.write_text(clock.read_text().replace("max(0.0, self.end - self.now())", "self.end - self.now()"))
    capsys.readouterr()
    assert builder.main(["--check", "--out", out]) == 1
    diff = capsys.readouterr().out
    assert "-        return max(0.0, self.end - self.now())" in diff
    assert "+        return self.end - self.now()" in diff
    assert builder.main(["--out", out]) == 0
    assert builder.main(["--check", "--out", out]) == 0


def test_a_change_that_is_not_in_the_text_is_shown_too(
    builder: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "notebook.ipynb"
    builder.main(["--out", str(out)])
    out.write_text(out.read_text().replace('"nbformat_minor": 5', '"nbformat_minor": 4'))
    assert builder.main(["--check", "--out", str(out)]) == 1
    assert '+ "nbformat_minor": 5' in capsys.readouterr().out


def test_a_missing_notebook_is_out_of_date(builder: ModuleType, tmp_path: Path) -> None:
    assert builder.main(["--check", "--out", str(tmp_path / "none.ipynb")]) == 1


def interpreters() -> list[str]:
    found = [sys.executable]
    for version in ("3.11", "3.12", "3.13"):
        path = shutil.which(f"python{version}")
        # A version manager's stand-in may be there for a version that is not.
        if path and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
            found.append(path)
    return found


@pytest.mark.parametrize("python", interpreters())
def test_every_build_gives_the_same_bytes(builder: ModuleType, python: str, tmp_path: Path) -> None:
    for seed in ("1", "2"):
        out = tmp_path / f"{seed}.ipynb"
        subprocess.run(
            [python, SCRIPT, "--out", out], check=True, capture_output=True, env={**os.environ, "PYTHONHASHSEED": seed}
        )
        assert out.read_bytes() == builder.build().encode()


def test_it_is_a_valid_notebook_without_outputs(builder: ModuleType) -> None:
    text = builder.build()
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert "\r" not in text
    assert len(text) < 1_000_000  # what Kaggle takes as a notebook's source
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_every_module_is_there_verbatim(cells: dict[str, str]) -> None:
    modules = 0
    for id_, text in cells.items():
        magic, _, source = text.partition("\n")
        if id_.startswith("module-"):
            name = re.fullmatch(r"%%writefile aimo_solver/(\w+)\.py", magic)[1]  # type: ignore[index]
            # %%writefile ends the file with a line break of its own.
            assert source + "\n" == (ROOT / f"src/aimo_solver/{name}.py").read_text(encoding="utf-8")
            modules += 1
    assert modules > 30


def test_every_module_comes_after_those_it_imports(builder: ModuleType) -> None:
    order = builder.module_order(builder.SOURCES)
    for place, name in enumerate(order):
        for node in ast.parse((builder.SOURCES / f"{name}.py").read_text()).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("aimo_solver."):
                assert (node.module or "").removeprefix("aimo_solver.") in order[:place]


def test_only_the_solvers_path_goes_in(builder: ModuleType) -> None:
    order = builder.module_order(builder.SOURCES)
    outside = {"cli", "evaluate", "replay", "simulate", "progress", "competition", "scoreboard", "records"}
    assert outside.isdisjoint(order)
    assert not [name for name in order if name.startswith(("report", "bench"))]
    for name in order:
        text = (builder.SOURCES / f"{name}.py").read_text()
        assert not re.search(r"^\s*(?:import|from) (?:typer|rich|matplotlib|vllm|torch|transformers)\b", text, re.MULTILINE), name


def test_imports_inside_functions_and_for_type_checkers_are_needed_but_bring_no_order(
    builder: ModuleType, package: Callable[..., Path]
) -> None:
    sources = package(
        a="def f():\n    from aimo_solver.b import x\n",
        b="from typing import TYPE_CHECKING\nfrom aimo_solver import a\nif TYPE_CHECKING:\n    from aimo_solver.c import y\n",
        c="import aimo_solver.b\n",
        unused="",
    )
    assert builder.module_order(sources, ["a"]) == ["__init__", "a", "b", "c"]


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ({"a": "import aimo_solver.b", "b": "from aimo_solver.c import x", "c": "from aimo_solver import a"}, "in a circle.*a.*"),
        ({"a": "from aimo_solver.gone import x"}, r"gone\.py .* does not exist"),
        ({"a": "from .b import x", "b": ""}, "relative"),
    ],
    ids=["cycle", "missing", "relative"],
)
def test_what_cannot_be_put_in_order_is_an_error(
    builder: ModuleType, package: Callable[..., Path], modules: dict[str, str], message: str
) -> None:
    with pytest.raises(builder.NotebookError, match=message):
        builder.module_order(package(**modules), ["a"])


def test_options_change_their_settings_and_nothing_else(builder: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "notebook.ipynb"
    assert builder.main(["--model", 'me/"my" model', "--competition", "my-competition", "--out", str(out)]) == 0
    before, after = builder.build().splitlines(), out.read_text().splitlines()
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == 2
    settings = run_settings(
        next("".join(cell["source"]) for cell in json.loads(out.read_text())["cells"] if cell["id"] == "settings")
    )
    assert settings["MODEL"] == 'me/"my" model'
    assert settings["COMPETITION"] == "my-competition"


def run_settings(source: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(source, names)
    return names


def test_the_settings_come_first_and_say_what_the_defaults_are(cells: dict[str, str]) -> None:
    first_code = next(id_ for id_ in cells if not id_.startswith("about-"))
    assert first_code == "settings"
    assert cells["settings"].startswith("MODEL = ")
    settings = run_settings(cells["settings"])
    assert load_config(settings["SETTINGS"]) == Config()


def test_each_module_has_a_heading_and_one_line_about_it(builder: ModuleType) -> None:
    notebook = json.loads(builder.build())["cells"]
    for before, cell in itertools.pairwise(notebook):
        if cell["id"].startswith("module-"):
            heading, about = before["source"]
            assert heading.startswith("### ")
            assert about.strip()


def metadata(*folders: str) -> dict[str, Any]:
    return json.loads(ROOT.joinpath("notebook", *folders, "kernel-metadata.json").read_text())  # type: ignore[no-any-return]


def test_the_metadata_attaches_what_the_settings_name(cells: dict[str, str], builder: ModuleType) -> None:
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
