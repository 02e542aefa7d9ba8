"""Measures boot, decode, read-ahead and supervision on a machine with a GPU, stage by stage.

    python gpu_bench.py OUT STAGE...        runs the stages in order, each in a process of its own
    python gpu_bench.py --list
    python gpu_bench.py --tables OUT        prints what the stages saved, as Markdown

Stages of `gpu_served.py` that follow one another share one process and one server. Every stage leaves OUT/STAGE.json and
OUT/STAGE.log; one that fails does not end the others. Models are made on the spot below WORK (default /tmp/gpu-bench).
`--tiny` takes the embedded model and small numbers, to try the script on a CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

BEGAN = time.monotonic()
LEFT_S = float(os.environ.get("LEFT_S", "600"))  # what a stage has, set by `main`
_VARIANT_S = 58.0  # of the sweep
_START_S = 200.0  # of a server on a machine without caches
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "scripts")]

from aimo_solver.errors import AimoError  # noqa: E402 - found by the path set above

POCKET = ROOT / "data" / "pocket-model"
WORK = Path(os.environ.get("WORK", "/tmp/gpu-bench"))
LIMIT_S = {
    "boot-cold": 240,
    "boot-sequence": 240,
    "engine": 420,
    "sweep": 590,
    "decode-speculation": 590,
    "parallel": 590,
    "prefix-cache-sparse": 400,
    "routing": 300,
    "boot-files": 360,
    "faults": 420,
    "ladder": 240,
    "notebook": 240,
}
SLOTS = 16

STAGES: dict[str, Callable[[Path, bool], Any]] = {}


def stage(function: Callable[[Path, bool], Any]) -> Callable[[Path, bool], Any]:
    STAGES[function.__name__.replace("_", "-")] = function
    return function


# --- what the machine is ----------------------------------------------------------------------------------------------


@stage
def machine(out: Path, tiny: bool) -> Any:
    """Measures imports, the first time from the disk, then from memory; prints versions and the disk."""
    from aimo_solver.lab.bench.table import BenchResult

    def seconds(code: str) -> float:
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return time.monotonic() - began

    for command in (["nvidia-smi"], ["lscpu"], ["free", "-g"], ["df", "-h", "/tmp"], ["uname", "-a"]):
        with contextlib.suppress(FileNotFoundError):
            print("\n".join(subprocess.run(command, capture_output=True, text=True).stdout.splitlines()[:16]))
    rows = []
    for what, code in (
        ("nothing", "pass"),
        ("torch", "import torch"),
        ("vLLM's server", "import vllm.entrypoints.openai.api_server"),
        ("the library", f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r}); import aimo_solver.solve.session"),
    ):
        rows.append((what, seconds(code), seconds(code)))
    return BenchResult(name="machine", columns=("import of", "first s", "again s"), rows=tuple(rows))


# --- boot -------------------------------------------------------------------------------------------------------------


def _config(tiny: bool, **server: Any) -> Any:
    from aimo_solver.config import load_config

    values: dict[str, Any] = {"solver": {"slots": SLOTS, "max_attempts": SLOTS}, "server": server}
    values["sampling"] = {"top_logprobs": 0}
    if tiny:
        values["solver"] = {"slots": 2, "max_attempts": 2}
        values["kernels"] = {"size": 2}
        server.pop("load_format", None)
    return load_config(values)


def _shape(tiny: bool) -> Path:
    import gpu_shapes

    folder = WORK / "gpt-oss-120b-shape"
    if tiny:
        return POCKET
    if not (folder / "config.json").exists():
        gpu_shapes.write_folder(folder, gpu_shapes.LAYERS)
    return folder


def _archive() -> Path:
    return WORK / "gpt-oss.aimocache"


def _boot(out: Path, tiny: bool, name: str, model: Path, caches: Path | None, **server: Any) -> Any:
    """Boots once as a run does; the seconds count from the start of this process."""
    from aimo_solver.lab.bench import boot as bench_boot
    from aimo_solver.lab.bench.table import BenchResult
    from aimo_solver.server import compile_cache

    if caches is not None:
        os.environ.update(compile_cache.cache_environment(caches))
    run = WORK / "runs" / name
    shutil.rmtree(run, ignore_errors=True)
    stages = asyncio.run(bench_boot.boot_side_by_side(model, _config(tiny, **server), run, began=BEGAN))
    shutil.copy(run / "server.log", out / f"{name}.server.log")
    rows = [(stage.name, stage.start, stage.end, stage.end - stage.start) for stage in stages]
    return BenchResult(
        name=name,
        columns=("stage", "start s", "end s", "seconds"),
        rows=tuple(rows),
        details={"server": milestones(run / "server.log"), "total_s": stages[-1].end},
        notes=tuple(f"{seconds:6.1f} s  {text}" for seconds, text in milestones(run / "server.log")),
    )


def milestones(log: Path) -> list[tuple[float, str]]:
    """Returns the lines of a vLLM log that show the progress of a start, with seconds since its first line."""
    wanted = re.compile(
        r"vLLM API server version|Initializing a V1|world_size|Starting to load|Loading weights took|Model loading took|"
        r"torch.compile took|Directly load|AOT|Dynamo bytecode|KV cache size|Graph capturing|init engine|startup plan|"
        r"Starting vLLM|Application startup|We must use|fork|backend|warm",
        re.IGNORECASE,
    )
    first = None
    found = []
    for line in log.read_text(errors="replace").splitlines():
        stamp = re.search(r"\b\d\d-\d\d (\d\d):(\d\d):(\d\d)\b", line)
        if stamp is None:
            continue
        at = int(stamp[1]) * 3600 + int(stamp[2]) * 60 + int(stamp[3])
        first = at if first is None else first
        if wanted.search(line):
            found.append(((at - first) % 86_400.0, line[stamp.end() :].strip()[:160]))
    return found


@stage
def boot_cold(out: Path, tiny: bool) -> Any:
    """Boots without any compile cache; packs what was compiled."""
    from aimo_solver.server.compile_cache import default_root

    shutil.rmtree(default_root(), ignore_errors=True)
    result = _boot(out, tiny, "boot-cold", _shape(tiny), default_root(), load_format="dummy")
    _pack(tiny)
    return result


def _pack(tiny: bool) -> None:
    from aimo_solver.server.cache_build import pack_cache
    from aimo_solver.server.compile_cache import default_root, make_stamp
    from aimo_solver.server.launch import plan_launch

    root = default_root()
    stamp = make_stamp(plan_launch(_shape(tiny), _config(tiny, load_format="dummy")), root)
    if tiny:
        (root / "x").mkdir(parents=True, exist_ok=True)
        (root / "x" / "y").write_text("nothing is compiled on a CPU")
    began = time.monotonic()
    size = pack_cache(stamp, _archive())
    print(f"packed {size / 1e6:.1f} MB in {time.monotonic() - began:.1f} s")


@stage
def boot_second(out: Path, tiny: bool) -> Any:
    """Boots after boot-cold, with its compile caches."""
    from aimo_solver.server import compile_cache

    return _boot(out, tiny, "boot-second", _shape(tiny), compile_cache.default_root(), load_format="dummy")


@stage
def boot_shipped(out: Path, tiny: bool) -> Any:
    """Boots with only the packed cache, as the notebook does."""
    from aimo_solver.server.compile_cache import default_root

    shutil.rmtree(default_root(), ignore_errors=True)
    return _boot(out, tiny, "boot-shipped", _shape(tiny), None, load_format="dummy", compile_cache=str(_archive()))


@stage
def evict(out: Path, tiny: bool) -> Any:
    """Evicts all installed packages from the page cache: the next stage reads them from the disk, as a fresh machine does."""
    from aimo_solver.server.machine import package_folder
    from aimo_solver.server.pagecache import resident_bytes

    sites = {folder.parent for name in ("vllm", "torch") if (folder := package_folder(name)) is not None}
    files = [file for site in sites for file in site.rglob("*") if file.is_file() and not file.is_symlink()]
    before = sum(map(resident_bytes, files))
    for file in files:
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    left = sum(map(resident_bytes, files))
    return {"files": len(files), "bytes_in_memory_before": before, "bytes_in_memory_after": left}


@stage
def boot_spawn(out: Path, tiny: bool) -> Any:
    """Boots as boot-shipped does, but the engine process repeats the imports."""
    from aimo_solver.server.adjustments import Adjustments
    from aimo_solver.server.launch import LaunchPlan, plan_launch
    from aimo_solver.solve import session

    def plan_spawned(*args: Any) -> LaunchPlan:
        return dataclasses.replace(plan_launch(*args), adjustments=Adjustments(fork=False))

    session.plan_launch = plan_spawned  # type: ignore[assignment, attr-defined]
    return _boot(out, tiny, "boot-spawn", _shape(tiny), None, load_format="dummy", compile_cache=str(_archive()))


@stage
def boot_sequence(out: Path, tiny: bool) -> Any:
    """Runs the boot stages one after another and side by side, with only the shipped cache."""
    from aimo_solver.lab.bench.boot import bench_boot
    from aimo_solver.server.compile_cache import default_root

    shutil.rmtree(default_root(), ignore_errors=True)
    folder = WORK / "runs" / "boot-sequence"
    shutil.rmtree(folder, ignore_errors=True)
    config = _config(tiny, load_format="dummy", compile_cache=str(_archive()))
    return asyncio.run(bench_boot(_shape(tiny), config, folder))


# --- decode -----------------------------------------------------------------------------------------------------------


@stage
def engine(out: Path, tiny: bool) -> Any:
    """Compares the agent loop with the bare engine."""
    from aimo_solver.lab.bench.engine import bench_engine
    from aimo_solver.lab.bench.loop import Target
    from aimo_solver.log.environment import describe_environment
    from aimo_solver.log.writer import RunLog
    from aimo_solver.solve.session import local_session

    model = _shape(tiny)
    config = _config(tiny, load_format="dummy", compile_cache=str(_archive()) if _archive().exists() else None)
    run = WORK / "runs" / "engine"
    shutil.rmtree(run, ignore_errors=True)

    async def measure() -> Any:
        log = RunLog.create(run, config=config, environment=describe_environment(), started=BEGAN)
        async with local_session(model, config, log) as session:
            target = Target.of(session)
            if tiny:
                return await bench_engine(target, streams=(1, 2), tokens=100, turn_tokens=50)
            return await bench_engine(target, streams=(SLOTS, SLOTS // 2), tokens=1_200, turn_tokens=400, rounds=2)

    try:
        return asyncio.run(measure())
    finally:
        shutil.copy(run / "server.log", out / "engine.server.log")


def _decode(out: Path, tiny: bool, name: str, **options: Any) -> Any:
    import gpu_decode

    if tiny:
        options |= {"streams": (1, 2), "depths": (100,), "tokens": 40}
    return asyncio.run(gpu_decode.table(_shape(tiny), out, WORK, name=name, tiny=tiny, **options))


@stage
def routing(out: Path, tiny: bool) -> Any:
    """Distinct experts per layer and step with random weights, for several skews."""
    import gpu_decode

    if tiny:
        return "the embedded model is no mixture of experts"
    return asyncio.run(gpu_decode.routing(_shape(tiny), out, WORK, name="routing", skews=(0.0, 1.0), streams=(1, 4, 8, 16)))


@stage
def decode_fewer_graphs(out: Path, tiny: bool) -> Any:
    """Streams by depth with graphs for fewer numbers of streams, as vLLM captures them by default."""
    import gpu_decode

    variant = gpu_decode.FEWER_GRAPHS if not tiny else gpu_decode.BASE
    streams = (4, 5, 8, 12, 16, 20)
    return _decode(out, tiny, "decode-fewer-graphs", streams=streams, depths=(1_000, 16_000), tokens=384, variant=variant)


@stage
def decode_dummy(out: Path, tiny: bool) -> Any:
    """Streams by depth with vLLM's dummy weights, where every token takes the same experts."""
    return _decode(out, tiny, "decode-dummy", streams=(1, 8, 16, 32), depths=(1_000, 16_000), weights="dummy", tokens=384)


