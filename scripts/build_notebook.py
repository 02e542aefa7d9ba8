"""Builds notebook/aimo_solver.ipynb from src: one readable cell for each module that the solver needs.

    python scripts/build_notebook.py                            build it
    python scripts/build_notebook.py --user YOU --model HANDLE  build it for an account, with its kernel-metadata.json
    python scripts/build_notebook.py --check                    show what a build would change; exit code 1 if anything

The same sources give the same bytes on every machine: cell ids come from names, and there are no outputs, counts or times.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from notebook_settings import ROOT, NotebookError, UserSettings

SOURCES = ROOT / "src" / "aimo_solver"
TEMPLATE = ROOT / "notebook" / "template.md"
NOTEBOOK = ROOT / "notebook" / "aimo_solver.ipynb"
PACKAGE = "aimo_solver"
# The modules that the notebook's own cells import, and the one that is started as a separate process.
ENTRY_POINTS = ("kaggle.notebook", "kaggle.gateway", "kaggle.rehearsal", "server.wheels", "kernels.inside.forkserver")
# The packages that may ship, from the top down; "" stands for the modules at the top. Others (lab, cli) never ship.
READING_ORDER = ("kaggle", "solve", "policy", "chat", "server", "server.inside", "kernels", "kernels.inside", "log", "")


def main(arguments: list[str] | None = None) -> int:
    """Builds or checks; returns the exit code."""
    options = _options().parse_args(arguments)
    settings = UserSettings(
        user=options.user,
        model=options.model,
        draft=options.draft,
        competition=options.competition,
        cache=options.cache,
        values=options.values or (),
    )
    try:
        settings_cell = settings.edit_cell(dict(_template())["settings"])
        texts = {**settings.edit_metadata(options.out.parent, settings_cell), options.out: build(settings)}
    except NotebookError as error:
        print(f"build_notebook: {error}", file=sys.stderr)
        return 2
    present = {path: path.read_bytes().decode("utf-8") if path.is_file() else "" for path in texts}
    changed = {path: text for path, text in texts.items() if text != present[path]}
    if not options.check:
        for path, text in {**changed, options.out: texts[options.out]}.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
            print(f"{path}: {len(text.encode())} bytes")
        return 0
    if not changed:
        print(f"{options.out} is up to date")
        return 0
    for path, text in changed.items():
        sys.stdout.writelines(_readable_diff(present[path], text, str(path)))
    print(f"\n{', '.join(map(str, changed))} is out of date; run: python scripts/build_notebook.py")
    return 1


def build(settings: UserSettings | None = None) -> str:
    """Returns the notebook as text, with the user's values in its settings cell."""
    cells = []
    for name, text in _template():
        if name == "settings" and settings is not None:
            text = settings.edit_cell(text)
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
    """Returns the modules that the entry points need, by dotted name ("" is the package itself), in reading order.

    Packages come in `READING_ORDER`; in a package, its ``__init__`` comes first and every other module before those that it
    imports, in alphabetical order where that leaves a choice.

    Raises:
        NotebookError: a module is missing, must not ship, or is part of an import cycle.
    """
    imports: dict[str, set[str]] = {}
    waiting = [*entry_points]
    while waiting:
        name = waiting.pop()
        if name in imports:
            continue
        if name and package_of(name, sources) not in READING_ORDER:
            raise NotebookError(f"{PACKAGE}.{name} must not ship, but a module that ships imports it")
        imports[name] = imported_modules(sources, name)
        waiting += [*imports[name], *parents(name)]
    graph = {name: sorted(imports[name], reverse=True) for name in sorted(imports, reverse=True)}
    try:
        order = reversed(list(TopologicalSorter(graph).static_order()))
    except CycleError as error:
        raise NotebookError(f"modules import each other in a circle: {' -> '.join(error.args[1])}") from None
    return sorted(order, key=lambda name: (READING_ORDER.index(package_of(name, sources)), package_of(name, sources) != name))


