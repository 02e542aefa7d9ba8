"""Benchmarks at a minimal scale; about 15 s when the server of the session runs."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from aimo_solver.chat.families import load_chat_format
from aimo_solver.config import load_config
from aimo_solver.errors import UserError
from aimo_solver.lab.bench.engine import bench_engine
from aimo_solver.lab.bench.loop import Target
from aimo_solver.lab.bench.parse import Reader, bench_parse
from aimo_solver.lab.bench.readahead import bench_read_ahead, evict, make_files, resident_bytes
from aimo_solver.lab.bench.table import BenchResult, format_cell
from aimo_solver.server.readahead import read_ahead
from aimo_solver.server.warmup import warm_up
from tests.conftest import Served

MB = 1 << 20


@pytest.fixture
def files() -> Iterator[list[Path]]:
    for place in (None, "/var/tmp", "."):
        with tempfile.TemporaryDirectory(dir=place) as folder:
            made = make_files(Path(folder), 8 * MB / 1e9, count=2)
            try:
                evict(made)
            except UserError:
                continue
            yield made
            return
    pytest.skip("no folder whose files leave the page cache")


def test_every_reader_reads_the_same_cold_files(files: list[Path]) -> None:
    result = bench_read_ahead(files)
    assert {row[2] for row in result.rows} == {8 * MB / 1e9}
    assert [row[1] for row in result.rows] == ["cold"] * (len(result.rows) - 1) + ["warm"]
    assert result.details["resident_share"] > 0.9  # a kernel short of memory takes pages back


def test_evicted_files_leave_the_page_cache(files: list[Path]) -> None:
    read_ahead(files)
    evict(files)
    assert sum(map(resident_bytes, files)) == 0


def test_nothing_to_read_is_an_error() -> None:
    with pytest.raises(UserError, match="nothing to read"):
        bench_read_ahead([])


def test_random_files_have_the_requested_size(tmp_path: Path) -> None:
    made = make_files(tmp_path, 0.003, count=3)
    assert [file.stat().st_size for file in made] == [1_000_000] * 3
    assert len({file.read_bytes() for file in made}) == 3


@pytest.mark.vllm
@pytest.mark.kernels
async def test_the_loop_is_measured_on_a_real_server(vllm: Served) -> None:
    config = load_config({"solver": {"slots": 2}})
    async with vllm.engine() as engine:
        target = Target(
            base_url=engine.base_url,
            model=engine.model,
            chat=load_chat_format(vllm.model),
            config=config,
            context_tokens=engine.context_tokens,
            vocabulary=1_000,
            block_tokens=32,
        )
        result = await bench_engine(target, streams=(2,), tokens=64, turn_tokens=32)
    by_name = {str(row[1]): dict(zip(result.columns, row, strict=True)) for row in result.rows}
    assert set(by_name) == {"bare", "bare, logprobs 0", "bare, logprobs 5", "loop", "bare, turns", "loop, tools"}
    assert by_name["bare"]["of bare"] == 1
    # The loop sampled as many tokens as the bare engine, and its prompts were cached to the last whole block.
    for name in ("loop", "loop, tools"):
        figures = result.details[f"2 {name}"]
        assert figures["rates"][0] * figures["seconds"][0] == pytest.approx(2 * 64)
    assert by_name["loop, tools"]["cached of whole blocks"] == 1
    assert all(0 <= seconds < 60 for seconds in result.details["abort_seconds"])


@pytest.mark.vllm
async def test_first_requests_fit_any_context(vllm: Served) -> None:
    async with vllm.engine() as engine:
        engine.context_tokens = min(engine.context_tokens, 200)
        await warm_up(engine, slots=3, vocabulary=1_000)
        assert engine.running == 0
        assert engine.tokens_streamed > 0


def test_parsing_shows_the_slowest_input_of_each_reader() -> None:
    readers = [Reader("answers", entry, lambda sample: sample.text.count("1")) for entry in ("first", "second")]
    result = bench_parse(readers, (10, 100))
    assert [row[:2] for row in result.rows] == [("answers", "first"), ("answers", "second")]
    assert all(isinstance(row[4], float) for row in result.rows)  # measured at the second size, so among the slowest
    assert len(bench_parse(readers, (10, 100), every=True).rows) == 2 * len(readers[0].inputs)


def test_a_result_includes_machine_and_command(tmp_path: Path) -> None:
    BenchResult(name="x", columns=("a", "b"), rows=((1, 2.0), ("y", None)), notes=("careful",)).save(tmp_path / "deep" / "x.json")
    saved = json.loads((tmp_path / "deep" / "x.json").read_text())
    assert saved["results"] == [{"a": 1, "b": 2.0}, {"a": "y", "b": None}]
    assert saved["environment"]["cpus"] == len(os.sched_getaffinity(0))
    assert saved["notes"] == ["careful"]


def test_a_table_is_markdown() -> None:
    output = io.StringIO()
    BenchResult(name="x", columns=("a", "b"), rows=((1_234, 0.12345),), notes=("careful",)).show(Console(file=output, width=80))
    lines = output.getvalue().split("\n")
    assert [line for line in lines if line.strip()] == [
        "| a     |     b |",
        "|-------|-------|",
        "| 1,234 | 0.123 |",
        "- careful",
    ]


def test_cells_are_printed_literally() -> None:
    output = io.StringIO()
    BenchResult(name="x", columns=("a",), rows=(("'['",), ("[b]",)), notes=("[i]",)).show(Console(file=output, width=80))
    assert [text for text in ("'['", "[b]", "[i]") if text not in output.getvalue()] == []


@pytest.mark.parametrize(
    ("value", "text"), [(123.4, "123"), (12.34, "12.3"), (0.00123, "0.00123"), (7, "7"), (None, ""), ("x", "x")]
)
def test_figures_have_three_significant_digits(value: float | str | None, text: str) -> None:
    assert format_cell(value) == text
