"""Converts session constants from the wire into first values of states. Errors name the field as the client spells
it."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from carousel.v1 import inference_pb2 as pb
from carousel.v1 import models_pb2
from service.api.answers import ports
from service.api.vectors import LARGEST_WHOLE, are_whole, check_data
from service.engine.arena import Array
from service.errors import InvalidFieldError, quoted
from service.repository.manifest import Manifest, PortSpec, StateSpec
from service.sessions.constants import Given, refused_choice


def session_constants(given: Mapping[str, pb.Tensor], manifest: Manifest, *, field: str) -> Given:
    """Returns the constants of an opening, by place in the manifest's states; None if the model has none. Raises
    InvalidFieldError for an unknown name, for a missing constant without a default, and for a value that the model does
    not accept."""
    known = manifest.session_constants
    if not known and not given:
        return None
    if unknown := sorted(name for name in given if name not in known):
        has = f"has {', '.join(known)}" if known else "has no constants"
        raise InvalidFieldError(
            f"{field} has an unknown constant {quoted(unknown[0])}: {manifest.model} {has}", field=field
        )
    found: dict[int, Array] = {}
    for name, place in known.items():
        state = manifest.states[place]
        if name in given:
            found[place] = _value(given[name], state, f"{field}[{quoted(name)}]")
        elif state.constant is not None and not state.constant.default:
            raise InvalidFieldError(
                f"{field}[{quoted(name)}] is missing, and {manifest.model} has no default for it: expected"
                f" {state.input.dtype} {list(state.row_shape)}",
                field=field,
            )
    return found


def infos(manifest: Manifest) -> list[models_pb2.SessionConstant]:
    """Returns the constants that an opening may give."""
    return [_info(manifest.states[place]) for place in manifest.session_constants.values()]


def _info(state: StateSpec) -> models_pb2.SessionConstant:
    assert state.constant is not None  # noqa: S101  # `infos` passes constants alone
    (port,) = ports([PortSpec(name=state.name, dtype=state.input.dtype, shape=state.row_shape)])
    choices = [number for one in state.constant.choices for number in one]
    return models_pb2.SessionConstant(port=port, default_value=state.constant.default, choices=choices)


def _value(message: pb.Tensor, state: StateSpec, field: str) -> Array:
    shape, dtype = list(message.shape[:9]), state.input.dtype
    if [axis for axis in shape if axis != 1] != [axis for axis in state.row_shape if axis != 1]:
        raise InvalidFieldError(
            f"{field}.shape = {quoted(shape)} must be {list(state.row_shape)}", field=f"{field}.shape"
        )
    check_data(message.data, prod(shape), shape, field=field)
    numbers = np.frombuffer(message.data, "<f4")
    if dtype.startswith("int") and not are_whole(numbers).all():
        raise InvalidFieldError(
            f"{field}.data must be whole numbers up to {LARGEST_WHOLE}, not {quoted(numbers.tolist())}",
            field=f"{field}.data",
        )
    if problem := refused_choice(state, numbers):  # before `astype`: 0.5 is not a boolean
        raise InvalidFieldError(f"{field} = {problem}", field=field)
    return numbers.astype(dtype).reshape(state.row_shape)
