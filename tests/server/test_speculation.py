"""Drafted tokens: which draft fits which model, vLLM's flags for it, and sampling without min_p."""

from __future__ import annotations

import json
import math
from contextlib import aclosing
from pathlib import Path

import pytest

from aimo_solver.config import load_config
from aimo_solver.errors import ConfigError, ModelError
from aimo_solver.options import SamplingConfig
from aimo_solver.results import DraftCounts
from aimo_solver.server.completions import read_drafts
from aimo_solver.server.engine import CompletionRequest
from aimo_solver.server.failures import Failure, FailureCause
from aimo_solver.server.ladder import next_plan
from aimo_solver.server.launch import LaunchPlan, plan_launch
from aimo_solver.server.speculation import Speculation, draft_length, without_min_p
from tests.conftest import H100
from tests.http_vllm import HttpVllm

MODEL = {"model_type": "gpt_oss", "vocab_size": 201_088, "hidden_size": 2_880, "num_hidden_layers": 36, "num_local_experts": 128}
HEAD = {"architectures": ["LlamaForCausalLMEagle3"], "vocab_size": 201_088, "draft_vocab_size": 32_000, "hidden_size": 2_880}
SMALL = {"architectures": ["GptOssForCausalLM"], "vocab_size": 201_088, "hidden_size": 512}


def folder(path: Path, config: dict[str, object], *, weights: bool = True) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    if weights:
        (path / "model.safetensors").touch()
    return path


def plan(tmp_path: Path, draft: dict[str, object] | None = None, *, slots: int = 8, **options: object) -> LaunchPlan:
    if draft is not None:
        options["draft_model"] = str(folder(tmp_path / "draft", draft))
    model = folder(tmp_path / "model", {"num_experts_per_tok": 4, "max_position_embeddings": 131_072, **MODEL})
    return plan_launch(model, load_config({"server": options}), slots=slots, gpus=(H100,))


def drafting(planned: LaunchPlan) -> dict[str, object]:
    flag = planned.flag("--speculative-config")
    assert flag is not None
    found: dict[str, object] = json.loads(flag.value or "")
    return found


@pytest.mark.parametrize(
    ("draft", "method"),
    [
        (HEAD, "eagle3"),
        ({**HEAD, "architectures": ["Eagle3LlamaForCausalLM"]}, "eagle3"),
        (
            {"speculators_model_type": "eagle3", "draft_vocab_size": 64_000, "transformer_layer_config": {"hidden_size": 2_880}},
            "eagle3",
        ),
        ({"architectures": ["EagleLlamaForCausalLM"], "vocab_size": 201_088, "hidden_size": 2_880}, "eagle"),
        (SMALL, "draft_model"),
    ],
)
def test_the_method_follows_from_the_drafts_config(tmp_path: Path, draft: dict[str, object], method: str) -> None:
    found = drafting(plan(tmp_path, draft))
    assert found["method"] == method
    assert found["model"] == str(tmp_path / "draft")


def test_options_choose_the_method_and_add_fields(tmp_path: Path) -> None:
    found = drafting(plan(tmp_path, SMALL, speculative="draft", speculative_options={"draft_sample_method": "probabilistic"}))
    assert (found["method"], found["draft_sample_method"]) == ("draft_model", "probabilistic")
    assert plan(tmp_path, SMALL, speculative="none").speculation is None
    assert plan(tmp_path).speculation is None


