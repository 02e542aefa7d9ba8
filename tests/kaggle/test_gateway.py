"""`predict` and the local gateway, with a scripted backend."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from aimo_solver.answers import ANSWER_RANGE, FALLBACK_ANSWER
from aimo_solver.errors import BootError, LocalGatewayError, PathNotFoundError
from aimo_solver.kaggle import gateway
from aimo_solver.kaggle.gateway import LocalInferenceServer, PendingAnswer, make_predict, make_server
from aimo_solver.problems import Answer
from tests.conftest import ROOT
from tests.without_network import can_cut_network

TESTS = ROOT / "tests"


class ScriptedBackend:
    """Returns the given pending answers or raises the given errors in turn, the last one again and again."""

    def __init__(self, *results: PendingAnswer | BaseException) -> None:
        self.results = list(results)
        self.submitted: list[tuple[str, str]] = []

    def submit(self, problem_id: str, text: str) -> PendingAnswer:
        self.submitted.append((problem_id, text))
        result = self.results.pop(0) if len(self.results) > 1 else self.results[0]
        if isinstance(result, BaseException):
            raise result
        return result


def done(answer: Any) -> PendingAnswer:
    pending = PendingAnswer(deadline=time.monotonic() + 60)
    pending.future.set_result(answer)
    return pending


def broken(error: BaseException, best: Callable[[], int | None] = lambda: None) -> PendingAnswer:
    pending = PendingAnswer(deadline=time.monotonic() + 60, best=best)
    pending.future.set_exception(error)
    return pending


def hanging(seconds: float, best: Callable[[], int | None]) -> PendingAnswer:
    return PendingAnswer(deadline=time.monotonic() + seconds, best=best)


def row(value: Any, name: str = "problem") -> pl.Series:
    return pl.Series(name, [value])


def ask(backend: ScriptedBackend, problem: Any = "What is 1+1?", id_: Any = "0a1b2c") -> tuple[str, int]:
    frame = make_predict(backend)(row(id_, "id"), row(problem))
    assert isinstance(frame, pl.DataFrame)
    assert frame.schema == {"id": pl.String, "answer": pl.Int64}
    assert frame.height == 1
    assert frame["answer"][0] in ANSWER_RANGE
    return frame["id"][0], frame["answer"][0]


def test_predict_is_a_plain_function_of_that_name() -> None:
    predict = make_predict(ScriptedBackend(done(1)))
    assert type(predict) is FunctionType
    assert predict.__name__ == "predict"


def test_the_answer_is_returned_under_the_id_sent() -> None:
    backend = ScriptedBackend(done(336))
    assert ask(backend) == ("0a1b2c", 336)
    assert backend.submitted == [("0a1b2c", "What is 1+1?")]


def test_the_true_answer_in_a_third_column_is_not_read() -> None:
    class Secret:
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(f"the true answer was read: {name}")

    frame = make_predict(ScriptedBackend(done(7)))(row("aa0001", "id"), row("x"), Secret())
    assert frame.rows() == [("aa0001", 7)]


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (row(17), "17"),
        (row(1.5), "1.5"),
        (pd.Series(["pandas"]), "pandas"),
        ("plain", "plain"),
        (pl.DataFrame({"problem": ["in a table"]}), "in a table"),
        (pd.DataFrame({"problem": ["in a table"]}), "in a table"),
        (row("\ud800".encode("utf-8", "replace").decode()), "?"),
        ("a\ud800b", "a?b"),
        (row("x" * 1_000_000), "x" * 1_000_000),
        (row(["nested"]), "['nested']"),
    ],
    ids=["int", "float", "pandas", "str", "table", "pandas table", "replaced", "surrogate", "1 MB", "list"],
)
def test_odd_problems_become_text(problem: Any, text: str) -> None:
    backend = ScriptedBackend(done(1))
    frame = make_predict(backend)(row("aa0001", "id"), problem)
    assert frame.rows() == [("aa0001", 1)]
    assert backend.submitted == [("aa0001", text)]


@pytest.mark.parametrize("problem", [row(None), None, row("  \n"), pl.Series("problem", [], dtype=pl.String)])
def test_a_problem_without_text_gets_the_fallback_at_once(problem: Any) -> None:
    backend = ScriptedBackend(done(1))
    assert make_predict(backend)(row("aa0001", "id"), problem).rows() == [("aa0001", FALLBACK_ANSWER)]
    assert backend.submitted == []


@pytest.mark.parametrize("id_", [row(123, "id"), row(4.24e18, "id"), row(None, "id"), None, object()])
def test_any_id_gets_an_answer(id_: Any) -> None:
    frame = make_predict(ScriptedBackend(done(5)))(id_, row("x"))
    assert frame.schema == {"id": pl.String, "answer": pl.Int64}
    assert frame["answer"].to_list() == [5]


def test_an_object_whose_str_raises_gets_the_fallback() -> None:
    class Trap:
        def __str__(self) -> str:
            raise SystemExit("no text")

    assert make_predict(ScriptedBackend(done(5)))(row("aa0001", "id"), Trap()).rows() == [("aa0001", FALLBACK_ANSWER)]


def test_a_problem_asked_again_gets_the_same_answer_and_is_not_solved_again() -> None:
    backend = ScriptedBackend(done(11), done(22))
    predict = make_predict(backend)
    frames = [predict(row("aa0001", "id"), row("x")) for _ in range(3)]
    assert [frame["answer"][0] for frame in frames] == [11, 11, 11]
    assert len(backend.submitted) == 1


def test_a_fallback_answer_is_kept_as_well() -> None:
    backend = ScriptedBackend(broken(ValueError("x")), done(22))
    predict = make_predict(backend)
    assert [predict(row("aa0001", "id"), row("x"))["answer"][0] for _ in range(2)] == [FALLBACK_ANSWER] * 2


def test_two_problems_with_the_same_broken_id_are_both_solved() -> None:
    predict = make_predict(ScriptedBackend(done(11), done(22)))
    assert predict(row(None, "id"), row("x"))["answer"][0] == 11
    assert predict(row(None, "id"), row("y"))["answer"][0] == 22


@pytest.mark.parametrize("answer", [-1, 100_000, 1.5, "12", None, [3], float("nan")])
def test_values_that_are_not_answers_become_the_fallback(answer: Any) -> None:
    assert ask(ScriptedBackend(done(answer)))[1] == FALLBACK_ANSWER


@pytest.mark.parametrize("answer", [0, 99_999, np.int64(42), np.int32(42)])
def test_integers_in_range_are_returned(answer: Any) -> None:
    assert ask(ScriptedBackend(done(answer)))[1] == int(answer)


FAULTS = [ValueError("a\nb"), SystemExit(1), KeyboardInterrupt(), GeneratorExit(), MemoryError(), RecursionError()]


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
def test_an_exception_in_the_solver_gives_the_best_answer_so_far(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    assert ask(ScriptedBackend(broken(error, best=lambda: 77)))[1] == 77
    assert "Traceback" in caplog.text
    assert type(error).__name__ in caplog.text


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
def test_an_exception_in_submit_gives_the_fallback(error: BaseException) -> None:
    assert ask(ScriptedBackend(error))[1] == FALLBACK_ANSWER


def test_a_cancelled_problem_gives_its_best_answer_so_far() -> None:
    pending = PendingAnswer(deadline=time.monotonic() + 60, best=lambda: 9)
    pending.future.cancel()
    assert ask(ScriptedBackend(pending))[1] == 9


def test_an_exception_in_best_gives_the_fallback() -> None:
    def best() -> int:
        raise RuntimeError("voting is broken")

    assert ask(ScriptedBackend(broken(ValueError(), best=best)))[1] == FALLBACK_ANSWER


def test_our_own_errors_are_logged_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    ask(ScriptedBackend(broken(BootError("no GPU was found"))))
    assert "no GPU was found" in caplog.text
    assert "Traceback" not in caplog.text


def test_a_solver_past_its_deadline_is_cancelled_and_its_best_answer_returned() -> None:
    pending = hanging(0.05, best=lambda: 88)
    assert ask(ScriptedBackend(pending))[1] == 88
    assert pending.future.cancelled()


def test_the_wait_follows_a_deadline_that_moves() -> None:
    pending = hanging(3600, best=lambda: 66)
    threading.Timer(0.2, lambda: setattr(pending, "deadline", 0.0)).start()
    assert ask(ScriptedBackend(pending))[1] == 66


def test_an_answer_that_arrives_during_the_wait_is_returned() -> None:
    pending = hanging(60, best=lambda: None)
    threading.Timer(0.2, lambda: pending.future.set_result(31)).start()
    assert ask(ScriptedBackend(pending))[1] == 31


# The local gateway. What Kaggle's own makes of results is in tests/kaggle_stand_in.


def frame(id_: Any) -> pl.DataFrame:
    return pl.DataFrame({"id": [id_], "answer": [5]})


class LocalRun:
    """One local run over three problems in an empty folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = [("aa0001", "one"), ("bb0002", "two"), ("cc0003", "three")]

    def __call__(self, result: Callable[[str], Any]) -> pl.DataFrame:
        def predict(id_: pl.Series, problem: pl.Series) -> Any:
            return result(id_.item(0))

        pl.DataFrame(self.rows, schema=["id", "problem"], orient="row").write_csv(self.folder / "test.csv")
        LocalInferenceServer(predict).run_local_gateway((str(self.folder / "test.csv"),))
        return pl.read_parquet(self.folder / "submission.parquet")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalRun:
    monkeypatch.chdir(tmp_path)
    return LocalRun(tmp_path)


