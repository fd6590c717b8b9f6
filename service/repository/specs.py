"""The parts of a manifest: tensors, graphs and vocabularies, each with what must hold of it alone.

Shapes are lists of integers and of the symbolic axes `batch`, `time`, `source` and `k`.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Axis = Literal["batch", "time", "source", "k"]
Dtype = Literal["float32", "float64", "float16", "int64", "int32", "bool"]


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

    @model_validator(mode="after")
    def _one_batch_axis(self) -> Self:
        if self.input.shape.count("batch") != 1 or "time" in self.input.shape or "source" in self.input.shape:
            raise ValueError(f"state {self.name}: shape {list(self.input.shape)} must have one batch axis and no other")
        return self


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
    """The longest source accepted, in tokens."""

    @model_validator(mode="after")
    def _is_fed_as_promised(self) -> Self:
        shape: tuple[Axis | int, ...] = ("batch", "source")
        if self.feature_size:
            shape = (*shape, self.feature_size)
        check_is("encoder.source", self.source, "float32" if self.feature_size else "int64", shape)
        check_is("encoder.lengths", self.lengths, "int64", ("batch",))
        return self

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
    tokenizer: Literal["characters", "whitespace"]
    """How text is split into tokens; text is lower-cased first when `lowercase` is true."""
    lowercase: bool = False
    """Whether text is lower-cased before it is split."""
    escaped: bool = False
    """Whether the file's lines are escaped: `\\n` is a line feed, and so on, as in Python's string literals."""
    unknown_id: Annotated[int, Field(ge=0)] | None = None
    """The token that stands for any other. None: what the vocabulary lacks is refused."""

    @model_validator(mode="after")
    def _knows_the_unknown(self) -> Self:
        if self.unknown_id is not None and self.unknown_id >= self.size:
            raise ValueError(f"unknown_id = {self.unknown_id} is outside the vocabulary (0 to {self.size - 1})")
        return self


def check_is(field: str, tensor: TensorSpec, dtype: Dtype, shape: tuple[Axis | int, ...]) -> None:
    """Raises ValueError when a tensor is not as it must be."""
    if (tensor.dtype, tensor.shape) != (dtype, shape):
        raise ValueError(f"{field} must be {dtype} {list(shape)}, not {tensor.dtype} {list(tensor.shape)}")


def last_axis(tensor: TensorSpec) -> int:
    """The size of a tensor's last axis; 0 when it has no fixed one."""
    last = tensor.shape[-1] if tensor.shape else 0
    return last if isinstance(last, int) else 0
