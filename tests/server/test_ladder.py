"""The ladder: what follows a failed start, and what no step may do."""

from __future__ import annotations

import json
import os
import socket
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aimo_solver.config import load_config
from aimo_solver.server import launch, machine
from aimo_solver.server.failures import Failure
from aimo_solver.server.failures import FailureCause as Cause
from aimo_solver.server.ladder import next_plan, safest
from aimo_solver.server.launch import LaunchPlan, plan_launch, without_flags
from aimo_solver.server.process import ServerProcess
from aimo_solver.server.supervisor import Supervisor
from tests.conftest import H100, MODEL

DRAFTING = {"speculative": "ngram", "speculative_tokens": 3}


@pytest.fixture(autouse=True)
def _every_flag_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(launch, "installed_flags", lambda path: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # the plugin is written there


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt_oss", "max_position_embeddings": 131_072}))
    return tmp_path


def plan(model: Path, **options: object) -> LaunchPlan:
    config = load_config({"server": options, "sampling": {"min_p": 0.0}, "attempt": {"answer_tokens": 100}})
    return plan_launch(model, config, slots=16, gpus=(H100,))


def after(plan: LaunchPlan, *causes: Cause, last: bool = False, **read: object) -> LaunchPlan:
    for cause in causes:
        plan = next_plan(plan, Failure(cause, **read), last=last and cause is causes[-1], port=1)  # type: ignore[arg-type]
    return plan


def values(plan: LaunchPlan) -> dict[str, str | None]:
    return {flag.name: flag.value for flag in plan.flags}


def changed(before: LaunchPlan, now: LaunchPlan) -> set[str]:
    """Returns the names of flags and variables that differ."""
    flags = values(before).items() ^ values(now).items()
    variables = before.command.env.items() ^ now.command.env.items()
    return {name for name, _ in flags | variables}


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (Cause.LOADING_MEMORY, {"--gpu-memory-utilization"}),
        (Cause.CAPTURE_MEMORY, {"--gpu-memory-utilization"}),
        (Cause.CONTEXT, {"--max-model-len"}),
        (Cause.EXPERTS, {"--moe-backend", "PYTHONPATH"}),
        (Cause.DRIVER, {"VLLM_WORKER_MULTIPROC_METHOD"}),
        (Cause.TIMED_OUT, {"VLLM_WORKER_MULTIPROC_METHOD"}),
        (Cause.LIBRARY, {"VLLM_WORKER_MULTIPROC_METHOD"}),
        (Cause.UNKNOWN, {"PYTHONPATH"}),
        (Cause.PORT, set()),
        (Cause.NOT_STARTED, set()),
        (Cause.MEASURED, set()),
    ],
)
def test_the_first_step_changes_what_may_be_the_cause(model: Path, cause: Cause, expected: set[str]) -> None:
    before = plan(model)
    assert changed(before, after(before, cause)) == expected


def test_a_taken_port_is_left_for_another_one_even_at_the_last_start(model: Path) -> None:
    before = plan(model)
    assert after(before, Cause.PORT, last=True).command.args == replace(before, port=1).command.args


def test_memory_comes_from_the_share_then_the_graphs_then_the_context_and_eager_mode_is_last(model: Path) -> None:
    steps = after(plan(model), *[Cause.CAPTURE_MEMORY] * 6).adjustments.steps
    assert [step.partition(" (out of")[0] for step in steps] == [
        "GPU memory share 0.96 -> 0.9",
        "fewer graphs",
        "context 65536 -> 49152",
        "no fork",
        "no plugin",
        "no graphs, no compilation",
    ]


def test_a_draft_that_may_be_the_cause_costs_one_step_and_gives_the_schedule_and_the_graphs_back(model: Path) -> None:
    for cause in (Cause.DRAFT, Cause.UNKNOWN):
        assert values(after(plan(model, **DRAFTING), cause)) == values(plan(model))


def test_a_second_unknown_failure_takes_memory(model: Path) -> None:
    first = after(plan(model), Cause.UNKNOWN)
    assert changed(first, after(first, Cause.UNKNOWN)) == {"--gpu-memory-utilization"}


def test_a_refused_flag_is_dropped_alone_from_the_preset_and_from_the_users_own(model: Path) -> None:
    before = plan(model, extra_args=("--typo", "7", "--no-typo", "--limit=-1"))
    now = after(before, Cause.FLAG, flags=("--stream-interval", "--typo"))
    assert changed(before, now) == {"--stream-interval"}
    assert now.command.args[-2:] == ("--no-typo", "--limit=-1")


def test_a_refused_flag_that_no_one_set_is_no_dead_end(model: Path) -> None:
    before = plan(model)
    assert after(before, Cause.FLAG, flags=("--model",)).command != before.command


def test_fewer_graphs_are_those_of_decode_steps(model: Path) -> None:
    fewer = values(after(plan(model, **DRAFTING), *[Cause.LOADING_MEMORY] * 2))
    graphs = json.loads(fewer["--compilation-config"] or "")
    assert graphs == {"cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": [4, 8, 16, 32, 64]}


