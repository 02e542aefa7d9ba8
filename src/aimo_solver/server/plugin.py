"""Adds the solver's plugin to vLLM: a folder on the server's PYTHONPATH with one module and the metadata that names it.

vLLM looks for plugins among the entry points of installed packages. vLLM's environment may be one into which nothing but its
own wheels is installed, so the plugin is not installed but written to a folder that looks like an installed package.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from aimo_solver.paths import cache_home
from aimo_solver.server.inside import experts

_MODULE = "aimo_experts"
_METADATA = f"{_MODULE}-1.dist-info"

log = logging.getLogger(__name__)


def write_plugin() -> Path | None:
    """Writes the plugin below the user's cache; returns its folder, None (with a warning) if it cannot be written."""
    texts = {
        f"{_MODULE}.py": Path(experts.__file__).read_text(encoding="utf-8"),
        f"{_METADATA}/METADATA": f"Metadata-Version: 2.1\nName: {_MODULE}\nVersion: 1\n",
        f"{_METADATA}/entry_points.txt": f"[vllm.general_plugins]\n{_MODULE} = {_MODULE}:{experts.set_warps.__name__}\n",
    }
    try:
        folder = cache_home() / "vllm-plugin"
        for name, text in texts.items():
            _write(folder / name, text.encode())
    except (OSError, RuntimeError) as error:  # a full or read-only disk; a user without a home folder
        log.warning("vLLM runs without the solver's plugin: %s", error)
        return None
    return folder


def python_path(folder: Path, variables: Mapping[str, str]) -> str:
    """Returns the server's PYTHONPATH: the plugin's folder, then what `variables` or this process's environment has."""
    return os.pathsep.join(filter(None, (str(folder), variables.get("PYTHONPATH", os.environ.get("PYTHONPATH", "")))))


def _write(path: Path, content: bytes) -> None:
    """Writes a file that other processes may read meanwhile; a file with this content is left alone."""
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_bytes(content)
    part.replace(path)
