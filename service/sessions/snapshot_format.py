"""The classes of the header of a snapshot.

These classes are the file format. Fields with defaults may be added. No field is ever renamed or gets another meaning.
"""

from __future__ import annotations

import msgspec


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
    """See `StepOutput`. Numbers are 32-bit floats, little-endian."""

    position: int
    token_ids: list[int]
    log_probabilities: list[float] | None
    logits: bytes | None
    trace: dict[str, bytes] | None = None
    num_limited: int = 0


class Feed(msgspec.Struct):
    """See `FedBefore`."""

    start: int
    tokens: list[int | bytes]
    kind: str
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
    """See `service.engine.decoding.Beam`."""

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
    """See `service.engine.beam.Hypothesis`."""

    tokens: list[int]
    end_id: int | None
    score: float
    log_probability: float
    log_probabilities: list[float]
    finish_reason: str


class Generation(msgspec.Struct):
    """See `GeneratedBefore`. before: only the tokens of its `before`."""

    start: int
    decoding: Decoding
    num_dropped: int
    tokens: list[int | bytes]
    log_probabilities: list[float] | None
    finish_reason: str | None
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
    durability: int
    on_disconnect: int
    duration_s: float
    is_unattended: bool
    lane: Lane
    feed: Feed | None = None
    generation: Generation | None = None
    marks: list[Lane] = []
