"""The messages of the gateway's service, built from their field numbers instead of by protoc."""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "kaggle_evaluation_client"
_TYPE = descriptor_pb2.FieldDescriptorProto

_VALUES = [  # the oneof of Payload, in the order of its field numbers
    ("str_value", _TYPE.TYPE_STRING, None),
    ("bool_value", _TYPE.TYPE_BOOL, None),
    ("int_value", _TYPE.TYPE_SINT64, None),
    ("float_value", _TYPE.TYPE_FLOAT, None),
    ("none_value", _TYPE.TYPE_BOOL, None),
    ("list_value", _TYPE.TYPE_MESSAGE, "PayloadList"),
    ("tuple_value", _TYPE.TYPE_MESSAGE, "PayloadList"),
    ("dict_value", _TYPE.TYPE_MESSAGE, "PayloadMap"),
    ("pandas_dataframe_value", _TYPE.TYPE_BYTES, None),
    ("polars_dataframe_value", _TYPE.TYPE_BYTES, None),
    ("pandas_series_value", _TYPE.TYPE_BYTES, None),
    ("polars_series_value", _TYPE.TYPE_BYTES, None),
    ("numpy_array_value", _TYPE.TYPE_BYTES, None),
    ("numpy_scalar_value", _TYPE.TYPE_BYTES, None),
    ("bytes_io_value", _TYPE.TYPE_BYTES, None),
]


def _field(message, name, number, kind, type_name=None, *, repeated=False):
    field = message.field.add(name=name, number=number, type=kind)
    field.label = _TYPE.LABEL_REPEATED if repeated else _TYPE.LABEL_OPTIONAL
    if type_name is not None:
        field.type_name = f".{_PACKAGE}.{type_name}"
    return field


def _map_field(file_message, name, number):
    entry_name = "".join(part.capitalize() for part in name.split("_")) + "Entry"
    entry = file_message.nested_type.add(name=entry_name)
    entry.options.map_entry = True
    _field(entry, "key", 1, _TYPE.TYPE_STRING)
    _field(entry, "value", 2, _TYPE.TYPE_MESSAGE, "Payload")
    _field(file_message, name, number, _TYPE.TYPE_MESSAGE, f"{file_message.name}.{entry_name}", repeated=True)


def _file():
    file = descriptor_pb2.FileDescriptorProto(name="kaggle_evaluation_stand_in.proto", package=_PACKAGE, syntax="proto3")
    request = file.message_type.add(name="KaggleEvaluationRequest")
    _field(request, "name", 1, _TYPE.TYPE_STRING)
    _field(request, "args", 2, _TYPE.TYPE_MESSAGE, "Payload", repeated=True)
    _map_field(request, "kwargs", 3)
    response = file.message_type.add(name="KaggleEvaluationResponse")
    _field(response, "payload", 1, _TYPE.TYPE_MESSAGE, "Payload")
    payload = file.message_type.add(name="Payload")
    payload.oneof_decl.add(name="value")
    for number, (name, kind, type_name) in enumerate(_VALUES, start=1):
        _field(payload, name, number, kind, type_name).oneof_index = 0
    _field(file.message_type.add(name="PayloadList"), "payloads", 1, _TYPE.TYPE_MESSAGE, "Payload", repeated=True)
    _map_field(file.message_type.add(name="PayloadMap"), "payload_map", 1)
    return file


_POOL = descriptor_pool.DescriptorPool()
_POOL.Add(_file())


def _message(name):
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


KaggleEvaluationRequest = _message("KaggleEvaluationRequest")
KaggleEvaluationResponse = _message("KaggleEvaluationResponse")
Payload = _message("Payload")
PayloadList = _message("PayloadList")
PayloadMap = _message("PayloadMap")
