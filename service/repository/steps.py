"""The parts of a manifest that describe a step: its inputs, its outputs, and their named parts."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from service.repository.specs import ConstantSpec, Dtype, FileName, Part, TensorSpec, check_is, last_axis

HISTORY = 64
"""Number of tokens in a state that holds the last tokens."""


class TopKSpec(Part):
    """Outputs of the step graph for the best k tokens, so that not all logits must be fetched."""

    k: TensorSpec
    """Input: the number of tokens, int64 [1]. Its default in the graph is 0, with empty outputs that cost nothing."""
    log_probabilities: TensorSpec
    """Natural log-probabilities of the k likeliest tokens, the likeliest first, float32 [batch, time, k]."""
    token_ids: TensorSpec
    """Their ids, int64 [batch, time, k]; of equal ones the lowest first."""

    @model_validator(mode="after")
    def _is_as_promised(self) -> Self:
        check_is("step.top_k.k", self.k, "int64", (1,))
        check_is("step.top_k.log_probabilities", self.log_probabilities, "float32", ("batch", "time", "k"))
        check_is("step.top_k.token_ids", self.token_ids, "int64", ("batch", "time", "k"))
        return self


class PortSpec(Part):
    """A named part of a vector: consecutive numbers that follow those of the part before."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")]
    """Its name in the API and for users."""
    dtype: Dtype = "float32"
    """Its type in the graph that the bundle was made from. In the vector it is always float32."""
    shape: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Its axes; empty for a single number. Its numbers are row-major."""
    is_end: bool = False
    """Whether it marks the end: clients set it to 1 in a session's last vector and to 0 in all others."""

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


class EmitsSpec(Part):
    """How the values of a transducer's step are coded: the number of tokens that the step emitted, the number of
    encoded frames that emitted their maximum, `capacity` ids (0 after the last token), `capacity` natural
    log-probabilities."""

    newer = ("context",)

    blank_id: Annotated[int, Field(ge=0)]
    """The token that ends an encoded frame. It is never emitted."""
    max_symbols: Annotated[int, Field(ge=1)]
    """Most tokens of an encoded frame."""
    num_frames: Annotated[int, Field(ge=1)] = 1
    """Encoded frames in a step."""
    history: str
    """The name of the state with the last tokens, the newest last; it contains blanks before there are enough
    tokens."""
    count: str
    """The name of the state with the number of all tokens so far."""
    context: str | None = None
    """The name of the state with the tokens that the prediction network reads next; None: there is no such state."""

    @property
    def states(self) -> set[str]:
        """The names of the states that it names."""
        return {self.history, self.count} | ({self.context} if self.context is not None else set())

    @property
    def capacity(self) -> int:
        """Most tokens of a step."""
        return self.max_symbols * self.num_frames