def test_the_results_are_written_under_the_ids_sent(run: LocalRun) -> None:
    written = run(lambda id_: frame("another"))
    assert written.schema == {"id": pl.String, "answer": pl.Int64}
    assert sorted(written["id"]) == ["aa0001", "bb0002", "cc0003"]


@pytest.mark.parametrize(
    ("result", "kind"),
    [
        (lambda id_: 5, "INVALID_SUBMISSION"),
        (lambda id_: None, "INVALID_SUBMISSION"),
        (lambda id_: pl.Series("answer", [5]), "INVALID_SUBMISSION"),
        (lambda id_: {"id": id_, "answer": 5}, "INVALID_SUBMISSION"),
        (lambda id_: frame(id_).lazy(), "INVALID_SUBMISSION"),
        (lambda id_: frame(id_).clear(), "INVALID_SUBMISSION"),
        (lambda id_: pl.concat([frame(id_)] * 2), "INVALID_SUBMISSION"),
        (lambda id_: frame(id_).select("answer", "id"), "INVALID_SUBMISSION"),
        (lambda id_: 1 // 0, "SERVER_RAISED_EXCEPTION"),
        (lambda id_: sys.exit(), "GRPC_DEADLINE_EXCEEDED"),
    ],
)
def test_results_that_lose_kaggles_submission_fail(run: LocalRun, result: Callable[..., Any], kind: str) -> None:
    with pytest.raises(LocalGatewayError) as caught:
        run(result)
    assert caught.value.kind == kind
    assert not (run.folder / "submission.parquet").exists()


def test_predict_with_two_parameters_fails_on_the_truth_column(run: LocalRun) -> None:
    (run.folder / "reference.csv").write_text("id,problem,answer\naa0001,one,1\n")

    def predict(id_: pl.Series, problem: pl.Series) -> pl.DataFrame:
        return frame(id_.item(0))

    with pytest.raises(LocalGatewayError, match="positional argument") as caught:
        LocalInferenceServer(predict).run_local_gateway(("reference.csv",))
    assert caught.value.kind == "SERVER_RAISED_EXCEPTION"


def test_rows_are_asked_in_one_worker_thread(run: LocalRun) -> None:
    threads: list[str] = []

    def predict(id_: Any) -> pl.DataFrame:
        threads.append(threading.current_thread().name)
        return frame(id_)

    run(predict)
    assert set(threads) == {"ThreadPoolExecutor-0_0"}


def test_the_order_differs_between_runs(run: LocalRun) -> None:
    run.rows = [(f"id{number}", "x") for number in range(12)]
    orders = {tuple(run(frame)["id"]) for _ in range(4)}
    assert len(orders) > 1
    assert all(sorted(order) == sorted(orders.pop()) for order in list(orders))


def test_ids_of_digits_lose_their_leading_zeros_as_on_kaggle(run: LocalRun) -> None:
    run.rows = [("000123", "one"), ("000456", "two")]
    assert sorted(run(frame)["id"]) == [123, 456]


@pytest.mark.parametrize("text", [None, "", "id,problem\n"], ids=["missing", "empty", "no rows"])
def test_problems_that_cannot_be_read_are_an_error(run: LocalRun, text: str | None) -> None:
    if text is not None:
        (run.folder / "test.csv").write_text(text)
    with pytest.raises(LocalGatewayError) as caught:
        LocalInferenceServer(make_predict(ScriptedBackend(done(1)))).run_local_gateway(("test.csv",))
    assert caught.value.kind == "GATEWAY_RAISED_EXCEPTION"


def test_without_kaggles_package_the_local_gateway_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        server = make_server(make_predict(ScriptedBackend(done(1))), str(tmp_path / "nothing"))
    assert isinstance(server, LocalInferenceServer)
    assert "nothing" in caplog.text


def test_a_rerun_without_the_package_fails_with_the_folders_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    monkeypatch.setattr(gateway, "_PACKAGE_S", 0.0)
    with pytest.raises(PathNotFoundError, match="competitions/no-such"):
        make_server(make_predict(ScriptedBackend(done(1))), "no-such")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty package in place of Kaggle's."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = tmp_path / "kaggle_evaluation"
    folder.mkdir()
    (folder / "__init__.py").touch()
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == folder.name]:
        del sys.modules[name]


