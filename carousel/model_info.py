"""What the server reports about a model. Frozen, and does not depend on protobuf."""

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
    """A named part of the vectors that a model reads or outputs. dtype: its type in the model, by NumPy's name. shape:
    its axes; empty for a single number. is_end: whether it must be 1 in a session's last vector and 0 in all others."""

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
    """A value that is set when a session is opened, and does not change. port: its name, type and shape. default: its
    numbers, row-major; empty if each opening must give the value. choices: the only allowed values; empty for any."""

    port: Port
    default: tuple[float, ...]
    choices: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Transducer:
    """How a model that reads frames emits tokens. blank_id: the token that ends an encoded frame; it is never emitted.
    max_symbols: the most tokens in one encoded frame. num_frames: encoded frames a step."""

    blank_id: int
    max_symbols: int
    num_frames: int


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A version of a model.

    problem: why it is not served; empty if it is. source_vocabulary, target_vocabulary: token names by id; the former
    is empty without an encoder. max_source_length: in tokens; 0 without an encoder. max_tokens: the most tokens of a
    generation that sets no limit. state_size_bytes: for each session. manifest_digest: SHA-256 in hexadecimal.
    variants: ways to compute the model: `fp32`, and possibly others such as `int8`. input_vocabulary: of the tokens
    that steps read; empty if it is the target vocabulary, or if steps read vectors. tokenizer: how text becomes those
    tokens, `characters` or `whitespace`. feature_size, source_feature_size: how many numbers are in each vector that
    steps and the encoder read; 0 if they read tokens. value_size: how many values a step outputs; 0 if it outputs
    logits.
    can_generate: whether the server can generate with it. trace: names of the values inside a step that can be
    returned. max_batch_rows: the most sessions in one batch; 0 for any number. inputs, outputs: the named parts of the
    vectors that steps read and output. constants: values that an opening may give. transducer: how it emits tokens;
    None for other models. sample_rate: samples a second, for models that read sound; 0 if that is not known.
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
        """The inputs that a client gives: all except the flag for the session's end."""
        return tuple(port for port in self.inputs if not port.is_end)

    @property
    def fed_size(self) -> int:
        """How many numbers a client gives in each step; 0 if steps read tokens."""
        return self.feature_size - sum(port.size for port in self.inputs if port.is_end)