@pytest.mark.parametrize(
    ("draft", "named"),
    [
        ({**SMALL, "vocab_size": 32_000}, ("32000", "201088", "same")),
        ({**HEAD, "draft_vocab_size": 250_000}, ("250000", "201088")),
        ({**HEAD, "hidden_size": 4_096}, ("4096", "2880")),
        ({**HEAD, "target_hidden_size": 5_120}, ("5120", "2880")),
        ({**HEAD, "eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 31, 60]}}, ("1, 31, 60", "36")),
    ],
)
def test_a_draft_of_another_model_is_refused_with_the_numbers(
    tmp_path: Path, draft: dict[str, object], named: tuple[str, ...]
) -> None:
    with pytest.raises(ModelError) as refused:
        plan(tmp_path, draft)
    assert "\n" not in str(refused.value)
    assert all(text in str(refused.value) for text in (*named, str(tmp_path / "draft")))


def test_a_folder_without_a_draft_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        plan(tmp_path, draft_model=str(tmp_path / "absent"))
    folder(tmp_path / "empty", HEAD, weights=False)
    with pytest.raises(ModelError, match="no weights"):
        plan(tmp_path, draft_model=str(tmp_path / "empty"))


def test_a_draft_that_vllm_cannot_load_costs_one_start(tmp_path: Path) -> None:
    """Requests stay without min_p, whichever server takes them."""
    first = plan(tmp_path, HEAD)
    later = next_plan(first, Failure(FailureCause.DRAFT), last=False, port=1)
    assert "--speculative-config" in first.command.args
    assert "--speculative-config" not in later.command.args
    assert later.speculation == first.speculation


def test_steps_are_scheduled_ahead_unless_drafts_are_looked_up(tmp_path: Path) -> None:
    assert plan(tmp_path).flag("--async-scheduling") is not None
    assert plan(tmp_path, HEAD).flag("--async-scheduling") is not None
    assert plan(tmp_path, SMALL).flag("--async-scheduling") is not None
    assert plan(tmp_path, speculative="ngram").flag("--async-scheduling") is None


def relative_speed(drafted: int, streams: int, experts: int, per_token: int) -> float:
    """Tokens per unit of time in a model of a decode step.

    A stream gets 1 + a + ... + a^n tokens from a step with n drafted ones, each accepted with probability a if those before it
    were: a = 0.65 is the middle of the 2.2 to 2.6 tokens per step that EAGLE-3 heads of gpt-oss-120b reach with 3. The step
    reads, besides what is always read, every expert that any of its tokens takes. On one H200 a step of that model took 3.7 ms
    plus 0.186 ms per expert and layer, within 2 % for 1 to 32 streams (docs/benchmarks.md): of a step that reads all experts,
    0.135 is everything but the experts. A head adds about 0.25 ms, 0.009 of it, per drafted token. Neighbouring tokens share
    experts: with 0.6 new ones each, 2.41 tokens per step make 8 streams 1.31 times as fast, as published for a trained head.
    """
    sampled: float = sum(math.pow(0.65, accepted) for accepted in range(drafted + 1))
    taken = 1.0 - math.pow(1.0 - per_token / experts, streams * (1 + 0.6 * drafted))
    return sampled / (0.135 + (1.0 - 0.135) * taken + 0.009 * drafted)


@pytest.mark.parametrize(("experts", "per_token"), [(128, 4), (128, 8), (32, 4), (8, 2), (1, 1)])
@pytest.mark.parametrize("streams", [1, 2, 4, 8, 12, 16, 32, 64])
def test_the_draft_length_is_nearly_the_best_of_one_to_three(streams: int, experts: int, per_token: int) -> None:
    speeds = {drafted: relative_speed(drafted, streams, experts, per_token) for drafted in (1, 2, 3)}
    assert speeds[draft_length(streams, experts, per_token)] > 0.99 * max(speeds.values())


@pytest.mark.parametrize(("slots", "chosen"), [(1, 3), (8, 2)])
def test_an_unset_length_follows_from_the_slots(tmp_path: Path, slots: int, chosen: int) -> None:
    assert drafting(plan(tmp_path, HEAD, slots=slots))["num_speculative_tokens"] == chosen
    assert drafting(plan(tmp_path, HEAD, slots=slots, speculative_tokens=5))["num_speculative_tokens"] == 5


@pytest.mark.parametrize("min_p", [0.01, 0.02, 0.05, 0.2])
def test_the_top_p_leaves_one_token_where_min_p_must(min_p: float) -> None:
    top_p = without_min_p(SamplingConfig(min_p=min_p)).top_p
    likeliest = top_p + 1e-9
    assert 1 - likeliest < min_p * likeliest  # all others together have less than min_p allows for one
    likeliest = top_p - 1e-6
    assert 1 - likeliest > min_p * likeliest  # one other token with all the rest would be kept


def test_sampling_without_min_p_is_left_as_it_is() -> None:
    sampling = SamplingConfig(min_p=0.0, top_p=0.9, temperature=0.7, top_k=40)
    assert without_min_p(sampling) == sampling


def test_a_stricter_top_p_of_the_user_wins() -> None:
    assert without_min_p(SamplingConfig(min_p=0.02, top_p=0.9)).top_p == 0.9
    assert without_min_p(SamplingConfig(min_p=0.25, top_p=0.9)).top_p == pytest.approx(0.8)


def test_ngrams_need_no_folder() -> None:
    config = json.loads(Speculation(method="ngram", tokens=3, draft=None, options={}).as_json())
    assert config == {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4, "prompt_lookup_min": 2}


def test_drafted_tokens_are_counted_over_all_copies_of_the_model() -> None:
    names = ("drafts", "draft_tokens", "accepted_tokens")
    lines = [
        f'vllm:spec_decode_num_{name}_total{{engine="{copy}",model_name="m"}} {value}'
        for copy in (0, 1)
        for name, value in zip(names, ("10.0", "30.0", "1.2e+01"), strict=True)
    ]
    lines.append('vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="0"} 8.0')
    counts = read_drafts("\n".join(["# HELP vllm:spec_decode_num_drafts_total Number of drafts.", *lines]))
    assert counts == DraftCounts(steps=20, drafted=60, accepted=24)
    assert counts is not None
    assert counts.tokens_per_step == pytest.approx(2.2)
    assert read_drafts("vllm:num_requests_running 3.0") is None


def test_figures_that_are_not_numbers_are_left_out() -> None:
    assert read_drafts("vllm:spec_decode_num_drafts_total 1.2.3\nvllm:spec_decode_num_draft_tokens_total 1e999") is None


@pytest.mark.parametrize("of_variant", [False, True])
@pytest.mark.parametrize("speculates", [False, True])
async def test_no_request_to_a_server_that_speculates_has_min_p(speculates: bool, of_variant: bool) -> None:
    """Whether the run's sampling asks for it or a prompt variant's."""
    server = HttpVllm()
    async with server.engine() as engine:  # its own sampling has min_p 0.02
        engine.speculates = speculates
        sampling = SamplingConfig(min_p=0.25, temperature=0.5) if of_variant else None
        async with aclosing(engine.stream(CompletionRequest(tokens=[1], max_tokens=3, sampling=sampling))) as chunks:
            async for _ in chunks:
                pass
    body = server.requests[0]
    min_p = 0.25 if of_variant else 0.02
    assert (body["min_p"], body["top_p"]) == ((0.0, pytest.approx(1 / (1 + min_p))) if speculates else (min_p, 1.0))
    assert body["temperature"] == (0.5 if of_variant else 1.0)


@pytest.mark.parametrize("by", ["ngram", "draft"])
def test_a_cpu_speculates_only_where_nothing_is_drawn(tmp_path: Path, by: str) -> None:
    """vLLM's CPU build draws from a wrong distribution under speculation."""
    server = {"speculative": "ngram"} if by == "ngram" else {"draft_model": str(folder(tmp_path / "draft", SMALL))}
    model = folder(tmp_path / "model", {**MODEL, "max_position_embeddings": 4_096})
    greedy = {"server": server, "sampling": {"temperature": 0.0}}
    assert plan_launch(model, load_config(greedy), gpus=()).speculation is not None
    warm = {"prompt": {"variants": {"mine": {"temperature": 0.5}}}}
    for config in (load_config({"server": server}), load_config(greedy, warm)):
        with pytest.raises(ConfigError, match=r"sampling\.temperature=0"):
            plan_launch(model, config, gpus=())
        assert plan_launch(model, config, gpus=(H100,)).speculation is not None
