"""A run outside the competition: the same server, gateway and solver, and a report that says whether to submit.

Before the first problem it shows the result of the boot; at the end, the answers, and the score if the problems' CSV has a column
`answer`. If the boot failed, a fallback serves, no attempt gave an answer, or Kaggle's package is absent on Kaggle, it fails
after writing the submission, so that the commit shows it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl

from aimo_solver.errors import CacheError, ConfigError, RehearsalError
from aimo_solver.kaggle.gateway import InferenceServer, LocalInferenceServer, make_predict, make_server
from aimo_solver.kaggle.notebook import NotebookRun
from aimo_solver.kaggle.summary import LAUNCH, add_fallback
from aimo_solver.paths import find_problems
from aimo_solver.problems import Answer
from aimo_solver.server.checks import Check, Health, format_checks
from aimo_solver.server.compile_cache import default_root, make_stamp, pack_cache
from aimo_solver.server.launch import LaunchPlan

REPORT = Path("rehearsal.txt")
CACHE = Path("compile-cache.aimocache")
_SUBMISSION = Path("submission.parquet")
_BOOTS = 2  # failures in a row that end a rehearsal; the competition repeats boots to the end of the clock

log = logging.getLogger(__name__)


def rehearse(
    run: NotebookRun, competition: str, problems: str = "", *, repeat: int = 1, allow_fallback: bool = False
) -> pl.DataFrame:
    """Answers the problems through the gateway, and closes the run; returns the submission.

    Writes ``submission.parquet`` and ``rehearsal.txt``, a copy of what is printed, into the working directory, and
    ``compile-cache.aimocache`` after a boot on a GPU.

    Args:
        problems: the CSV; see `find_problems`.
        repeat: how often each problem is solved. The first time counts for the submission; run directories are numbered from 1.
        allow_fallback: do not fail if a fallback serves or no attempt gives an answer.

    Raises:
        RehearsalError: at the very end, if the notebook should not be submitted as it is.
        ConfigError: the CSV cannot be used.
        PathNotFoundError, BootError: there are no problems, or the competition's package cannot be used.
    """
    csv = find_problems(problems, competition)
    table = read_table(csv)
    server = make_server(make_predict(run), competition)
    gateway = _gateway_checks(server)
    _start(run, table, repeat)
    try:
        failure = run.wait_for_boot(_BOOTS)
        if failure is not None:
            run.close()  # the problems are answered at once, not after their budgets
        checks = run.sessions.checks if failure is None else run.sessions.diagnose()
        shown = _show(_describe_boot([*gateway, *checks], failure))
        server.run_local_gateway((str(csv),))
        answers = [_read_submission(), *_answer_again(run, table, repeat if failure is None else 1)]
        if failure is None:  # the server may have been lost meanwhile
            failure = run.wait_for_boot(1)
            checks = add_fallback(run.sessions.checks, run.sessions.fallback)
    finally:
        run.close()
    faults = _find_faults([*gateway, *checks], failure, allow_fallback=allow_fallback)
    if not (run.answered or faults or allow_fallback or run.dry):
        faults = ["no attempt at any problem gave an answer; the lines of the attempts above say how they ended"]
    shown += _show("\n".join([*_describe_answers(answers, run.truths, run.answered), "", _describe_end(run, faults)]))
    _write(REPORT, shown)
    if faults:
        raise RehearsalError("; ".join(faults))
    return pl.read_parquet(_SUBMISSION)


def read_table(csv: Path) -> pl.DataFrame:
    """Reads the problems as the gateway does, which passes the columns by their order: the id, then the problem.

    Raises:
        ConfigError: the file cannot be read, or the columns are in another order.
    """
    try:
        table = pl.read_csv(csv)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError("PROBLEMS", f"{csv} cannot be read as a UTF-8 CSV file: {reason}") from None
    _, *later = names = [name.strip().lower() for name in table.columns]
    texts = {"problem", "question"}
    if not later or "id" in later or "answer" in names[:2] or (texts & {*names} and later[0] not in texts):
        columns = ", ".join(table.columns)
        raise ConfigError("PROBLEMS", f"{csv} has the columns {columns}; the first two have to be id and problem")
    return table


def read_truths(table: pl.DataFrame) -> Mapping[str, int]:
    """Returns the integers of the column `answer` by id, as `predict` gets the id; empty without that column."""
    if "answer" not in table.columns:
        return {}
    truths = table.select(table.columns[0], pl.col("answer").cast(pl.Int64, strict=False)).drop_nulls()
    return {str(id_): truth for id_, truth in truths.rows()}


def _start(run: NotebookRun, table: pl.DataFrame, repeat: int) -> None:
    run.truths = read_truths(table)
    _SUBMISSION.unlink(missing_ok=True)  # an earlier run's would stay in place after a failure
    if repeat > 1:
        run.close()
        run.sessions.begin_repeat(1)
    run.start()
    run.expect(repeat * len(table))


def _read_submission() -> dict[str, int]:
    return {str(id_): answer for id_, answer in pl.read_parquet(_SUBMISSION).select("id", "answer").rows()}


def _answer_again(run: NotebookRun, table: pl.DataFrame, repeat: int) -> Iterator[dict[str, int]]:
    """Yields the answers of each repeat after the first, which alone goes through the gateway."""
    for number in range(2, repeat + 1):
        run.sessions.begin_repeat(number)
        predict = make_predict(run, interruptible=True)  # a `predict` caches its answers
        rows = table.select(table.columns[:2]).sample(fraction=1.0, shuffle=True).rows()
        yield {str(id_): predict(id_, problem).item(0, "answer") for id_, problem in rows}


def _gateway_checks(server: InferenceServer) -> list[Check]:
    if not isinstance(server, LocalInferenceServer):
        return []
    health = Health.BROKEN if "KAGGLE_KERNEL_RUN_TYPE" in os.environ else Health.WARNING  # Kaggle sets it
    found = "Kaggle's package kaggle_evaluation is absent; a local gateway takes its place"
    return [Check("gateway", health, found, "attach the competition (Add input), and set COMPETITION to its slug")]


def _describe_boot(checks: Sequence[Check], failure: str | None) -> str:
    lines = ["", "boot", "----", format_checks(checks)] if checks else []
    return "\n".join([*lines, "" if failure is None else f"{Health.BROKEN:8} {'boot':9} {failure}\n"])


def _describe_answers(answers: Sequence[Mapping[str, int]], truths: Mapping[str, Answer], answered: Collection[str]) -> list[str]:
    """Returns one line for each problem, with its answer in each repeat, and one with the scores."""
    lines = []
    for id_ in sorted(answers[0]):
        right = sum(one[id_] == truths.get(id_) for one in answers)
        verdict = "right" if right == len(answers) else f"{right} of {len(answers)} right"
        if right == 0:
            verdict = f"wrong, true is {truths[id_]}" if id_ in truths else ""
        given = " ".join(f"{one[id_]:5}" for one in answers)
        doubt = "" if id_ in answered else "no attempt gave an answer"
        lines.append("  ".join(filter(None, (id_, given, verdict, doubt))))
    if truths:
        scores = [sum(one.get(id_) == truth for id_, truth in truths.items()) for one in answers]
        mean = f", {sum(scores) / len(scores):.1f} on average" if len(scores) > 1 else ""
        lines.append(f"score: {', '.join(map(str, scores))} of {len(truths)}{mean}")
    return ["", "answers", "-------", *lines]


def _find_faults(checks: Sequence[Check], failure: str | None, *, allow_fallback: bool) -> list[str]:
    broken = [check for check in checks if check.health is Health.BROKEN and not (allow_fallback and check.name == LAUNCH)]
    failed = [] if failure is None else [f"the boot failed: {failure}"]
    return [*failed, *(f"{one.name}: {one.finding}" for one in broken if one.finding not in (failure or ""))]


def _describe_end(run: NotebookRun, faults: Sequence[str]) -> str:
    """Packs the compile cache of a notebook without faults; returns the verdict."""
    late = "the time limit was reached, and the problems after it got 0\n" if run.out_of_time else ""
    if faults:
        return late + "\n".join(f"NOT FIT TO BE SUBMITTED: {fault}" for fault in faults)
    fit = "fit to try the gateway only: with DRY_RUN every answer is 0" if run.dry else "fit to be submitted"
    return f"{late}{_pack_cache(run.sessions.plan)}{fit}"


def _pack_cache(plan: LaunchPlan | None) -> str:
    """Packs what the server compiled; returns a line about it, or "" without a GPU."""
    if plan is None or not plan.gpus:
        return ""
    try:
        size = pack_cache(make_stamp(plan, default_root()), CACHE)
    except CacheError as error:
        return f"no compile cache: {error}\n"
    return f"{CACHE}: {size / 1e6:.1f} MB that the server compiled; attached to the next version, it starts faster\n"


def _show(text: str) -> str:
    print(text, flush=True)
    return f"{text}\n"


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        log.error("%s cannot be written: %s", path, error.strerror)
