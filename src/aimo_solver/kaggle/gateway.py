"""`predict` for Kaggle's gateway.

One exception, one missing answer or one answer of the wrong shape loses a whole submission, and an exception that is not an
`Exception` (SystemExit) makes the gateway wait for hours. So `predict` catches everything, waits no longer than the clock
allows, and builds its frame in one place. Nothing helps if the process is killed or runs out of memory.

This module must import quickly: the gateway is served before anything heavy is loaded.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import operator
import os
import pkgutil
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Protocol, SupportsIndex, TypeGuard

import polars as pl

from aimo_solver.answers import ANSWER_RANGE, FALLBACK_ANSWER
from aimo_solver.errors import AimoError, BootError, LocalGatewayError, PathNotFoundError
from aimo_solver.paths import find_gateway_package
from aimo_solver.problems import Answer

_POLL_S = 0.5  # how often a waiting predict reads a deadline that may have moved
_PACKAGE_S = 600.0  # for the competition's folder to appear in a rerun; the gateway waits 900 s for the server
_PACKAGE_PAUSE_S = 5.0

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class PendingAnswer:
    """The answer to a problem that is being solved.

    Attributes:
        deadline: when `predict` stops waiting, on its clock; moved once the problem's budget is fixed.
        future: the final answer.
        best: returns the best answer so far, None if there is none.
    """

    deadline: float
    future: Future[Answer] = field(default_factory=Future)
    best: Callable[[], Answer | None] = lambda: None


class Backend(Protocol):
    """What `predict` hands problems to."""

    def submit(self, problem_id: str, text: str) -> PendingAnswer:
        """Starts to solve a problem and returns at once."""
        ...


class InferenceServer(Protocol):
    """What the notebook uses of Kaggle's inference server and of `LocalInferenceServer`."""

    def serve(self) -> None: ...

    def run_local_gateway(self, data_paths: tuple[str, ...]) -> None: ...


def in_rerun() -> bool:
    """Whether this is a competition rerun. As in Kaggle's package, the variable only has to be set, even to nothing."""
    return os.environ.get("KAGGLE_IS_COMPETITION_RERUN") is not None


def make_server(predict: Callable[..., pl.DataFrame], competition: str) -> InferenceServer:
    """Returns the competition's inference server, or a `LocalInferenceServer` where Kaggle's package is absent.

    The server is the only class of the only module ``*_inference_server`` in `kaggle_evaluation`, whatever the competition
    calls it. Its constructor binds the port. The competition's folder is added to `sys.path` only if the package cannot be
    imported without it. In a rerun, where a mount can appear late, it is looked for until `_PACKAGE_S` have passed.

    Raises:
        PathNotFoundError: the package is absent in a rerun; lists every folder that was tried.
        BootError: the package has no inference server, or several.
    """
    server: InferenceServer
    ended = time.monotonic() + (_PACKAGE_S if in_rerun() else 0.0)
    while True:
        try:
            server = _find_server_class(competition)(predict)
            return server
        except (PathNotFoundError, ModuleNotFoundError, BootError) as error:
            if time.monotonic() < ended:
                log.error("Kaggle's package is looked for again: %s", error)
            elif in_rerun() or isinstance(error, BootError):
                raise
            else:
                log.info("using the local gateway, as Kaggle's package is absent (%s)", error)
                return LocalInferenceServer(predict)
        time.sleep(_PACKAGE_PAUSE_S)


def _find_server_class(competition: str) -> type:
    importlib.invalidate_caches()  # a mount may have appeared
    if importlib.util.find_spec("kaggle_evaluation") is None:
        sys.path.append(str(find_gateway_package(competition)))
    package = importlib.import_module("kaggle_evaluation")
    names = [module.name for module in pkgutil.iter_modules(package.__path__) if module.name.endswith("_inference_server")]
    where = f"{package.__name__} in {package.__path__[0]}"
    if len(names) != 1:
        raise BootError(f"{where} holds {', '.join(names) or 'no module'}; exactly one *_inference_server is needed")
    module = importlib.import_module(f"{package.__name__}.{names[0]}")
    own = [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__]
    classes = [value for value in own if value.__name__.endswith("InferenceServer")]
    if len(classes) != 1:
        found = ", ".join(value.__name__ for value in classes) or "no class"
        raise BootError(f"{where}: {names[0]} holds {found}; exactly one *InferenceServer is needed")
    return classes[0]


def make_predict(
    backend: Backend, clock: Callable[[], float] = time.monotonic, *, interruptible: bool = False
) -> Callable[..., pl.DataFrame]:
    """Returns the function for the inference server, which has to be a plain function named `predict`.

    With `interruptible`, for calls from a notebook's cell, KeyboardInterrupt ends the problem and is raised.
    """
    endpoint = _Endpoint(backend, clock, interruptible=interruptible)

    def predict(id_: Any, problem: Any = None, *rest: Any) -> pl.DataFrame:
        """Returns one row with id and answer, always. `rest` may hold the true answer (reference.csv) and is ignored."""
        problem_id, answer = endpoint.answer(id_, problem)
        return pl.DataFrame({"id": [problem_id], "answer": [answer]}, schema={"id": pl.String, "answer": pl.Int64})

    return predict


