"""The plain state of a session of any model, and functions on it. Pure, except that ONNX files are run."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from math import exp, log
from typing import Any, TypeAlias

from numpy.typing import NDArray

from carousel.v1 import sessions_pb2
from simulation import bare
from simulation.arithmetic import BOS_ID, ZERO, Hidden
from simulation.bare import Bare
from simulation.bundles import LISTENER, PROMPT, TRANSLATOR

State: TypeAlias = Hidden | Bare


def beginning(model: str, source: Sequence[int] = ()) -> State:
    """Returns the first state of a session, after its start token if it has one."""
    if model in (LISTENER, TRANSLATOR):
        return bare.beginning(model, tuple(source))
    return ZERO.step(BOS_ID) if model == PROMPT else ZERO


def after(state: State, tokens: Iterable[int]) -> State:
    """Returns the state after more tokens."""
    for token in tokens:
        state = state.step(token)
    return state


def of_arrays(model: str, states: Sequence[NDArray[Any]], contexts: Sequence[NDArray[Any]] = ()) -> State:
    """Returns the state in a session's tensors, which are in the order of the manifest."""
    if model in (LISTENER, TRANSLATOR):
        return Bare(model, tuple(array.tobytes() for array in (*states, *contexts)))
    first, second = states[0].reshape(-1).tolist()
    return Hidden(int(first), int(second))


def from_messages(like: State, tensors: Sequence[sessions_pb2.StateTensor]) -> State:
    """Returns the state in a session's tensors. like: another state of the session, with the same contexts."""
    if isinstance(like, Bare):
        return like.replaced([tensor.data for tensor in tensors])
    first, second = struct.unpack("<2f", tensors[0].data)
    return Hidden(int(first), int(second))


def set_to(tensor: sessions_pb2.StateTensor, number: int) -> sessions_pb2.StateTensor:
    """Returns the tensor with other values. tensor: has two numbers."""
    made = sessions_pb2.StateTensor(data=struct.pack("<2f", number * 13.0, number * 17.0))
    made.MergeFrom(sessions_pb2.StateTensor(name=tensor.name, dtype=tensor.dtype, shape=tensor.shape))
    return made


def likeliest(state: State) -> int:
    """Returns the most likely next token; the lowest of equally likely ones."""
    row = state.logits
    return row.index(max(row))


def log_probability(state: State, token: int) -> float:
    """Returns the log probability of the next token, computed in double precision."""
    row = state.logits
    return row[token] - log(sum(exp(value) for value in row))
