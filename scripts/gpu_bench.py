"""Measures boot, decode, read-ahead and supervision on a machine with a GPU, stage by stage.

    python gpu_bench.py OUT STAGE...        runs the stages in order, each in a process of its own
    python gpu_bench.py --list
    python gpu_bench.py --tables OUT        prints what the stages saved, as Markdown

Stages of `gpu_served.py` that follow one another share one process and one server. Every stage leaves OUT/STAGE.json and
OUT/STAGE.log; one that fails does not end the others. Models are made on the spot below WORK (default /tmp/gpu-bench).
`--tiny` uses the embedded model and small numbers, to try the script on a CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

import gpu_boot  # noqa: F401 (its stages)
import gpu_notebook
import gpu_sweep  # noqa: F401 (its stages)
from gpu_common import (
    BEGAN,
    LEFT_S,
    POCKET,
    STAGES,
    START_S,
    WORK,
    console,
    shape_folder,
    stage,
)

LIMIT_S = {
    "boot-cold": 240,
    "boot-sequence": 240,
    "engine": 420,
    "sweep": 590,
    "decode-speculation": 590,
    "parallel": 590,
    "prefix-cache-sparse": 400,
    "prefix-cache-full": 400,
    "routing": 300,
    "boot-files": 360,
    "faults": 420,
    "ladder": 220,
    "ladder-memory": 300,
    "dense": 560,
    **gpu_notebook.LIMIT_S,
}
# --- faults -----------------------------------------------------------------------------------------------------------


@stage
def faults(out: Path, tiny: bool) -> Any:
    """Kills the server, and stops it, in the middle of a problem."""
    import gpu_faults

    return {fault: gpu_faults.inject(out, WORK, tiny, fault) for fault in ("kill", "stop")}


@stage
def fault_memory(out: Path, tiny: bool) -> Any:
    """Takes all GPU memory in another process in the middle of a problem, when the server needs more than it has."""
    import gpu_faults

    return "needs a GPU" if tiny else gpu_faults.inject(out, WORK, tiny, "memory")


@stage
def ladder(out: Path, tiny: bool) -> Any:
    """Forces faults on the server's start, concurrently: what was read, the steps that answered, and the seconds lost.

    Rows that OUT has are not measured again.
    """
    import gpu_ladder

    return gpu_ladder.Bench(out, WORK, POCKET, tiny, _left_s).table(alone=False)


@stage
def ladder_memory(out: Path, tiny: bool) -> Any:
    """Measures the rows of the stage ladder that take memory, one after another, on a GPU that nothing else uses."""
    import gpu_ladder

    gpu_ladder.Bench(out, WORK, POCKET, tiny, _left_s).table(alone=True).show(console())


def _left_s() -> float:
    return LEFT_S - (time.monotonic() - BEGAN)


# --- running ----------------------------------------------------------------------------------------------------------


def run_one(name: str, out: Path, tiny: bool) -> None:
    """Runs one stage, or a group that shares a server, separated by commas."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if name not in STAGES:
        import gpu_served

        asyncio.run(gpu_served.run(name.split(","), shape_folder(tiny), out, WORK, tiny=tiny, until=BEGAN + LEFT_S - 5))
        return
    result = STAGES[name](out, tiny)
    if hasattr(result, "show"):
        result.show(console())
        result.save(out / f"{name}.json")
    elif result is not None:
        (out / f"{name}.json").write_text(json.dumps(result, indent=1))


def groups(names: Sequence[str], served: Container[str]) -> list[str]:
    """The stages, with those that follow one another and share a server joined by commas."""
    runs = itertools.groupby(names, key=lambda name: name in served)
    return [one for shared, run in runs for one in ([",".join(run)] if shared else run)]


def run_stage(name: str, out: Path, left: float, *, tiny: bool) -> None:
    """Runs a stage or a group in a separate process, for at most `left` seconds; prints the end of its log."""
    import gpu_served

    began = time.monotonic()
    own = [gpu_served.LIMIT_S[part] for part in name.split(",") if part in gpu_served.LIMIT_S]
    limit = min(left, START_S + sum(own) if own else LIMIT_S.get(name, 200))
    command = [sys.executable, __file__, str(out), name, "--one", *(["--tiny"] if tiny else [])]
    path = out / f"{name.replace(',', '+')}.log"
    with path.open("wb") as log:
        try:
            environment = {**os.environ, "LEFT_S": str(limit)}
            code: int | str = subprocess.run(command, stdout=log, stderr=log, timeout=limit, env=environment).returncode
        except subprocess.TimeoutExpired:
            code = "cut short"
    text = path.read_text(errors="replace")
    print(f"== {name}: {code} after {time.monotonic() - began:.0f} s, at {time.monotonic() - BEGAN:.0f} s", flush=True)
    print("\n".join(text.splitlines()[-90:]) if code == 0 else text[-3_000:], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("stages", nargs="*", metavar="STAGE")
    parser.add_argument("--list", action="store_true", help="name the stages and what they measure")
    parser.add_argument("--tables", action="store_true", help="print what is in OUT as Markdown")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, default=560.0, help="seconds after which no stage runs any more")
    options = parser.parse_args()
    if options.one:  # before the imports below, as a boot counts from the start of its process
        run_one(options.stages[0], options.out, options.tiny)
        return
    import gpu_served
    import gpu_tables

    known: dict[str, Callable[..., Any]] = {**STAGES, **gpu_served.MEASURES}
    if options.list or options.out is None:
        print("\n".join(f"{name:20} {(function.__doc__ or '').splitlines()[0]}" for name, function in known.items()))
        return
    if options.tables:
        if not any(options.out.glob("*.json")):
            parser.error(f"{options.out} has no results; run stages first")
        print(gpu_tables.render(options.out), end="")
        return
    unknown = {part for name in options.stages for part in name.split(",")} - set(known)
    if unknown:
        parser.error(f"no stage {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    options.out.mkdir(parents=True, exist_ok=True)
    WORK.mkdir(parents=True, exist_ok=True)
    print(platform.python_version(), platform.platform(), flush=True)
    for name in groups(options.stages, gpu_served.MEASURES):
        left = options.until - (time.monotonic() - BEGAN)
        if left < 10:
            print(f"== {name}: no time left", flush=True)
            continue
        run_stage(name, options.out, left, tiny=options.tiny)


if __name__ == "__main__":
    main()
