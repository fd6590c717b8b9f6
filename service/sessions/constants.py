"""The values that sessions get at their opening and keep: session constants, and the session number.

They are states that no step changes. A fork, and a session restored from a snapshot, keeps those of its original, also
the number, so that it computes the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from service.engine.arena import Array
from service.errors import quoted
from service.repository.manifest import Dtype, Manifest, StateSpec

Given: TypeAlias = Mapping[int, Array] | None
"""Initial values of states, without the batch axis, by their index in the manifest."""
_NUMBER_BITS: dict[Dtype, int] = {"int64": 63, "int32": 31, "float64": 53, "float32": 24, "float16": 11, "bool": 1}


def refused_choice(state: StateSpec, value: Array) -> str:
    """Returns why a session constant with a fixed set of values cannot have this value; "" when it can."""
    choices = () if state.constant is None else state.constant.choices
    numbers = value.ravel()
    if not choices or any(np.array_equal(numbers, np.array(one, value.dtype)) for one in choices):
        return ""
    return f"{_shown(numbers.tolist())} must be one of {', '.join(map(_shown, choices))}"


def _shown(numbers: Sequence[float]) -> str:
    return f"{numbers[0]:g}" if len(numbers) == 1 else quoted([float(one) for one in numbers])


def with_number(manifest: Manifest, session_id: str, given: Given) -> Given:
    """Returns the given values and, if the model reads one, the session number: the first bits of the SHA-256 of the
    session's id, as many as the data type holds exactly."""
    place = manifest.session_number
    if place is None:
        return given
    state = manifest.states[place]
    number = int.from_bytes(hashlib.sha256(session_id.encode()).digest()[:8], "big")
    number >>= 64 - _NUMBER_BITS[state.input.dtype]
    return {**(given or {}), place: np.full(state.row_shape, number, state.input.dtype)}
