"""Packages import only what their docstrings allow, in one direction, and public names are unique."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections import defaultdict
from functools import cache
from graphlib import TopologicalSorter

import pytest

from tests.builder import build_notebook as builder
from tests.conftest import ROOT

SOURCES = ROOT / "src" / "aimo_solver"
MODULES = sorted(
    ".".join(path.relative_to(SOURCES).with_suffix("").parts) for path in SOURCES.rglob("*.py") if path.stem[:2] != "__"
)
ENTRY_POINTS = {"main"}  # may be defined several times: each is run as a program, none is imported by another module
PACKAGES = sorted({builder.package_of(module, SOURCES) for module in MODULES} - {""})


def package_of(module: str) -> str:
    """Returns the package of a module, "" for the modules at the top, which include the options of every package."""
    return "" if module.rpartition(".")[2] == "options" else builder.package_of(module, SOURCES)


@cache
def imported_modules(module: str) -> frozenset[str]:
    return frozenset(builder.imported_modules(SOURCES, module))


def docstring(package: str) -> str:
    path = SOURCES.joinpath(*package.split("."), "__init__.py")
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def may_import(package: str) -> set[str]:
    """Returns the packages that the last line of a package's docstring lists, with itself and "", the modules at the top."""
    line = re.fullmatch(r"May import: (.*)\.", docstring(package).splitlines()[-1])
    assert line, f"the docstring of {package} must end with a line 'May import: ...'"
    named = {name for name in line[1].split(", ") if not name.startswith("nothing")}
    assert named <= set(PACKAGES), f"the docstring of {package} lists a package that does not exist"
    return named | {"", package}


def public_modules(package: str) -> set[str]:
    return set(getattr(importlib.import_module(f"aimo_solver.{package}"), "__all__", ()))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_its_docstring_allows(package: str) -> None:
    allowed = may_import(package)
    for module in MODULES:
        if package_of(module) == package:
            used = {package_of(name) for name in imported_modules(module)}
            assert used <= allowed, module


def test_the_modules_at_the_top_import_only_each_other() -> None:
    for module in MODULES:
        if package_of(module) == "":
            assert {package_of(name) for name in imported_modules(module)} <= {""}, module


@pytest.mark.parametrize("package", PACKAGES)
def test_other_packages_import_only_public_modules(package: str) -> None:
    public = public_modules(package)
    used = {
        name.removeprefix(f"{package}.")
        for module in MODULES
        if package_of(module) != package
        for name in imported_modules(module)
        if name != package and package_of(name) == package
    }
    assert used <= public, "not in __all__"
    assert public <= {path.stem for path in SOURCES.joinpath(*package.split(".")).glob("*.py")}


def test_packages_form_layers() -> None:
    layers = {package: may_import(package) - {"", package} for package in PACKAGES}
    assert list(TopologicalSorter(layers).static_order())


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert list(TopologicalSorter({module: imported_modules(module) for module in MODULES}).static_order())


def test_importing_a_package_loads_none_of_its_modules() -> None:
    for package in PACKAGES:
        body = ast.parse(SOURCES.joinpath(*package.split("."), "__init__.py").read_text(encoding="utf-8")).body
        assert not [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))], package


def test_importing_the_library_loads_none_of_its_modules() -> None:
    """Kernels and Kaggle's server import it, and start fast."""
    script = "import sys, aimo_solver; print([name for name in sys.modules if name.startswith('aimo_solver.')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_only_the_command_line_imports_the_lab() -> None:
    for package in PACKAGES:
        if not package.startswith(("lab", "cli")):
            assert not {name for name in may_import(package) if name.startswith(("lab", "cli"))}, package


def test_public_classes_and_functions_have_unique_names() -> None:
    found: dict[str, list[str]] = defaultdict(list)
    for module in MODULES:
        path = SOURCES.joinpath(*module.split(".")).with_suffix(".py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_"):
                found[node.name].append(module)
    assert {name: modules for name, modules in found.items() if len(modules) > 1 and name not in ENTRY_POINTS} == {}
