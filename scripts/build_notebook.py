"""Builds notebook/aimo_solver.ipynb from src: every module the solver needs as one readable cell, nothing else.

    python scripts/build_notebook.py            build it
    python scripts/build_notebook.py --check    show what a build would change; exit code 1 if anything

The same sources give the same bytes on every machine: cell ids come from names, and there are no outputs, counts or times.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "src" / "aimo_solver"
TEMPLATE = ROOT / "notebook" / "template.md"
NOTEBOOK = ROOT / "notebook" / "aimo_solver.ipynb"
PACKAGE = "aimo_solver"
# What the notebook's own cells import, and what runs in a process of its own and is imported by nobody.
ENTRY_POINTS = ("kaggle.notebook", "kaggle.gateway", "paths", "server.wheels", "kernels.inside.forkserver")
# Packages that may ship, from the top down; "" holds the modules that lie in none. What is missing here (lab, cli) never ships.
READING_ORDER = ("kaggle", "solve", "policy", "chat", "server", "kernels", "kernels.inside", "log", "")


def main(arguments: list[str] | None = None) -> int:
    """Builds or checks; returns the exit code."""
    options = _options().parse_args(arguments)
    try:
        text = build(model=options.model, competition=options.competition)
    except NotebookError as error:
        print(f"build_notebook: {error}", file=sys.stderr)
        return 2
    if not options.check:
        options.out.write_text(text, encoding="utf-8", newline="\n")
        print(f"{options.out}: {len(text.encode())} bytes")
        return 0
    present = options.out.read_bytes().decode("utf-8") if options.out.is_file() else ""
    if present == text:
        print(f"{options.out} is what its sources say")
        return 0
    sys.stdout.writelines(_readable_diff(present, text, str(options.out)))
    print(f"\n{options.out} is out of date; run: python scripts/build_notebook.py")
    return 1


class NotebookError(Exception):
    """The notebook cannot be built; the message is one line."""


def build(model: str | None = None, competition: str | None = None) -> str:
    """The notebook as the text of its file. `model` and `competition` take the place of the template's settings."""
    cells = []
    for name, text in _template():
        if name == "settings":
            text = _set(_set(text, "MODEL", model), "COMPETITION", competition)
        if name == "folders":
            folders = {
                _file(module, SOURCES).parent.relative_to(SOURCES.parent).as_posix() for module in shipped_modules(SOURCES)
            }
            text = text.replace("FOLDERS", json.dumps(sorted(folders)))
        if name is not None:
            cells.append(_code(name, text))
        elif text == "MODULES":
            cells += _library()
        else:
            cells.append(_markdown(f"about-{_slug(text)}", text))
    notebook = {"cells": cells, "metadata": _METADATA, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def shipped_modules(sources: Path, entry_points: Iterable[str] = ENTRY_POINTS) -> list[str]:
    """The modules that the entry points need, by dotted name ("" is the package itself), in reading order.

    Packages come from the top down as in `READING_ORDER`; in a package its ``__init__`` comes first and every other module
    before those that it imports, alphabetical where that leaves a choice.

    Raises:
        NotebookError: a module is missing, stays out of the notebook, or is part of a circle.
    """
    imports: dict[str, set[str]] = {}
    waiting = [*entry_points]
    while waiting:
        name = waiting.pop()
        if name in imports:
            continue
        if name and package_of(name, sources) not in READING_ORDER:
            raise NotebookError(f"{PACKAGE}.{name} never ships, and is imported by what does")
        imports[name] = imported_modules(sources, name)
        waiting += [*imports[name], *parents(name)]
    order = list(reversed(_importers_last(imports)))
    return sorted(order, key=lambda name: (READING_ORDER.index(package_of(name, sources)), package_of(name, sources) != name))


def package_of(name: str, sources: Path) -> str:
    """The package that a module belongs to, "" for those that lie at the top."""
    return name if _file(name, sources).name == "__init__.py" else name.rpartition(".")[0]


def parents(name: str) -> Iterator[str]:
    """The packages above a module, whose ``__init__`` runs before it."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def imported_modules(sources: Path, name: str, *, loading: bool = False) -> set[str]:
    """Modules of this package that a module imports anywhere in it, or, with `loading`, while it is imported itself.

    Raises:
        NotebookError: the module is missing, or imports by a relative name or one that does not exist.
    """
    tree = ast.parse(_file(name, sources).read_text(encoding="utf-8"), name)
    nodes = _while_loading(tree) if loading else ast.walk(tree)
    return {module for node in nodes for module in _imported(node, sources)} - {name}


def _importers_last(imports: Mapping[str, set[str]]) -> list[str]:
    """The modules, each after those that it imports."""
    sorter = TopologicalSorter({name: sorted(imports[name], reverse=True) for name in sorted(imports, reverse=True)})
    try:
        return list(sorter.static_order())
    except CycleError as error:
        raise NotebookError(f"modules import each other in a circle: {' -> '.join(error.args[1])}") from None


def _file(name: str, sources: Path) -> Path:
    path = sources.joinpath(*name.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not path.is_file():
        raise NotebookError(f"{path} is imported and does not exist")
    return path


def _while_loading(tree: ast.Module) -> Iterator[ast.AST]:
    """The nodes that run when the module is imported: not function bodies, not what is for type checkers only."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)


def _imported(node: ast.AST, sources: Path) -> Iterator[str]:
    if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
        # `from package import name` means a module where there is one, else something in the package's __init__.
        folder = sources.parent.joinpath(*node.module.split("."))
        inside = [alias.name for alias in node.names if folder.is_dir() and _is_module(folder / alias.name)]
        modules = [f"{node.module}.{name}" for name in inside]
        modules += [node.module] if len(inside) < len(node.names) else []
    elif isinstance(node, ast.ImportFrom):
        raise NotebookError("relative imports are not followed; write them out")
    else:
        return
    for module in modules:
        package, _, name = module.partition(".")
        if package == PACKAGE:
            yield name


def _is_module(path: Path) -> bool:
    return path.is_dir() or path.with_suffix(".py").is_file()


def _template() -> Iterator[tuple[str | None, str]]:
    """The notebook's own cells: name and text of a code cell, None and text of a markdown cell or of the mark MODULES."""
    text = TEMPLATE.read_text(encoding="utf-8")
    for part in re.split(r"^(```python .*?^```$|MODULES$)", text, flags=re.MULTILINE | re.DOTALL):
        if part.startswith("```python "):
            head, _, code = part.removesuffix("\n```").partition("\n")
            yield head.removeprefix("```python "), code
        elif part.strip():
            yield None, part.strip()


def _set(source: str, name: str, value: str | None) -> str:
    """The configuration cell with another value for `name`, its comment kept."""
    if value is None:
        return source
    lines = source.split("\n")
    for number, line in enumerate(lines):
        if line.startswith(f"{name} = "):
            _, hash_, comment = line.partition("  # ")
            lines[number] = f"{name} = {json.dumps(value, ensure_ascii=False)}{hash_}{comment}"
            return "\n".join(lines)
    raise NotebookError(f"the configuration cell has no {name}")


def _library() -> Iterator[dict[str, Any]]:
    """One line about each package, and a cell for each of its modules."""
    package = None
    for name in shipped_modules(SOURCES):
        path = _file(name, SOURCES)
        source = path.read_text(encoding="utf-8")
        if package_of(name, SOURCES) != package:
            package = package_of(name, SOURCES)
            title, about = (
                package or PACKAGE,
                ast.get_docstring(ast.parse(_file(package, SOURCES).read_text(encoding="utf-8"))) or "",
            )
            yield _markdown(f"about-{_slug(title)}", f"### {title}\n{about.partition(chr(10))[0]}")
        place = path.relative_to(SOURCES.parent).as_posix()
        cell = _code(f"module-{_slug(name or PACKAGE)}", f"%%writefile {place}\n{source.removesuffix(chr(10))}")
        cell["metadata"]["_kg_hide-input"] = True  # folded on Kaggle; a click shows it
        yield cell


def _slug(text: str) -> str:
    """A cell id from a heading."""
    return re.sub(r"[^a-z0-9]+", "-", text.partition("\n")[0].lower()).strip("-")[:40]


def _markdown(cell_id: str, text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "id": cell_id, "metadata": {}, "source": text.splitlines(keepends=True)}


def _code(cell_id: str, text: str) -> dict[str, Any]:
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": cell_id,
        "metadata": {"trusted": True},
        "outputs": [],
        "source": text.splitlines(keepends=True),
    }