@stage
def prefix_cache_sparse(out: Path, tiny: bool) -> Any:
    """The stage prefix-cache with fewer blocks of sliding windows kept: those before every 512th token."""
    import gpu_decode
    import gpu_served

    environment = {} if tiny else {"VLLM_PREFIX_CACHE_RETENTION_INTERVAL": "512"}
    variant = gpu_decode.Variant(name="windows kept every 512 tokens", environment=environment)
    until = BEGAN + LEFT_S - 5
    return asyncio.run(
        gpu_served.run(["prefix-cache"], _shape(tiny), out, WORK, tiny=tiny, until=until, variant=variant, suffix="-sparse")
    )


@stage
def parallel(out: Path, tiny: bool) -> Any:
    """Tensor parallel against data parallel on two GPUs."""
    import gpu_served

    return asyncio.run(gpu_served.parallel(_shape(tiny), out, WORK, tiny=tiny))


@stage
def decode_speculation(out: Path, tiny: bool) -> Any:
    """Speculation with a head of random weights: 1, 8 and 16 streams, 1.5 to 3 tokens accepted per step at random.

    Servers that OUT has are not started again, so the stage can be repeated until it is whole.
    """
    import gpu_shapes
    import gpu_speculation

    head = WORK / "eagle3-head"
    gpu_shapes.write_head(head, _shape(tiny))
    streams = (1, 2) if tiny else (1, 8, 16)
    until = BEGAN + LEFT_S
    return asyncio.run(
        gpu_speculation.speculation(_shape(tiny), head, out, WORK, streams=streams, until=until, least_s=_VARIANT_S, tiny=tiny)
    )


