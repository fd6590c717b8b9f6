"""The parts of a manifest: tensors, graphs and vocabularies, each with the checks that concern it alone.

Shapes are lists of integers and of the symbolic axes `batch`, `time`, `source` and `k`.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
    model_validator,
)

FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Axis = Literal["batch", "time", "source", "k"]
Dtype = Literal["float32", "float64", "float16", "int64", "int32", "bool"]
Tokenizer = Literal["characters", "whitespace", "subword"]


class Part(BaseModel):
    """The base of all parts. Parts are frozen and refuse unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    newer: ClassVar[tuple[str, ...]] = ()
    """Fields that servers of format version 1 do not know. A manifest is written without those that have their default,
    so that such servers can read it."""

    @property
    def is_new(self) -> bool:
        """Whether it uses fields that format version 1 does not have."""
        return any(map(self._is_given, self.newer))

    @model_serializer(mode="wrap")
    def _without_what_is_new(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        found: dict[str, object] = serialize(self)
        return {name: value for name, value in found.items() if name not in self.newer or self._is_given(name)}

    def _is_given(self, name: str) -> bool:
        return bool(getattr(self, name) != type(self).model_fields[name].default)


class TensorSpec(Part):
    """One input or output of a graph."""

    name: str
    """The tensor's name in the graph."""
    dtype: Dtype
    """Its element type."""
    shape: tuple[Axis | Annotated[int, Field(ge=1)], ...]
    """Its axes: numbers, and the symbolic axes `batch`, `time`, `source` and `k`."""


class SessionConstantSpec(Part):
    """A value that a session gets when it is opened, and keeps: a sampling rate, a language, a speaker. Steps carry it
    like a state, so storing, moving, rewinding or forking a session includes it."""

    default: tuple[float, ...] = ()
    """Its elements, row-major, if the open request does not set them. Empty: each open request must set them."""
    choices: tuple[tuple[float, ...], ...] = ()
    """The only permitted values, each in the form of `default`. Empty: any value."""
    is_session_number: bool = False
    """Whether it is a number by which the model distinguishes sessions. The server sets it; open requests may not."""


class StateSpec(Part):
    """One state tensor: a step reads it and writes its next value."""

    newer = ("initial_file", "constant", "is_uniform")

    name: str
    """Its name in the API and for users, such as `hidden`."""
    input: TensorSpec
    """The step graph's input that reads it."""
    output: str
    """The name of the step graph's output that returns its next value."""
    initial: str | None = None
    """The name of the encoder's output that is its first value; None: zeros."""
    initial_file: FileName | None = None
    """The bundle's NumPy file (.npy) with its first value, without the batch axis; None: zeros."""
    constant: SessionConstantSpec | None = None
    """Set for a value that is set at the opening and that no step changes; None: an ordinary state."""
    is_uniform: bool = False
    """Whether all rows of one run must have the same value, bit for bit: the graph reads only the first row's."""

    @model_validator(mode="after")
    def _one_batch_axis(self) -> Self:
        if self.input.shape.count("batch") != 1 or "time" in self.input.shape or "source" in self.input.shape:
            raise ValueError(f"state {self.name}: shape {list(self.input.shape)} must have one batch axis and no other")
        if sum(one is not None for one in (self.initial, self.initial_file, self.constant)) > 1:
            raise ValueError(f"state {self.name}: only one of initial, initial_file and constant can be given")
        if self.constant is not None:
            for values in (self.constant.default, *self.constant.choices):
                if values and len(values) != self.size:
                    raise ValueError(f"state {self.name}: its constant has {len(values)} numbers, expected {self.size}")
        return self

    @property
    def size(self) -> int:
        """How many numbers each row has."""
        return math.prod(self.row_shape)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Its axes without the batch axis."""
        return tuple(axis for axis in self.input.shape if isinstance(axis, int))


class ContextSpec(Part):
    """One context tensor: the encoder returns it and every step reads it. Padded with zeros along `source`."""

    name: str
    """Its name in the API and for users, such as `memory`."""
    input: TensorSpec
    """The step graph's input that reads it; its first axes are batch and source."""
    output: str
    """The name of the encoder's output that returns it."""

    @model_validator(mode="after")
    def _batch_then_source(self) -> Self:
        shape = self.input.shape
        if shape[:2] != ("batch", "source") or any(isinstance(axis, str) for axis in shape[2:]):
            raise ValueError(
                f"context {self.name}: shape {list(shape)} must be [batch, source, ...], with only numbers after source"
            )
        return self


class ConstantSpec(Part):
    """An input with the same value in every run, such as a sampling rate."""

    name: str
    """The input's name in the graph."""
    dtype: Dtype
    """Its element type."""
    shape: tuple[Annotated[int, Field(ge=0)], ...]
    """Its axes; empty for a scalar."""
    values: tuple[float, ...]
    """Its elements, row-major."""

    @model_validator(mode="after")
    def _as_many_as_it_has(self) -> Self:
        if len(self.values) != math.prod(self.shape):
            raise ValueError(
                f"constant {self.name} has {len(self.values)} values, but shape {list(self.shape)} needs"
                f" {math.prod(self.shape)}"
            )
        return self


class EncoderSpec(Part):
    """The graph that reads a source once. The states and contexts name its outputs."""

    newer = ("bos_id", "eos_id")

    file: FileName
    """The ONNX file in the bundle."""
    source: TensorSpec
    """Token ids, int64 [batch, source], or vectors of features, float32 [batch, source, features]; 0 where padded."""
    lengths: TensorSpec
    """Number of tokens in each row, int64 [batch]."""
    max_source_length: Annotated[int, Field(ge=1, le=65536)]
    """The longest source that the graph reads, in tokens, including those that the server adds."""
    bos_id: Annotated[int, Field(ge=0)] | None = None
    """The token that the server puts before each source; None: no token."""
    eos_id: Annotated[int, Field(ge=0)] | None = None
    """The token that the server puts after each source; None: no token."""

    @model_validator(mode="after")
    def _is_fed_as_promised(self) -> Self:
        shape: tuple[Axis | int, ...] = ("batch", "source")
        if self.feature_size:
            shape = (*shape, self.feature_size)
        check_is("encoder.source", self.source, "float32" if self.feature_size else "int64", shape)
        check_is("encoder.lengths", self.lengths, "int64", ("batch",))
        if self.feature_size and self.is_new:
            raise ValueError("encoder.bos_id and encoder.eos_id need a source of tokens")
        if self.max_given_length < 1:
            raise ValueError(
                f"encoder.max_source_length = {self.max_source_length} leaves no room for a token beside encoder.bos_id"
                " and encoder.eos_id"
            )
        return self

    @property
    def max_given_length(self) -> int:
        """The longest source that a client may send, in tokens."""
        return self.max_source_length - (self.bos_id is not None) - (self.eos_id is not None)

    @property
    def feature_size(self) -> int:
        """Numbers in each vector of the source; 0 when the source has tokens."""
        return last_axis(self.source) if self.source.dtype == "float32" else 0


class ReadoutSpec(Part):
    """The graph that computes the next logits from a state, without a step. Bit-identical to the step's own logits."""

    file: FileName
    """The ONNX file in the bundle."""
    states: tuple[str, ...]
    """Names of the states that it reads; its inputs have the same names as the step graph's."""
    contexts: tuple[str, ...] = ()
    """Names of the contexts that it reads; its inputs have the same names as the step graph's."""
    logits: TensorSpec
    """Like the step's logits, for one position: float32 [batch, vocabulary]."""


class TraceOutputSpec(Part):
    """One value that a trace returns for a step: a gate, a state, or attention weights."""

    name: str
    """Its name in the API and for users, such as `layer0.forget_gate`."""
    tensor: TensorSpec
    """The graph's output: float32 [batch, time, units], or [batch, time, source] for attention."""

    @model_validator(mode="after")
    def _one_vector_a_step(self) -> Self:
        shape = self.tensor.shape
        if self.tensor.dtype != "float32" or shape[:2] != ("batch", "time") or len(shape) != 3:
            raise ValueError(
                f"trace {self.name} must be float32 [batch, time, units], not {self.tensor.dtype} {list(shape)}"
            )
        return self


class TraceSpec(Part):
    """The graph that returns every gate and state of a step. Its inputs are the step graph's, with one step a row."""

    file: FileName
    """The ONNX file in the bundle."""
    outputs: tuple[TraceOutputSpec, ...]
    """The values that it returns."""


class VocabularySpec(Part):
    """A vocabulary: a UTF-8 file with one token a line. A token's id is its line number, counted from 0."""

    newer = ("subwords",)

    file: FileName
    """The text file in the bundle."""
    size: Annotated[int, Field(ge=2)]
    """Number of lines."""
    tokenizer: Tokenizer
    """How text is split into tokens: by characters, by white space, or by SentencePiece, whose pieces are then the
    tokens."""
    subwords: FileName | None = None
    """The bundle's SentencePiece model; only for `subword`."""
    lowercase: bool = False
    """Whether text is lower-cased before it is split."""
    escaped: bool = False
    """Whether the file's lines are escaped: `\\n` is a line feed, and so on, as in Python's string literals."""
    unknown_id: Annotated[int, Field(ge=0)] | None = None
    """The token for text that the vocabulary lacks; None: such text is refused."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.tokenizer == "subword") != (self.subwords is not None):
            raise ValueError("subwords must be given exactly when tokenizer is subword")
        if self.unknown_id is not None and self.unknown_id >= self.size:
            raise ValueError(f"unknown_id = {self.unknown_id} is outside the vocabulary (0 to {self.size - 1})")
        return self

    @property
    def files(self) -> tuple[str, ...]:
        """Its files in the bundle."""
        return (self.file,) if self.subwords is None else (self.file, self.subwords)


class Parity(Part):
    """How closely the graphs reproduce the model that they were made from, measured by the exporter."""

    tolerance: float
    """The largest permitted absolute difference."""
    max_abs_error: dict[str, float]
    """The largest absolute difference found, by tensor."""
    num_rows: int
    """Number of rows compared, from random ragged batches, stepwise and chunked."""
    reference: str = "PyTorch"
    """What the graphs were compared with."""


def check_is(field: str, tensor: TensorSpec, dtype: Dtype, shape: tuple[Axis | int, ...]) -> None:
    """Raises ValueError when a tensor has another type or shape than it must have. field: its name in the message."""
    if (tensor.dtype, tensor.shape) != (dtype, shape):
        raise ValueError(f"{field} must be {dtype} {list(shape)}, not {tensor.dtype} {list(tensor.shape)}")


def last_axis(tensor: TensorSpec) -> int:
    """Returns the size of a tensor's last axis; 0 when it has no fixed size."""
    last = tensor.shape[-1] if tensor.shape else 0
    return last if isinstance(last, int) else 0
