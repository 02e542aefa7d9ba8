"""Every attempt is asked for its answer, on scripted models and kernels under a virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aimo_solver.chat.families import FAMILIES
from aimo_solver.chat.prompts import (
    FINAL_ANSWER,
    LOOPED,
    NO_ANSWER,
    NO_PYTHON,
    NO_SESSION,
    NOT_RUN,
    OUT_OF_RANGE,
    SESSION_LOST,
    TIME_UP,
    TOKENS_UP,
    WAIT,
)
from aimo_solver.chat.turns import Malformed
from aimo_solver.chat.variants import VARIANTS, fill_in
from aimo_solver.config import Config
from aimo_solver.errors import EngineLost, EngineRejected, KernelError, KernelStartError, PoolClosedError
from aimo_solver.log.writer import NullLog
from aimo_solver.problems import Problem
from aimo_solver.results import Attempt, FinishReason
from aimo_solver.solve.attempt import Resources, RunningAttempt
from aimo_solver.solve.options import AttemptConfig
from tests.chat_families import Family, family
from tests.fakes import ScriptedCall, ScriptedEngine, ScriptedLease, ScriptedPool, ScriptedTurn, run_virtually

OUTPUT = " ".join(map(str, range(1_000, 2_600)))[:8_000]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return family(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return family("gemma", tmp_path_factory.mktemp("gemma"))


@dataclass(frozen=True)
class Outcome:
    """An attempt that ended, and the prompts of the model with their times. `asked`: one of them asked for the answer."""

    attempt: Attempt
    prompts: list[str]
    times: list[float]
    pool: ScriptedPool

    @property
    def asked(self) -> bool:
        return any(prompt.endswith(FINAL_ANSWER) for prompt in self.prompts)


def run_attempt(
    model: Family,
    turns: Sequence[ScriptedTurn],
    pool: ScriptedPool | None = None,
    *,
    seconds: float = 100.0,
    context: int = 65_536,
    on_request: Callable[[ScriptedEngine], object] = lambda engine: None,
    **options: Any,
) -> Outcome:
    """Runs one attempt. `context` excludes the prompt."""
    pool, variant = pool or ScriptedPool(), VARIANTS["tool"]
    config = Config(attempt=AttemptConfig(**options))
    prompt = model.chat.prompt(variant.fill("What is 1 + 1?", config))
    engine = ScriptedEngine(lambda index: turns, len(prompt) + context)
    times: list[float] = []

    def record(engine: ScriptedEngine) -> None:
        times.append(asyncio.get_running_loop().time())
        on_request(engine)

    engine.on_request = record

    async def attempt(clock: Callable[[], float]) -> Attempt:
        resources = Resources(engine=engine, chat=model.chat, pool=pool, config=config, clock=clock)
        return await RunningAttempt(
            resources,
            Problem("p", "What is 1 + 1?"),
            0,
            variant,
            deadline=clock() + seconds,
            problem_started=clock(),
            trajectory=NullLog().start_trajectory("p", 0),
        ).run()

    done = run_virtually(attempt)
    return Outcome(done, [model.chat.decode(request.tokens) for request in engine.requests], times, pool)


def answer(model: Family, number: int = 7) -> ScriptedTurn:
    """The model's reply to the request for its answer."""
    return ScriptedTurn(model.template(f"{number}}}$.{model.final_parts[1]}"))


def test_a_long_output_leaves_room_for_the_answer(model: Family) -> None:
    call = model.call("print(1)")
    turns = [ScriptedTurn(call), ScriptedTurn(model.template("so "), endless=True), answer(model)]
    run = run_attempt(model, turns, ScriptedPool([ScriptedCall(OUTPUT)]), context=len(call) + 900)
    assert (run.attempt.answer, run.attempt.tool_calls) == (7, 1)
    assert "1000 1001" in run.prompts[1]
    assert "characters left out" in run.prompts[1]


