"""Joins the named parts of input vectors, and splits output vectors into their parts. Without NumPy."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from carousel._arguments import invalid
from carousel._tensors import Features, floats
from carousel.errors import InvalidArgumentError
from carousel.model_info import Port, SessionConstant
from carousel.v1 import inference_pb2 as pb
from carousel.v1 import models_pb2

LARGEST_WHOLE = 2**24
"""The largest whole number up to which 32-bit floats represent each whole number exactly."""
Parts: TypeAlias = Mapping[str, Any]
"""The parts of vectors by name, each [steps, ...] or, for one step, [...]: nested sequences of numbers, arrays such as
NumPy's, or single numbers."""


def ports(messages: Iterable[pb.Port]) -> tuple[Port, ...]:
    """Makes ports, in the order of the messages."""
    return tuple(Port(one.name, one.dtype, tuple(one.shape), one.is_end) for one in messages)


def session_constant(message: models_pb2.SessionConstant) -> SessionConstant:
    """Makes the description of a value that openings may give."""
    (port,), numbers = ports([message.port]), list(message.choices)
    choices = [tuple(numbers[begin : begin + port.size]) for begin in range(0, len(numbers), port.size)]
    return SessionConstant(port, tuple(message.default_value), tuple(choices))


def joined_parts(
    parts: Parts, inputs: Sequence[Port], field: str, *, is_last: bool | Sequence[bool] = False
) -> Features:
    """Joins named parts to vectors [steps, features]. is_last: whether the last step is the session's last; a sequence
    has a flag for each step, if each is for another session. Raises InvalidArgumentError that names the part."""
    if not inputs:
        raise invalid(f"{field} is a dict of named inputs, but the model's inputs have no names: give vectors", field)
    unknown = [name for name in parts if name not in {port.name for port in inputs}]
    missing = [port.name for port in inputs if port.name not in parts and not port.is_end]
    if unknown or missing:
        expected = ", ".join(port.name for port in inputs)
        wrong = f"no {missing[0]!r}" if missing else repr(unknown[0])
        raise invalid(f"{field} has {wrong}: the model reads {expected}", field)
    ends = [port.name for port in inputs if port.is_end]
    has_last = is_last if isinstance(is_last, bool) else any(is_last)
    if has_last and (not ends or ends[0] in parts):
        names = ", ".join(port.name for port in inputs)
        why = f"the end flag {ends[0]!r} is also given" if ends else f"the model reads {names}, and no end flag"
        raise invalid(f"{field}: end=True cannot be used: {why}", field)
    columns = {port.name: _numbers(parts[port.name], port, field) for port in inputs if port.name in parts}
    counts = {port.name: len(columns[port.name]) // port.size for port in inputs if port.name in columns}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise invalid(f"{field} has different numbers of steps: {found}", field)
    num_steps = next(iter(counts.values()), 0)
    for port in inputs:
        if port.is_end and port.name not in columns:
            flags = _flags(is_last, num_steps, field)
            columns[port.name] = array("f", [float(flag) for flag in flags for _ in range(port.size)])
    return [
        [number for port in inputs for number in _step(columns[port.name], port.size, step)]
        for step in range(num_steps)
    ]


def taken_apart(values: Sequence[float], outputs: Sequence[Port]) -> dict[str, tuple[float, ...]]:
    """The numbers of each part by name, for one or more steps, one step after the other; empty for a model without
    names."""
    width = sum(port.size for port in outputs)
    found: dict[str, tuple[float, ...]] = {}
    begin = 0
    for port in outputs:
        rows = range(begin, len(values), width)
        found[port.name] = tuple(number for row in rows for number in values[row : row + port.size])
        begin += port.size
    return found


def _flags(is_last: bool | Sequence[bool], num_steps: int, field: str) -> Sequence[bool]:
    if isinstance(is_last, bool):
        return [is_last and step == num_steps - 1 for step in range(num_steps)]
    if len(is_last) != num_steps:
        raise invalid(
            f"{field} has {num_steps} steps, but end has {len(is_last)} flags: give one for each session", field
        )
    return is_last


def _step(numbers: Sequence[float], size: int, step: int) -> Sequence[float]:
    return numbers[step * size : (step + 1) * size]


def _numbers(value: Any, port: Port, field: str) -> array[float]:
    if hasattr(value, "shape"):
        value = memoryview(value).tolist()
    try:
        numbers = floats(_flat(value), f"{field}[{port.name!r}]")
    except (TypeError, OverflowError):
        raise _malformed(value, port, field) from None
    if not numbers or len(numbers) % port.size:
        raise _malformed(value, port, field)
    if port.dtype.startswith("int") and any(not abs(number) <= LARGEST_WHOLE or number % 1 for number in _flat(value)):
        raise _malformed(value, port, field, what=f"whole numbers up to {LARGEST_WHOLE}")
    return numbers


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        for one in value:
            yield from _flat(one)
    else:
        yield value  # array('f') refuses values that are not numbers


def _malformed(value: object, port: Port, field: str, what: str = "numbers") -> InvalidArgumentError:
    shape = ", ".join(map(str, ("steps", *port.shape)))
    return invalid(f"{field}[{port.name!r}] must be {what}, [{shape}], not {value!r:.60}", field)
