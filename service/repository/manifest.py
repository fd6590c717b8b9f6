"""The contract of a bundle: what `manifest.json` must say. The exporter writes it, the server believes nothing else.

A bundle is one version's folder, `model_repository/<model>/<version>/`: ONNX graphs, vocabularies and this manifest.
Shapes are lists of integers and of the symbolic axes `batch`, `time`, `source` and `k`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

FILE_NAME = "manifest.json"
BASE_VARIANT = "fp32"
"""The name of a manifest's own step and readout among the variants."""
SOURCE_MULTIPLE = 8
"""The source axis is always padded to a multiple of this: attention's bits do not depend on padding then."""

ModelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
VariantName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Axis = Literal["batch", "time", "source", "k"]
Dtype = Literal["float32", "int64", "bool"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorSpec(_Part):
    """One input or output of a graph."""

    name: str
    """The tensor's name in the graph."""
    dtype: Dtype
    """Its element type."""
    shape: tuple[Axis | Annotated[int, Field(ge=1)], ...]
    """Its axes: numbers, and the symbolic axes `batch`, `time`, `source` and `k`."""


class StateSpec(_Part):
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


class ContextSpec(_Part):
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


class EncoderSpec(_Part):
    """The graph that reads a source once. Its outputs are named by the states and contexts."""

    file: FileName
    """The ONNX file in the bundle."""
    source: TensorSpec
    """Token ids, int64 [batch, source], 0 where padded."""
    lengths: TensorSpec
    """Tokens in each row, int64 [batch]."""
    max_source_length: Annotated[int, Field(ge=1, le=65536)]
    """The longest source accepted, in tokens."""

    @model_validator(mode="after")
    def _is_fed_as_promised(self) -> Self:
        _check_is("encoder.source", self.source, "int64", ("batch", "source"))
        _check_is("encoder.lengths", self.lengths, "int64", ("batch",))
        return self


class TopKSpec(_Part):
    """Outputs of the step graph that spare fetching all logits when only the best tokens are asked for."""

    k: TensorSpec
    """Input: how many tokens, int64 [1]. Its default in the graph is 0: empty outputs that cost nothing."""
    log_probabilities: TensorSpec
    """Natural log-probabilities of the k most likely tokens, most likely first, float32 [batch, time, k]."""
    token_ids: TensorSpec
    """Their ids, int64 [batch, time, k]; of equally likely ones the lowest first."""

    @model_validator(mode="after")
    def _is_told_as_promised(self) -> Self:
        _check_is("step.top_k.k", self.k, "int64", (1,))
        _check_is("step.top_k.log_probabilities", self.log_probabilities, "float32", ("batch", "time", "k"))
        _check_is("step.top_k.token_ids", self.token_ids, "int64", ("batch", "time", "k"))
        return self


class StepSpec(_Part):
    """The graph that advances a ragged batch of sessions by one token or a chunk of them.

    ONNX Runtime runs the whole graph whatever is fetched: of the heads only `top_k` can be left out of a run.
    """

    file: FileName
    """The ONNX file in the bundle."""
    tokens: TensorSpec
    """Token ids, int64 [batch, time]."""
    lengths: TensorSpec
    """Tokens in each row, int64 [batch], 1 or more."""
    logits: TensorSpec
    """Unnormalised log-probabilities of the token after each, float32 [batch, time, vocabulary]."""
    next_token: TensorSpec | None = None
    """The most likely token after each, int64 [batch, time]; of equally likely ones the lowest id. None: not given."""
    top_k: TopKSpec | None = None
    """The most likely tokens after each. None: not given."""
    max_chunk: Annotated[int, Field(ge=1)] | None = None
    """The most tokens of a row in one run. None: any number; 1: `time` is always 1."""

    @model_validator(mode="after")
    def _is_fed_as_promised(self) -> Self:
        for field, tensor in (("tokens", self.tokens), ("next_token", self.next_token or self.tokens)):
            _check_is(f"step.{field}", tensor, "int64", ("batch", "time"))
        _check_is("step.lengths", self.lengths, "int64", ("batch",))
        return self


class ReadoutSpec(_Part):
    """The graph that tells what comes next from a state as it is, without a step: the bits of the step's own logits."""

    file: FileName
    """The ONNX file in the bundle."""
    states: tuple[str, ...]
    """Names of the states that it reads; its inputs have the step graph's names."""
    contexts: tuple[str, ...] = ()
    """Names of the contexts that it reads; likewise."""
    logits: TensorSpec
    """As the step's, for one position: float32 [batch, vocabulary]."""


class VariantSpec(_Part):
    """Another way to compute the same step: the same states, contexts and vocabularies, other arithmetic."""

    step: StepSpec
    """Its step graph."""
    readout: ReadoutSpec | None = None
    """Its readout, if it has one."""
    description: str
    """One line about it."""
    parity: Parity
    """How closely it reproduces the bundle's own step graph."""
    evaluation: dict[str, object]
    """The recipe's evaluation of it."""


class VocabularySpec(_Part):
    """A vocabulary: one token a line in a UTF-8 file, the line number from 0 being its id."""

    file: FileName
    """The text file in the bundle."""
    size: Annotated[int, Field(ge=2)]
    """The number of its lines."""
    tokenizer: Literal["characters", "whitespace"]
    """How text is split into tokens; text is lower-cased first when `lowercase` is true."""
    lowercase: bool = False
    """Whether text is lower-cased before it is split."""


class SpecialTokens(_Part):
    """Ids with a meaning of their own in the target vocabulary, and padding in both."""

    pad_id: Annotated[int, Field(ge=0)] = 0
    """Fills rows up."""
    bos_id: Annotated[int, Field(ge=0)] | None = None
    """Start of sequence: run before a session's first token. None: the model has none."""
    eos_id: Annotated[int, Field(ge=0)] | None = None
    """End of sequence: generation ends at it. None: the model has none."""


class Parity(_Part):
    """How closely the graphs reproduce PyTorch, as the exporter measured it."""

    tolerance: float
    """The largest absolute difference that was allowed."""
    max_abs_error: dict[str, float]
    """The largest absolute difference seen, by tensor."""
    num_rows: int
    """Rows compared, of random ragged batches, stepwise and chunked."""


class Manifest(_Part):
    """What one bundle is and how to run it."""

    format_version: Literal[1] = 1
    """The version of this contract."""
    model: ModelName
    """The model's name: lower-case letters, digits, `.`, `_`, `-`."""
    version: Annotated[int, Field(ge=1, le=2**31 - 1)]
    """The version's number."""
    description: str
    """One line about it."""
    encoder: EncoderSpec | None = None
    """The encoder; none for a model without a source."""
    step: StepSpec
    """The step graph."""
    readout: ReadoutSpec | None = None
    """The readout graph; none: the server keeps a session's last logits instead."""
    variants: dict[VariantName, VariantSpec] = Field(default_factory=dict)
    """Other arithmetic for the same model, by name, such as `int8`."""
    states: tuple[StateSpec, ...]
    """The state tensors."""
    contexts: tuple[ContextSpec, ...] = ()
    """The context tensors."""
    source_vocabulary: VocabularySpec | None = None
    """The source's vocabulary; given exactly when there is an encoder."""
    target_vocabulary: VocabularySpec
    """The target's vocabulary."""
    special_tokens: SpecialTokens
    """Ids with a meaning of their own."""
    max_tokens: Annotated[int, Field(ge=1)]
    """Tokens generated at most when a request sets no limit."""
    digests: dict[FileName, Sha256]
    """SHA-256 of every other file of the bundle that is read at serving."""
    exported_with: dict[str, str]
    """Versions of the packages that made it, by package."""
    parity: Parity
    """How closely the graphs reproduce PyTorch."""
    evaluation: dict[str, object]
    """The recipe's evaluation, as it wrote it."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.encoder is None) != (self.source_vocabulary is None):
            raise ValueError("encoder and source_vocabulary must be given together")
        if self.encoder is None and (self.contexts or any(state.initial for state in self.states)):
            raise ValueError("contexts and initial states need an encoder")
        if not self.states:
            raise ValueError("states must not be empty: a recurrent model has state")
        size = self.target_vocabulary.size
        if BASE_VARIANT in self.variants:
            raise ValueError(f"variants must not name {BASE_VARIANT}: it is the manifest's own step")
        self._check_graphs("", self.step, self.readout)
        for name, variant in self.variants.items():
            self._check_graphs(f"variants.{name}.", variant.step, variant.readout)
        for field, token_id in self.special_tokens:
            if token_id is not None and token_id >= size:
                raise ValueError(f"special_tokens.{field} = {token_id} is outside the vocabulary (0 to {size - 1})")
        names = [state.name for state in self.states] + [context.name for context in self.contexts]
        if len(set(names)) != len(names):
            raise ValueError(f"states and contexts must have names of their own, not {names}")
        if missing := [file for file in self.files if file not in self.digests]:
            raise ValueError(f"digests must name {', '.join(missing)}")
        return self

    def _check_graphs(self, where: str, step: StepSpec, readout: ReadoutSpec | None) -> None:
        size = self.target_vocabulary.size
        _check_is(f"{where}step.logits", step.logits, "float32", ("batch", "time", size))
        if readout is not None:
            _check_is(f"{where}readout.logits", readout.logits, "float32", ("batch", size))
            known = {state.name for state in self.states} | {context.name for context in self.contexts}
            if unknown := {*readout.states, *readout.contexts} - known:
                raise ValueError(f"{where}readout reads {min(unknown)}, which is no state and no context")

    @property
    def files(self) -> tuple[str, ...]:
        """Every file, but this one, that serving reads."""
        vocabularies = [v.file for v in (self.source_vocabulary, self.target_vocabulary) if v is not None]
        variants = [part for variant in self.variants.values() for part in (variant.step, variant.readout)]
        graphs = [part.file for part in (self.encoder, self.step, self.readout, *variants) if part is not None]
        return (*graphs, *vocabularies)


def _check_is(field: str, tensor: TensorSpec, dtype: Dtype, shape: tuple[Axis | int, ...]) -> None:
    if (tensor.dtype, tensor.shape) != (dtype, shape):
        raise ValueError(f"{field} must be {dtype} {list(shape)}, not {tensor.dtype} {list(tensor.shape)}")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
