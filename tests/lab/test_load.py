"""Lengths of turns, the prefix cache under load, and the tables of what was measured on a GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from aimo_solver.chat.families import load_chat_format
from aimo_solver.config import load_config
from aimo_solver.errors import ConfigError
from aimo_solver.lab.bench.decode_server import server_options
from aimo_solver.lab.bench.load import Lengths, TurnLength, even_turns
from aimo_solver.lab.bench.loop import Target
from aimo_solver.lab.bench.prefix_cache import CacheLoad, TurnRecord, tabulate
from aimo_solver.lab.bench.random_weights import expected_experts
from aimo_solver.lab.bench.table import BenchResult
from aimo_solver.server.client import RANK_HEADER
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

import gpu_bench
import gpu_tables

CALL, END, START, ASSISTANT = 200_012, 200_007, 200_006, 173_781
RESULT = [START, 29_010, 5, 6, END, START, ASSISTANT]


def attempts(path: Path, *conversations: list[int]) -> Path:
    ends = np.cumsum([len(tokens) for tokens in conversations])
    np.savez(path, tokens=np.array([t for tokens in conversations for t in tokens], np.uint32), ends=ends)
    return path


def test_logged_turns_are_read_with_the_results_behind_them(tmp_path: Path) -> None:
    first = [1, END, START, 2, CALL, *RESULT, 3, CALL, *RESULT, 4, 200_002]
    file = attempts(tmp_path / "attempts.npz", first, [9, CALL])
    assert Lengths.read(file).turns == (TurnLength(5, len(RESULT)), TurnLength(2, len(RESULT)))


@pytest.mark.parametrize("content", [b"", b"PK", b"no archive"])
def test_attempts_that_cannot_be_read_are_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "attempts.npz"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be read"):
        Lengths.read(file)


def test_attempts_without_a_call_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no tool call"):
        Lengths.read(attempts(tmp_path / "attempts.npz", [1, 2, END]))


def test_without_logged_attempts_lengths_have_their_quantiles() -> None:
    turns = Lengths.read(None).turns
    sampled, results = ([turn.sampled for turn in turns], [turn.result for turn in turns])
    assert np.median(sampled) == pytest.approx(320, rel=0.1)
    assert np.mean(sampled) == pytest.approx(1_298, rel=0.1)
    assert np.median(results) == pytest.approx(19, abs=1)
    assert np.quantile(results, 0.99) == pytest.approx(503, rel=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_drawn_turns_have_the_wanted_number_of_tokens(seed: int) -> None:
    turns = Lengths.read(None).draw(5_000, seed)
    assert sum(turn.sampled for turn in turns) == 5_000
    assert all(turn.sampled > 0 for turn in turns)


def test_even_turns_are_at_least_one() -> None:
    assert even_turns(100, 30, 7) == (TurnLength(30, 7),) * 3
    assert even_turns(10, 30, 7) == (TurnLength(30, 7),)


def test_skewed_routing_takes_fewer_experts() -> None:
    uniform, skewed, same = (expected_experts(8, 128, 4, skew=skew) for skew in (1e-9, 1.0, 100.0))
    assert uniform == pytest.approx(expected_experts(8, 128, 4), rel=0.02)
    assert same == pytest.approx(4, abs=0.2)
    assert skewed == pytest.approx(19.5, rel=0.07)  # measured on an H200 (docs/benchmarks.md)


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "load_format"), [("real", None), ("dummy", "dummy"), ("random", "aimo-random")])
def test_the_weights_decide_the_load_format(weights: str, load_format: str | None) -> None:
    options = server_options(weights, 0.5)  # type: ignore[arg-type]
    server = load_config({"server": options}).server
    assert server.load_format == load_format
    assert server.restarts == 0
    assert ('{"skew": 0.5}' in server.extra_args) == (weights == "random")


def test_turns_that_lost_their_prefix_are_counted_by_how_full_the_cache_was() -> None:
    kept = [TurnRecord(fill=0.3, whole=1_600, cached=1_600, seconds=0.1)]
    full = [TurnRecord(fill=0.93, whole=32_000, cached=cached, seconds=seconds) for cached, seconds in ((32_000, 0.1), (0, 4.1))]
    result = tabulate("x", [*kept, *full, full[0]], kv_tokens=700_000, ends=[30_000])
    low, high = (dict(zip(result.columns, row, strict=True)) for row in result.rows)
    assert (low["turns"], low["lost"], low["cached, worst"]) == (1, 0, 1.0)
    assert (high["turns"], high["lost"], high["cached, worst"], high["tokens again"]) == (3, 1, 0.0, 32_000)
    assert high["cached, mean"] == pytest.approx(2 / 3)
    assert high["seconds lost"] == pytest.approx(4.0)


def test_conversations_fill_the_share_of_the_cache_as_far_as_the_context_allows() -> None:
    load = CacheLoad(kv_tokens=700_000)
    assert sum(load.ends(65_536)) == pytest.approx(0.95 * 700_000, rel=1e-3)
    assert max(load.ends(65_536)) <= 65_536 * 15 / 16
    assert load.ends(32_768) == [30_720] * 16


def test_stages_that_follow_one_another_share_a_server() -> None:
    assert gpu_bench.groups(["a", "b", "x", "c"], {"a", "b", "c"}) == ["a,b", "x", "c"]


def saved(out: Path, name: str, *rows: tuple[int, int, float]) -> None:
    columns = ("depth", "streams", "tokens/s", "ms per step", "experts per layer", "GB per step", "of bandwidth")
    values = tuple((depth, streams, rate, 1.5, 28.7, 17.0, 0.4) for depth, streams, rate in rows)
    BenchResult(name=name, columns=columns, rows=values, notes=(f"of {name}, skew 0.9",)).save(out / f"{name}.json")


def test_decode_tables_are_joined_by_depth_and_streams(tmp_path: Path) -> None:
    saved(tmp_path, "decode-deep", (32_000, 8, 700.0))
    saved(tmp_path, "decode", (1_000, 8, 895.2), (1_000, 16, 1_235.0))
    saved(tmp_path, "decode-skewed", (1_000, 16, 1_400.0))
    page = gpu_tables.render(tmp_path)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    assert rows[0][-2:] == ["of bandwidth", "skewed, tokens/s"]
    assert [(row[0], row[1], row[4], row[-1]) for row in rows[2:]] == [
        ("1,000", "8", "895", ""),
        ("1,000", "16", "1,235", "1,400"),
        ("32,000", "8", "700", ""),
    ]
    assert "of decode-skewed, skew 0.9" in page


def test_other_results_are_rendered_as_saved(tmp_path: Path) -> None:
    BenchResult(name="sweep", columns=("variant", "tokens/s"), rows=(("x", 9.0),), notes=("careful",)).save(
        tmp_path / "sweep.json"
    )
    (tmp_path / "faults.json").write_text(json.dumps({"kill": 1}))
    page = gpu_tables.render(tmp_path)
    assert "| x | 9 |" in page
    assert "- careful" in page
    assert "kill" not in page


@pytest.mark.parametrize(("copies", "headers"), [(1, [{}, {}, {}]), (2, [{RANK_HEADER: rank} for rank in ("0", "1", "0")])])
def test_bare_requests_spread_over_the_copies_of_the_model(copies: int, headers: list[dict[str, str]]) -> None:
    target = Target(
        base_url="",
        model="m",
        chat=load_chat_format(ROOT / "data" / "pocket-model"),
        config=load_config({}),
        context_tokens=1,
        vocabulary=1,
        copies=copies,
    )
    assert [target.rank_header(number) for number in range(3)] == headers