def test_the_inference_server_of_another_competition_is_taken(package: Path) -> None:
    source = "class ProofInferenceServer:\n    def __init__(self, *functions): self.functions = functions\n"
    (package / "proof_inference_server.py").write_text(source)
    predict = make_predict(ScriptedBackend(done(1)))
    server: Any = make_server(predict, str(package.parent))
    assert type(server).__name__ == "ProofInferenceServer"
    assert server.functions == (predict,)


def test_a_rerun_waits_for_a_package_whose_mount_appears_late(
    package: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("KAGGLE_IS_COMPETITION_RERUN", "1")
    late, pauses = package.rename(package.parent / "late"), []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 1:
            late.rename(package)
        elif len(pauses) == 2:
            (package / "proof_inference_server.py").write_text(
                "class ProofInferenceServer:\n    def __init__(self, predict): ...\n"
            )

    monkeypatch.setattr(time, "sleep", sleep)
    server = make_server(make_predict(ScriptedBackend(done(1))), str(package.parent))
    assert type(server).__name__ == "ProofInferenceServer"
    assert len(pauses) == caplog.text.count("Kaggle's package is looked for again: ") == 2


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ({"aimo_4_gateway": ""}, "holds no module; exactly one"),
        ({"a_inference_server": "", "b_inference_server": ""}, "holds a_inference_server, b_inference_server; exactly one"),
        ({"a_inference_server": "from abc import ABC as InferenceServer"}, "a_inference_server holds no class; exactly one"),
    ],
    ids=["no module", "two modules", "no class"],
)
def test_a_package_without_one_inference_server_is_an_error(package: Path, modules: dict[str, str], message: str) -> None:
    for name, text in modules.items():
        (package / f"{name}.py").write_text(text)
    with pytest.raises(BootError, match=message) as caught:
        make_server(make_predict(ScriptedBackend(done(1))), str(package.parent))
    assert "\n" not in str(caught.value)