@stage
def profile(out: Path, tiny: bool) -> Any:
    """Kernels of one decode step of 8 streams, 1,000 tokens deep, uniform routing."""
    import gpu_decode

    return "needs a GPU" if tiny else asyncio.run(gpu_decode.profile(_shape(tiny), out, WORK, streams=8, depth=1_000))


@stage
def sweep(out: Path, tiny: bool) -> Any:
    """One server after another, each with one option changed: 8 and 16 streams, 1,000 tokens deep, uniform routing.

    Variants that OUT has are not measured again, and none is started without time for it. The preset's own speed is that of
    the stage decode.
    """
    import gpu_decode
    from aimo_solver.lab.bench.table import BenchResult

    columns = ("variant", "streams", "tokens/s", "ms per step", "of bandwidth", "ready s")
    result = BenchResult(name="sweep", columns=columns, rows=_swept("preset", out / "decode.json"))
    for variant in (gpu_decode.BASE,) if tiny else gpu_decode.VARIANTS:
        name = "sweep-" + re.sub(r"\W+", "-", variant.name.lower())
        saved = out / f"{name}.json"
        if not saved.exists() or not _whole(saved):
            if time.monotonic() - BEGAN > LEFT_S - _VARIANT_S:
                break
            try:
                _decode(out, tiny, name, streams=(8, 16), depths=(1_000,), tokens=384, variant=variant).save(saved)
            except AimoError as error:  # a variant that this version of vLLM does not know; the others are measured
                saved.write_text(json.dumps({"details": {"error": str(error)[:400]}, "results": []}))
        result = dataclasses.replace(result, rows=(*result.rows, *_swept(variant.name, saved)))
        result.save(out / "sweep.json")
    return result


