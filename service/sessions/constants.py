"""What sessions are given when they are opened, and keep: session constants, and the number that tells them apart.

They are states that no step changes. A fork, and a session restored from a snapshot, has those of the session that it
was made of, its number too: it gives the same bits.
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
"""First values of states, without the batch axis, by their place in the manifest."""
_NUMBER_BITS: dict[Dtype, int] = {"int64": 63, "int32": 31, "float64": 53, "float32": 24, "float16": 11, "bool": 1}


def refused_choice(state: StateSpec, value: Array) -> str:
    """Why a state cannot have a value, of a session constant that has some values alone; empty when it can."""
    choices = () if state.constant is None else state.constant.choices
    numbers = value.ravel()
    if not choices or any(np.array_equal(numbers, np.array(one, value.dtype)) for one in choices):
        return ""
    return f"{_shown(numbers.tolist())} must be one of {', '.join(map(_shown, choices))}"


def _shown(numbers: Sequence[float]) -> str:
    return f"{numbers[0]:g}" if len(numbers) == 1 else quoted([float(one) for one in numbers])


def with_number(manifest: Manifest, session_id: str, given: Given) -> Given:
    """What is given, with the session's number where the model reads one: the first bits of the SHA-256 of its id, as
    many as the type holds exactly."""
    place = manifest.session_number
    if place is None:
        return given
    state = manifest.states[place]
    number = int.from_bytes(hashlib.sha256(session_id.encode()).digest()[:8], "big")
    number >>= 64 - _NUMBER_BITS[state.input.dtype]
    return {**(given or {}), place: np.full(state.row_shape, number, state.input.dtype)}
