"""What a server tells of a model. Frozen, and independent of the wire."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import prod


class ModelStatus(StrEnum):
    """Whether a version of a model is served."""

    UNSPECIFIED = "unspecified"
    SERVING = "serving"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Port:
    """A named part of the vectors that a model reads or gives. dtype: its type in the model, as NumPy names it; shape:
    its axes, none for a single number. is_end: whether it is 1 in the last vector that a session is fed, and else 0."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    is_end: bool = False

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class SessionConstant:
    """What a session is given when it is opened, and keeps. port: its name, type and axes. default: its numbers,
    row-major, where the opening does not give them; empty: each opening must. choices: the only values that it may
    have; empty: any."""

    port: Port
    default: tuple[float, ...]
    choices: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Transducer:
    """How a model that reads frames emits tokens. blank_id: the token that ends an encoded frame, and is never emitted;
    max_symbols: the most tokens of an encoded frame; num_frames: encoded frames of a step."""

    blank_id: int
    max_symbols: int
    num_frames: int


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A version of a model.

    problem: why it is not served, empty when it is. source_vocabulary, target_vocabulary: names by id; the former is
    empty without an encoder. max_source_length: in tokens, 0 without an encoder. max_tokens: generated at most when a
    request sets no limit. state_size_bytes: held for each session. manifest_digest: SHA-256 in hexadecimal. variants:
    names of the ways to compute it, `fp32` and perhaps others such as `int8`. input_vocabulary: of the tokens that
    steps read, empty when it is the target's, or when they read vectors. tokenizer: how text becomes those tokens,
    `characters` or `whitespace`. feature_size, source_feature_size: numbers in each vector that steps, and the encoder,
    read; 0 when they read tokens. value_size: values that a step gives, 0 when it gives logits. can_generate: whether
    it can go on by itself. trace: what can be seen inside a step, by name. max_batch_rows: sessions that it steps
    together, 0 for any number. inputs, outputs: the named parts of the vectors that steps read and give.
    constants: what a session may be given when it is opened. transducer: how it emits tokens; None: it does not.
    sample_rate: samples a second, where what a step reads is sound; 0: it is something else, or nobody said.
    """

    model: str
    version: int
    description: str
    status: ModelStatus
    problem: str
    has_encoder: bool
    source_vocabulary: tuple[str, ...]
    target_vocabulary: tuple[str, ...]
    max_source_length: int
    max_tokens: int
    state_size_bytes: int
    manifest_digest: str
    variants: tuple[str, ...]
    input_vocabulary: tuple[str, ...] = ()
    tokenizer: str = ""
    feature_size: int = 0
    source_feature_size: int = 0
    value_size: int = 0
    can_generate: bool = True
    trace: tuple[str, ...] = ()
    max_batch_rows: int = 0
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()
    constants: tuple[SessionConstant, ...] = ()
    transducer: Transducer | None = None
    sample_rate: int = 0

    @property
    def fed(self) -> tuple[Port, ...]:
        """The inputs that a client gives: all but what says that the session ends."""
        return tuple(port for port in self.inputs if not port.is_end)

    @property
    def fed_size(self) -> int:
        """Numbers that a client gives in each step; 0 when steps read tokens."""
        return self.feature_size - sum(port.size for port in self.inputs if port.is_end)
