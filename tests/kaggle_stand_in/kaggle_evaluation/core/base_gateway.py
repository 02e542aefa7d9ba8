"""The run: every row to the server, checks, one file at the end."""

import enum
import json
import os
import warnings
from pathlib import Path

import grpc
import numpy as np
import pandas as pd
import polars as pl
import relay

IS_RERUN = os.getenv("KAGGLE_IS_COMPETITION_RERUN") is not None  # read once


class GatewayRuntimeErrorType(enum.Enum):
    UNSPECIFIED = 0
    SERVER_NEVER_STARTED = 1
    SERVER_CONNECTION_FAILED = 2
    SERVER_RAISED_EXCEPTION = 3
    SERVER_MISSING_ENDPOINT = 4
    GATEWAY_RAISED_EXCEPTION = 5
    INVALID_SUBMISSION = 6
    GRPC_DEADLINE_EXCEEDED = 7


class GatewayRuntimeError(Exception):
    def __init__(self, error_type, details=None):
        super().__init__(error_type, details)
        self.error_type = error_type
        self.error_details = details


class BaseGateway:
    """What all competitions' gateways share."""

    def __init__(self, data_paths=None):
        if isinstance(data_paths, str):
            data_paths = data_paths[:1]  # a bare string breaks here as there
        self.data_paths = data_paths
        host = os.environ.get("STAND_IN_HOST", "inference_server") if IS_RERUN else "localhost"
        self.client = relay.Client(host)

    def predict(self, *arguments):
        try:
            return self.client.send("predict", *arguments)
        except TimeoutError as error:
            raise GatewayRuntimeError(GatewayRuntimeErrorType.SERVER_NEVER_STARTED) from error
        except grpc.RpcError as error:
            raise _runtime_error(error) from error

    def validate(self, prediction, ids):
        kind = GatewayRuntimeErrorType.INVALID_SUBMISSION
        if prediction is None:
            raise GatewayRuntimeError(kind, "no prediction was received")
        scalars = (int, float, str, bool, np.int_)
        tables = (pl.DataFrame, pl.Series, pd.DataFrame, pd.Series)
        if not isinstance(prediction, (*scalars, *tables)):
            raise GatewayRuntimeError(kind, f"invalid prediction type {type(prediction)}")
        count = 1 if isinstance(prediction, scalars) else len(prediction)
        if count != len(ids):
            raise GatewayRuntimeError(kind, f"{count} predictions for {len(ids)} ids")

    def write_submission(self, predictions, ids):
        """`predictions` and `ids` in the order of serving."""
        try:
            table = _concatenated(predictions)
        except GatewayRuntimeError:
            raise
        except Exception as error:
            raise GatewayRuntimeError(GatewayRuntimeErrorType.GATEWAY_RAISED_EXCEPTION, str(error)) from error
        others = [name for name in table.columns if name != "id"]
        all_ids = pl.concat([one.alias("id") for one in ids])
        table.with_columns(all_ids).select("id", *others).write_parquet("submission.parquet")

    def run(self):
        """Raises in a local run; in a rerun the outcome goes to result.json."""
        failure = None
        try:
            predictions, ids = [], []
            for arguments, row_ids in self.generate():
                prediction = self.predict(*arguments)
                self.validate(prediction, row_ids)
                predictions.append(prediction)
                ids.append(row_ids)
            self.write_submission(predictions, ids)
        except GatewayRuntimeError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 (as the original does)
            failure = GatewayRuntimeError(GatewayRuntimeErrorType.GATEWAY_RAISED_EXCEPTION, str(error))
        finally:
            self.client.close()
        if IS_RERUN:
            result = {"Succeeded": failure is None}
            if failure is not None:
                result["ErrorType"] = failure.error_type.value
                result["ErrorName"] = failure.error_type.name
                result["ErrorDetails"] = failure.error_details and str(failure.error_details)[:8_000]
            Path("result.json").write_text(json.dumps(result))
        elif failure is not None:
            raise failure


def _concatenated(predictions):
    if all(isinstance(one, pl.DataFrame) for one in predictions):
        tables = predictions
    elif all(isinstance(one, (pd.DataFrame, pd.Series)) for one in predictions):
        frames = [one if isinstance(one, pd.DataFrame) else one.to_frame() for one in predictions]
        tables = [pl.DataFrame({str(name): frame[name].to_list() for name in frame.columns}) for frame in frames]
    elif len(predictions) == 1 and isinstance(predictions[0], pl.Series) and predictions[0].name:
        tables = [predictions[0].to_frame()]
    else:
        raise ValueError("predictions of these types cannot be concatenated")
    for table in tables:
        if table.columns != tables[0].columns:
            raise GatewayRuntimeError(GatewayRuntimeErrorType.INVALID_SUBMISSION, "columns differ between predictions")
    return pl.concat(tables, how="vertical_relaxed")


def _runtime_error(error):
    kinds = GatewayRuntimeErrorType
    code, details = error.code(), error.details() or ""
    if code == grpc.StatusCode.UNIMPLEMENTED:
        return GatewayRuntimeError(kinds.SERVER_MISSING_ENDPOINT, details)
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return GatewayRuntimeError(kinds.GRPC_DEADLINE_EXCEEDED)
    raised = "Exception calling application: "
    if details.startswith(raised):
        return GatewayRuntimeError(kinds.SERVER_RAISED_EXCEPTION, details.removeprefix(raised).partition("\n")[0])
    return GatewayRuntimeError(kinds.SERVER_CONNECTION_FAILED, details)


def warn_if_late(seconds):
    if seconds > relay.STARTUP_LIMIT_S:
        warnings.warn("a rerun's gateway would have given up by now", RuntimeWarning, stacklevel=3)