def test_a_complaint_leaves_room_for_the_answer(model: Family) -> None:
    turn = model.final(" \n" * 60)  # empty, but longer than the complaint
    parsed = model.chat.parse(turn)
    assert isinstance(parsed, Malformed)
    complaint = model.chat.complaint(turn, parsed.reason)
    context = len(turn) + max(65, len(complaint) + 10)
    run = run_attempt(model, [ScriptedTurn(turn), answer(model), answer(model)], context=context, answer_tokens=64)
    assert run.attempt.malformed == 1
    assert run.asked
    assert run.attempt.answer == 7


def test_the_model_sees_the_output_of_a_late_call(model: Family) -> None:
    turns = [ScriptedTurn(model.call("print(1)")), answer(model)]
    run = run_attempt(
        model, turns, ScriptedPool([ScriptedCall("the sum is 31415", seconds=21)]), seconds=30
    )  # asked from second 20 on
    assert "the sum is 31415" in run.prompts[-1]
    assert (run.attempt.answer, run.attempt.finish_reason) == (7, FinishReason.FORCED)


def test_the_model_sees_the_output_of_the_calls_before_the_deadline(model: Family) -> None:
    call = model.call("print(1)")
    one = [token for token in call if token not in model.chat.stop_token_ids]
    turns = [ScriptedTurn([*one, *call]), answer(model)]
    pool = ScriptedPool([ScriptedCall("the sum is 31415", seconds=21), ScriptedCall("not reached")])
    run = run_attempt(model, turns, pool, seconds=30)
    assert "the sum is 31415" in run.prompts[-1]
    assert (run.attempt.answer, run.attempt.tool_calls) == (7, 1)
    assert NOT_RUN in run.prompts[-1]


@pytest.mark.parametrize(
    ("text", "reason"), [("I do not know.", NO_ANSWER), ("It is \\boxed{100000}.", OUT_OF_RANGE), ("\\boxed{-1}", OUT_OF_RANGE)]
)
def test_a_text_without_an_answer_is_told_so_and_the_attempt_goes_on(model: Family, text: str, reason: str) -> None:
    run = run_attempt(model, [ScriptedTurn(model.final(text)), ScriptedTurn(model.final("\\boxed{7}"))])
    assert fill_in(reason, Config()) in run.prompts[1]
    assert (run.attempt.answer, run.attempt.finish_reason, run.attempt.turns) == (7, FinishReason.ANSWERED, 2)
    assert not run.asked


def test_a_model_that_gives_no_answer_three_times_is_asked_for_it(model: Family) -> None:
    run = run_attempt(model, [*[ScriptedTurn(model.final("I do not know."))] * 3, answer(model)])
    assert (run.attempt.answer, run.attempt.finish_reason, run.attempt.turns) == (7, FinishReason.FORCED, 3)
    assert not any(TIME_UP.lower() in prompt.lower() for prompt in run.prompts)


@pytest.mark.parametrize(
    ("limit", "why"),
    [({"max_tokens": 40}, TOKENS_UP), ({"context": 700}, TOKENS_UP), ({"seconds": 60.0}, TIME_UP)],
)
def test_the_request_for_the_answer_states_the_limit(model: Family, limit: dict[str, Any], why: str) -> None:
    endless = ScriptedTurn([*thoughts(model, ""), *model.plain("so ") * 3_000], delay_s=0.1, chunk=8)
    run = run_attempt(model, [endless, answer(model)], **limit)
    assert (run.attempt.answer, run.attempt.finish_reason) == (7, FinishReason.FORCED)
    stated = {text for text in (TIME_UP, TOKENS_UP) if text in run.prompts[-1]}
    assert stated == {why}


def test_a_call_whose_output_does_not_fit_is_not_said_to_be_late(model: Family) -> None:
    call = model.call("print(1)")
    run = run_attempt(model, [ScriptedTurn(call), answer(model)], ScriptedPool([ScriptedCall(OUTPUT)]), context=len(call) + 513)
    assert run.attempt.tool_calls == 1
    assert TIME_UP.lower() not in run.prompts[-1].lower()
    assert run.attempt.answer == 7