class _Endpoint:
    """Turns the arguments of `predict` into an id and an answer in range, once for each problem."""

    def __init__(self, backend: Backend, clock: Callable[[], float], *, interruptible: bool) -> None:
        self._backend = backend
        self._clock = clock
        self._interruptible = interruptible
        self._answers: dict[tuple[str, str], int] = {}

    def answer(self, id_: Any, problem: Any) -> tuple[str, int]:
        problem_id, text, pending = "", "", None
        try:
            problem_id = _text(id_)
            text = _text(problem)
            key = (problem_id, text)  # with the text: problems whose ids are broken must not share an answer
            if key in self._answers:
                log.info("problem %s was asked again; its answer stays %d", problem_id, self._answers[key])
                return problem_id, self._answers[key]
            if not text.strip():
                log.warning("problem %s has no text (%s)", problem_id, type(problem).__name__)
                answer = FALLBACK_ANSWER
            else:
                pending = self._backend.submit(problem_id, text)
                answer = self._wait(problem_id, pending)
            self._answers[key] = answer
        except BaseException as error:  # SystemExit and the like would leave the gateway waiting for hours
            if self._interruptible and isinstance(error, KeyboardInterrupt):
                if pending is not None:
                    pending.future.cancel()
                raise
            # Kaggle shows no traceback, so it has to be in the log; our own errors are complete without one.
            reason = error if isinstance(error, AimoError) else traceback.format_exc()
            answer = self._answers[problem_id, text] = _best(pending)
            log.error("problem %s: answering %d after a failure: %s", problem_id, answer, reason)
        return problem_id, answer

    def _wait(self, problem_id: str, pending: PendingAnswer) -> int:
        while not pending.future.done():
            left = pending.deadline - self._clock()
            if left <= 0:
                answer = _best(pending)
                log.error("problem %s: answering %d, as the solver missed its deadline", problem_id, answer)
                pending.future.cancel()
                return answer
            wait([pending.future], timeout=min(left, _POLL_S))
        result = pending.future.result()
        if not _is_answer(result):
            log.error("problem %s: the solver returned %r, which is not an answer", problem_id, result)
            return _best(pending)
        return operator.index(result)


def _best(pending: PendingAnswer | None) -> int:
    try:
        best = None if pending is None else pending.best()
    except Exception:  # noqa: BLE001 (the defect that broke the solver may have broken this as well)
        log.error("the best answer so far cannot be read\n%s", traceback.format_exc())
        best = None
    return operator.index(best) if best is not None and _is_answer(best) else FALLBACK_ANSWER


def _is_answer(value: object) -> TypeGuard[SupportsIndex]:
    try:
        return operator.index(value) in ANSWER_RANGE  # type: ignore[arg-type]
    except TypeError:
        return False


def _text(value: Any) -> str:
    """Returns the text of a one-element Series or table (polars or pandas) or of a plain value."""
    if hasattr(value, "columns"):  # a table, as earlier competitions sent
        value = next(iter(value.to_numpy().flat), None)
    elif hasattr(value, "to_list"):
        items = value.to_list()
        value = items[0] if items else None
    if value is None:
        return ""
    return str(value).encode("utf-8", "replace").decode("utf-8")  # tables and tokenizers refuse lone surrogates


class LocalInferenceServer:
    """Replaces Kaggle's inference server where its package is absent.

    Like Kaggle's gateway for AIMO3 it reads the CSV with polars, shuffles it with a fresh seed, passes each row's columns as
    positional one-element Series in a single worker thread, checks each result, and writes ``submission.parquet`` into the
    working directory only at the very end. Nothing goes through gRPC.
    """

    def __init__(self, predict: Callable[..., pl.DataFrame]) -> None:
        self._predict = predict

    def serve(self) -> None:
        """Does nothing: outside a rerun there is no gateway that calls."""

    def run_local_gateway(self, data_paths: tuple[str, ...]) -> None:
        """Calls `predict` with every row of the CSV `data_paths[0]` and writes ``submission.parquet``.

        Raises:
            LocalGatewayError: Kaggle's run would have ended without a submission; `kind` is Kaggle's name for the reason.
        """
        try:
            rows = pl.read_csv(data_paths[0]).sample(fraction=1.0, shuffle=True)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise LocalGatewayError("GATEWAY_RAISED_EXCEPTION", f"{data_paths[0]} cannot be read: {error}") from None
        worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ThreadPoolExecutor-0")
        try:
            results = [self._ask(worker, rows.slice(number, 1)) for number in range(len(rows))]
        finally:
            worker.shutdown(wait=False)  # Ctrl-C does not wait for the current problem
        if not results:
            raise LocalGatewayError("GATEWAY_RAISED_EXCEPTION", f"{data_paths[0]} has no rows")
        pl.concat(results).select(rows.get_column(rows.columns[0]).alias("id"), "answer").write_parquet("submission.parquet")

    def _ask(self, worker: ThreadPoolExecutor, row: pl.DataFrame) -> pl.DataFrame:
        future = worker.submit(self._predict, *row.get_columns())
        failure, place = future.exception(), f"at {row.item(0, 0)!r}"
        if isinstance(failure, Exception):
            raise LocalGatewayError("SERVER_RAISED_EXCEPTION", f"{place}: {failure}") from failure
        if failure is not None:  # SystemExit and the like
            raise LocalGatewayError("GRPC_DEADLINE_EXCEEDED", f"{place}: Kaggle waits forever after {failure!r}") from failure
        result = future.result()
        if not isinstance(result, pl.DataFrame) or len(result) != 1 or result.columns != ["id", "answer"]:
            raise LocalGatewayError("INVALID_SUBMISSION", f"{place}: predict returned no row of id and answer: {result!r:.300}")
        return result
