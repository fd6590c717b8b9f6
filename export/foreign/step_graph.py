"""Makes a translator's decoder read a bundle's contexts as its inputs. `wrapping` makes the rest of its step.

If all rows of a run have sources of one length, contexts are cut to it, so that the file reads the same as with one row
alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from export.foreign.axes import state_batch_axis
from export.foreign.decoder_steps import DecoderFile
from export.foreign.encoder_file import EncoderFile
from export.foreign.encoder_graph import are_tokens, made_mask, sized_mask, turned
from export.foreign.names import plain_names
from export.surgery import Writer, copy_of, element_type, refill
from service.repository.manifest import ContextSpec, StateSpec, TensorSpec

SOURCE_LENGTH = "carousel/source_length"
_LENGTH, _ROWS = "carousel/own_length", "carousel/num_rows"


def needs_length(decoder: DecoderFile) -> bool:
    """Whether a step needs the length of its source."""
    return bool(decoder.contexts or decoder.masks or decoder.lengths)


def contexts_of(decoder: DecoderFile, encoder: EncoderFile) -> tuple[ContextSpec, ...]:
    """Returns the bundle's contexts, in the decoder's order."""
    names = plain_names(decoder.contexts)
    return tuple(
        ContextSpec(
            name=plain,
            input=TensorSpec(
                name=f"carousel/context/{name}",
                dtype=encoder.outputs[output].tensor.dtype,
                shape=("batch", "source", *encoder.outputs[output].shape),
            ),
            output=f"carousel/encoded/{name}",
        )
        for plain, (name, output) in zip(names, decoder.contexts.items(), strict=True)
    )


def states_of_source(decoder: DecoderFile, *, by_length: bool, taken: Sequence[str]) -> tuple[StateSpec, ...]:
    """Returns the states that no step changes: the source's length, and encoder outputs that do not grow with it.

    by_length: whether all rows of a run have sources of one length. taken: names of other states and contexts.
    """
    states = []
    *_, plain = plain_names([*taken, "source_length"])
    if needs_length(decoder):
        states.append(
            StateSpec(
                name=plain,
                input=TensorSpec(name=SOURCE_LENGTH, dtype="int64", shape=("batch",)),
                output=f"{SOURCE_LENGTH}/next",
                initial=f"{SOURCE_LENGTH}/first",
                is_uniform=by_length,
            )
        )
    names = plain_names([*taken, *(state.name for state in states), *decoder.kept])[len(taken) + len(states) :]
    for name, plain_name in zip(decoder.kept, names, strict=True):
        tensor = decoder.inputs[name]
        axis = next((at for at, size in enumerate(tensor.shape) if isinstance(size, str)), None)
        axis = state_batch_axis(tensor, 1) if axis is None else axis
        shape = tensor.of_one_row
        states.append(
            StateSpec(
                name=plain_name,
                input=TensorSpec(name=name, dtype=tensor.dtype, shape=(*shape[:axis], "batch", *shape[axis + 1 :])),
                output=f"carousel/kept/{name}",
                initial=f"carousel/encoded/{name}",
            )
        )
    return tuple(states)


def step_over_source(decoder: DecoderFile, encoder: EncoderFile, *, by_length: bool) -> onnx.ModelProto:
    """Returns the decoder's model with the bundle's contexts as inputs. by_length: see `states_of_source`."""
    model = copy_of(decoder.model)
    graph = model.graph
    nodes = list(graph.node)
    given = {*decoder.contexts, *(mask.placed.tensor.name for mask in decoder.masks)}
    given |= {decoder.lengths.name} if decoder.lengths else set()
    del graph.node[:], graph.value_info[:]
    refill(graph.input, [one for one in graph.input if one.name not in given])
    writer = Writer(graph, "carousel/step/")
    zero, one = (writer.constant(str(value), np.array([value], np.int64)) for value in (0, 1))
    if needs_length(decoder):
        writer.node("Identity", [SOURCE_LENGTH], f"{SOURCE_LENGTH}/next")
        writer.node("Shape", [SOURCE_LENGTH], _ROWS)
        writer.node("Gather", [SOURCE_LENGTH, zero], "carousel/first_length", axis=0)
        writer.node("Equal", ["carousel/first_length", zero], "carousel/has_none")  # a row without a session: length 0
        writer.node("Cast", ["carousel/has_none"], "carousel/none", to=onnx.TensorProto.INT64)
        writer.node("Add", ["carousel/first_length", "carousel/none"], _LENGTH)
    for name, output in decoder.contexts.items():
        placed, context = decoder.places[name], f"carousel/context/{name}"
        if by_length:
            writer.node("Slice", [context, zero, _LENGTH, one], f"{context}/own")
            context = f"{context}/own"
        if placed.shape != encoder.outputs[output].shape:
            shape = writer.constant(f"{name}/shape", np.array([0, 0, *placed.shape], np.int64))
            writer.node("Reshape", [context, shape], f"{context}/shaped")
            context = f"{context}/shaped"
        turned(writer, context, placed.perm, name)
    if decoder.masks and not by_length:
        wide = f"carousel/context/{next(iter(decoder.contexts))}"
        are_tokens(writer, wide, SOURCE_LENGTH, "carousel/are_tokens")
    for mask in decoder.masks:
        if by_length:
            sized_mask(writer, mask.at_tokens, mask.placed, _ROWS, _LENGTH)
        else:
            made_mask(writer, "carousel/are_tokens", mask.at_tokens, mask.behind, mask.placed)
    if decoder.lengths is not None:
        form = [-1, *[1] * (len(decoder.lengths.shape) - 1)] if decoder.lengths.shape else []
        source = SOURCE_LENGTH if decoder.lengths.shape else _LENGTH
        shape = writer.constant("lengths", np.array(form, np.int64))
        writer.node("Reshape", [source, shape], "carousel/lengths_shaped")
        writer.node("Cast", ["carousel/lengths_shaped"], decoder.lengths.name, to=element_type(decoder.lengths.dtype))
    for name in decoder.kept:
        writer.node("Identity", [name], f"carousel/kept/{name}")
    graph.node.extend(nodes)
    return model