def test_the_answer_in_a_final_text_that_was_cut_counts_if_asking_brings_none(model: Family) -> None:
    turns = [ScriptedTurn(model.final("It is \\boxed{7}. So")[:-1], cut=True), ScriptedTurn((), refused=EngineLost("gone"))]
    run = run_attempt(model, turns)
    # A turn that the engine stops at texts is final only at its end.
    expected = (None, FinishReason.ENGINE_ERROR) if model.chat.stop_strings else (7, FinishReason.ANSWERED)
    assert (run.attempt.answer, run.attempt.finish_reason) == expected


def test_an_answer_that_was_cut_in_the_middle_does_not_count(model: Family) -> None:
    for text in ("It is \\boxed{7", "The answer is 7", "It is \\boxed 7", "Not \\boxed{x}, but \\boxed{7"):
        turns = [ScriptedTurn(model.final(text)[:-1], cut=True), ScriptedTurn((), refused=EngineLost("gone"))]
        assert run_attempt(model, turns).attempt.answer is None


def thoughts(model: Family, text: str) -> list[int]:
    return [*model.template(model.thought), *model.plain(text)]


def test_a_loop_is_reported_once_and_then_the_answer_is_asked_for(model: Family) -> None:
    loop = ScriptedTurn(thoughts(model, "Let me check this again. "), endless=True)
    run = run_attempt(model, [loop, loop, answer(model)], stop_loops=True)
    assert LOOPED in run.prompts[1]
    assert (run.attempt.answer, run.attempt.finish_reason, run.attempt.turns) == (7, FinishReason.FORCED, 2)
    assert run.attempt.tokens < 10_000


def test_a_model_that_leaves_its_loop_goes_on(model: Family) -> None:
    loop = ScriptedTurn(thoughts(model, "so "), endless=True)
    run = run_attempt(model, [loop, ScriptedTurn(model.final("\\boxed{7}"))], stop_loops=True)
    assert (run.attempt.answer, run.attempt.finish_reason) == (7, FinishReason.ANSWERED)


def test_the_same_call_in_turn_after_turn_is_a_loop(model: Family) -> None:
    call = ScriptedTurn(model.call("for i in range(10):\n    print(i, i * i)\n" * 4))
    run = run_attempt(model, [call] * 200, stop_loops=True)
    assert LOOPED in run.prompts[-1]


def test_the_first_box_in_the_thinking_can_end_the_attempt(model: Family) -> None:
    turn = ScriptedTurn(thoughts(model, "The form is \\boxed{}. So it is \\boxed{7}. Or wait, " + "is it 8? " * 100), chunk=3)
    run = run_attempt(model, [turn], stop_at_box=True)
    assert (run.attempt.answer, run.attempt.finish_reason) == (7, FinishReason.BOXED)
    assert run.attempt.tokens < len(turn.tokens) / 2


def test_a_box_before_a_call_ends_the_attempt_before_the_call(gemma: Family) -> None:
    tokens = [*gemma.template("<|channel>thought\n"), *gemma.plain("\\boxed{7}"), *gemma.template("<channel|>"), *gemma.call("1")]
    run = run_attempt(gemma, [ScriptedTurn(tokens, chunk=1_000)], stop_at_box=True)
    assert (run.attempt.answer, run.attempt.finish_reason, run.attempt.tool_calls) == (7, FinishReason.BOXED, 0)


def test_an_early_answer_can_be_questioned_once(model: Family) -> None:
    finals = [ScriptedTurn(model.final(f"\\boxed{{{number}}}")) for number in (41, 42)]
    run = run_attempt(model, finals, least_thinking=10_000)
    assert WAIT in run.prompts[1]
    assert (run.attempt.answer, run.attempt.finish_reason, run.attempt.turns) == (42, FinishReason.ANSWERED, 2)
    assert run_attempt(model, finals, least_thinking=1).attempt.answer == 41


