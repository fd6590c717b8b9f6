"""The parts of a manifest: tensors, graphs and vocabularies, each with what must hold of it alone.

Shapes are lists of integers and of the symbolic axes `batch`, `time`, `source` and `k`.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

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
_NEW_OF_STATES = ("initial_file", "constant", "is_uniform")
"""What states of format version 1 do not have."""
_NEW_OF_ENCODERS = ("bos_id", "eos_id")
"""What encoders of format version 1 do not have."""


class Part(BaseModel):
    """What all parts have in common: they are frozen, and have no field that is not told of here."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorSpec(Part):
    """One input or output of a graph."""

    name: str
    """The tensor's name in the graph."""
    dtype: Dtype
    """Its element type."""
    shape: tuple[Axis | Annotated[int, Field(ge=1)], ...]
    """Its axes: numbers, and the symbolic axes `batch`, `time`, `source` and `k`."""


class SessionConstantSpec(Part):
    """What a session is given when it is opened, and keeps: a sampling rate, a language, a speaker. Steps carry it like
    a state, so whatever stores, moves, rewinds or forks a session does the same to it."""

    default: tuple[float, ...] = ()
    """Its elements, row-major, where the opening does not give them. Empty: each opening must give them."""
    choices: tuple[tuple[float, ...], ...] = ()
    """The only values that it may have, each as `default`. Empty: any."""
    is_session_number: bool = False
    """Whether it is a number by which the model tells sessions apart: the server gives it, and no opening may."""


class StateSpec(Part):
    """One state tensor: what a step reads and writes again."""

    name: str
    """Its name to people and in the API, such as `hidden`."""
    input: TensorSpec
    """The step graph's input."""
    output: str
    """The name of the step graph's output that is the next value of that input."""
    initial: str | None = None
    """The name of the encoder's output that is its first value; none: zeros."""
    initial_file: FileName | None = None
    """The NumPy file (.npy) of the bundle that has its first value, without the batch axis; none: zeros."""
    constant: SessionConstantSpec | None = None
    """What is known of it when it is given at the opening, and no step changes it; none: it is a state like any."""
    is_uniform: bool = False
    """Whether rows of one run must have the same value of it, bit for bit: the graph reads the first row's alone."""

    @model_validator(mode="after")
    def _one_batch_axis(self) -> Self:
        if self.input.shape.count("batch") != 1 or "time" in self.input.shape or "source" in self.input.shape:
            raise ValueError(f"state {self.name}: shape {list(self.input.shape)} must have one batch axis and no other")
        if sum(one is not None for one in (self.initial, self.initial_file, self.constant)) > 1:
            raise ValueError(f"state {self.name}: only one of initial, initial_file and constant can be given")
        if self.constant is not None:
            for values in (self.constant.default, *self.constant.choices):
                if values and len(values) != self.size:
                    raise ValueError(f"state {self.name}: a constant of {self.size} numbers has {len(values)}")
        return self

    @property
    def size(self) -> int:
        """How many numbers it has in each row."""
        return math.prod(self.row_shape)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Its axes but the batch."""
        return tuple(axis for axis in self.input.shape if isinstance(axis, int))

    @property
    def is_new(self) -> bool:
        """Whether it has what format version 1 does not have."""
        return any(getattr(self, name) for name in _NEW_OF_STATES)

    @model_serializer(mode="wrap")
    def _without_what_is_new(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Servers of format version 1 read a manifest that has nothing else."""
        found: dict[str, object] = serialize(self)
        return {name: value for name, value in found.items() if value or name not in _NEW_OF_STATES}


class ContextSpec(Part):
    """One context tensor: what the encoder gives and every step reads. Padded with zeros along `source`."""

    name: str
    """Its name to people and in the API, such as `memory`."""
    input: TensorSpec
    """The step graph's input; its first axes are batch and source."""
    output: str
    """The name of the encoder's output that gives it."""

    @model_validator(mode="after")
    def _batch_then_source(self) -> Self:
        shape = self.input.shape
        if shape[:2] != ("batch", "source") or any(isinstance(axis, str) for axis in shape[2:]):
            raise ValueError(f"context {self.name}: shape {list(shape)} must be batch, source, then numbers alone")
        return self


class ConstantSpec(Part):
    """An input that is the same in every run, such as a sampling rate."""

    name: str
    """The input's name in the graph."""
    dtype: Dtype
    """Its element type."""
    shape: tuple[Annotated[int, Field(ge=0)], ...]
    """Its axes; none for a scalar."""
    values: tuple[float, ...]
    """Its elements, row-major."""

    @model_validator(mode="after")
    def _as_many_as_it_has(self) -> Self:
        if len(self.values) != math.prod(self.shape):
            raise ValueError(f"constant {self.name}: {len(self.values)} values, shape {list(self.shape)}")
        return self


