"""What an exported model looks like from outside: the tensors of its graphs, in order. What a manifest is made of.

An encoder is a module called as `encoder(source, lengths)` that returns every context and then every initial state;
a step is a module called as `step(tokens, lengths, *states, *contexts)` that returns the logits and then every next
state; a readout is a module called as `readout(*states, *contexts)`, of those that it reads, that returns the logits
after them. All in the order in which an `Interface` names them. A language model has no encoder and no contexts.

Shapes: `B` batch, `T` time, `S` source, `L` layers, `H` hidden, `A` attention size, `V` vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from export.heads import NEXT_TOKEN, TOP_K
from models.language_model import LanguageModelConfig
from models.seq2seq import Seq2SeqConfig
from service.repository.manifest import ContextSpec, EncoderSpec, ReadoutSpec, StateSpec, StepSpec, TensorSpec


@dataclass(frozen=True, slots=True)
class Interface:
    """A model's graphs, states and contexts; source_vocabulary_size is given exactly when there is an encoder."""

    step: StepSpec
    states: tuple[StateSpec, ...]
    target_vocabulary_size: int
    encoder: EncoderSpec | None = None
    contexts: tuple[ContextSpec, ...] = ()
    source_vocabulary_size: int | None = None
    readout: ReadoutSpec | None = None

    @property
    def encoder_inputs(self) -> tuple[TensorSpec, ...]:
        """The encoder graph's inputs in order; none without an encoder."""
        return (self.encoder.source, self.encoder.lengths) if self.encoder else ()

    @property
    def encoder_outputs(self) -> tuple[TensorSpec, ...]:
        """The encoder graph's outputs in order: every context, then every initial state."""
        contexts = [_renamed(context.input, context.output) for context in self.contexts]
        return (*contexts, *(_renamed(state.input, state.initial) for state in self.states if state.initial))

    @property
    def step_inputs(self) -> tuple[TensorSpec, ...]:
        """The step graph's inputs in order: tokens, lengths, every state, every context."""
        states = [state.input for state in self.states]
        return (self.step.tokens, self.step.lengths, *states, *(context.input for context in self.contexts))

    @property
    def step_outputs(self) -> tuple[TensorSpec, ...]:
        """The step graph's outputs in order, but for the heads: logits, every next state."""
        return (self.step.logits, *(_renamed(state.input, state.output) for state in self.states))

    @property
    def head_outputs(self) -> tuple[TensorSpec, ...]:
        """The step graph's last outputs in order: the next token, then log-probabilities and ids of the k best."""
        top_k = self.step.top_k
        next_token = () if self.step.next_token is None else (self.step.next_token,)
        return next_token if top_k is None else (*next_token, top_k.log_probabilities, top_k.token_ids)

    @property
    def readout_inputs(self) -> tuple[TensorSpec, ...]:
        """The readout graph's inputs in order: the states, then the contexts that it reads; none without a readout."""
        if self.readout is None:
            return ()
        states = [state.input for state in self.states if state.name in self.readout.states]
        return (*states, *(context.input for context in self.contexts if context.name in self.readout.contexts))


def seq2seq_interface(config: Seq2SeqConfig, *, max_source_length: int) -> Interface:
    """The interface of a `models.seq2seq.Seq2Seq`: states hidden and cell, contexts memory and memory_mask."""
    state_shape = (config.num_layers, "batch", config.hidden_size)  # [L, B, H]
    return Interface(
        encoder=EncoderSpec(
            file="encoder.onnx",
            source=TensorSpec(name="source", dtype="int64", shape=("batch", "source")),
            lengths=TensorSpec(name="source_lengths", dtype="int64", shape=("batch",)),
            max_source_length=max_source_length,
        ),
        step=_step_spec(config.target_vocabulary_size),
        states=tuple(
            StateSpec(
                name=name,
                input=TensorSpec(name=name, dtype="float32", shape=state_shape),
                output=f"next_{name}",
                initial=name,
            )
            for name in ("hidden", "cell")
        ),
        contexts=(
            ContextSpec(
                name="memory",
                input=TensorSpec(name="memory", dtype="float32", shape=("batch", "source", config.attention_size)),
                output="memory",
            ),
            ContextSpec(
                name="memory_mask",
                input=TensorSpec(name="memory_mask", dtype="bool", shape=("batch", "source")),
                output="memory_mask",
            ),
        ),
        source_vocabulary_size=config.source_vocabulary_size,
        target_vocabulary_size=config.target_vocabulary_size,
        readout=_readout_spec(config.target_vocabulary_size, contexts=("memory", "memory_mask")),
    )


def language_model_interface(config: LanguageModelConfig) -> Interface:
    """The interface of a `models.language_model.LanguageModel`: states hidden and cell, beginning at zero."""
    state_shape = (config.num_layers, "batch", config.hidden_size)  # [L, B, H]
    return Interface(
        step=_step_spec(config.vocabulary_size),
        states=tuple(
            StateSpec(name=name, input=TensorSpec(name=name, dtype="float32", shape=state_shape), output=f"next_{name}")
            for name in ("hidden", "cell")
        ),
        target_vocabulary_size=config.vocabulary_size,
        readout=_readout_spec(config.vocabulary_size),
    )


def _step_spec(vocabulary_size: int) -> StepSpec:
    return StepSpec(
        file="step.onnx",
        tokens=TensorSpec(name="tokens", dtype="int64", shape=("batch", "time")),
        lengths=TensorSpec(name="lengths", dtype="int64", shape=("batch",)),
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
