"""Why a problem was lost: one made case for each reason."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimo_solver.config import Config, load_config
from aimo_solver.lab.losses import Loss, explain_loss, explain_run
from aimo_solver.lab.lost_problem import Cause
from aimo_solver.log.reader import Event, ProblemRecord, Step, TrajectoryRecord, read_run
from aimo_solver.policy.voting import rank
from aimo_solver.problems import ProblemResult
from aimo_solver.results import Attempt, FinishReason
from tests.lab.groups import make_attempt
from tests.small_run import ANSWERS, write_run

TRUTH = 42


def explain(
    attempts: Sequence[Attempt],
    *,
    reason: str = "attempts",
    seconds: float = 100.0,
    allotted_s: float = 900.0,
    answer: int | None = None,
    steps: Mapping[int, Sequence[Step]] | None = None,
    events: Sequence[Event] = (),
    **options: Any,
) -> Loss:
    """Explains a problem that began in second 1000 of a run and ended with `answer`, by default the winner of the vote."""
    config = load_config(options)
    candidates = rank([attempt for attempt in attempts if attempt.finish_order is not None], config.voting)
    chosen = answer if answer is not None else candidates[0].answer if candidates else 0
    result = ProblemResult(
        problem_id="p", answer=chosen, truth=TRUTH, reason=reason, seconds=seconds, allotted_s=allotted_s, candidates=candidates
    )
    problem = ProblemRecord("p", 1_000.0, "?", TRUTH, allotted_s, result, 1_000.0 + seconds)
    paths = {index: TrajectoryRecord("p", index, 1_000.0, tuple(own), 1_100.0) for index, own in (steps or {}).items()}
    return explain_loss(problem, attempts, paths, events, config.as_dict())


def ended(answers: Sequence[int | None], **values: Any) -> list[Attempt]:
    """Attempts that ended by themselves with these answers."""
    return [make_attempt(index, answer, finish_order=index + 1, **values) for index, answer in enumerate(answers)]


def cut(index: int, reason: FinishReason, **values: Any) -> Attempt:
    return make_attempt(index, None, **{"finish_reason": reason, "seconds": 100.0} | values)


def event(t: float, kind: str, **values: Any) -> Event:
    return Event(t, "", kind, values)


def turn(text: str = "", tokens: Sequence[int] = ()) -> Step:
    return Step(kind="turn", t=1_000.0, turn="cut", text=text, tokens=tuple(tokens))


def test_outvoted() -> None:
    loss = explain(ended([17, 17, 17, TRUTH, TRUTH]))
    assert loss == Loss(Cause.OUTVOTED, "outvoted 3 to 2: 17 won over 42", "2 more votes for it", 3)


def test_outvoted_by_weight() -> None:
    errors = [make_attempt(0, TRUTH, tool_errors=19, finish_order=1), make_attempt(1, 17, finish_order=2)]
    loss = explain([*errors, make_attempt(2, TRUTH, tool_errors=19, finish_order=3)])
    assert loss.reason == "outvoted by weight: 42 had 2 votes, 17 had 1 vote that weighed more"


def test_outvoted_where_another_voter_is_right() -> None:
    sure = [make_attempt(0, TRUTH, entropy=0.1, finish_order=1)]
    unsure = [make_attempt(index, 17, entropy=2.0, finish_order=index + 1) for index in (1, 2)]
    loss = explain([*sure, *unsure])
    assert loss.remedy.startswith("another voter on the same attempts: entropy")
    assert "majority" not in loss.remedy


def test_outvoted_while_attempts_were_running() -> None:
    attempts = [*ended([17, 17, TRUTH]), cut(3, FinishReason.CANCELLED), cut(4, FinishReason.CANCELLED)]
    loss = explain(attempts, reason="equal")
    assert loss.remedy == "2 more votes for it; the stop rule (equal) left 2 attempts unfinished"


def test_overruled_by_a_second_look() -> None:
    attempts = [*ended([TRUTH, TRUTH, 17]), make_attempt(3, 17, prompt="verify")]
    chosen = event(1_090.0, "selection", problem_id="p", method="verify", answer=17, picks=[17], votes=1)
    loss = explain(attempts, answer=17, events=[chosen])
    assert loss == Loss(
        Cause.OVERRULED, "overruled: 42 won the vote, the second look (verify) chose 17", "selection.verify=log", 0
    )


@pytest.mark.parametrize(
    ("step", "verb"),
    [
        (Step(kind="tool", t=1_050.0, code="print(n)", output="n = 42\n"), "computed"),
        (turn("So the answer is \\boxed{42}."), "wrote"),
    ],
)
def test_the_right_one_was_unfinished_when_time_ran_out(step: Step, verb: str) -> None:
    attempts = [*ended([17]), cut(1, FinishReason.DEADLINE)]
    loss = explain(attempts, reason="time", seconds=900.0, steps={1: [turn(), step, turn("so it is")]})
    assert (loss.cause, loss.attempt) == (Cause.UNFINISHED, 1)
    assert loss.reason == f"attempt 1 {verb} 42 but did not finish: time ran out"


@pytest.mark.parametrize("output", ["420", "42 of 100", "0.42", "4.2", "142"])
def test_an_output_that_only_contains_the_digits_is_not_the_truth(output: str) -> None:
    attempts = [*ended([17, 17]), cut(2, FinishReason.DEADLINE)]
    loss = explain(attempts, steps={2: [Step(kind="tool", t=1_050.0, output=output)]})
    assert loss.cause is Cause.NOT_FOUND


def test_the_right_one_was_unfinished_when_the_stop_rule_ended_the_problem() -> None:
    attempts = [*ended([17, 17]), cut(2, FinishReason.CANCELLED)]
    loss = explain(attempts, reason="equal", steps={2: [Step(kind="tool", t=1_050.0, output="42")]})
    assert loss.reason == "attempt 2 computed 42 but did not finish: the stop rule (equal) ended the problem"
    assert "voting.stop" in loss.remedy


def test_the_right_answer_came_too_late_for_the_vote() -> None:
    attempts = [*ended([17]), make_attempt(1, TRUTH)]
    assert explain(attempts, reason="time").reason.startswith("attempt 1 gave 42 but did not finish")


def test_out_of_time() -> None:
    attempts = [*ended([17]), cut(1, FinishReason.DEADLINE), cut(2, FinishReason.DEADLINE)]
    loss = explain(attempts, reason="time", seconds=900.0, events=[event(9_000.0, "run_finished")])
    assert (loss.cause, loss.attempt) == (Cause.TIME, 1)
    assert loss.reason == "out of time: 2 of 3 attempts unfinished after 900 s"
    assert loss.remedy == "a larger budget.cap_s: the run ended with 9,000 s of its time unused"


def test_out_of_time_with_answers_that_were_asked_for() -> None:
    asked = [make_attempt(i, 17, finish_reason=FinishReason.FORCED, seconds=895.0, finish_order=i + 1) for i in range(2)]
    loss = explain(asked, reason="time", seconds=900.0)
    assert loss.cause is Cause.TIME


def test_a_problem_that_got_little_time() -> None:
    loss = explain([cut(0, FinishReason.DEADLINE)], reason="time", seconds=60.0, allotted_s=60.0)
    assert loss.remedy == "an earlier place in the run: it was given 60 s, the cap is 900 s"


def test_a_server_restart() -> None:
    attempts = [*ended([17]), cut(1, FinishReason.DEADLINE), cut(2, FinishReason.DEADLINE)]
    restart = [event(1_020.0, "server_fault"), event(1_021.0, "server_starting"), event(1_061.0, "server_ready")]
    loss = explain(attempts, reason="time", seconds=900.0, events=restart)
    assert (loss.cause, loss.attempt) == (Cause.SERVER, 1)
    assert loss.reason == "a server restart of 41 s, then 2 attempts of 3 unfinished"


def test_a_server_restart_before_the_problem_is_not_its_reason() -> None:
    restart = [event(900.0, "server_fault"), event(941.0, "server_ready")]
    loss = explain([cut(0, FinishReason.DEADLINE)], reason="time", seconds=900.0, events=restart)
    assert loss.cause is Cause.TIME


def test_a_server_lost_twice() -> None:
    faults = [event(1_010.0, "server_fault"), event(1_040.0, "server_ready"), event(1_080.0, "server_fault")]
    loss = explain([cut(0, FinishReason.CANCELLED)], reason="server", seconds=100.0, events=faults)
    assert loss.reason == "the server was lost repeatedly: 2 server restarts of 30 s and 20 s"


def test_a_loop() -> None:
    steps = {index: [turn(tokens=range(200)), turn(tokens=[5, 6, 7] * 2_000)] for index in (0, 1)}
    cuts = [cut(0, FinishReason.TOKEN_LIMIT), cut(1, FinishReason.TOKEN_LIMIT)]
    loss = explain([*cuts, make_attempt(2, 17, finish_order=1)], steps=steps)
    assert (loss.cause, loss.attempt) == (Cause.LOOP, 0)
    assert loss.reason == "loop: 2 of 3 attempts repeated themselves"
    assert explain([cut(0, FinishReason.LOOP)]).cause is Cause.LOOP


def test_a_long_text_without_repetition_is_no_loop() -> None:
    ranks = range(1, 20_000)  # common and rare tokens, as in a text
    tokens = random.Random(0).choices(ranks, weights=[1 / rank for rank in ranks], k=6_000)
    assert explain([cut(0, FinishReason.TOKEN_LIMIT)], steps={0: [turn(tokens=tokens)]}).cause is Cause.CONTEXT


def test_context_full() -> None:
    loss = explain([cut(0, FinishReason.TOKEN_LIMIT), cut(1, FinishReason.TOKEN_LIMIT)])
    assert (loss.cause, loss.reason) == (Cause.CONTEXT, "context full in 2 of 2 attempts")
    assert "server.context_tokens" in loss.remedy


def test_token_limit() -> None:
    spent = [cut(index, FinishReason.TOKEN_LIMIT, tokens=100) for index in (0, 1)]
    loss = explain(spent, attempt={"max_tokens": 100})
    assert (loss.cause, loss.reason) == (Cause.TOKENS, "token limit reached in 2 of 2 attempts")
    assert explain(spent, attempt={"max_tokens": 200}).cause is Cause.CONTEXT


@pytest.mark.parametrize(("before", "cause"), [("final", Cause.NO_ANSWER), ("cut", Cause.CONTEXT), ("", Cause.NOT_FOUND)])
def test_an_answer_that_was_asked_for_has_the_cause_of_the_request(before: str, cause: Cause) -> None:
    forced = [make_attempt(0, 17, finish_reason=FinishReason.FORCED, finish_order=1)]
    steps = (
        {0: [Step(kind="turn", t=1_000.0, turn=before, finish="length"), Step(kind="turn", t=1_001.0, turn="final")]}
        if before
        else {}
    )
    assert explain(forced, steps=steps).cause is cause


def test_turn_limit() -> None:
    assert explain([cut(0, FinishReason.TURN_LIMIT)]).reason == "turn limit reached in 1 of 1 attempts"


def test_no_python() -> None:
    call = Step(kind="tool", t=1_010.0, error_name="LeaseTimeoutError")
    loss = explain([cut(0, FinishReason.NO_ANSWER)], steps={0: [turn(), call, turn()]})
    assert (loss.cause, loss.reason) == (Cause.PYTHON, "no Python session in 1 of 1 attempts")


def test_final_texts_without_an_answer() -> None:
    loss = explain(ended([None, None, 17]))
    assert (loss.cause, loss.reason) == (Cause.NO_ANSWER, "2 of 3 attempts ended without an integer")


def test_a_defect() -> None:
    fault = event(1_005.0, "attempt_fault", problem_id="p", index=0, traceback="Traceback:\n  x\nKeyError: 'a'\n")
    loss = explain([cut(0, FinishReason.ENGINE_ERROR)], reason="fault", events=[fault])
    assert loss == Loss(Cause.DEFECT, "a defect ended it: KeyError: 'a'", "a fix: the traceback is in events.jsonl", 0)


def test_no_attempt_began() -> None:
    assert explain([], reason="time", allotted_s=0.5).reason == "no attempt began in 0.5 s"


def test_no_attempt_had_it_and_most_agree() -> None:
    loss = explain(ended([9, 17, 17, 17]))
    assert (loss.cause, loss.attempt) == (Cause.NOT_FOUND, 1)
    assert loss.reason == "no attempt of 4 had 42: 3 gave 17, the most of 2 answers"
    assert "agree" in loss.remedy


def test_no_attempt_had_it_and_answers_scatter() -> None:
    assert explain(ended([1, 2, 3, 4])).remedy == "more attempts: it used 100 s of 900 s"
    running = [*ended([1, 2, 3, 17]), cut(4, FinishReason.CANCELLED)]
    assert explain(running, reason="share").remedy == "more attempts: the stop rule (share) left 1 unfinished"


@given(
    st.lists(st.tuples(st.sampled_from([None, 3, 17, TRUTH]), st.sampled_from(FinishReason), st.integers(0, 2)), max_size=6),
    st.sampled_from(["equal", "attempts", "time", "server", "fault"]),
    st.lists(st.sampled_from(["server_fault", "server_ready"]), max_size=4),
)
def test_every_loss_has_a_reason_and_a_remedy(
    ends: list[tuple[int | None, FinishReason, int]], reason: str, happened: list[str]
) -> None:
    attempts = [
        make_attempt(index, answer, finish_reason=finish, finish_order=index + 1 if voted else None)
        for index, (answer, finish, voted) in enumerate(ends)
    ]
    steps = {index: [turn("\\boxed{42}"), turn()] for index, (_, _, shown) in enumerate(ends) if shown == 2}
    events = [event(1_000.0 + 10 * number, kind) for number, kind in enumerate(happened)]
    loss = explain(attempts, reason=reason, answer=1, steps=steps, events=events)
    assert loss.reason
    assert loss.remedy
    assert loss.attempt is None or 0 <= loss.attempt < len(attempts)


def test_lost_problems_of_a_run_are_explained(tmp_path: Path) -> None:
    losses = explain_run(read_run(write_run(tmp_path / "run", ANSWERS)))
    assert {name: loss.cause for name, loss in losses.items()} == {
        "outvoted": Cause.OUTVOTED,
        "missed": Cause.NOT_FOUND,
        "silent": Cause.NO_ANSWER,
    }
    assert Config().voting.voter not in losses["outvoted"].remedy