def test_an_early_answer_counts_if_no_other_follows(model: Family) -> None:
    turns = [
        ScriptedTurn(model.final("\\boxed{0}")),
        ScriptedTurn((), refused=EngineLost("gone")),
        ScriptedTurn((), refused=EngineLost("")),
    ]
    run = run_attempt(model, turns, least_thinking=10_000)
    assert (run.attempt.answer, run.attempt.finish_reason) == (0, FinishReason.ANSWERED)


def test_an_attempt_can_have_a_time_limit_of_its_own(model: Family) -> None:
    slow = ScriptedTurn(thoughts(model, "so "), endless=True, delay_s=1.0)
    run = run_attempt(model, [slow, answer(model)], seconds=900, time_limit_s=60.0)
    assert (run.attempt.answer, run.attempt.finish_reason) == (7, FinishReason.FORCED)
    assert run.attempt.seconds <= 60


@pytest.mark.parametrize(
    "leases",
    [[ScriptedLease(fault=PoolClosedError("closed"))], [ScriptedLease(fault=KernelStartError("no kernels"))]],
    ids=["closed", "failing"],
)
def test_a_model_is_told_when_python_is_gone_for_good(gemma: Family, leases: list[ScriptedLease]) -> None:
    turns = [*[ScriptedTurn(gemma.call("print(1)"))] * 3, ScriptedTurn(gemma.final("\\boxed{7}"))]
    run = run_attempt(gemma, turns, ScriptedPool(leases=leases))
    assert NO_PYTHON in run.prompts[-1]
    assert (run.attempt.answer, run.attempt.finish_reason) == (7, FinishReason.ANSWERED)


def test_an_attempt_without_a_kernel_continues_without_python(model: Family) -> None:
    final = ScriptedTurn(model.final("The answer is \\boxed{7}."))
    run = run_attempt(model, [ScriptedTurn(model.call("print(1)")), final], ScriptedPool(leases=[ScriptedLease(seconds=10_000)]))
    assert NO_SESSION in run.prompts[-1]
    assert (run.attempt.answer, run.attempt.finish_reason) == (7, FinishReason.ANSWERED)


def test_an_attempt_waits_at_most_forty_seconds_for_kernels(gemma: Family) -> None:
    turns = [*(ScriptedTurn(gemma.call("print(1)")) for _ in range(22)), ScriptedTurn(gemma.final("\\boxed{7}"))]
    run = run_attempt(gemma, turns, ScriptedPool(leases=[ScriptedLease(seconds=10_000)]), seconds=900)
    assert run.attempt.answer == 7
    assert run.attempt.seconds <= 40


@pytest.mark.parametrize("seconds", [3.0, 12.0, 20.0])
def test_waiting_for_a_kernel_ends_in_time_for_the_answer(gemma: Family, seconds: float) -> None:
    turns = [ScriptedTurn(gemma.call("print(1)")), answer(gemma)]
    run = run_attempt(gemma, turns, ScriptedPool(leases=[ScriptedLease(seconds=10_000)]), seconds=seconds)
    assert (run.attempt.answer, run.attempt.finish_reason) == (7, FinishReason.FORCED)


def test_an_attempt_answers_when_kernels_cannot_start(gemma: Family) -> None:
    turns = [ScriptedTurn(gemma.call("print(1)")), ScriptedTurn(gemma.final("\\boxed{7}"))]
    run = run_attempt(gemma, turns, ScriptedPool(leases=[ScriptedLease(fault=KernelStartError("no kernels"))]))
    assert (run.attempt.answer, run.attempt.finish_reason) == (7, FinishReason.ANSWERED)
    assert run.attempt.error == "KernelStartError: no kernels"
    assert run.attempt.tool_errors == 0


