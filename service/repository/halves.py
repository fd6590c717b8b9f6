"""Finds out whether a graph has 16-bit float weights. Reads ONNX's bytes directly, without the package `onnx`.

ONNX Runtime 1.32 ends the whole process when it loads, for the CPU, a matrix product of 16-bit floats behind a
transposition: its optimizer fuses both into an operation that it cannot run. Such graphs are loaded without that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

_FLOAT16 = 10
"""`onnx.TensorProto.FLOAT16`."""
_DATA_TYPE = 2
"""The field of `TensorProto` that contains the element type."""

_Fields: TypeAlias = Mapping[int, str]
_PARTS: Mapping[str, _Fields] = {
    "model": {7: "graph", 25: "function"},
    "function": {7: "node"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph"},
    "tensor": {},
}
"""For each message of `onnx.proto`: the numbers of fields that contain other messages, and which messages."""


def left_out(content: memoryview | bytes) -> list[str] | None:
    """Returns the optimizers to disable when a graph is loaded; None: no optimizer. content: the bytes of a model."""
    return ["MatmulTransposeFusion"] if has_halves(content) else None


def has_halves(content: memoryview | bytes) -> bool:
    """Whether a weight or a constant of a model is of 16-bit floats. False if `content` is not a model."""
    try:
        return _has_halves(memoryview(content), "model")
    except (IndexError, ValueError):
        return False


def _has_halves(part: memoryview, kind: str) -> bool:
    inner = _PARTS[kind]
    for number, value in _fields(part):
        if isinstance(value, int):
            if kind == "tensor" and number == _DATA_TYPE and value == _FLOAT16:
                return True
        elif number in inner and _has_halves(value, inner[number]):
            return True
    return False


def _fields(part: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yields the fields of a message in protobuf's wire format: field number, and a number or the field's bytes."""
    at = 0
    while at < len(part):
        key, at = _varint(part, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(part, at)
            yield key >> 3, value
        elif kind == 2:
            size, at = _varint(part, at)
            if at + size > len(part):
                raise ValueError("it is truncated")
            yield key >> 3, part[at : at + size]
            at += size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"unknown wire type {kind}")


def _varint(part: memoryview, at: int) -> tuple[int, int]:
    """Returns a number and the index of the next field. Raises IndexError when the bytes end too early."""
    value = shift = 0
    while True:
        byte = part[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