def package_of(name: str, sources: Path) -> str:
    """Returns the package of a module, "" for modules at the top."""
    return name if _file(name, sources).name == "__init__.py" else name.rpartition(".")[0]


def parents(name: str) -> Iterator[str]:
    """Yields the packages above a module, whose ``__init__`` runs before it."""
    while name:
        name = name.rpartition(".")[0]
        yield name


def imported_modules(sources: Path, name: str) -> set[str]:
    """Returns the modules of this package that a module imports, at the top or inside a function.

    Raises:
        NotebookError: the module is missing, or has a relative import.
    """
    statements = _import_statements(_file(name, sources).read_text(encoding="utf-8"))
    return {module for node in statements for module in _imported(node, sources)} - {name}


@cache
def _import_statements(source: str) -> tuple[ast.AST, ...]:
    return tuple(node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.Import, ast.ImportFrom)))


def _file(name: str, sources: Path) -> Path:
    path = sources.joinpath(*name.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not path.is_file():
        raise NotebookError(f"{path} is imported and does not exist")
    return path


def _imported(node: ast.AST, sources: Path) -> Iterator[str]:
    if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
        # `from package import name` imports a module if there is one of that name, else a name in the package's __init__.
        folder = sources.parent.joinpath(*node.module.split("."))
        inside = [alias.name for alias in node.names if folder.is_dir() and _is_module(folder / alias.name)]
        modules = [f"{node.module}.{name}" for name in inside]
        modules += [node.module] if len(inside) < len(node.names) else []
    elif isinstance(node, ast.ImportFrom):
        raise NotebookError("relative imports are not followed; use absolute ones")
    else:
        return
    for module in modules:
        package, _, name = module.partition(".")
        if package == PACKAGE:
            yield name


def _is_module(path: Path) -> bool:
    return path.is_dir() or path.with_suffix(".py").is_file()


def _template() -> Iterator[tuple[str | None, str]]:
    """Yields the notebook's own cells: name and text of a code cell; None and text of a Markdown cell or the line MODULES."""
    text = TEMPLATE.read_text(encoding="utf-8")
    for part in re.split(r"^(```python .*?^```$|MODULES$)", text, flags=re.MULTILINE | re.DOTALL):
        if part.startswith("```python "):
            head, _, code = part.removesuffix("\n```").partition("\n")
            yield head.removeprefix("```python "), code
        elif part.strip():
            yield None, part.strip()


def _library() -> Iterator[dict[str, Any]]:
    """Yields a heading with one line for each package, followed by a cell for each of its modules."""
    package = None
    for name in shipped_modules(SOURCES):
        path = _file(name, SOURCES)
        source = path.read_text(encoding="utf-8").removesuffix("\n")
        if package_of(name, SOURCES) != package:  # its __init__ comes first
            package = package_of(name, SOURCES)
            about = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
            yield _markdown(f"about-{_slug(package or PACKAGE)}", f"### {package or PACKAGE}\n{about}")
        cell = _code(f"module-{_slug(name or PACKAGE)}", f"%%writefile {path.relative_to(SOURCES.parent).as_posix()}\n{source}")
        cell["metadata"]["_kg_hide-input"] = True  # folded on Kaggle until clicked
        yield cell


def _slug(text: str) -> str:
    """Returns a cell id made from a heading."""
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
    """Returns a unified diff of the cells' text, or of the JSON if the text is the same."""
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
    parser.add_argument("--user", metavar="YOU", help="your Kaggle name, for the metadata that lies beside the notebook")
    parser.add_argument("--model", metavar="HANDLE", help="Kaggle's handle of the model, or a folder")
    parser.add_argument("--draft", metavar="HANDLE", help="the same for a draft model (speculative decoding)")
    parser.add_argument("--competition", metavar="SLUG", help="the competition's slug, or a folder")
    parser.add_argument("--cache", metavar="HANDLE", help="Kaggle's handle of a dataset with a compile cache")
    values = "a setting of the first cell (REPEAT=2) or an option (solver.slots=16); repeatable"
    parser.add_argument("--set", action="append", dest="values", metavar="KEY=VALUE", help=values)
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