def test_a_failed_session_is_reported_to_the_model_and_replaced(gemma: Family) -> None:
    calls = [ScriptedTurn(gemma.call("print(1)")) for _ in range(2)]
    pool = ScriptedPool([ScriptedCall(fault=KernelError("gone")), ScriptedCall("42")])
    run = run_attempt(gemma, [*calls, ScriptedTurn(gemma.final("\\boxed{42}"))], pool)
    assert SESSION_LOST in run.prompts[1]
    assert run.attempt.seen_in_tool
    assert (run.attempt.answer, run.attempt.finish_reason) == (42, FinishReason.ANSWERED)
    assert pool.leased == 0


def test_a_call_that_never_returns_leaves_time_for_the_answer(gemma: Family) -> None:
    pool = ScriptedPool([ScriptedCall(seconds=10_000)])
    run = run_attempt(gemma, [ScriptedTurn(gemma.call("print(1)")), answer(gemma)], pool, seconds=60)
    assert (run.attempt.answer, run.attempt.finish_reason) == (7, FinishReason.FORCED)


def test_a_call_that_never_returns_ends_its_session_but_not_the_attempt(gemma: Family) -> None:
    pool = ScriptedPool([ScriptedCall(seconds=10_000), ScriptedCall("42")])
    calls = [ScriptedTurn(gemma.call("print(1)"))] * 2
    run = run_attempt(gemma, [*calls, ScriptedTurn(gemma.final("\\boxed{42}"))], pool, seconds=900)
    assert SESSION_LOST in run.prompts[1]
    assert (run.attempt.finish_reason, run.attempt.seen_in_tool) == (FinishReason.ANSWERED, True)
    assert run.attempt.seconds < 60


def test_no_kernel_is_held_while_the_answer_is_asked_for(gemma: Family) -> None:
    pool = ScriptedPool()
    held: list[int] = []
    run = run_attempt(
        gemma,
        [ScriptedTurn(gemma.call("print(1)")), answer(gemma)],
        pool,
        on_request=lambda _: held.append(pool.leased),
        max_turns=1,
    )
    assert run.asked
    assert held == [0, 0]


def test_a_refused_turn_is_followed_by_a_request_for_the_answer(gemma: Family) -> None:
    run = run_attempt(gemma, [ScriptedTurn((), refused=EngineRejected(400, "no")), answer(gemma)])
    assert (run.attempt.answer, run.attempt.finish_reason) == (7, FinishReason.FORCED)
    assert run.attempt.error == "server answered 400: no"


def test_a_lost_server_ends_the_attempt_and_is_recorded(gemma: Family) -> None:
    run = run_attempt(gemma, [ScriptedTurn((), refused=EngineLost("gone"))] * 2)
    assert (run.attempt.answer, run.attempt.finish_reason, run.attempt.error) == (None, FinishReason.ENGINE_ERROR, "gone")


def test_a_turn_of_very_many_calls_leaves_room_for_the_answer(model: Family) -> None:
    one = [token for token in model.call("1") if token not in model.chat.stop_token_ids]
    calls = [*one * 300, model.call("1")[-1]]
    run = run_attempt(model, [ScriptedTurn(calls), *[answer(model)] * 2], context=len(calls) + 600)
    assert run.asked
    assert run.attempt.answer == 7


@pytest.mark.parametrize("left", [3_000, 350])
def test_a_conversation_longer_than_a_reduced_context_loses_its_end(model: Family, left: int) -> None:
    """A server that restarts with safer settings may have a context shorter than the conversation."""
    call = model.call("print(1)")
    turns = [ScriptedTurn(call), ScriptedTurn(model.template("so "), endless=True), answer(model)]
    pool = ScriptedPool([ScriptedCall(OUTPUT[:1_000])])
    first: list[int] = []

    def shrink(engine: ScriptedEngine) -> None:
        first.append(engine.context_tokens)
        if len(engine.requests) == 2:
            engine.context_tokens = first[0] - 6_000 + left

    run = run_attempt(model, turns, pool, context=6_000, on_request=shrink)
    assert run.asked
    assert run.attempt.answer == 7
    assert ("1000 1001" in run.prompts[-1]) == (left == 3_000)


