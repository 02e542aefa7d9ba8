"""predict() for Kaggle's gateway: the one function it calls, which answers in time whatever happens.

One exception, one missing answer or one answer of another shape loses a whole submission, and an exception that is no
`Exception` (SystemExit) makes the gateway wait for hours. So `predict` catches everything, waits no longer than the
clock allows, and builds its frame in one place. What it cannot do is save a process that is killed or out of memory.

This module must stay quick to import: the gateway is served before anything heavy is loaded.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import operator
import os
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any, Protocol

import polars as pl

from aimo_solver.answers import ANSWER_RANGE, FALLBACK_ANSWER
from aimo_solver.errors import AimoError, PathNotFoundError
from aimo_solver.kaggle.local_gateway import LocalInferenceServer
from aimo_solver.paths import find_gateway_package

_GLANCE_S = 0.5  # how often a waiting predict looks at an `ends_at` that may have moved

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Work:
    """One problem in the solver's hands, as the gateway sees it from its own thread.

    Attributes:
        ends_at: when the gateway stops waiting, on its clock; the solver moves it once it knows the problem's budget.
        answer: what the solver comes to.
        best: tells the best answer so far, None if there is none.
    """

    ends_at: float
    answer: Future[int] = field(default_factory=Future)
    best: Callable[[], int | None] = lambda: None


class Solving(Protocol):
    """What the gateway needs of a solver."""

    def begin(self, problem_id: str, text: str) -> Work:
        """Starts on a problem and returns at once."""
        ...


class Server(Protocol):
    """What a notebook uses of Kaggle's inference server, and of the local one."""

    def serve(self) -> None: ...

    def run_local_gateway(self, data_paths: tuple[str, ...]) -> None: ...


def in_rerun() -> bool:
    """Whether Kaggle's gateway is going to call. As in its package, it counts that the variable is there, even empty."""
    return os.environ.get("KAGGLE_IS_COMPETITION_RERUN") is not None


def make_server(predict: Callable[..., pl.DataFrame], competition: str) -> Server:
    """Kaggle's inference server, whose constructor takes the port; where its package is absent, ours for local runs.

    The competition's folder joins `sys.path` only if the package does not import without.

    Raises:
        PathNotFoundError: in a rerun, without the package there is nobody to serve; lists every folder that was tried.
    """
    try:
        if importlib.util.find_spec("kaggle_evaluation") is None:
            sys.path.append(str(find_gateway_package(competition)))
        module = importlib.import_module("kaggle_evaluation.aimo_3_inference_server")
    except (PathNotFoundError, ModuleNotFoundError) as error:
        if in_rerun():
            raise
        log.info("no Kaggle here (%s); the local gateway takes its place", error)
        return LocalInferenceServer(predict)
    server: Server = module.AIMO3InferenceServer(predict)
    return server


def make_predict(solving: Solving, clock: Callable[[], float] = time.monotonic) -> Callable[..., pl.DataFrame]:
    """The function to hand to the inference server; Kaggle wants a plain one with the name `predict`."""
    desk = _Desk(solving, clock)

    def predict(id_: Any, problem: Any = None, *rest: Any) -> pl.DataFrame:
        """One row with id and answer, always. `rest` may hold the truth (reference.csv), so nobody looks at it."""
        problem_id, answer = desk.serve(id_, problem)
        return pl.DataFrame({"id": [problem_id], "answer": [answer]}, schema={"id": pl.String, "answer": pl.Int64})

    return predict


class _Desk:
    """Takes problems in and gives answers out; nothing gets past it but an id and an integer in range."""

    def __init__(self, solving: Solving, clock: Callable[[], float]) -> None:
        self._solving = solving
        self._clock = clock
        self._answers: dict[tuple[str, str], int] = {}

    def serve(self, id_: Any, problem: Any) -> tuple[str, int]:
        problem_id, text, work = "", "", None
        try:
            problem_id = _text(id_)
            text = _text(problem)
            key = (problem_id, text)  # the text as well: broken ids must not share one answer
            if key in self._answers:
                log.info("problem %s came again; its answer stays %d", problem_id, self._answers[key])
                return problem_id, self._answers[key]
            if not text.strip():
                log.warning("problem %s has no text (%s)", problem_id, type(problem).__name__)
                answer = FALLBACK_ANSWER
            else:
                work = self._solving.begin(problem_id, text)
                answer = self._wait(problem_id, work)
            self._answers[key] = answer
        except BaseException as error:  # noqa: BLE001 (SystemExit and its kin would leave the gateway waiting for hours)
            # Kaggle shows no traceback anywhere, so it has to be in the log. Our own errors say all in their message.
            reason = error if isinstance(error, AimoError) else traceback.format_exc()
            answer = self._answers[problem_id, text] = _best(work)
            log.error("problem %s: %d goes out, because it failed: %s", problem_id, answer, reason)
        return problem_id, answer

    def _wait(self, problem_id: str, work: Work) -> int:
        while not work.answer.done():
            left = work.ends_at - self._clock()
            if left <= 0:
                answer = _best(work)
                log.error("problem %s: %d goes out, because the solver is past its time", problem_id, answer)
                work.answer.cancel()
                return answer
            wait([work.answer], timeout=min(left, _GLANCE_S))
        answer = work.answer.result()
        if not _is_answer(answer):
            log.error("problem %s: the solver gave %r, which is no answer", problem_id, answer)
            return _best(work)
        return operator.index(answer)


def _best(work: Work | None) -> int:
    try:
        best = None if work is None else work.best()
    except Exception:  # noqa: BLE001 (whatever broke the solver may have broken this as well)
        log.error("no best answer could be told\n%s", traceback.format_exc())
        best = None
    return operator.index(best) if best is not None and _is_answer(best) else FALLBACK_ANSWER


def _is_answer(value: object) -> bool:
    try:
        return operator.index(value) in ANSWER_RANGE  # type: ignore[arg-type]
    except TypeError:
        return False


def _text(value: Any) -> str:
    """The text in what the gateway sends: a one-element Series (of polars or pandas), or a plain value."""
    if hasattr(value, "to_list"):
        items = value.to_list()
        value = items[0] if items else None
    if value is None:
        return ""
    return str(value).encode("utf-8", "replace").decode("utf-8")  # a lone surrogate would break tables and tokenizers