def test_what_the_server_reports_is_taken_at_once(model: Path) -> None:
    shared = after(plan(model), Cause.LOADING_MEMORY, memory_share=0.318)
    assert values(shared)["--gpu-memory-utilization"] == "0.31"
    assert values(after(shared, Cause.LOADING_MEMORY, memory_share=0.2))["--gpu-memory-utilization"] == "0.2"
    assert after(plan(model), Cause.CONTEXT, context_tokens=34_736).context_tokens == 34_736


def test_the_users_own_graphs_do_not_undo_a_step(model: Path) -> None:
    own = ("--compilation_config={}", "--max-cudagraph-capture-size", "4096", "--kept", "-1")
    before = plan(model, extra_args=own, memory_share=0.7)
    assert after(before, Cause.CAPTURE_MEMORY).command.args[-5:] == own
    args = after(before, *[Cause.CAPTURE_MEMORY] * 2).command.args
    assert args[-4:] == ("--seed", str(before.seed), "--kept", "-1")


def test_the_last_start_leaves_out_all_that_can_be_left_out(model: Path) -> None:
    last = after(plan(model, **DRAFTING), Cause.EXPERTS, last=True)
    flags = values(last)
    assert "--enforce-eager" in flags
    assert flags["--moe-backend"] == "marlin"
    assert flags["--gpu-memory-utilization"] == "0.9"
    assert flags["--max-model-len"] == str(last.context_tokens) == "49152"
    assert not {"--speculative-config", "--async-scheduling", "--compilation-config"} & set(flags)
    assert "VLLM_WORKER_MULTIPROC_METHOD" not in last.command.env
    assert "PYTHONPATH" not in safest(plan(model), Failure(Cause.UNKNOWN)).command.env
    assert safest(last, Failure(Cause.UNKNOWN)) is last


_FAILURES = st.builds(
    Failure,
    st.sampled_from(Cause),
    flags=st.sampled_from([(), ("--stream-interval",), ("--model",)]),
    memory_share=st.none() | st.floats(0, 1),
    context_tokens=st.none() | st.integers(0, 10**6),
)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(_FAILURES, st.booleans()), max_size=12), st.sampled_from([None, 0.3, 0.53]))
def test_no_sequence_of_failures_raises_the_share_or_the_context_or_repeats_a_step(
    failures: list[tuple[Failure, bool]], share: float | None
) -> None:
    now = plan(MODEL, preset="gpt-oss-120b", memory_share=share, extra_args=("--x", "1"))
    for failure, last in failures:
        before, now = now, next_plan(now, failure, last=last, port=1)
        assert float(values(now)["--gpu-memory-utilization"] or 0) <= float(values(before)["--gpu-memory-utilization"] or 0)
        assert 0 < now.context_tokens <= before.context_tokens
        if failure.cause is not Cause.PORT:
            assert (now.command == before.command) == (now.adjustments.steps == before.adjustments.steps)


@pytest.mark.parametrize("cause", list(Cause))
def test_on_a_cpu_every_failure_has_an_answer_or_none_is_left(cause: Cause) -> None:
    now = plan_launch(MODEL, load_config({}), gpus=())
    for _ in range(5):
        now = after(now, cause)
    assert after(now, cause).command.args == now.command.args
    assert "--gpu-memory-utilization" not in now.command.args


def test_arguments_are_left_out_with_their_values() -> None:
    args = ("--a", "1", "2", "--b=3", "--c", "-4", "--a_b", "5", "--d")
    assert without_flags(args, frozenset({"--a", "--c", "--a-b"})) == ("--b=3", "--d")


@pytest.mark.vllm
async def test_a_real_server_starts_in_spite_of_an_unknown_flag_and_a_taken_port_and_leaves_no_socket_or_file(
    tmp_path: Path,
) -> None:
    """About 40 s: three starts, two of which fail."""
    if machine.installed_flags() is None:
        pytest.skip("vLLM is not installed")
    planned = plan_launch(MODEL, load_config({"server": {"extra_args": ["--no-such-flag", "7"]}}), gpus=())
    steps: list[object] = []

    def note(kind: str, **values: object) -> None:
        if kind == "server_adjusted":
            steps.append(values["step"])

    async with planned.engine() as engine:
        supervisor = Supervisor(planned, engine, tmp_path / "server.log", note)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", planned.port))
            taken.listen()
            try:
                await supervisor.start()
                await engine.probe()
                made = files_of(supervisor.server)
            finally:
                await supervisor.stop()
    assert steps == ["without --no-such-flag (refused flag)", "another port (port in use)"]
    assert engine.base_url == supervisor.plan.url != planned.url
    assert {stat.S_IFMT(mode) for mode in made.values()} == {stat.S_IFSOCK, stat.S_IFREG}
    assert not list(filter(os.path.lexists, made))


def files_of(server: ServerProcess) -> dict[str, int]:
    """Returns the modes of the files that vLLM made outside its caches."""
    assert server._output is not None
    sockets = (os.path.join(server._folder, name) for name in os.listdir(server._folder))
    return {path: os.stat(path).st_mode for path in (*sockets, *server._output.rendezvous)}
