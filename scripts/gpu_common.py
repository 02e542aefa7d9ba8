"""What the stages of `gpu_bench.py` share: where they work, how much time they have, and the models they measure."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BEGAN = time.monotonic()
LEFT_S = float(os.environ.get("LEFT_S", "600"))  # seconds that a stage has, set by `main`
VARIANT_S = 58.0  # of the sweep
START_S = 200.0  # of a server on a machine without caches
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "scripts")]

POCKET = ROOT / "data" / "pocket-model"
WORK = Path(os.environ.get("WORK", "/tmp/gpu-bench"))
SLOTS = 16

STAGES: dict[str, Callable[[Path, bool], Any]] = {}


def stage(function: Callable[[Path, bool], Any]) -> Callable[[Path, bool], Any]:
    """Registers a stage under its name, with hyphens."""
    STAGES[function.__name__.replace("_", "-")] = function
    return function


def make_config(tiny: bool, **server: Any) -> Any:
    from aimo_solver.config import load_config

    values: dict[str, Any] = {"solver": {"slots": SLOTS, "max_attempts": SLOTS}, "server": server}
    values["sampling"] = {"top_logprobs": 0}
    if tiny:
        values["solver"] = {"slots": 2, "max_attempts": 2}
        values["kernels"] = {"size": 2}
        server.pop("load_format", None)
    return load_config(values)


def shape_folder(tiny: bool) -> Path:
    import gpu_shapes

    folder = WORK / "gpt-oss-120b-shape"
    if tiny:
        return POCKET
    if not (folder / "config.json").exists():
        gpu_shapes.write_folder(folder, gpu_shapes.config(gpu_shapes.LAYERS))
    return folder


def archive() -> Path:
    return WORK / "gpt-oss.aimocache"


def console() -> Any:
    from rich.console import Console

    return Console(width=200)  # a log file has no width of its own