def _turns(model: Family) -> st.SearchStrategy[ScriptedTurn]:
    """Turns of every kind, whole or interrupted, at any speed."""
    call, final = model.call("print(1)"), model.final("It is \\boxed{7}.")
    turns = [
        call,
        call * 3,
        final,
        model.final("I do not know."),
        model.final("\\boxed{-1}"),
        model.template("so "),
        model.call(""),
        call[:3],
        call[:-1],
        [],
    ]
    refusals = st.sampled_from([EngineRejected(400, "no"), EngineLost("gone")])
    whole = st.builds(
        ScriptedTurn,
        tokens=st.sampled_from(turns),
        delay_s=st.sampled_from([0.0, 0.0, 0.1, 3.0, 1_000.0]),
        chunk=st.sampled_from([1, 4, 64]),
        cut=st.booleans(),
    )
    endless = st.builds(
        ScriptedTurn, st.just(model.template("so ")), st.sampled_from([0.0, 0.02]), st.just(64), endless=st.just(True)
    )
    broken = st.builds(ScriptedTurn, st.just(call), breaks_after=st.integers(0, 3), for_good=st.booleans())
    return st.one_of(whole, whole, endless, broken, st.builds(ScriptedTurn, st.just(()), refused=refusals))


KERNEL_FAULTS = st.sampled_from([KernelError("gone"), KernelStartError("no kernels"), PoolClosedError("closed")])
SECONDS = st.sampled_from([0.0, 0.0, 2.0, 60.0, 100_000.0])
CALLS = st.builds(
    ScriptedCall,
    output=st.builds(lambda text, times: text * times, st.sampled_from(["1234 ", "\U0001f600", "a", ""]), st.integers(0, 8_000)),
    seconds=SECONDS,
    fault=st.none() | st.none() | KERNEL_FAULTS,
)
LEASES = st.builds(ScriptedLease, seconds=SECONDS, fault=st.none() | st.none() | KERNEL_FAULTS)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_attempt_answers_or_is_asked_for_its_answer(model: Family, data: st.DataObject) -> None:
    """Given at least a second and room for 64 tokens. After an early answer, a server that refuses ends the attempt with it."""
    draw = data.draw
    least = 64 + len(model.chat.ask_answer(()))
    contexts = draw(st.lists(st.integers(least, 3_000) | st.just(9_000), min_size=1, max_size=4))
    changes = iter(pairwise([*contexts, contexts[-1]]))

    def change(engine: ScriptedEngine) -> None:
        now, following = next(changes, (0, 0))
        engine.context_tokens += following - now

    seconds = draw(st.floats(1.0, 900.0))
    options: dict[str, Any] = {
        "max_turns": draw(st.integers(1, 12)),
        "max_tokens": draw(st.none() | st.integers(1, 3_000)),
        "answer_tokens": draw(st.integers(1, 600)),
        "answer_s": draw(st.sampled_from([1.0, 15.0, 15.0, 1_000.0])),
        "time_limit_s": draw(st.none() | st.floats(1.0, 900.0)),
        "stop_at_box": draw(st.booleans()),
        "least_thinking": draw(st.sampled_from([0, 1_000])),
    }
    run = run_attempt(
        model,
        [*draw(st.lists(_turns(model), max_size=8)), *[answer(model)] * 200],
        ScriptedPool(draw(st.lists(CALLS, min_size=1, max_size=4)), draw(st.lists(LEASES, min_size=1, max_size=3))),
        seconds=seconds,
        context=contexts[0],
        on_request=change,
        **options,
    )
    assert run.attempt.answer is not None or run.asked
    seconds = min(seconds, options["time_limit_s"] or seconds)
    early = [
        prompt for prompt, t in zip(run.prompts, run.times, strict=True) if t < seconds - min(options["answer_s"], seconds / 3)
    ]
    assert not any(TIME_UP.lower() in prompt.lower() for prompt in early)
    assert run.attempt.seconds <= seconds + 0.01
    assert run.pool.leased == 0