def _swept(name: str, saved: Path) -> tuple[tuple[Any, ...], ...]:
    """The sweep's rows of one server; none if it was not measured."""
    table = json.loads(saved.read_text()) if saved.exists() else {"results": [], "details": {}}
    details = table["details"]
    if "error" in details:
        return ((f"{name}: {details['error']}", None, None, None, None, None),)
    return tuple(
        (name, row["streams"], row["tokens/s"], row["ms per step"], row["of bandwidth"], details["ready_s"])
        for row in table["results"]
        if row["depth"] == 1_000
    )


def _whole(saved: Path) -> bool:
    table = json.loads(saved.read_text())
    return len(table["results"]) == 2 or "error" in table["details"]


# --- real files -------------------------------------------------------------------------------------------------------


def _weights(tiny: bool) -> Path:
    return POCKET if tiny else WORK / "gpt-oss-half"


@stage
def files(out: Path, tiny: bool) -> Any:
    """Writes 34 GB of random weights in gpt-oss's architecture."""
    import gpu_shapes

    if not tiny:
        gpu_shapes.write_folder(_weights(tiny), gpu_shapes.LAYERS // 2)
        began = time.monotonic()
        size = gpu_shapes.write_weights(_weights(tiny), gpu_shapes.LAYERS // 2)
        print(f"{size / 1e9:.1f} GB in {time.monotonic() - began:.1f} s")


@stage
def readahead(out: Path, tiny: bool) -> Any:
    """Compares read-ahead with other readers on half of the files, and repeats it on all of them when warm."""
    from aimo_solver.lab.bench.boot import weight_files
    from aimo_solver.lab.bench.readahead import bench_read_ahead
    from aimo_solver.server.readahead import read_ahead

    every = weight_files(_weights(tiny))
    result = bench_read_ahead(every[: max(1, len(every) // 2)], limit_bytes=100 << 30)
    for number in ("the rest", "warm", "warm"):
        print(number, read_ahead(every, limit_bytes=100 << 30))
    return result


@stage
def boot_files(out: Path, tiny: bool) -> Any:
    """Reads cold files and starts the server, one after another and side by side; a first boot fills the compile caches."""
    from aimo_solver.lab.bench.boot import bench_boot
    from aimo_solver.server import compile_cache

    os.environ.update(compile_cache.cache_environment(compile_cache.default_root()))
    fill = _boot(out, tiny, "boot-files-fill", _weights(tiny), None)
    fill.show(_console())
    folder = WORK / "runs" / "boot-files"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        return asyncio.run(bench_boot(_weights(tiny), _config(tiny), folder, cold_files=True))
    finally:
        for log in folder.rglob("server.log"):
            shutil.copy(log, out / f"boot-files.{log.parent.name}.server.log")


# --- real answers -----------------------------------------------------------------------------------------------------


@stage
def notebook(out: Path, tiny: bool) -> Any:
    """Runs the built notebook from top to bottom, with the embedded model and a local gateway."""
    import nbclient
    import nbformat
    import polars as pl

    folder = WORK / "notebook"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    problems = pl.read_csv(ROOT / "data" / "warmup.csv").head(4 if tiny else 30)
    problems.select("id", "problem").write_csv(folder / "test.csv")
    book = nbformat.read(ROOT / "notebook" / "aimo_solver.ipynb", as_version=4)
    settings = next(cell for cell in book.cells if cell.source.startswith("MODEL = "))
    settings.source = re.sub(r'^MODEL = ".*?"', f'MODEL = "{POCKET}"', settings.source, flags=re.MULTILINE)
    settings.source = re.sub(r'^PROBLEMS = ".*?"', f'PROBLEMS = "{folder / "test.csv"}"', settings.source, flags=re.MULTILINE)
    client = nbclient.NotebookClient(
        book, timeout=LIMIT_S["notebook"], kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    began = time.monotonic()
    try:
        client.execute()
    finally:
        nbformat.write(book, out / "notebook.executed.ipynb")
        for log in folder.rglob("server.log"):
            shutil.copy(log, out / "notebook.server.log")
        for run in folder.rglob("run.json"):
            shutil.copytree(run.parent, out / "notebook-run", dirs_exist_ok=True)
    seconds = time.monotonic() - began
    answers = pl.read_parquet(folder / "submission.parquet").join(
        problems.select("id", truth=pl.col("answer").cast(pl.Int64)), on="id"
    )
    right = int((answers["answer"] == answers["truth"]).sum())
    return {"seconds": seconds, "problems": len(answers), "right": right}


@stage
def faults(out: Path, tiny: bool) -> Any:
    """Kills the server, and stops it, in the middle of a problem."""
    import gpu_faults

    return {fault: gpu_faults.inject(out, WORK, tiny, fault) for fault in ("kill", "stop")}


@stage
def fault_memory(out: Path, tiny: bool) -> Any:
    """In the middle of a problem another process takes all GPU memory, and the server needs more than it has."""
    import gpu_faults

    return "needs a GPU" if tiny else gpu_faults.inject(out, WORK, tiny, "memory")


@stage
def ladder(out: Path, tiny: bool) -> Any:
    """Forces faults on the server's start: what was read, the steps that answered, and the seconds lost."""
    import gpu_ladder

    return gpu_ladder.table(out, WORK, POCKET, tiny=tiny, left_s=lambda: LEFT_S - (time.monotonic() - BEGAN))


# --- running ----------------------------------------------------------------------------------------------------------


def _console() -> Any:
    from rich.console import Console

    return Console(width=200)  # a log file has no width of its own


def run_one(name: str, out: Path, tiny: bool) -> None:
    """Runs one stage, or a group that shares a server, separated by commas."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if name not in STAGES:
        import gpu_served

        asyncio.run(gpu_served.run(name.split(","), _shape(tiny), out, WORK, tiny=tiny, until=BEGAN + LEFT_S - 5))
        return
    result = STAGES[name](out, tiny)
    if hasattr(result, "show"):
        result.show(_console())
        result.save(out / f"{name}.json")
    elif result is not None:
        (out / f"{name}.json").write_text(json.dumps(result, indent=1))


def groups(names: Sequence[str], served: Container[str]) -> list[str]:
    """The stages, with those that follow one another and share a server joined by commas."""
    runs = itertools.groupby(names, key=lambda name: name in served)
    return [one for shared, run in runs for one in ([",".join(run)] if shared else run)]


def run_stage(name: str, out: Path, left: float, *, tiny: bool) -> None:
    """Runs a stage or a group in a process of its own, for `left` seconds at most; prints the end of its log."""
    import gpu_served

    began = time.monotonic()
    own = [gpu_served.LIMIT_S[part] for part in name.split(",") if part in gpu_served.LIMIT_S]
    limit = min(left, _START_S + sum(own) if own else LIMIT_S.get(name, 200))
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
