"""The contract of a bundle: what `manifest.json` must say. The exporter writes it, the server believes nothing else.

A bundle is one version's folder, `model_repository/<model>/<version>/`: ONNX graphs, vocabularies and this manifest.
Its parts are in `specs`.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, StringConstraints, model_serializer, model_validator

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
    "SpecialTokens",
    "StateSpec",
    "StepSpec",
    "TensorSpec",
    "TopKSpec",
    "TraceOutputSpec",
    "TraceSpec",
    "VariantSpec",
    "VocabularySpec",
    "sha256_of",
]

FILE_NAME = "manifest.json"
BASE_VARIANT = "fp32"
"""The name of a manifest's own step and readout among the variants."""
SOURCE_MULTIPLE = 8
"""The source axis is always padded to a multiple of this: attention's bits do not depend on padding then."""

ModelName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
VariantName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class VariantSpec(Part):
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


class SpecialTokens(Part):
    """Ids with a meaning of their own in the vocabulary that steps read, and padding in the source's too."""

    pad_id: Annotated[int, Field(ge=0)] = 0
    """Fills rows up."""
    bos_id: Annotated[int, Field(ge=0)] | None = None
    """Start of sequence: run before a session's first token. None: the model has none."""
    eos_id: Annotated[int, Field(ge=0)] | None = None
    """End of sequence: generation ends at it. None: the model has none."""


