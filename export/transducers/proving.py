"""Proves a transducer's graph: a bare loop over its files has the same bits, for frames without tokens and with many.

On random frames a trained model may emit nothing. So the proofs run a second time, with a penalty on the blank that
makes about every second turn emit a token.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from onnx import helper

from export.errors import ExportError, first_line
from export.foreign.axes import Hints
from export.foreign.notes import OneByOne
from export.foreign.writing import Described, prove_model
from export.proofs.runners import Array, session_of
from export.proofs.tolerances import SCORES
from export.transducers.bare_loop import BareLoop, Rules
from export.transducers.composing import Composed, compose
from export.transducers.decoders import Decoder
from export.transducers.emission import OUTPUT
from export.transducers.network import Network
from export.vocabulary import Vocabulary

_NUM_FRAMES = 48


def hints_of(composed: Composed) -> Hints:
    """Returns the hints about the composed graph: its states are known."""
    return Hints(
        states=composed.states,
        batch_axes=composed.batch_axes,
        inputs=[composed.frames.name],
        initial=composed.initial,
        states_are_complete=True,
    )


def described_as(composed: Composed, vocabulary: Vocabulary) -> Described:
    """Returns the description of the composed graph: its vocabulary, and how its output encodes tokens."""
    return Described(labels=vocabulary, emits=composed.emits)


def prove_loop(composed: Composed, encoder: Network, decoder: Decoder, rules: Rules) -> list[float]:
    """Compares steps of one row with the bare loop. Returns the loop's margins (`BareLoop.margins`).

    Raises ExportError when they differ, or when the graph cannot be run.
    """
    frames = _draw(encoder)
    bare = BareLoop(encoder, decoder, rules)
    try:
        session = session_of(composed.model)
    except Exception as error:  # ONNX Runtime raises its own error classes
        raise ExportError(f"the files cannot be run as one graph: {first_line(error)}") from error
    states = _first_states(composed)
    for number, frame in enumerate(frames):
        tokens, scores = bare.step(frame)
        entered = composed.frames.enter(frame[np.newaxis])
        output, *following = session.run([OUTPUT, *composed.states.values()], {composed.frames.name: entered, **states})
        states = dict(zip(composed.states, following, strict=True))
        count, capacity = int(output[0, 0]), composed.emits.capacity
        ids = output[0, 2 : 2 + count].astype(int).tolist()
        found = output[0, 2 + capacity : 2 + capacity + count]
        if ids != tokens or not np.allclose(found, scores, atol=SCORES):
            shown = [*zip(ids, found.tolist(), strict=True)][:8]
            raise ExportError(
                f"the graph emits (token, log-probability) {shown} at frame {number}, but a loop over the files emits"
                f" {[*zip(tokens, scores, strict=True)][:8]}"
            )
    for one, expected in zip(decoder.carried, bare.carried, strict=True):
        if states[one.name].tobytes() != expected.tobytes():
            raise ExportError(
                f"state {one.name} differs from that of a loop over the files: they must be bit-identical"
            )
    return bare.margins


def prove_emitting(
    encoder: Network, decoder: Decoder, rules: Rules, vocabulary: Vocabulary, margins: list[float]
) -> str:
    """Compares frames that emit tokens with the bare loop, and rows in a batch with rows alone.

    margins: from `prove_loop`. Returns a note for the user, a `OneByOne` if other rows in a run change the tokens.
    Raises ExportError when a proof fails.
    """
    often = replace(rules, blank_penalty=rules.blank_penalty + float(np.quantile(margins, 0.5)))
    composed = compose(encoder, decoder, often)
    prove_loop(composed, encoder, decoder, often)
    proven = prove_model(composed.model, hints_of(composed), described_as(composed, vocabulary))
    if proven.interface.step.max_rows == 1:
        return next(note for note in proven.notes if isinstance(note, OneByOne))
    if proven.interface.step.loop is None:
        raise ExportError("frames that emit tokens give other results in several steps at once than one by one")
    return "frames that emit tokens have the same bits with other rows in a run and in several steps at once"


def _draw(encoder: Network) -> list[Array]:
    """Returns random frames of one row each, quiet and loud ones."""
    generator = np.random.default_rng(0)
    port = encoder.reads["frames"]
    loudness = generator.uniform(0.1, 3.0, _NUM_FRAMES)
    return [(generator.standard_normal(port.row_shape) * one).astype(port.dtype) for one in loudness]


def _first_states(composed: Composed) -> dict[str, Array]:
    states = {}
    for one in composed.model.graph.input:
        if one.name in composed.states:
            kind, axis = one.type.tensor_type, composed.batch_axes[one.name]
            shape = [1 if place == axis else size.dim_value for place, size in enumerate(kind.shape.dim)]
            states[one.name] = np.zeros(shape, helper.tensor_dtype_to_np_dtype(kind.elem_type))
            if one.name in composed.initial:
                states[one.name][:] = np.expand_dims(composed.initial[one.name], axis)
    return states