class EncoderSpec(Part):
    """The graph that reads a source once. Its outputs are named by the states and contexts."""

    file: FileName
    """The ONNX file in the bundle."""
    source: TensorSpec
    """Token ids, int64 [batch, source], or vectors of features, float32 [batch, source, features]; 0 where padded."""
    lengths: TensorSpec
    """Tokens in each row, int64 [batch]."""
    max_source_length: Annotated[int, Field(ge=1, le=65536)]
    """The longest source that the graph reads, in tokens, with those that the server adds."""
    bos_id: Annotated[int, Field(ge=0)] | None = None
    """The token that the server puts before each source. None: none."""
    eos_id: Annotated[int, Field(ge=0)] | None = None
    """The token that the server puts after each source. None: none."""

    @model_validator(mode="after")
    def _is_fed_as_promised(self) -> Self:
        shape: tuple[Axis | int, ...] = ("batch", "source")
        if self.feature_size:
            shape = (*shape, self.feature_size)
        check_is("encoder.source", self.source, "float32" if self.feature_size else "int64", shape)
        check_is("encoder.lengths", self.lengths, "int64", ("batch",))
        if self.feature_size and self.is_new:
            raise ValueError("encoder.bos_id and encoder.eos_id go with a source of tokens alone")
        if self.max_given_length < 1:
            raise ValueError("encoder.max_source_length leaves no token beside encoder.bos_id and encoder.eos_id")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_new(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Servers of format version 1 read a manifest that has nothing else."""
        found: dict[str, object] = serialize(self)
        return {name: value for name, value in found.items() if value is not None or name not in _NEW_OF_ENCODERS}

    @property
    def is_new(self) -> bool:
        """Whether it has what format version 1 does not have."""
        return any(getattr(self, name) is not None for name in _NEW_OF_ENCODERS)

    @property
    def max_given_length(self) -> int:
        """The longest source that a client may give, in tokens."""
        return self.max_source_length - (self.bos_id is not None) - (self.eos_id is not None)

    @property
    def feature_size(self) -> int:
        """Numbers in each of the source's vectors; 0 when it is of tokens."""
        return last_axis(self.source) if self.source.dtype == "float32" else 0


class ReadoutSpec(Part):
    """The graph that tells what comes next from a state as it is, without a step: the bits of the step's own logits."""

    file: FileName
    """The ONNX file in the bundle."""
    states: tuple[str, ...]
    """Names of the states that it reads; its inputs have the step graph's names."""
    contexts: tuple[str, ...] = ()
    """Names of the contexts that it reads; likewise."""
    logits: TensorSpec
    """As the step's, for one position: float32 [batch, vocabulary]."""


class TraceOutputSpec(Part):
    """What a trace tells of one step: a gate, a state, or where attention looked."""

    name: str
    """Its name to people and in the API, such as `layer0.forget_gate`."""
    tensor: TensorSpec
    """The graph's output, float32 [batch, time, units], or [batch, time, source] for attention."""

    @model_validator(mode="after")
    def _one_vector_a_step(self) -> Self:
        shape = self.tensor.shape
        if self.tensor.dtype != "float32" or shape[:2] != ("batch", "time") or len(shape) != 3:
            raise ValueError(f"trace {self.name} must be float32 [batch, time, units], not {list(shape)}")
        return self


class TraceSpec(Part):
    """The graph that looks inside one step: fed as the step graph is, one step a row, it gives every gate and state."""

    file: FileName
    """The ONNX file in the bundle."""
    outputs: tuple[TraceOutputSpec, ...]
    """What it tells."""


class VocabularySpec(Part):
    """A vocabulary: one token a line in a UTF-8 file, the line number from 0 being its id."""

    file: FileName
    """The text file in the bundle."""
    size: Annotated[int, Field(ge=2)]
    """The number of its lines."""
    tokenizer: Literal["characters", "whitespace", "subword"]
    """How text is split into tokens: by characters, by white space, or by SentencePiece, whose pieces the tokens then
    are."""
    subwords: FileName | None = None
    """SentencePiece's model in the bundle, for `subword` alone."""
    lowercase: bool = False
    """Whether text is lower-cased before it is split."""
    escaped: bool = False
    """Whether the file's lines are escaped: `\\n` is a line feed, and so on, as in Python's string literals."""
    unknown_id: Annotated[int, Field(ge=0)] | None = None
    """The token that stands for any other. None: what the vocabulary lacks is refused."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.tokenizer == "subword") != (self.subwords is not None):
            raise ValueError("tokenizer subword and the file subwords go together")
        if self.unknown_id is not None and self.unknown_id >= self.size:
            raise ValueError(f"unknown_id = {self.unknown_id} is outside the vocabulary (0 to {self.size - 1})")
        return self

    @property
    def is_new(self) -> bool:
        """Whether it has what format version 1 does not have."""
        return self.subwords is not None

    @property
    def files(self) -> tuple[str, ...]:
        """Those in the bundle."""
        return (self.file,) if self.subwords is None else (self.file, self.subwords)

    @model_serializer(mode="wrap")
    def _without_what_is_new(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Servers of format version 1 read a manifest that has nothing else."""
        found: dict[str, object] = serialize(self)
        return {name: value for name, value in found.items() if value is not None or name != "subwords"}


class Parity(Part):
    """How closely the graphs reproduce the model that they were made from, as the exporter measured it."""

    tolerance: float
    """The largest absolute difference that was allowed."""
    max_abs_error: dict[str, float]
    """The largest absolute difference seen, by tensor."""
    num_rows: int
    """Rows compared, of random ragged batches, stepwise and chunked."""
    reference: str = "PyTorch"
    """What they were held to."""


def check_is(field: str, tensor: TensorSpec, dtype: Dtype, shape: tuple[Axis | int, ...]) -> None:
    """Raises ValueError when a tensor is not as it must be."""
    if (tensor.dtype, tensor.shape) != (dtype, shape):
        raise ValueError(f"{field} must be {dtype} {list(shape)}, not {tensor.dtype} {list(tensor.shape)}")


def last_axis(tensor: TensorSpec) -> int:
    """The size of a tensor's last axis; 0 when it has no fixed one."""
    last = tensor.shape[-1] if tensor.shape else 0
    return last if isinstance(last, int) else 0
