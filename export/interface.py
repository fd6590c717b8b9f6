"""Describes an exported model from outside: the tensors of its graphs, in order. A manifest is made from it.

The modules take and return tensors in the order in which an `Interface` names them:
- encoder: `encoder(source, lengths)` returns every context, then every initial state.
- step: `step(tokens, lengths, *states, *contexts)` returns the logits, or values, then every next state. A step may
  read features instead of tokens, and may have no lengths.
- readout: `readout(*states, *contexts)`, with the states and contexts that it reads, returns the next logits.
A language model has no encoder and no contexts.

Shapes: `B` batch, `T` time, `S` source, `L` layers, `H` hidden, `A` attention size, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from export.heads import NEXT_TOKEN, TOP_K
from models.forecaster import ForecasterConfig
from models.language_model import LanguageModelConfig
from models.recurrent import state_names
from models.seq2seq import Seq2SeqConfig
from models.tagger import TaggerConfig
from service.repository.manifest import ContextSpec, EncoderSpec, ReadoutSpec, Start, StateSpec, StepSpec, TensorSpec

TOKENS = TensorSpec(name="tokens", dtype="int64", shape=("batch", "time"))
LENGTHS = TensorSpec(name="lengths", dtype="int64", shape=("batch",))


@dataclass(frozen=True, slots=True)
class Interface:
    """A model's graphs, states and contexts.

    source_vocabulary_size, step_vocabulary_size: of the tokens that the encoder and the step read; None if they read
    features, or if there is no encoder. least_token: the least id that proofs feed to a step: 1 if 0 is padding. start:
    the manifest's `start`. first_values: first values of the states that do not begin with zeros, by name, without the
    batch axis.
    """

    step: StepSpec
    states: tuple[StateSpec, ...]
    step_vocabulary_size: int | None
    least_token: int = 1
    encoder: EncoderSpec | None = None
    contexts: tuple[ContextSpec, ...] = ()
    source_vocabulary_size: int | None = None
    readout: ReadoutSpec | None = None
    start: Start | None = None
    first_values: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def needs_format_2(self) -> bool:
        """Whether its manifest needs format version 2."""
        encoder = () if self.encoder is None else (self.encoder,)
        return any(one.is_new for one in (self.step, *self.states, *encoder))

    @property
    def encoder_inputs(self) -> tuple[TensorSpec, ...]:
        """The encoder graph's inputs in order; empty without an encoder."""
        return (self.encoder.source, self.encoder.lengths) if self.encoder else ()

    @property
    def encoder_outputs(self) -> tuple[TensorSpec, ...]:
        """The encoder graph's outputs in order: every context, then every initial state."""
        contexts = [_renamed(context.input, context.output) for context in self.contexts]
        return (*contexts, *(_renamed(state.input, state.initial) for state in self.states if state.initial))

    @property
    def step_inputs(self) -> tuple[TensorSpec, ...]:
        """The step graph's inputs in order: tokens or features, lengths, every state, every context."""
        lengths = () if self.step.lengths is None else (self.step.lengths,)
        return (self.step.input, *lengths, *self.carried_inputs)

    @property
    def carried_inputs(self) -> tuple[TensorSpec, ...]:
        """The step graph's inputs that a session keeps: every state, every context."""
        return (*(state.input for state in self.states), *(context.input for context in self.contexts))

    @property
    def step_outputs(self) -> tuple[TensorSpec, ...]:
        """The step graph's outputs in order, without the heads: logits or values, every next state."""
        return (self.step.output, *(_renamed(state.input, state.output) for state in self.states))

    @property
    def head_outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs of the step graph's heads in order: next token, log-probabilities of the k best, their ids."""
        top_k = self.step.top_k
        next_token = () if self.step.next_token is None else (self.step.next_token,)
        return next_token if top_k is None else (*next_token, top_k.log_probabilities, top_k.token_ids)

    @property
    def readout_inputs(self) -> tuple[TensorSpec, ...]:
        """The readout graph's inputs in order: the states and contexts that it reads; empty without a readout."""
        if self.readout is None:
            return ()
        states = [state.input for state in self.states if state.name in self.readout.states]
        return (*states, *(context.input for context in self.contexts if context.name in self.readout.contexts))


