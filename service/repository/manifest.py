"""The contract of a bundle: the content of `manifest.json`. The exporter writes it; the server relies on nothing else.

A bundle is the folder of one version, `model_repository/<model>/<version>/`: ONNX graphs, vocabularies and this
manifest. Its parts are in `specs` and `steps`.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from service.repository.specs import (
    Axis,
    ConstantSpec,
    ContextSpec,
    Dtype,
    EncoderSpec,
    FileName,
    Parity,
    Part,
    ReadoutSpec,
    SessionConstantSpec,
    StateSpec,
    TensorSpec,
    Tokenizer,
    TraceOutputSpec,
    TraceSpec,
    VocabularySpec,
    check_is,
)
from service.repository.steps import HISTORY, EmitsSpec, PortSpec, StepSpec, TopKSpec

__all__ = [
    "BASE_VARIANT",
    "FILE_NAME",
    "SOURCE_MULTIPLE",
    "Axis",
    "ConstantSpec",
    "ContextSpec",
    "Dtype",
    "EmitsSpec",
    "EncoderSpec",
    "Manifest",
    "Parity",
    "PortSpec",
    "ReadoutSpec",
    "SessionConstantSpec",
    "Sha256",
    "SpecialTokens",
    "Start",
    "StateSpec",
    "StepSpec",
    "TensorSpec",
    "Tokenizer",
    "TopKSpec",
    "TraceOutputSpec",
    "TraceSpec",
    "VariantSpec",
    "VocabularySpec",
    "sha256_of",
]

Start = Literal["last_of_source"]
FILE_NAME = "manifest.json"
BASE_VARIANT = "fp32"
"""The variant name of the manifest's own step and readout."""
SOURCE_MULTIPLE = 8
"""The source axis is always padded to a multiple of this, so that the bits of attention do not depend on padding."""

ModelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
VariantName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class VariantSpec(Part):
    """Another way to compute the same step: same states, contexts and vocabularies, different arithmetic."""

    step: StepSpec
    """Its step graph."""
    readout: ReadoutSpec | None = None
    """Its readout graph, if it has one."""
    description: str
    """A description in one line."""
    parity: Parity
    """How closely it reproduces the bundle's own step graph."""
    evaluation: dict[str, object]
    """The recipe's evaluation of this variant."""


class SpecialTokens(Part):
    """Ids with a special meaning in the vocabulary that steps read; pad_id holds for the source's vocabulary too."""

    pad_id: Annotated[int, Field(ge=0)] = 0
    """Padding of rows."""
    bos_id: Annotated[int, Field(ge=0)] | None = None
    """Start of sequence: it runs before a session's first token. None: the model has no start token."""
    eos_id: Annotated[int, Field(ge=0)] | None = None
    """End of sequence: it ends a generation. None: the model has no end token."""


