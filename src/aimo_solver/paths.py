"""Finds folders: the user's cache, and what Kaggle mounts: models, wheels, a compile cache and the competition.

Kaggle uses one of two layouts:

    older   /kaggle/input/SLUG                                      newer   /kaggle/input/competitions/SLUG
            /kaggle/input/SLUG                                              /kaggle/input/datasets/OWNER/SLUG
            /kaggle/input/SLUG                                              /kaggle/input/notebooks/OWNER/SLUG
            /kaggle/input/MODEL/FRAMEWORK/VARIATION/VERSION                 /kaggle/input/models/OWNER/MODEL/FRAMEWORK/...

A name can also be a folder of this machine, so the same notebook runs anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from aimo_solver.errors import PathNotFoundError

KAGGLE_INPUT = Path("/kaggle/input")
_DEPTH = 6  # of models/OWNER/MODEL/FRAMEWORK/VARIATION/VERSION, the deepest mount


def cache_home() -> Path:
    """Returns the folder for what can be made again; `XDG_CACHE_HOME` moves it.

    Raises:
        RuntimeError: this user has no home folder.
    """
    given = os.environ.get("XDG_CACHE_HOME")
    return (Path(given) if given else Path.home() / ".cache") / "aimo-solver"


def find_model(name: str, root: Path = KAGGLE_INPUT) -> Path:
    """Returns the folder with a model's `config.json`.

    Args:
        name: a folder, or Kaggle's handle of a model (``owner/model/framework/variation`` with or without a version, by
            default the newest one mounted) or of a dataset (``owner/slug``).

    Raises:
        PathNotFoundError: with every folder that was tried.
    """
    tried = _places(name, root, "models", "datasets", "notebooks")
    for place in tried:
        for folder in _folders(place, depth=3):
            if (folder / "config.json").is_file():
                return folder
    raise PathNotFoundError(f"model {name} (a folder with config.json)", tried)


def find_gateway_package(competition: str, root: Path = KAGGLE_INPUT) -> Path:
    """Returns the competition's folder, which holds the package `kaggle_evaluation`; `competition` is a slug or a folder.

    Raises:
        PathNotFoundError: with every folder that was tried.
    """
    tried = [place / "kaggle_evaluation" for place in _places(competition, root, "competitions")]
    for package in tried:
        if package.is_dir():
            return package.parent
    raise PathNotFoundError("package kaggle_evaluation", tried)


def find_wheels(root: Path = KAGGLE_INPUT) -> tuple[Path, ...]:
    """Returns every folder below `root` that holds wheels, of any notebook or dataset."""
    return tuple(folder for folder in _folders(root, depth=_DEPTH) if any(folder.glob("*.whl")))


def find_compile_cache(root: Path = KAGGLE_INPUT) -> Path | None:
    """Returns the packed compile cache (`aimo-solver cache pack`) below `root`, None if none is attached."""
    return next((file for folder in _folders(root, depth=_DEPTH) for file in sorted(folder.glob("*.aimocache"))), None)


def find_problems(name: str, competition: str, root: Path = KAGGLE_INPUT) -> Path:
    """Returns the CSV for a local run: the one named, else the competition's `test.csv`, else this project's warm-up set.

    Raises:
        PathNotFoundError: with every file that was tried.
    """
    if name:
        tried = [Path(name)]
    else:
        tried = [place / "test.csv" for place in _places(competition, root, "competitions")]
        tried += [folder / "data" / "warmup.csv" for folder in (Path.cwd(), *Path.cwd().parents)]
    for path in tried:
        if path.is_file():
            return path
    raise PathNotFoundError("problem CSV", tried)


def _places(name: str, root: Path, *kinds: str) -> list[Path]:
    parts = [part for part in name.split("/") if part]
    handles = [name.strip("/")]
    if len(parts) > 2:  # Kaggle mounts the framework in lower case
        handles.append("/".join([*parts[:2], parts[2].lower(), *parts[3:]]))
    places = [Path(name)]
    for handle in handles:
        places += [root / kind / handle for kind in kinds]
        places += [root / handle, root / handle.partition("/")[2]] if "/" in handle else [root / handle]
    return list(dict.fromkeys(places))


def _folders(top: Path, *, depth: int) -> Iterator[Path]:
    """Yields `top` and the folders below it, level by level, the newest version first."""
    level = [top] if top.is_dir() else []
    for _ in range(depth + 1):
        yield from level
        level = [Path(entry.path) for folder in level for entry in _newest_first(folder)]


def _newest_first(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            folders = [entry for entry in entries if entry.is_dir()]
    except OSError:  # a mount without permission; the others are still searched
        return []
    versions = sorted((entry for entry in folders if entry.name.isdecimal()), key=lambda entry: -int(entry.name))
    return versions + sorted((entry for entry in folders if not entry.name.isdecimal()), key=lambda entry: entry.name)
