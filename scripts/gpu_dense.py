"""The stage `dense` of `gpu_bench.py`: a dense model's whole shape in BF16 and in FP8, on one GPU.

Qwen3-14B's shape, with made-up weights: what a dense model's step reads does not depend on their values. In BF16 it leaves room
for 16 streams of 16,000 tokens on 80 GB. FP8 is measured in two ways: as llm-compressor writes it, and as vLLM quantises BF16
weights while it loads them.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

import gpu_decode
import gpu_shapes
from aimo_solver.errors import AimoError
from aimo_solver.lab.bench.decode_server import Weights
from aimo_solver.lab.bench.table import BenchResult, Value
from gpu_common import POCKET

_LEAST_S = 100.0  # for one more server and its measurement
COLUMNS = ("weights", "depth", "streams", "tokens/s", "of BF16", "ms per step", "GB per step", "of bandwidth", "ready s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dense:
    """One server of the stage.

    Attributes:
        weights: how they are made up. vLLM's dummy ones are the only ones that it can quantise while it loads.
        quantization: the model's `quantization_config`.
        variant: how the server is started.
    """

    weights: Weights
    variant: gpu_decode.Variant
    quantization: Mapping[str, object] | None = None

    @property
    def name(self) -> str:
        return self.variant.name

    def folder(self, work: Path) -> Path:
        """The model's folder, made if it is not there."""
        folder = work / ("qwen3-14b-shape" if self.quantization is None else "qwen3-14b-shape-fp8")
        if not (folder / "config.json").exists():
            gpu_shapes.write_folder(folder, gpu_shapes.dense_config(self.quantization))
        return folder


SERVERS = (
    Dense(weights="random", variant=gpu_decode.Variant(name="BF16")),
    Dense(weights="random", variant=gpu_decode.Variant(name="FP8 dynamic"), quantization=gpu_shapes.FP8_DYNAMIC),
    Dense(weights="dummy", variant=gpu_decode.Variant(name="FP8 by vLLM at load", server={"quantization": "fp8"})),
)


def compare(out: Path, work: Path, *, until: float, tiny: bool = False) -> BenchResult:
    """Measures 8 and 16 streams, 1,000 and 16,000 tokens deep, with each kind of weights; saved after each row and server.

    Servers that `out` has are not started again, and none without time for it before `until` (a `time.monotonic`). With `tiny`
    the pocket model stands in for the shape; as it is in BF16, only vLLM can quantise it.
    """
    result = BenchResult(name="dense", columns=COLUMNS, rows=())
    tables: dict[str, Mapping[str, Any]] = {}
    for number, server in enumerate(SERVERS):
        if tiny and server.quantization is not None:
            continue
        saved = out / f"dense-{number}.json"
        if not _is_whole(saved, 2 if tiny else 4):
            if time.monotonic() > until - _LEAST_S:
                break
            try:
                asyncio.run(_measure(server, saved, work, tiny=tiny)).save(saved)
            except (AimoError, ValueError, aiohttp.ClientError) as error:  # it does not start, or dies; the others are measured
                saved.write_text(json.dumps({"details": {"error": str(error)[:400]}, "results": []}))
        tables[server.name] = json.loads(saved.read_text())
        result = dataclasses.replace(result, rows=rows_of(tables))
        result.save(out / "dense.json")
    return result


async def _measure(server: Dense, saved: Path, work: Path, *, tiny: bool) -> BenchResult:
    streams, depths, tokens = ((1, 2), (100,), 40) if tiny else ((8, 16), (1_000, 16_000), 256)
    return await gpu_decode.table(
        POCKET if tiny else server.folder(work),
        saved.parent,
        work,
        name=saved.stem,
        streams=streams,
        depths=depths,
        tokens=tokens,
        variant=server.variant,
        weights=server.weights,
        tiny=tiny,
    )


def rows_of(tables: Mapping[str, Mapping[str, Any]]) -> tuple[tuple[Value, ...], ...]:
    """The rows of `dense` from its servers' tables; the first is the baseline."""
    first = next(iter(tables.values()))["results"]
    bf16 = {(row["depth"], row["streams"]): row["tokens/s"] for row in first}
    rows: list[tuple[Value, ...]] = []
    for name, saved in tables.items():
        details = saved["details"]
        if "error" in details:
            rows.append((f"{name}: {details['error'].splitlines()[0]}", *[None] * (len(COLUMNS) - 1)))
        for row in saved["results"]:
            rate, against = row["tokens/s"], bf16.get((row["depth"], row["streams"]))
            measured = (row["ms per step"], row["GB per step"], row["of bandwidth"], details["ready_s"])
            rows.append((name, row["depth"], row["streams"], rate, rate / against if against else None, *measured))
    return tuple(rows)


def _is_whole(saved: Path, rows: int) -> bool:
    """Whether a server's table has all its rows, or the reason for having none."""
    table = json.loads(saved.read_text()) if saved.exists() else {"details": {}, "results": []}
    return len(table["results"]) == rows or "error" in table["details"]
