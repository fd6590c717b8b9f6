"""The header of a snapshot: its classes, and how they become bytes.

These classes are the file format, with the values of the enumerations that they use. Fields with defaults may be added.
No field is ever renamed or gets another meaning.
"""

from __future__ import annotations

import msgspec
import numpy as np

from service.engine.decoding import FinishReason, FloatRow
from service.engine.jobs import OutputKind
from service.sessions.persistence import Durability, OnDisconnect


class Tensor(msgspec.Struct, array_like=True):
    """A tensor that follows the header."""

    dtype: str
    shape: list[int]


class Lane(msgspec.Struct):
    """See `LaneState`. Its arrays follow the header."""

    position: int
    pending: list[int | bytes]
    num_states: int
    tensors: list[Tensor]
    has_next_logits: bool = False
    num_produced: int = 0
    seen: list[int] | None = None


class Output(msgspec.Struct, array_like=True):
    """See `StepOutput`, whose order it has. Rows are bytes: 32-bit floats, little-endian."""

    position: int
    token_ids: list[int]
    log_probabilities: list[float] | None
    logits: FloatRow | None
    trace: dict[str, FloatRow] | None = None
    num_limited: int = 0


class Feed(msgspec.Struct):
    """See `FedBefore`."""

    start: int
    tokens: list[int | bytes]
    kind: OutputKind
    top_k: int
    every_position: bool
    answer: list[Output]
    has_trace: bool = False


class Sampling(msgspec.Struct):
    """See `service.engine.sampling.Sampling`."""

    temperature: float
    top_k: int | None
    top_p: float
    seed: int


class Beam(msgspec.Struct):
    """See `service.engine.decoding.Beam`, whose order it has."""

    beam_size: int
    length_penalty: float
    num_best: int


class Decoding(msgspec.Struct):
    """See `service.engine.decoding.Decoding`."""

    max_tokens: int
    sampling: Sampling | None
    log_probabilities: bool
    repetition_penalty: float
    min_tokens: int
    stop_ids: list[int]
    beam: Beam | None


class Hypothesis(msgspec.Struct):
    """See `service.engine.beam.Hypothesis`, whose order it has."""

    tokens: list[int]
    end_id: int | None
    score: float
    log_probability: float
    log_probabilities: list[float]
    finish_reason: FinishReason


class Generation(msgspec.Struct):
    """See `GeneratedBefore`. before: only the tokens of its `before`."""

    start: int
    decoding: Decoding
    num_dropped: int
    tokens: list[int | bytes]
    log_probabilities: list[float] | None
    finish_reason: FinishReason | None
    found_position: int | None = None
    found: list[Hypothesis] = []
    before: list[int] | None = None


class Header(msgspec.Struct):
    """See `Image`. state_names: the names of the first `num_states` tensors of each lane; contexts and logits follow
    them."""

    session_id: str
    model: str
    version: int
    variant: str
    manifest_digest: str
    opened_at: float
    state_names: list[str]
    durability: Durability
    on_disconnect: OnDisconnect
    duration_s: float
    is_unattended: bool
    lane: Lane
    feed: Feed | None = None
    generation: Generation | None = None
    marks: list[Lane] = []


def _row_to_bytes(row: object) -> bytes:
    if not isinstance(row, np.ndarray):
        raise TypeError(f"{type(row).__name__} is not in the format of snapshots")
    return row.astype("<f4", copy=False).tobytes()


def _bytes_to_row(_: type, data: bytes) -> FloatRow:
    return np.frombuffer(data, "<f4").astype(np.float32, copy=False)


encode_header = msgspec.msgpack.Encoder(enc_hook=_row_to_bytes).encode
decode_header = msgspec.msgpack.Decoder(Header, dec_hook=_bytes_to_row).decode
"""Raises msgspec.MsgspecError for bytes that are not a header."""
