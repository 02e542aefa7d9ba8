"""Python values over gRPC: encoding, server and client."""

import io
import json
import os
import socket
import time
import types
from concurrent import futures

import grpc
import kaggle_evaluation_pb2 as pb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow  # noqa: F401 (the original needs it at import time)

SERVICE = "kaggle_evaluation_client.KaggleEvaluationService"
PORTS = (50051, *range(60053, 60063))
STARTUP_LIMIT_S = float(os.environ.get("STAND_IN_STARTUP_LIMIT_S", "900"))
_RETRY = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 1,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.service_config", json.dumps(_RETRY)),
]


def encode(value):
    """A Payload; the order of the tests decides what a value is taken for."""
    buffer = io.BytesIO()
    if isinstance(value, np.generic):
        assert isinstance(value, (np.number, np.bool_)), type(value)
        np.save(buffer, value, allow_pickle=False)
        return pb.Payload(numpy_scalar_value=buffer.getvalue())
    if isinstance(value, str):
        return pb.Payload(str_value=value)
    if isinstance(value, bool):
        return pb.Payload(bool_value=value)
    if isinstance(value, int):
        return pb.Payload(int_value=value)
    if isinstance(value, float):
        return pb.Payload(float_value=value)
    if value is None:
        return pb.Payload(none_value=True)
    if isinstance(value, list):
        return pb.Payload(list_value=pb.PayloadList(payloads=map(encode, value)))
    if isinstance(value, tuple):
        return pb.Payload(tuple_value=pb.PayloadList(payloads=map(encode, value)))
    if isinstance(value, dict):
        return pb.Payload(dict_value=pb.PayloadMap(payload_map={key: encode(item) for key, item in value.items()}))
    if isinstance(value, pd.DataFrame):
        value.rename(columns=str).to_parquet(buffer, index=False, compression="lz4")
        return pb.Payload(pandas_dataframe_value=buffer.getvalue())
    if isinstance(value, pl.DataFrame):
        for name, dtype in value.schema.items():
            if dtype in (pl.Enum, pl.Object, pl.Unknown):
                raise TypeError(f"column {name} of type {dtype} is not supported")
        value.write_ipc_stream(buffer, compression="lz4")
        return pb.Payload(polars_dataframe_value=buffer.getvalue())
    if isinstance(value, pd.Series):
        value.to_frame().rename(columns=str).to_parquet(buffer, index=False, compression="lz4")
        return pb.Payload(pandas_series_value=buffer.getvalue())
    if isinstance(value, pl.Series):
        value.to_frame().write_parquet(buffer, compression="lz4", statistics=False)
        return pb.Payload(polars_series_value=buffer.getvalue())
    if isinstance(value, np.ndarray):
        np.save(buffer, value, allow_pickle=False)
        return pb.Payload(numpy_array_value=buffer.getvalue())
    if isinstance(value, io.BytesIO):
        return pb.Payload(bytes_io_value=value.getvalue())
    raise TypeError(f"type {type(value)} is not supported")


def decode(payload):
    """The value of a Payload."""
    kind = payload.WhichOneof("value")
    value = getattr(payload, kind)
    if kind in ("str_value", "bool_value", "int_value", "float_value"):
        return value
    if kind == "none_value":
        return None
    if kind == "list_value":
        return [decode(item) for item in value.payloads]
    if kind == "tuple_value":
        return tuple(decode(item) for item in value.payloads)
    if kind == "dict_value":
        return {key: decode(item) for key, item in value.payload_map.items()}
    buffer = io.BytesIO(value)
    readers = {
        "pandas_dataframe_value": pd.read_parquet,
        "polars_dataframe_value": pl.read_ipc_stream,
        "pandas_series_value": lambda data: pd.read_parquet(data).iloc[:, 0],
        "polars_series_value": lambda data: pl.read_parquet(data).to_series(),
        "numpy_array_value": np.load,
        "numpy_scalar_value": lambda data: np.load(data)[()],
        "bytes_io_value": lambda data: data,
    }
    return readers[kind](buffer)


def _free_port():
    for port in PORTS:
        with socket.socket() as probe:
            try:
                probe.bind(("localhost", port))
            except OSError:
                continue
            return port
    raise ValueError("no port is free")


def define_server(*functions):
    """A gRPC server that has its port but does not serve yet."""
    if not functions:
        raise ValueError("an endpoint listener is needed")
    for function in functions:
        if not isinstance(function, types.FunctionType) or function.__name__ == "<lambda>":
            raise ValueError("endpoint listeners must be named functions")
    endpoints = {function.__name__: function for function in functions}

    def send(request, context):
        if request.name not in endpoints:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, f"no listener for {request.name}")
        arguments = [decode(item) for item in request.args]
        keywords = {key: decode(item) for key, item in request.kwargs.items()}
        return pb.KaggleEvaluationResponse(payload=encode(endpoints[request.name](*arguments, **keywords)))

    handler = grpc.unary_unary_rpc_method_handler(
        send,
        request_deserializer=pb.KaggleEvaluationRequest.FromString,
        response_serializer=pb.KaggleEvaluationResponse.SerializeToString,
    )
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1), options=OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Send": handler}),))
    server.add_insecure_port(f"[::]:{_free_port()}")
    return server


class Client:
    """Finds the server with its first call, without a time limit for the answer; later calls have one."""

    def __init__(self, host):
        self.host = host
        self.endpoint_deadline_s = 3_600
        self._channel = None
        self._send = None

    def send(self, name, *arguments):
        request = pb.KaggleEvaluationRequest(name=name, args=map(encode, arguments))
        if self._send is not None:
            return decode(self._send(request, timeout=self.endpoint_deadline_s).payload)
        started = time.time()
        while True:
            for port in PORTS:
                channel = grpc.insecure_channel(f"{self.host}:{port}", options=OPTIONS)
                send = channel.unary_unary(
                    f"/{SERVICE}/Send",
                    request_serializer=pb.KaggleEvaluationRequest.SerializeToString,
                    response_deserializer=pb.KaggleEvaluationResponse.FromString,
                )
                try:
                    answer = send(request)
                except grpc.RpcError as error:
                    channel.close()
                    if "StatusCode.UNAVAILABLE" not in str(error):
                        raise
                else:
                    self._channel, self._send = channel, send
                    return decode(answer.payload)
                socket.gethostbyname(self.host)
                time.sleep(1 / len(PORTS))
            if time.time() - started > STARTUP_LIMIT_S:
                raise TimeoutError("the server never started")

    def close(self):
        if self._channel is not None:
            self._channel.close()
