"""Tests whether tokens sampled under speculation have the model's own distribution.

`gpu_bench.py` runs `speculation-sampled` as a stage: the embedded model at temperature 1, on a server with its draft and,
concurrently, on one without. It compares attempts at the warm-up problems, and the first tokens of many samples of one prompt.
"""

from __future__ import annotations

import asyncio
import csv
import os
import shutil
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from aimo_solver.chat.prompts import Prompt
from aimo_solver.clock import RunClock
from aimo_solver.config import load_config
from aimo_solver.lab.bench.table import BenchResult, Value
from aimo_solver.log.reader import read_run
from aimo_solver.log.writer import RunLog
from aimo_solver.problems import Problem
from aimo_solver.results import DraftCounts
from aimo_solver.server.completions import read_drafts
from aimo_solver.solve.evaluate import evaluate
from aimo_solver.solve.session import Session, local_session

ROOT = Path(__file__).resolve().parent.parent
_COLUMNS = ("what", "without a draft", "with the draft", "p")
_TOKENS = 6  # of a sample
_TOGETHER = 64  # samples of one request
_LEAST = 10  # samples of a category, over both servers; rarer categories are merged
_PERMUTATIONS = 4_000


@dataclass(frozen=True)
class Sampled:
    """What one server sampled.

    Attributes:
        samples: the first tokens of each sample, by prompt.
        right, tokens: shares of right attempts and mean tokens of an attempt, by problem.
        drafts: None without a draft.
    """

    samples: Mapping[str, Sequence[tuple[int, ...]]]
    right: Mapping[str, float]
    tokens: Mapping[str, float]
    drafts: DraftCounts | None


async def compare(out: Path, work: Path, pocket: Path, *, tiny: bool) -> BenchResult:
    """Returns the table; with `tiny` both servers are without a draft, as vLLM's CPU build samples wrongly under speculation."""
    draft = None if tiny else ROOT / "data" / "pocket-draft"
    names = ("speculation-none", "speculation-draft")
    none, drafted = await asyncio.gather(
        *(_sample(out, work / "runs" / name, pocket, one, tiny=tiny) for name, one in zip(names, (None, draft), strict=True))
    )
    return tabulate(none, drafted)