def _readable_diff(present: str, wanted: str, name: str) -> Iterator[str]:
    """A unified diff of the cells' text, not of its JSON; of the JSON where the text is the same."""
    try:
        old, new = _plain(present), _plain(wanted)
    except (ValueError, KeyError, TypeError):
        old, new = present, wanted
    if old == new:
        old, new = present, wanted
    lines = old.splitlines(keepends=True), new.splitlines(keepends=True)
    return difflib.unified_diff(*lines, fromfile=name, tofile="built from src")


def _plain(notebook: str) -> str:
    cells = json.loads(notebook)["cells"] if notebook else []
    return "".join(f"# cell {cell['id']}\n{''.join(cell['source'])}\n" for cell in cells)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="show what a build would change; exit code 1 if anything")
    parser.add_argument("--model", metavar="NAME", help="Kaggle's handle of the model, or a folder")
    parser.add_argument("--competition", metavar="NAME", help="the competition's slug, or a folder")
    parser.add_argument("--out", type=Path, default=NOTEBOOK, metavar="FILE", help="default: notebook/aimo_solver.ipynb")
    return parser


_METADATA = {
    "kaggle": {
        "accelerator": "nvidiaH100",
        "isGpuEnabled": True,
        "isInternetEnabled": False,
        "language": "python",
        "sourceType": "notebook",
    },
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}

if __name__ == "__main__":
    sys.exit(main())