class StepSpec(Part):
    """The graph that advances a ragged batch of sessions by one step or by a chunk of steps.

    A step consumes a token or a vector of features, and returns logits over a vocabulary, or plain values. ONNX Runtime
    runs the whole graph, whatever is fetched; only the outputs of `top_k` can be omitted from a run.
    """

    newer = ("inputs", "outputs", "loop", "emits", "history")

    file: FileName
    """The ONNX file in the bundle."""
    loop: FileName | None = None
    """The ONNX file that runs several steps of a row at once, if `file` runs one step and reads no lengths."""
    tokens: TensorSpec | None = None
    """Token ids, int64 [batch, time]; None: the step reads `features`."""
    features: TensorSpec | None = None
    """Vectors of features, float32 [batch, time, features]."""
    lengths: TensorSpec | None = None
    """Number of steps in each row, int64 [batch], 1 or more. None: the graph takes one step a row; `max_chunk` is 1."""
    logits: TensorSpec | None = None
    """Unnormalised log-probabilities of each token's successor, or of its tag, float32 [batch, time, vocabulary]. None:
    the step returns `values`."""
    values: TensorSpec | None = None
    """What the model returns after each input, float32 [batch, time, values]."""
    inputs: tuple[PortSpec, ...] = ()
    """The named parts of `features`, in order. Empty: they have no names."""
    outputs: tuple[PortSpec, ...] = ()
    """The named parts of `values`, in order. Empty: they have no names."""
    emits: EmitsSpec | None = None
    """How `values` encode emitted tokens; None: `values` are the model's plain values."""
    history: str | None = None
    """The name of the state with the last `HISTORY` tokens that steps read, the newest last. The text of subwords is
    made from them. None: there is no such state."""
    feeds_back: bool = False
    """Whether `values` are the features of the next step, so that the model can generate."""
    constants: tuple[ConstantSpec, ...] = ()
    """Inputs with the same value in every run."""
    next_token: TensorSpec | None = None
    """The likeliest token after each input, int64 [batch, time]; of equal ones the lowest id. None: not an output."""
    top_k: TopKSpec | None = None
    """The likeliest tokens after each input. None: not an output."""
    max_chunk: Annotated[int, Field(ge=1)] | None = None
    """Most steps of a row in one run. None: any number; 1: `time` is always 1."""
    max_rows: Annotated[int, Field(ge=1, le=1)] | None = None
    """Most rows in one run. None: any number; 1: the graph's batch axis is fixed, so rows run one by one."""

    @model_validator(mode="after")
    def _is_fed_as_promised(self) -> Self:
        if (self.tokens is None) == (self.features is None):
            raise ValueError("exactly one of step.tokens and step.features must be given")
        if (self.logits is None) == (self.values is None):
            raise ValueError("exactly one of step.logits and step.values must be given")
        for field, tensor in (("tokens", self.tokens), ("next_token", self.next_token)):
            if tensor is not None:
                check_is(f"step.{field}", tensor, "int64", ("batch", "time"))
        for field, tensor in (("features", self.features), ("values", self.values)):
            if tensor is not None:
                check_is(f"step.{field}", tensor, "float32", ("batch", "time", last_axis(tensor)))
        if self.values is not None and (self.next_token or self.top_k):
            raise ValueError("step.next_token and step.top_k need step.logits")
        if self.feeds_back and (not self.feature_size or self.feature_size != self.value_size):
            raise ValueError(
                "step.feeds_back needs step.values and step.features of the same size, not"
                f" {self.value_size} and {self.feature_size}"
            )
        if self.emits is not None:
            self._check_emits(self.emits)
        if self.loop is not None and self.lengths is None:
            raise ValueError("step.loop needs step.lengths")
        if self.lengths is None and self.max_chunk != 1:
            raise ValueError("step.max_chunk must be 1 when step.lengths is not given")
        if self.lengths is not None:
            check_is("step.lengths", self.lengths, "int64", ("batch",))
        return self

    def _check_emits(self, emits: EmitsSpec) -> None:
        size = 2 + 2 * emits.capacity
        if self.value_size != size or self.features is None or self.feeds_back:
            raise ValueError(f"step.emits needs step.features, step.values of {size} numbers, and no step.feeds_back")

    @model_validator(mode="after")
    def _names_whole_vectors(self) -> Self:
        for field, ports, size in (
            ("inputs", self.inputs, self.feature_size),
            ("outputs", self.outputs, self.value_size),
        ):
            given = sum(port.size for port in ports)
            if ports and given != size:
                raise ValueError(f"step.{field}: the sizes of the parts must add up to {size}, not {given}")
            if len({port.name for port in ports}) != len(ports):
                raise ValueError(f"step.{field} must have distinct names")
        return self

    @property
    def of_one_step(self) -> Self:
        """The step as `file` computes it, without the loop."""
        return self if self.loop is None else self.model_copy(update={"lengths": None, "max_chunk": 1, "loop": None})

    @property
    def input(self) -> TensorSpec:
        """The tokens or the features."""
        found = self.features if self.tokens is None else self.tokens
        assert found is not None  # noqa: S101  # one of them is given
        return found

    @property
    def output(self) -> TensorSpec:
        """The logits or the values."""
        found = self.values if self.logits is None else self.logits
        assert found is not None  # noqa: S101  # one of them is given
        return found

    @property
    def feature_size(self) -> int:
        """Numbers in each vector that a step consumes; 0 when a step consumes tokens."""
        return 0 if self.features is None else last_axis(self.features)

    @cached_property
    def whole_numbers(self) -> dict[int, str]:
        """By place in the vector, the names of integer inputs; these places accept only whole numbers."""
        names = [port.name if port.dtype.startswith("int") else None for port in self.inputs for _ in range(port.size)]
        return {place: name for place, name in enumerate(names) if name is not None}

    @property
    def value_size(self) -> int:
        """Number of values that a step returns; 0 when it returns logits."""
        return 0 if self.values is None else last_axis(self.values)
