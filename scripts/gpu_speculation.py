"""Decode tables of gpt-oss-120b's shape with speculation: how many tokens per step must be accepted for it to pay off.

`gpu_bench.py` runs `speculation` as a stage. Heads have random weights, and vLLM accepts their tokens at random at a given rate
(``"rejection_sample_method": "synthetic"``), so that a step takes as long as with a trained head.
"""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from aimo_solver.errors import AimoError
from aimo_solver.lab.bench.table import BenchResult, Value
from gpu_decode import BASE, Variant, table

COLUMNS = ("variant", "streams", "tokens/s", "against none", "tokens per step", "ms per step", "break-even", "ready s")


def speculating(head: Path, accepted: float, *, drafted: int = 3, name: str = "", **options: Any) -> Variant:
    """Speculation with a head of random weights; vLLM accepts its tokens at random, for a mean of `accepted` per step."""
    drawn = {"rejection_sample_method": "synthetic", "synthetic_acceptance_length": accepted}
    server = {
        "speculative": "eagle",
        "draft_model": str(head),
        "speculative_tokens": drafted,
        "speculative_options": {**drawn, **options},
    }
    return Variant(name=name or f"{drafted} drafted, {accepted:g} per step", server=server)


def variants(head: Path) -> tuple[Variant, ...]:
    """What `speculation` compares with a server without a head, the most important ones first."""
    nucleus = speculating(head, 2.5, name="3 drafted, 2.5 per step, top_p 0.98")
    by_streams = speculating(
        head,
        2.5,
        name="3 drafted for up to 4 streams, 1 for more, model runner V2",
        synthetic_acceptance_length=None,
        synthetic_acceptance_rates=[0.65, 0.42, 0.27],
        num_speculative_tokens_per_batch_size=[[1, 4, 3], [5, 1_024, 1]],
    )
    return (
        *(speculating(head, accepted) for accepted in (2.5, 1.5, 2.0, 3.0)),
        dataclasses.replace(nucleus, sampling={"top_p": 0.98}),
        speculating(head, 1.6, drafted=1),
        speculating(head, 2.0, drafted=2),
        dataclasses.replace(by_streams, environment={"VLLM_USE_V2_MODEL_RUNNER": "1"}),
    )


async def speculation(
    model: Path, head: Path, out: Path, work: Path, *, streams: Sequence[int], until: float, least_s: float, tiny: bool
) -> BenchResult:
    """Tokens per second with a head, by the tokens accepted per step, against a server without; saved after each server.

    Servers that `out` has are not started again, and none is started later than `least_s` before `until` (a `time.monotonic`).
    """
    depth, tokens = (100, 40) if tiny else (1_000, 384)
    result = BenchResult(name="decode-speculation", columns=COLUMNS, rows=())
    tables: dict[str, dict[str, Any]] = {}
    # vLLM's CPU build cannot accept tokens at random, so there the head's own are checked, and hardly any are accepted.
    heads = (Variant(name="random head", server={"speculative": "eagle", "draft_model": str(head)}),)
    for number, variant in enumerate((BASE, *(heads if tiny else variants(head)))):
        name = f"decode-speculation-{number}"
        saved = out / f"{name}.json"
        if not _whole(saved):
            if time.monotonic() > until - least_s:
                break
            try:
                bench = await table(
                    model, out, work, name=name, streams=streams, depths=(depth,), tokens=tokens, variant=variant, tiny=tiny
                )
            except (AimoError, ValueError, aiohttp.ClientError) as error:  # it does not start, or dies; the others are measured
                saved.write_text(json.dumps({"details": {"error": str(error)[:400]}, "results": []}))
            else:
                lengths = acceptance_lengths(out / f"{name}.server.log")
                dataclasses.replace(bench, details={**bench.details, "accepted": lengths}).save(saved)
        tables[variant.name] = json.loads(saved.read_text())
        result = dataclasses.replace(result, rows=rows_of(tables))
        result.save(out / "decode-speculation.json")
    return result


def _whole(saved: Path) -> bool:
    """Whether a server's table has all its rows; one that was cut has no tokens per step yet."""
    return saved.exists() and bool({"accepted", "error"} & set(json.loads(saved.read_text())["details"]))


def rows_of(tables: Mapping[str, Mapping[str, Any]]) -> tuple[tuple[Value, ...], ...]:
    """The rows of `speculation` from the tables by variant, the first of which drafts nothing.

    The break-even is the tokens per step from which drafting pays: how much longer its steps take. A step is as long however
    many tokens are accepted.
    """
    none = {row["streams"]: row["tokens/s"] for row in next(iter(tables.values()))["results"]}
    rows: list[tuple[Value, ...]] = []
    for name, saved in tables.items():
        details = saved["details"]
        if "error" in details:
            rows.append((f"{name}: {details['error']}", *[None] * (len(COLUMNS) - 1)))
        lengths = details.get("accepted") or ()
        accepted = sum(lengths) / len(lengths) if lengths else 1.0
        for row in saved["results"]:
            streams, rate = row["streams"], row["tokens/s"]
            against = rate / none[streams] if streams in none else None
            even = accepted / against if against else None
            rows.append((name, streams, rate, against, accepted, 1e3 * accepted * streams / rate, even, details["ready_s"]))
    return tuple(rows)


def acceptance_lengths(log: Path) -> list[float]:
    """Mean tokens per step of each interval of a server's log; none without speculation."""
    text = log.read_text(encoding="utf-8", errors="replace")
    return [float(length) for length in re.findall(r"Mean acceptance length: ([\d.]+)", text)]
