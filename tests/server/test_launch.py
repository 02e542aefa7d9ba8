"""Launch plans: the presets, and whether the installed vLLM accepts their command lines."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aimo_solver.config import load_config
from aimo_solver.errors import ConfigError, ModelError
from aimo_solver.server import launch
from aimo_solver.server.flags import PRESETS, Adjustments, Graphs
from aimo_solver.server.launch import LaunchPlan, check_model, plan_launch
from aimo_solver.server.machine import Gpu, installed_flags
from tests.conftest import H100

L4 = Gpu("NVIDIA L4", 23_034 << 20, (8, 9), "580.1")

ADJUSTED = (
    Adjustments(graphs=Graphs.FEWER, moe_backend="marlin", fork=False),
    Adjustments(graphs=Graphs.NONE, memory_share=0.5, context_tokens=20_000, speculation=False),
)

# Prints every option of vLLM's own parser, and parses command lines with it.
PARSE = """
import json, sys
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser
try:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
except ImportError:
    from vllm.entrypoints.openai.cli_args import make_arg_parser
parser = make_arg_parser(FlexibleArgumentParser())
lines = json.load(sys.stdin)
options = sorted({option for action in parser._actions for option in action.option_strings})
print("RESULT" + json.dumps({"options": options, "parsed": [vars(parser.parse_args(line))["max_model_len"] for line in lines]}))
"""


@pytest.fixture(autouse=True)
def _every_flag_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(launch, "installed_flags", lambda path: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # the plugin is written there


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return folder(tmp_path, model_type="gpt_oss", max_position_embeddings=131_072)


def folder(path: Path, **config: object) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    return path


def plan(model: Path, gpus: tuple[Gpu, ...] = (H100,), slots: int = 8, **options: object) -> LaunchPlan:
    config = load_config({"server": options, "sampling": {"min_p": 0.0}, "attempt": {"answer_tokens": 100}})
    return plan_launch(model, config, slots=slots, gpus=gpus)


def test_a_run_that_may_grow_is_prepared_for_its_largest_plan(model: Path) -> None:
    config = load_config(settings=["solver.grow=true"])
    planned = plan_launch(model, config, gpus=(H100,))
    assert (planned.slots, values(planned)["--max-num-seqs"]) == (16, "16")
    graphs = json.loads(values(planned)["--compilation-config"] or "")["cudagraph_capture_sizes"]
    assert set(range(1, 17)) <= set(graphs)


def values(plan: LaunchPlan) -> dict[str, str | None]:
    return {flag.name: flag.value for flag in plan.flags}


@pytest.mark.parametrize(
    ("config", "gpus", "name"),
    [
        ({"model_type": "gpt_oss"}, (H100,), "gpt-oss-120b"),
        ({"model_type": "gemma4", "text_config": {"max_position_embeddings": 262_144}}, (H100,), "gemma-4-31b"),
        ({"model_type": "qwen3_moe"}, (H100,), "qwen3"),
        ({"model_type": "llama"}, (H100,), "generic"),
        ({"model_type": "gpt_oss"}, (), "cpu"),
    ],
)
def test_auto_chooses_by_model_and_gpus(tmp_path: Path, config: dict[str, object], gpus: tuple[Gpu, ...], name: str) -> None:
    assert plan(folder(tmp_path, **config), gpus).preset == name


def test_the_context_never_exceeds_the_model(tmp_path: Path) -> None:
    planned = plan(folder(tmp_path, model_type="qwen3", max_position_embeddings=4_096))
    assert planned.context_tokens == 4_096
    assert values(planned)["--max-model-len"] == "4096"


@pytest.mark.parametrize(
    ("gpus", "slots", "options", "context"),
    [
        ((H100,), 8, {}, 81_920),
        ((H100, H100), 8, {}, 81_920),
        ((H100,), 16, {}, 65_536),
        ((L4,), 1, {}, 65_536),
        ((), 8, {}, 65_536),
        ((H100,), 8, {"preset": "generic"}, 65_536),
        ((H100,), 8, {"kv_cache_dtype": "auto"}, 65_536),
        ((H100,), 8, {"memory_share": 0.8}, 65_536),
        ((H100,), 8, {"speculative": "ngram"}, 65_536),
        ((H100,), 16, {"context_tokens": 100_000}, 100_000),
    ],
)
def test_the_context_is_longer_where_the_cache_holds_it_for_all_slots(
    model: Path, gpus: tuple[Gpu, ...], slots: int, options: dict[str, object], context: int
) -> None:
    assert plan(model, gpus, slots, **options).context_tokens == context


def test_graphs_match_the_slots_and_the_drafted_tokens(tmp_path: Path) -> None:
    model = folder(tmp_path, model_type="qwen3")
    assert values(plan(model, slots=8))["--max-cudagraph-capture-size"] == "8"
    assert values(plan(model, slots=13))["--max-cudagraph-capture-size"] == "16"
    drafting = values(plan(model, slots=8, speculative="ngram", speculative_tokens=3))
    assert drafting["--max-cudagraph-capture-size"] == "32"
    assert json.loads(drafting["--speculative-config"] or "")["method"] == "ngram"


@pytest.mark.parametrize("slots", [1, 8, 13, 24, 32])
def test_no_step_of_gpt_oss_is_longer_than_its_longest_graph(model: Path, slots: int) -> None:
    flags = values(plan(model, slots=slots))
    graphs = json.loads(flags["--compilation-config"] or "")
    sizes = graphs["cudagraph_capture_sizes"]
    assert graphs["cudagraph_mode"] == "FULL_AND_PIECEWISE"
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == int(flags["--max-num-batched-tokens"] or 0)
    assert all(after <= 2 * before for before, after in itertools.pairwise(sizes))
    assert "--max-cudagraph-capture-size" not in flags


@pytest.mark.parametrize("slots", [1, 8, 13, 24, 32])
def test_decode_steps_of_gpt_oss_are_hardly_padded(model: Path, slots: int) -> None:
    sizes = graph_sizes(plan(model, slots=slots))
    assert set(range(1, min(slots, 16) + 1)) <= set(sizes)
    assert all(min(size for size in sizes if size >= streams) < streams + 4 for streams in range(1, slots + 1))


@pytest.mark.parametrize("drafted", [1, 2, 3, 5])
@pytest.mark.parametrize("slots", [8, 24])
def test_every_graph_under_speculation_holds_whole_streams(model: Path, slots: int, drafted: int) -> None:
    """vLLM rounds other lengths up, and drops what is then longer than the longest step (compilation.py)."""
    planned = plan(model, slots=slots, speculative="ngram", speculative_tokens=drafted)
    sizes = graph_sizes(planned)
    assert {(1 + drafted) * streams for streams in (*range(1, min(slots, 16) + 1), *range(20, slots + 1, 4))} <= set(sizes)
    assert all(size % (1 + drafted) == 0 for size in sizes)
    assert values(planned)["--max-num-batched-tokens"] == str(sizes[-1])
    assert 1_024 - drafted <= sizes[-1] <= 1_024


def graph_sizes(plan: LaunchPlan) -> list[int]:
    sizes: list[int] = json.loads(values(plan)["--compilation-config"] or "")["cudagraph_capture_sizes"]
    return sizes


def test_an_8_bit_cache_is_used_on_gpus_that_read_it_natively(model: Path) -> None:
    assert values(plan(model))["--kv-cache-dtype"] == "fp8_e4m3"
    assert "--kv-cache-dtype" not in values(plan(model, (L4,)))


def test_the_users_options_win(model: Path) -> None:
    planned = plan(
        model, memory_share=0.5, kv_cache_dtype="auto", context_tokens=1_000, moe_backend="marlin", extra_args=("--seed", "1")
    )
    assert values(planned)["--gpu-memory-utilization"] == "0.5"
    assert values(planned)["--kv-cache-dtype"] == "auto"
    assert values(planned)["--moe-backend"] == "marlin"
    assert planned.context_tokens == 1_000
    assert planned.command.args[-2:] == ("--seed", "1")


@pytest.mark.parametrize(("gpus", "copies", "expected"), [(1, 1, "1"), (4, 1, "4"), (4, 2, "2"), (3, 1, "2"), (8, 1, "8")])
def test_one_copy_of_the_model_spreads_over_its_gpus(model: Path, gpus: int, copies: int, expected: str) -> None:
    planned = plan(model, (H100,) * gpus, data_parallel=copies)
    assert values(planned)["--tensor-parallel-size"] == expected


MOE = {"num_attention_heads": 64, "num_key_value_heads": 8, "num_local_experts": 36}


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (
            MOE,
            {"tensor_parallel": 3},
            "64 attention heads and 8 key-value heads do not divide among 3 GPUs; 1, 2, 4, 8, 16, 32, 64",
        ),
        (
            {**MOE, "num_key_value_heads": 12},
            {"tensor_parallel": 8},
            "12 key-value heads do not divide among 8 GPUs; 1, 2, 4 would",
        ),
        ({"text_config": MOE}, {"tensor_parallel": 5}, "8 key-value heads do not divide among 5"),
        (
            MOE,
            {"tensor_parallel": 4, "data_parallel": 2, "extra_args": ("--enable-expert-parallel",)},
            "36 experts do not divide among 4 x 2 GPUs; 1, 2, 3, 4, 6, 9, 12, 18, 36 GPUs in all would",
        ),
        (MOE, {"tensor_parallel": 4, "data_parallel": 4}, "4 GPUs for each of 4 copies, but this machine has 8; 2 at most"),
    ],
)
def test_what_does_not_divide_among_the_gpus_is_refused(
    tmp_path: Path, config: dict[str, object], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        plan(folder(tmp_path, **config), (H100,) * 8, **options)


@pytest.mark.parametrize("config", [MOE, {**MOE, "num_key_value_heads": 2}, {"num_attention_heads": 16}])
def test_heads_that_divide_and_copied_key_value_heads_are_served(tmp_path: Path, config: dict[str, object]) -> None:
    planned = plan(folder(tmp_path, **config), (H100,) * 8, tensor_parallel=4)
    assert values(planned)["--tensor-parallel-size"] == "4"


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_a_folder_without_a_readable_config_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    for check in (plan, check_model):
        with pytest.raises(ModelError, match=r"config\.json"):
            check(tmp_path)


def test_flags_that_vllm_lacks_are_dropped(tmp_path: Path) -> None:
    model = folder(tmp_path, model_type="qwen3")
    known = frozenset({"--max-model-len", "--enable-flashinfer-autotune", "--enable-prefix-caching"})
    planned = replace(plan(model), known_flags=known)
    assert "--max-model-len" in planned.command.args
    assert "--no-enable-flashinfer-autotune" in planned.command.args
    assert "--stream-interval" not in planned.command.args
    assert "--stream-interval" in {flag.name for flag in planned.dropped}


def test_every_flag_has_a_reason(model: Path) -> None:
    for name in PRESETS:
        planned = plan(model, preset=name)
        assert all(flag.reason for flag in planned.flags)
        assert all(variable.reason for variable in planned.variables)


def test_the_servers_output_is_plain_where_the_environment_asks_for_colours(model: Path) -> None:
    assert plan(model).command.env["NO_COLOR"] == "1"


def test_the_flags_of_a_missing_vllm_are_unknown(tmp_path: Path) -> None:
    assert installed_flags([str(tmp_path)]) is None


@pytest.mark.parametrize("place", ["entrypoints/openai", "entrypoints/launchers"])
def test_flags_are_found_in_both_layouts_of_vllm(tmp_path: Path, place: str) -> None:
    package = tmp_path / "vllm"
    (package / "engine").mkdir(parents=True)
    (package / place).mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "engine/arg_utils.py").write_text(
        "def add(group):\n    group.add_argument('--model')\n    group.add_argument(\"--async-scheduling\")\n"
    )
    (package / place / "cli_args.py").write_text(
        "class FrontendArgs:\n    port: int = 1\n    enable_x: bool = False\n    def f(self): ...\n"
    )
    assert installed_flags([str(tmp_path)]) == frozenset({"--model", "--async-scheduling", "--port", "--enable-x"})


@pytest.mark.vllm
def test_the_installed_vllm_accepts_every_command_line(tmp_path: Path) -> None:
    """About 20 s: another process imports vLLM's own parser."""
    pytest.importorskip("torch")
    known = installed_flags()
    if known is None:
        pytest.skip("vLLM is not installed")
    model = folder(tmp_path, model_type="gpt_oss", max_position_embeddings=131_072)
    (model / "model.safetensors").touch()
    drafting = plan(model, draft_model=str(model))
    plans = [
        *(plan(model, preset=name) for name in PRESETS),
        drafting,
        *(replace(plan(model), adjustments=adjustments) for adjustments in ADJUSTED),
    ]
    plans = [replace(planned, known_flags=known) for planned in plans]
    lines = [list(planned.command.args[3:]) for planned in plans]
    run = subprocess.run([sys.executable, "-c", PARSE], input=json.dumps(lines), capture_output=True, text=True, timeout=240)
    assert "RESULT" in run.stdout, run.stderr[-2_000:]
    result = json.loads(run.stdout.split("RESULT")[1])
    assert result["parsed"] == [planned.context_tokens for planned in plans]
    assert not any(planned.dropped for planned in plans)
    # The flags read from the source are those of the parser, except negations and short forms.
    options = {option for option in result["options"] if option.startswith("--") and not option.startswith("--no-")}
    assert options <= known
