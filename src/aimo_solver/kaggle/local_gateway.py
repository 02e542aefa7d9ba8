"""A stand-in for Kaggle's gateway where its package is absent. It makes the same checks, so it finds the same mistakes.

Like Kaggle's gateway for AIMO3 it reads the CSV with polars, shuffles it with a fresh seed, passes each row's columns
as positional one-element Series in a single worker thread, checks each result, and writes `submission.parquet` into the
working directory only at the very end. It differs in two points: nothing goes through gRPC, and an exception that makes
Kaggle's gateway wait for hours (SystemExit and the like) ends the run with an error.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FunctionType
from typing import Any

import polars as pl

from aimo_solver.errors import LocalGatewayError

_SCALARS = (int, float, str)  # bool is an int
_ENCODED = (*_SCALARS, list, tuple, dict, io.BytesIO)  # what gRPC messages hold besides tables and arrays


class LocalInferenceServer:
    """Replaces Kaggle's `AIMO3InferenceServer` in a notebook that runs elsewhere."""

    def __init__(self, *functions: Callable[..., Any]) -> None:
        """Takes the endpoint, a plain function named `predict`.

        Raises:
            ValueError: no function was given, or not a plain named one.
        """
        if not functions:
            raise ValueError("an endpoint function is needed")
        for function in functions:
            if not isinstance(function, FunctionType) or function.__name__ == "<lambda>":
                raise ValueError(f"an endpoint must be a plain function, not {function!r}")
        self._endpoints = {function.__name__: function for function in functions}
        self._used = False

    def serve(self) -> None:
        """Does nothing: outside a rerun there is no gateway that calls."""

    def run_local_gateway(self, data_paths: Sequence[str | Path]) -> None:
        """Calls `predict` with every row of the CSV `data_paths[0]` and writes `submission.parquet`.

        Raises:
            LocalGatewayError: Kaggle's run would have ended without a submission; `kind` is Kaggle's name for the reason.
            ValueError: this object has served a run before.
        """
        if isinstance(data_paths, str):
            raise LocalGatewayError("GATEWAY_RAISED_EXCEPTION", f"data_paths is a bare string; write ({data_paths!r},)")
        if self._used:
            raise ValueError("one server object serves one local run; make a new one")
        self._used = True
        predict = self._endpoints.get("predict")
        if predict is None:
            raise LocalGatewayError("SERVER_MISSING_ENDPOINT", f"no function named predict, only {', '.join(self._endpoints)}")
        rows = _shuffled(Path(data_paths[0]))
        worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ThreadPoolExecutor-0")
        try:
            results = [_ask(worker, predict, rows, number) for number in range(len(rows))]
        finally:
            worker.shutdown(wait=False)  # Ctrl-C does not wait for the current problem
        _submission(rows.get_column(rows.columns[0]), results).write_parquet("submission.parquet")


def _shuffled(path: Path) -> pl.DataFrame:
    try:
        rows = pl.read_csv(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise LocalGatewayError("GATEWAY_RAISED_EXCEPTION", f"{path} cannot be read: {error}") from None
    return rows.sample(fraction=1.0, shuffle=True)


def _ask(worker: ThreadPoolExecutor, predict: Callable[..., Any], rows: pl.DataFrame, number: int) -> Any:
    row = rows.slice(number, 1)
    future = worker.submit(predict, *row.get_columns())
    failure = future.exception()
    place = f"at {row.item(0, 0)!r}"
    if isinstance(failure, Exception):
        raise LocalGatewayError("SERVER_RAISED_EXCEPTION", f"{place}: {failure}") from failure
    if failure is not None:
        raise LocalGatewayError("GRPC_DEADLINE_EXCEEDED", f"{place}: Kaggle waits for ever after {failure!r}") from failure
    result = future.result()
    _check(result, place)
    return result


def _check(result: Any, place: str) -> None:
    """Makes the checks of the transport and of the gateway on one result."""
    name, table = type(result).__name__, _table(result)
    if table is not None:
        for column, dtype in table.schema.items():
            if dtype in (pl.Enum, pl.Object, pl.Unknown, pl.Int128):
                raise LocalGatewayError("SERVER_RAISED_EXCEPTION", f"{place}: column {column} of type {dtype} cannot be sent")
        if len(table) != 1:
            raise LocalGatewayError("INVALID_SUBMISSION", f"{place}: predict returned {len(table)} rows for one problem")
    elif isinstance(result, int) and not -(2**63) <= result < 2**63:
        raise LocalGatewayError("SERVER_RAISED_EXCEPTION", f"{place}: {result} does not fit in 64 bits")
    elif not isinstance(result, _SCALARS) and name != "int64":
        if result is None or isinstance(result, _ENCODED) or type(result).__module__ == "numpy":
            raise LocalGatewayError("INVALID_SUBMISSION", f"{place}: predict returned {name}")
        raise LocalGatewayError("SERVER_RAISED_EXCEPTION", f"{place}: {name} cannot be sent")


def _submission(ids: pl.Series, results: list[Any]) -> pl.DataFrame:
    """Concatenates the results under the ids sent, or fails as Kaggle's concatenation does."""
    kinds = {type(result) for result in results}
    tables = [table for result in results if (table := _table(result)) is not None]
    # Kaggle's way of concatenating fails for numbers, which have no name, and for a polars Series unless it is the only one.
    fails = pl.Series in kinds and not (len(results) == 1 and results[0].name)
    if len(kinds) != 1 or fails or len(tables) < len(results):
        names = ", ".join(sorted(kind.__name__ for kind in kinds)) or "nothing"
        raise LocalGatewayError("GATEWAY_RAISED_EXCEPTION", f"results of type {names} cannot be concatenated")
    columns = tables[0].columns
    for table in tables:
        if table.columns != columns:
            raise LocalGatewayError("INVALID_SUBMISSION", f"columns {table.columns} after {columns}")
    table = pl.concat(tables, how="vertical_relaxed")
    return table.select(ids.alias("id"), *(name for name in columns if name != "id"))


def _table(result: Any) -> pl.DataFrame | None:
    """Returns a frame or series, of polars or pandas, as a polars frame; None for anything else."""
    if isinstance(result, pl.DataFrame):
        return result
    if isinstance(result, pl.Series):
        return result.to_frame()
    if type(result).__module__.partition(".")[0] != "pandas" or not hasattr(result, "items"):
        return None
    columns = dict(result.items()) if hasattr(result, "columns") else {"0" if result.name is None else result.name: result}
    return pl.DataFrame({str(name): column.to_list() for name, column in columns.items()})