STAND_IN = TESTS / "kaggle_stand_in"

SERVER = """
import os, sys
from aimo_solver.kaggle.gateway import PendingAnswer, in_rerun, make_predict, make_server

class Backend:
    def submit(self, problem_id, text):
        if text == "exit":
            raise SystemExit
        print("submitted", problem_id, flush=True)
        pending = PendingAnswer(deadline=float("inf"))
        pending.future.set_result(len(text))
        return pending

assert in_rerun()
assert sys.argv[1] not in sys.path
server = make_server(make_predict(Backend()), sys.argv[1])
assert sys.argv[1] in sys.path
server.serve()
raise AssertionError("serve() returned in a rerun")
"""

RERUN = """
import subprocess, sys
server = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]])
try:
    gateway = [sys.executable, sys.argv[2] + "/kaggle_evaluation/aimo_3_gateway.py", "test.csv"]
    code = subprocess.run(gateway, timeout=100).returncode
    assert server.poll() is None, "the server ended"
finally:
    server.kill()
    server.wait()
sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.skipif(not can_cut_network(), reason="no network namespaces here")
def test_a_rerun_over_grpc_between_two_processes(tmp_path: Path) -> None:
    """The message numbers, ports and checks of Kaggle's package; an empty, a repeated, a huge and a fatal problem."""
    rows = [
        ("aa0001", "one"),
        ("bb0002", None),
        ("cc0003", "three"),
        ("cc0003", "three"),
        ("dd0004", "x" * 50_000),
        ("ee0005", "exit"),
    ]
    pl.DataFrame(rows, schema=["id", "problem"], orient="row").write_csv(tmp_path / "test.csv")
    command = [sys.executable, str(TESTS / "without_network.py"), sys.executable, "-c", RERUN, SERVER, str(STAND_IN)]
    environment = {
        **os.environ,
        "KAGGLE_IS_COMPETITION_RERUN": "1",
        "STAND_IN_HOST": "localhost",
        "STAND_IN_STARTUP_LIMIT_S": "60",
    }
    finished = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=150, check=False)
    assert finished.returncode == 0, finished.stderr
    assert json.loads((tmp_path / "result.json").read_text()) == {"Succeeded": True}
    submission = pl.read_parquet(tmp_path / "submission.parquet")
    assert submission.schema == {"id": pl.String, "answer": pl.Int64}
    expected = [("aa0001", 3), ("bb0002", 0), ("cc0003", 5), ("cc0003", 5), ("dd0004", 50_000), ("ee0005", 0)]
    assert sorted(submission.rows()) == expected
    assert sorted(finished.stdout.splitlines()) == ["submitted aa0001", "submitted cc0003", "submitted dd0004"]


def test_the_gateway_imports_nothing_heavy() -> None:
    heavy = ["torch", "vllm", "transformers", "openai_harmony", "jupyter_client", "sympy", "matplotlib", "typer", "rich"]
    program = f"import sys, aimo_solver.kaggle.gateway, aimo_solver.kaggle.run; print([m for m in {heavy} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"


def test_a_future_may_be_shared() -> None:
    """Giving up one of two calls that share a future must not change the answer of the other."""
    shared: Future[Answer] = Future()
    shared.set_result(4)
    results = [PendingAnswer(time.monotonic() + 60, shared), PendingAnswer(0.0, shared)]
    predict = make_predict(ScriptedBackend(*results))
    assert [predict(row(str(n), "id"), row("x"))["answer"][0] for n in range(2)] == [4, 4]