def seq2seq_interface(config: Seq2SeqConfig, *, max_source_length: int) -> Interface:
    """Returns the interface of a `models.seq2seq.Seq2Seq`: its cell's states and, with attention, the contexts memory
    and memory_mask."""
    contexts: tuple[ContextSpec, ...] = ()
    if config.attention != "none":
        memory = TensorSpec(name="memory", dtype="float32", shape=("batch", "source", config.attention_size))
        mask = TensorSpec(name="memory_mask", dtype="bool", shape=("batch", "source"))
        contexts = tuple(ContextSpec(name=one.name, input=one, output=one.name) for one in (memory, mask))
    size = config.target_vocabulary_size
    names = state_names(config.cell)
    return Interface(
        encoder=encoder_spec(0, max_source_length),
        step=_step_spec(size),
        states=_states(names, (config.hidden_size,) * len(names), config.num_layers, is_initial=True),
        contexts=contexts,
        source_vocabulary_size=config.source_vocabulary_size,
        step_vocabulary_size=size,
        readout=_readout_spec(size, contexts=tuple(context.name for context in contexts)),
    )


def language_model_interface(config: LanguageModelConfig) -> Interface:
    """Returns the interface of a `models.language_model.LanguageModel`: its cell's states, which begin at zero."""
    return Interface(
        step=_step_spec(config.vocabulary_size),
        states=_states_of_stack(config),
        step_vocabulary_size=config.vocabulary_size,
        readout=_readout_spec(config.vocabulary_size),
    )


def tagger_interface(config: TaggerConfig) -> Interface:
    """Returns the interface of a `models.tagger.Tagger`: its cell's states, which begin at zero."""
    return Interface(
        step=_step_spec(config.num_tags),
        states=_states_of_stack(config),
        step_vocabulary_size=config.vocabulary_size,
        readout=_readout_spec(config.num_tags),
    )


def forecaster_interface(config: ForecasterConfig, *, max_source_length: int) -> Interface:
    """Returns the interface of a `models.forecaster.Forecaster`: its cell's states and level, all from the encoder."""
    names, size = state_names(config.cell), config.feature_size
    level = TensorSpec(name="level", dtype="float32", shape=("batch", size))
    states = _states(names, (config.hidden_size,) * len(names), config.num_layers, is_initial=True)
    return Interface(
        encoder=encoder_spec(size, max_source_length),
        step=StepSpec(
            file="step.onnx",
            features=TensorSpec(name="features", dtype="float32", shape=("batch", "time", size)),
            lengths=LENGTHS,
            values=TensorSpec(name="values", dtype="float32", shape=("batch", "time", size)),
            feeds_back=True,
        ),
        states=(*states, StateSpec(name="level", input=level, output="next_level", initial="level")),
        step_vocabulary_size=None,
        start="last_of_source",
    )


def encoder_spec(feature_size: int, max_source_length: int) -> EncoderSpec:
    """Returns an encoder's entry in the manifest. feature_size: of each source vector; 0: a source is tokens."""
    features = (feature_size,) if feature_size else ()
    return EncoderSpec(
        file="encoder.onnx",
        source=TensorSpec(
            name="source", dtype="float32" if features else "int64", shape=("batch", "source", *features)
        ),
        lengths=TensorSpec(name="source_lengths", dtype="int64", shape=("batch",)),
        max_source_length=max_source_length,
    )


def _states_of_stack(config: LanguageModelConfig | TaggerConfig) -> tuple[StateSpec, ...]:
    names = state_names(config.cell)
    sizes = (config.projection_size or config.hidden_size, config.hidden_size)
    return _states(names, sizes[: len(names)], config.num_layers)


def _states(
    names: Sequence[str], sizes: Sequence[int], num_layers: int, *, is_initial: bool = False
) -> tuple[StateSpec, ...]:
    """Returns one state for each name. is_initial: whether the encoder returns their first values."""
    return tuple(
        StateSpec(
            name=name,
            input=TensorSpec(name=name, dtype="float32", shape=(num_layers, "batch", size)),  # [L, B, size]
            output=f"next_{name}",
            initial=name if is_initial else None,
        )
        for name, size in zip(names, sizes, strict=True)
    )


def _step_spec(vocabulary_size: int) -> StepSpec:
    return StepSpec(
        file="step.onnx",
        tokens=TOKENS,
        lengths=LENGTHS,
        logits=TensorSpec(name="logits", dtype="float32", shape=("batch", "time", vocabulary_size)),
        next_token=NEXT_TOKEN,
        top_k=TOP_K,
    )


def _readout_spec(vocabulary_size: int, contexts: tuple[str, ...] = ()) -> ReadoutSpec:
    return ReadoutSpec(
        file="readout.onnx",
        states=("hidden",),
        contexts=contexts,
        logits=TensorSpec(name="logits", dtype="float32", shape=("batch", vocabulary_size)),
    )


def _renamed(tensor: TensorSpec, name: str) -> TensorSpec:
    return tensor.model_copy(update={"name": name})