async def _sample(out: Path, run: Path, pocket: Path, draft: Path | None, *, tiny: bool) -> Sampled:
    shutil.rmtree(run, ignore_errors=True)
    beside = {} if tiny else {"memory_share": 0.05, "extra_args": ["--kv-cache-memory-bytes", str(2 << 30)]}
    values: dict[str, Any] = {
        "server": {"restarts": 0, "draft_model": str(draft) if draft else None, **beside},
        "solver": {"slots": 8, "max_attempts": 8, "parallel": 1 if tiny else 4},
        "sampling": {"temperature": 1.0, "min_p": 0.0},
        "voting": {"stop": "never"},
        "kernels": {"size": 8 if tiny else min(32, os.cpu_count() or 8)},
    }
    config = load_config(values, pocket)
    with (ROOT / "data" / "warmup.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[: 2 if tiny else 30]
    problems = [Problem(row["id"], row["problem"], int(row["answer"])) for row in rows]
    with RunLog.create(run, config=config) as log:
        try:
            async with local_session(pocket, config, log) as session:
                print(f"{run.name}: ready", flush=True)
                samples = await _first_tokens(session, problems[0], 4 if tiny else 64)
                print(f"{run.name}: sampled first tokens", flush=True)
                clock = RunClock.begin(config.budget, asyncio.get_running_loop().time, asyncio.get_running_loop().time())
                await evaluate(session.solver.solve, problems, config.budget, clock, parallel=config.solver.parallel)
                drafts = read_drafts(await session.engine.metrics())
        finally:
            shutil.copy(log.server_log or run / "server.log", out / f"{run.name}.server.log")
        log.finish()
    attempts = read_run(run).attempts
    by_problem = {problem: [one for one in attempts if one.problem_id == problem.id] for problem in problems}
    return Sampled(
        samples=samples,
        right={problem.id: _mean([one.answer == problem.truth for one in tried]) for problem, tried in by_problem.items()},
        tokens={problem.id: _mean([one.tokens for one in tried]) for problem, tried in by_problem.items()},
        drafts=drafts,
    )


async def _first_tokens(session: Session, problem: Problem, requests: int) -> dict[str, list[tuple[int, ...]]]:
    """Samples each prompt `requests` times `_TOGETHER` times, eight requests at a time."""
    whole = session.resources.chat.prompt(Prompt(user=problem.text))
    prompts = {"a problem": whole, "half a problem": whole[: len(whole) // 2], "one token": whole[:1]}
    found: dict[str, list[tuple[int, ...]]] = {name: [] for name in prompts}
    slots = asyncio.Semaphore(8)
    body = {"max_tokens": _TOKENS, "n": _TOGETHER, "temperature": 1.0, "ignore_eos": True, "return_token_ids": True}

    async def sample(http: aiohttp.ClientSession, name: str) -> None:
        asked = {**body, "model": session.engine.model, "prompt": prompts[name]}
        async with slots, http.post(f"{session.engine.base_url}/v1/completions", json=asked) as response:
            response.raise_for_status()
            found[name] += [tuple(choice["token_ids"]) for choice in (await response.json())["choices"]]

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as http, asyncio.TaskGroup() as group:
        for name in prompts:
            for _ in range(requests):
                group.create_task(sample(http, name))
    return found


def tabulate(none: Sampled, drafted: Sampled) -> BenchResult:
    """Compares two servers; small values of p suggest that they differ."""
    rows: list[tuple[Value, ...]] = []
    for what, one, other in (("right attempts", none.right, drafted.right), ("tokens per attempt", none.tokens, drafted.tokens)):
        rows.append((what, _mean([*one.values()]), _mean([*other.values()]), paired_p([one[key] - other[key] for key in one])))
    steps = 1.0 if drafted.drafts is None else drafted.drafts.tokens_per_step
    rows.append(("tokens per step", 1.0, steps, None))
    halves = []
    for prompt, samples in none.samples.items():
        for what, of in _CATEGORIES.items():
            own, others = ([sample[of] for sample in each] for each in (samples, drafted.samples[prompt]))
            commonest = Counter(own).most_common(1)[0][0]
            shares = (_mean([sample == commonest for sample in each]) for each in (own, others))
            rows.append((f"{prompt}: commonest {what}", *shares, distribution_p(own, others)))
            halves.append(distribution_p(own[::2], own[1::2]))
    tested = [float(row[3]) for row in rows if row[3] is not None]
    counts = ", ".join(f"{len(samples):,} of {prompt}" for prompt, samples in none.samples.items())
    return BenchResult(
        name="speculation-sampled",
        columns=_COLUMNS,
        rows=tuple(rows),
        notes=(
            f"samples of each server: {counts}; attempts at {len(none.right)} problems",
            "p: of tokens a chi-square test of both histograms, of attempts their differences by problem with random signs; "
            f"the smallest of {len(tested)} is {min(tested):.3g}, times {len(tested)} {len(tested) * min(tested):.3g}",
            f"the two halves of the samples without a draft, compared in the same way: the smallest p of {len(halves)} is "
            f"{min(halves):.3g}",
        ),
        details={"drafts": None if drafted.drafts is None else asdict(drafted.drafts)},
    )


_CATEGORIES: Mapping[str, slice] = {
    **{f"token {number + 1}": slice(number, number + 1) for number in range(_TOKENS)},
    "tokens 1 to 4": slice(0, 4),
}


def distribution_p(one: Sequence[Hashable], other: Sequence[Hashable]) -> float:
    """Returns the p-value of the chi-square statistic of two histograms, by permutation; 1 if there is one category only."""
    counted, against = Counter(one), Counter(other)
    names = sorted(counted | against, key=repr)
    table = np.array([[counted[name] for name in names], [against[name] for name in names]])
    rare = table.sum(axis=0) < _LEAST
    table = np.column_stack([table[:, ~rare], table[:, rare].sum(axis=1)])
    table = table[:, table.sum(axis=0) > 0]
    if table.shape[1] < 2:
        return 1.0
    pooled, size = table.sum(axis=0), len(one)
    expected = pooled * size / pooled.sum()
    drawn = np.random.default_rng(0).multivariate_hypergeometric(pooled, size, _PERMUTATIONS, method="marginals")
    # With both sums given, the statistic of the other row is a constant times that of this one.
    statistic = ((drawn - expected) ** 2 / expected).sum(axis=1)
    found = ((table[0] - expected) ** 2 / expected).sum()
    return float((1 + (statistic >= found - 1e-9).sum()) / (1 + _PERMUTATIONS))


def paired_p(differences: Sequence[float]) -> float:
    """Returns the two-sided p-value of a mean difference of pairs, by random signs."""
    values = np.array(differences)
    signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(_PERMUTATIONS, len(values)))
    extreme = np.abs((signs * values).mean(axis=1)) >= abs(values.mean()) - 1e-12
    return float((1 + extreme.sum()) / (1 + _PERMUTATIONS))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