class Manifest(Part):
    """What one bundle contains and how to run it."""

    newer = ("sample_rate",)

    format_version: Literal[1, 2] = 1
    """The version of this contract. It is 2 if the bundle uses a field that servers of version 1 do not know: `inputs`,
    `outputs`, `loop`, `emits` or `history` of a step; `initial_file`, `constant` or `is_uniform` of a state; `bos_id`
    or `eos_id` of an encoder; `subwords` of a vocabulary; `sample_rate`."""
    model: ModelName
    """The model's name: lower-case letters, digits, `.`, `_`, `-`."""
    version: Annotated[int, Field(ge=1, le=2**31 - 1)]
    """The version's number."""
    description: str
    """A description in one line."""
    encoder: EncoderSpec | None = None
    """The encoder; None for a model without a source."""
    step: StepSpec
    """The step graph."""
    readout: ReadoutSpec | None = None
    """The readout graph; None: the server keeps a session's last logits instead."""
    variants: dict[VariantName, VariantSpec] = Field(default_factory=dict)
    """The same model with different arithmetic, by name, such as `int8`."""
    states: tuple[StateSpec, ...]
    """The state tensors."""
    contexts: tuple[ContextSpec, ...] = ()
    """The context tensors."""
    trace: TraceSpec | None = None
    """The graph that returns the inner values of a step; None: the model cannot be traced."""
    source_vocabulary: VocabularySpec | None = None
    """The source's vocabulary; given exactly when there is an encoder of tokens."""
    input_vocabulary: VocabularySpec | None = None
    """The vocabulary of the tokens that steps read, if it differs from the target's, as for a tagger."""
    target_vocabulary: VocabularySpec | None = None
    """The vocabulary of the logits, or of the tokens that a transducer emits. Also of the tokens that steps read,
    unless there is an `input_vocabulary`. None: the model returns values."""
    start: Start | None = None
    """For a model that reads features: what runs before a session's first step, the last vector of the source. A model
    of tokens has a start token instead."""
    special_tokens: SpecialTokens = SpecialTokens()
    """Ids with a special meaning."""
    sample_rate: Annotated[int, Field(ge=1)] | None = None
    """Samples per second, if a step reads sound: one channel, numbers from -1 to 1. None: a step reads something else,
    or the rate is not known."""
    max_tokens: Annotated[int, Field(ge=1)]
    """Most tokens of a generation when a request sets no limit."""
    digests: dict[FileName, Sha256]
    """SHA-256 of every other file of the bundle that the server reads."""
    exported_with: dict[str, str]
    """Versions of the packages that made the bundle, by package."""
    parity: Parity
    """How closely the graphs reproduce the model that they were made from."""
    evaluation: dict[str, object]
    """The recipe's evaluation, unchanged."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        reads_tokens = self.encoder is not None and not self.encoder.feature_size
        if reads_tokens != (self.source_vocabulary is not None):
            raise ValueError("source_vocabulary must be given exactly when the encoder reads tokens")
        if self.encoder is None and (self.contexts or any(state.initial for state in self.states)):
            raise ValueError("contexts and initial states need an encoder")
        if not self.states:
            raise ValueError("states must not be empty: a recurrent model has state")
        self._check_vocabularies()
        if self.sample_rate is not None and (self.step.features is None or self.format_version < 2):
            raise ValueError("sample_rate needs step.features, and format_version 2")
        steps = (self.step, *self._steps_of_variants)
        encoders = () if self.encoder is None else (self.encoder,)
        if self.format_version < 2 and any(one.is_new for one in (*steps, *self.states, *encoders, *self.vocabularies)):
            raise ValueError(
                "format_version must be 2, because a step, a state, an encoder or a vocabulary uses a field that"
                " version 1 lacks"
            )
        if BASE_VARIANT in self.variants:
            raise ValueError(f"variants must not name {BASE_VARIANT}: it is the manifest's own step")
        self._check_graphs("", self.step, self.readout)
        for name, variant in self.variants.items():
            self._check_graphs(f"variants.{name}.", variant.step, variant.readout)
        names = [state.name for state in self.states] + [context.name for context in self.contexts]
        if len(set(names)) != len(names):
            raise ValueError(f"states and contexts must have distinct names, not {names}")
        if missing := [file for file in self.files if file not in self.digests]:
            raise ValueError(f"digests lacks {', '.join(missing)}")
        return self

    def _check_vocabularies(self) -> None:
        target, read = self.target_vocabulary, self.step_vocabulary
        emits = self.step.emits
        if (target is None) != (self.step.logits is None and emits is None):
            raise ValueError("target_vocabulary must be given exactly when step.logits or step.emits is given")
        if emits is not None and target is not None and emits.blank_id >= target.size:
            raise ValueError(
                f"step.emits.blank_id = {emits.blank_id} is outside the vocabulary (0 to {target.size - 1})"
            )
        if emits is not None and (unknown := emits.states - {state.name for state in self.states}):
            raise ValueError(f"step.emits names {min(unknown)}, which is not a state")
        if self.step.history is not None:
            self._check_history(self.step.history)
        if (read is None) != (self.step.tokens is None):
            raise ValueError(
                "a step that reads tokens needs a vocabulary, and a step that reads features must have none"
            )
        if self.input_vocabulary is not None and self.step.tokens is None:
            raise ValueError("input_vocabulary needs step.tokens")
        size = 0 if self.encoder is None else self.encoder.feature_size
        if self.start is not None and (not size or size != self.step.feature_size):
            raise ValueError("start needs an encoder of features, with as many numbers in a vector as step.features")
        for field, token_id in self.special_tokens:
            size = 1 if read is None else read.size
            if token_id is not None and token_id >= size:
                raise ValueError(f"special_tokens.{field} = {token_id} is outside the vocabulary (0 to {size - 1})")
        if self.encoder is not None and self.source_vocabulary is not None:
            size = self.source_vocabulary.size
            for field in ("bos_id", "eos_id"):
                token_id = getattr(self.encoder, field) or 0
                if token_id >= size:
                    raise ValueError(f"encoder.{field} = {token_id} is outside the source vocabulary (0 to {size - 1})")

    def _check_history(self, name: str) -> None:
        if self.target_vocabulary is None or self.target_vocabulary.subwords is None or not self.can_generate:
            raise ValueError("step.history needs a target_vocabulary of subwords, and steps that read its tokens")
        state = next((one for one in self.states if one.name == name), None)
        if state is None:
            raise ValueError(f"step.history names {name}, which is not a state")
        check_is(f"the state {name}", state.input, "int64", ("batch", HISTORY))

    def _check_graphs(self, where: str, step: StepSpec, readout: ReadoutSpec | None) -> None:
        reads_and_gives = (step.tokens is None, step.values is None, step.inputs, step.outputs, step.emits)
        own = self.step
        if reads_and_gives != (own.tokens is None, own.values is None, own.inputs, own.outputs, own.emits):
            raise ValueError(f"{where}step must have the same kinds of inputs and outputs as the manifest's step")
        size = self.output_size
        check_is(
            f"{where}step.{'values' if step.logits is None else 'logits'}",
            step.output,
            "float32",
            ("batch", "time", size),
        )
        if readout is not None:
            check_is(f"{where}readout.logits", readout.logits, "float32", ("batch", size))
            known = {state.name for state in self.states} | {context.name for context in self.contexts}
            if unknown := {*readout.states, *readout.contexts} - known:
                raise ValueError(f"{where}readout reads {min(unknown)}, which is not a state or a context")

    @property
    def _steps_of_variants(self) -> list[StepSpec]:
        return [variant.step for variant in self.variants.values()]

    @property
    def step_vocabulary(self) -> VocabularySpec | None:
        """The vocabulary of the tokens that steps read; None when steps read features."""
        if self.step.tokens is None:
            return None
        return self.target_vocabulary if self.input_vocabulary is None else self.input_vocabulary

    @property
    def output_size(self) -> int:
        """Number of logits or values that a step returns."""
        if self.step.logits is None or self.target_vocabulary is None:
            return self.step.value_size
        return self.target_vocabulary.size

    @property
    def can_generate(self) -> bool:
        """Whether a step can read what the step before it returned."""
        if self.step.tokens is None:
            return self.step.feeds_back
        return self.step.logits is not None and self.input_vocabulary is None

    @property
    def vocabularies(self) -> list[VocabularySpec]:
        """All vocabularies of the model."""
        return [spec for spec in (self.source_vocabulary, self.input_vocabulary, self.target_vocabulary) if spec]

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that the server reads, except the manifest."""
        vocabularies = [file for vocabulary in self.vocabularies for file in vocabulary.files]
        variants = [part for variant in self.variants.values() for part in (variant.step, variant.readout)]
        graphs = [part.file for part in (self.encoder, self.step, self.readout, self.trace, *variants) if part]
        loops = [step.loop for step in (self.step, *self._steps_of_variants) if step.loop]
        values = [state.initial_file for state in self.states if state.initial_file]
        return (*graphs, *loops, *vocabularies, *values)

    @cached_property
    def session_constants(self) -> dict[str, int]:
        """The indices of the states that an open request sets, by name."""
        return {
            state.name: place
            for place, state in enumerate(self.states)
            if state.constant is not None and not state.constant.is_session_number
        }

    @cached_property
    def history(self) -> int | None:
        """The index of the state with the last tokens; None if there is none."""
        names = [state.name for state in self.states]
        return None if self.step.history is None else names.index(self.step.history)

    @cached_property
    def session_number(self) -> int | None:
        """The index of the state that is the session's number; None if there is none."""
        return next(
            (place for place, one in enumerate(self.states) if one.constant and one.constant.is_session_number), None
        )


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
