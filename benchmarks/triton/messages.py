"""Messages for Triton: requests of `inference.GRPCInferenceService/ModelStreamInfer`.

Only the used fields are declared. Their numbers are those of KServe's protocol, version 2, as Triton implements it. A
stream is one sequence. Its first request starts the sequence. No request ends it, because the next measurement restarts
the sequences under the same ids.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from benchmarks.traffic import NUM_CHANNELS, Load, Sequence, Traffic

METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
INPUT = "tokens"
OUTPUT = "next_token"
ERROR_FIELD = "1"
"""`error_message` of a response, which is absent when there is no error."""
_TIMEOUT_S = 30.0

_FIELDS = {
    "Parameter": {"bool_param": (1, "bool"), "int64_param": (2, "int64")},
    "NamedParameter": {"key": (1, "string"), "value": (2, "Parameter")},  # an entry of a map, in its wire format
    "InputTensor": {"name": (1, "string"), "datatype": (2, "string"), "shape": (3, "[int64]")},
    "Request": {
        "model_name": (1, "string"),
        "parameters": (4, "[NamedParameter]"),
        "inputs": (5, "[InputTensor]"),
        "raw_input_contents": (7, "[bytes]"),
    },
    "Response": {"raw_output_contents": (6, "[bytes]")},
    "StreamResponse": {"error_message": (1, "string"), "infer_response": (2, "Response")},
}
"""The fields of each message: number and type; a type in brackets is repeated."""


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="triton.proto", package="triton", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            label = kinds.LABEL_REPEATED if kind.startswith("[") else kinds.LABEL_OPTIONAL
            added = message.field.add(name=field, number=number, label=label)
            inner = kind.strip("[]")
            if inner in _FIELDS:
                added.type, added.type_name = kinds.TYPE_MESSAGE, f".triton.{inner}"
            else:
                added.type = kinds.Type.Value(f"TYPE_{inner.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"triton.{name}")) for name in _FIELDS}


_CLASSES = _classes()


def request(model: str, sequence_id: int, token: int, *, is_start: bool = False) -> bytes:
    """Returns the bytes of a step of one token. sequence_id: 1 or more."""
    message = _CLASSES["Request"](model_name=model, raw_input_contents=[struct.pack("<q", token)])
    message.inputs.add(name=INPUT, datatype="INT64", shape=[1, 1])
    message.parameters.add(key="sequence_id", value={"int64_param": sequence_id})
    if is_start:
        message.parameters.add(key="sequence_start", value={"bool_param": True})
    data: bytes = message.SerializeToString()
    return data


def next_token(response: bytes) -> int:
    """Returns the token of a response. Raises RuntimeError with Triton's message when the response is an error."""
    message = _CLASSES["StreamResponse"].FromString(response)
    if message.error_message:
        raise RuntimeError(f"Triton answered: {message.error_message}")
    return int(struct.unpack("<q", message.infer_response.raw_output_contents[0])[0])


def next_tokens(target: str, model: str, tokens: list[int], sequence_id: int = 1) -> list[int]:
    """Returns the server's answer to each token of a new sequence. Raises RuntimeError, grpc.RpcError."""
    requests = [request(model, sequence_id, token, is_start=not place) for place, token in enumerate(tokens)]
    with grpc.insecure_channel(target) as channel:
        call: Any = channel.stream_stream(METHOD)
        return [next_token(answer) for answer in call(iter(requests), timeout=_TIMEOUT_S)]


def lockstep(load: Load) -> Traffic:
    """One sequence per stream, one token per message, one in flight."""
    sequences = []
    for index in range(load.streams):
        first = [request(load.model, index + 1, 1, is_start=True)]
        steps = [request(load.model, index + 1, 1 + shift % (load.vocabulary - 1)) for shift in range(64)]
        sequences.append(Sequence(first, steps, index % NUM_CHANNELS))
    return Traffic(sequences, method=METHOD, error_fields=(ERROR_FIELD,))


def arrivals(load: Load) -> Traffic:
    """The streams of `lockstep`, stepped at random times."""
    return replace(lockstep(load), rate=load.rate)