class Manifest(Part):
    """What one bundle is and how to run it."""

    format_version: Literal[1, 2] = 1
    """The version of this contract: 2 where a step has inputs, outputs or a loop, a state a first value that is not
    zeros, an encoder a token that the server adds to each source, or a vocabulary subwords, which servers before do not
    know."""
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
    trace: TraceSpec | None = None
    """The graph that looks inside a step; none: it cannot be looked into."""
    source_vocabulary: VocabularySpec | None = None
    """The source's vocabulary; given exactly when there is an encoder of tokens."""
    input_vocabulary: VocabularySpec | None = None
    """The vocabulary of the tokens that steps read, where it is another than the target's: a tagger's."""
    target_vocabulary: VocabularySpec | None = None
    """The vocabulary of the logits, and of the tokens that steps read unless they have their own; or of the tokens that
    a transducer emits. None: the model gives values."""
    start: Literal["last_of_source"] | None = None
    """What is run before a session's first step, of a model that reads features: the last vector of the source. A model
    of tokens has a start token instead."""
    special_tokens: SpecialTokens = SpecialTokens()
    """Ids with a meaning of their own."""
    sample_rate: Annotated[int, Field(ge=1)] | None = None
    """Samples a second, where what a step reads is sound: one channel, numbers from -1 to 1. None: it is something
    else, or nobody said."""
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
        reads_tokens = self.encoder is not None and not self.encoder.feature_size
        if reads_tokens != (self.source_vocabulary is not None):
            raise ValueError("encoder and source_vocabulary must be given together, for an encoder of tokens")
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
                "format_version must be 2 where a step, a state, an encoder or a vocabulary has what version 1 has not"
            )
        if BASE_VARIANT in self.variants:
            raise ValueError(f"variants must not name {BASE_VARIANT}: it is the manifest's own step")
        self._check_graphs("", self.step, self.readout)
        for name, variant in self.variants.items():
            self._check_graphs(f"variants.{name}.", variant.step, variant.readout)
        names = [state.name for state in self.states] + [context.name for context in self.contexts]
        if len(set(names)) != len(names):
            raise ValueError(f"states and contexts must have names of their own, not {names}")
        if missing := [file for file in self.files if file not in self.digests]:
            raise ValueError(f"digests must name {', '.join(missing)}")
        return self

    def _check_vocabularies(self) -> None:
        target, read = self.target_vocabulary, self.step_vocabulary
        emits = self.step.emits
        if (target is None) != (self.step.logits is None and emits is None):
            raise ValueError("target_vocabulary must be given with step.logits or step.emits, and with those alone")
        if emits is not None and target is not None and emits.blank_id >= target.size:
            raise ValueError(
                f"step.emits.blank_id = {emits.blank_id} is outside the vocabulary (0 to {target.size - 1})"
            )
        if emits is not None and (unknown := emits.states - {state.name for state in self.states}):
            raise ValueError(f"step.emits names {min(unknown)}, which is no state")
        if self.step.history is not None:
            self._check_history(self.step.history)
        if (read is None) != (self.step.tokens is None):
            raise ValueError("tokens that steps read need a vocabulary, and features have none")
        if self.input_vocabulary is not None and self.step.tokens is None:
            raise ValueError("input_vocabulary goes with step.tokens alone")
        size = 0 if self.encoder is None else self.encoder.feature_size
        if self.start is not None and (not size or size != self.step.feature_size):
            raise ValueError("start needs an encoder whose vectors are as long as the step's features")
        for field, token_id in self.special_tokens:
            size = 1 if read is None else read.size
            if token_id is not None and token_id >= size:
                raise ValueError(f"special_tokens.{field} = {token_id} is outside the vocabulary (0 to {size - 1})")
        if self.encoder is not None and self.source_vocabulary is not None:
            size = self.source_vocabulary.size
            for field in ("bos_id", "eos_id"):
                if (getattr(self.encoder, field) or 0) >= size:
                    raise ValueError(f"encoder.{field} is outside the source vocabulary (0 to {size - 1})")

    def _check_history(self, name: str) -> None:
        if self.target_vocabulary is None or self.target_vocabulary.subwords is None or not self.can_generate:
            raise ValueError("step.history needs a target_vocabulary of subwords, which steps read, too")
        state = next((one for one in self.states if one.name == name), None)
        if state is None:
            raise ValueError(f"step.history names {name}, which is no state")
        check_is(f"the state {name}", state.input, "int64", ("batch", HISTORY))

    def _check_graphs(self, where: str, step: StepSpec, readout: ReadoutSpec | None) -> None:
        reads_and_gives = (step.tokens is None, step.values is None, step.inputs, step.outputs, step.emits)
        own = self.step
        if reads_and_gives != (own.tokens is None, own.values is None, own.inputs, own.outputs, own.emits):
            raise ValueError(f"{where}step must read and give what the manifest's own step does")
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
                raise ValueError(f"{where}readout reads {min(unknown)}, which is no state and no context")

    @model_serializer(mode="wrap")
    def _without_what_is_new(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Servers of format version 1 read a manifest that has nothing else."""
        found: dict[str, object] = serialize(self)
        return {name: value for name, value in found.items() if value or name != "sample_rate"}

    @property
    def _steps_of_variants(self) -> list[StepSpec]:
        return [variant.step for variant in self.variants.values()]

    @property
    def step_vocabulary(self) -> VocabularySpec | None:
        """The vocabulary of the tokens that steps read; None when they read features."""
        if self.step.tokens is None:
            return None
        return self.target_vocabulary if self.input_vocabulary is None else self.input_vocabulary

    @property
    def output_size(self) -> int:
        """Logits or values that a step gives."""
        if self.step.logits is None or self.target_vocabulary is None:
            return self.step.value_size
        return self.target_vocabulary.size

    @property
    def can_generate(self) -> bool:
        """Whether what a step gives can be what the next one reads."""
        if self.step.tokens is None:
            return self.step.feeds_back
        return self.step.logits is not None and self.input_vocabulary is None

    @property
    def vocabularies(self) -> list[VocabularySpec]:
        """Those that there are."""
        return [spec for spec in (self.source_vocabulary, self.input_vocabulary, self.target_vocabulary) if spec]

    @property
    def files(self) -> tuple[str, ...]:
        """Every file, but this one, that serving reads."""
        vocabularies = [file for vocabulary in self.vocabularies for file in vocabulary.files]
        variants = [part for variant in self.variants.values() for part in (variant.step, variant.readout)]
        graphs = [part.file for part in (self.encoder, self.step, self.readout, self.trace, *variants) if part]
        loops = [step.loop for step in (self.step, *self._steps_of_variants) if step.loop]
        values = [state.initial_file for state in self.states if state.initial_file]
        return (*graphs, *loops, *vocabularies, *values)

    @cached_property
    def session_constants(self) -> dict[str, int]:
        """The places of the states that an opening gives, by name."""
        return {
            state.name: place
            for place, state in enumerate(self.states)
            if state.constant is not None and not state.constant.is_session_number
        }

    @cached_property
    def history(self) -> int | None:
        """The place of the state that has the last tokens; None without one."""
        names = [state.name for state in self.states]
        return None if self.step.history is None else names.index(self.step.history)

    @cached_property
    def session_number(self) -> int | None:
        """The place of the state that is the session's number; None without one."""
        return next(
            (place for place, one in enumerate(self.states) if one.constant and one.constant.is_session_number), None
        )


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
