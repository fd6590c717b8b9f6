"""Reads the files of a transducer (Graves 2012) and runs each once: an encoder of frames, a prediction network over the
tokens so far, and a joiner of both. Prediction network and joiner may be one file.

Shapes: `A` rows, `E` numbers of an encoded frame, `P` of a prediction, `V` tokens including the blank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import compose, inliner

from export.errors import ExportError, first_line
from export.foreign.axes import (
    Hints,
    Tensor,
    axis_named,
    batch_axis,
    batch_name,
    declared,
    is_time,
    listed,
    size_of,
    state_batch_axis,
)
from export.foreign.loading import load
from export.foreign.original import check_kept
from export.foreign.pairing import pair_states
from export.proofs.runners import session_of
from export.transducers.network import Kept, Network, Port

ENCODER, PREDICTOR, JOINER = "encoder", "predictor", "joiner"


def read_encoder(file: Path, hints: Hints, output: str | None) -> Network:
    """Reads the encoder.

    hints: of its states and axes. output: the output with the encoded frames, if there are several. Raises ExportError
    that says what is missing and which flag gives it.
    """
    return _read(ENCODER, file, hints, {"frames": _is_of_numbers}, output)


def read_predictor(file: Path, hints: Hints, output: str | None) -> Network:
    """Reads the prediction network: it reads tokens, and also an encoded frame if the file contains the joiner. Raises
    as `read_encoder`."""
    return _read(PREDICTOR, file, hints, {"tokens": _is_of_tokens, "encoded": _is_of_numbers}, output)


def read_joiner(file: Path, hints: Hints, sizes: Mapping[str, int], inputs: Mapping[str, str]) -> Network:
    """Reads the joiner.

    sizes: of an encoded frame and of a prediction, by role. inputs: names of inputs from flags, by role. Raises as
    `read_encoder`.
    """
    model, tensors, outputs = _opened(JOINER, file, hints)
    by_name = {one.name.removeprefix(f"{JOINER}."): one for one in tensors.values()}
    if len(tensors) != len(sizes):
        raise ExportError(
            f"{file} must read an encoded frame and a prediction, but it reads {listed(tensors)}: is it the joiner?"
        )
    found: dict[str, Tensor] = {}
    for what, name in inputs.items():
        if name not in by_name:
            raise ExportError(f"--{what} names {name}, but {file} reads {listed(tensors)}")
        found[what] = by_name[name]
    for what, size in sizes.items():
        free = [one for one in by_name.values() if one not in found.values()]
        fits = [one for one in free if one.shape and one.shape[-1] in (size, f"{one.name}.{len(one.shape) - 1}")]
        fits = [one for one in fits if _begins_as(one.name, what)] or fits
        if what not in found and fits:
            found[what] = fits[0]
    alike = len(set(sizes.values())) == 1 and not all(_begins_as(one.name, what) for what, one in found.items())
    if len(found) < len(sizes) or len({one.name for one in found.values()}) < len(sizes) or (alike and not inputs):
        counts = " and ".join(f"{size} of {_KINDS[what]}" for what, size in sizes.items())
        raise ExportError(
            f"cannot tell the inputs of {file} apart: it reads {listed(tensors)}, for {counts} numbers: use --encoded"
            " NAME and --predicted NAME"
        )
    alone = replace(hints, batch_axes={})
    ports = {what: _port(one, alone, _first_axis(one), size=sizes[what]) for what, one in found.items()}
    return _ran(Network(JOINER, file, model, ports, _one(outputs, None, JOINER, file)), outputs)


_KINDS = {"frames": "frames", "tokens": "tokens", "encoded": "an encoded frame", "predicted": "a prediction"}
_BEGINNINGS = {"encoded": ("enc", "am", "trans", "acoustic", "f"), "predicted": ("dec", "pred", "lm", "g", "label")}


def _first_axis(tensor: Tensor) -> str | int:
    """Returns the first axis without a size, or else the first axis."""
    return next((one for one in tensor.shape if isinstance(one, str)), tensor.shape[0] if tensor.shape else 1)


def _begins_as(name: str, what: str) -> bool:
    return name.removeprefix(f"{JOINER}.").lower().startswith(_BEGINNINGS[what])


def _is_of_numbers(tensor: Tensor) -> bool:
    return tensor.dtype.startswith("float")


def _is_of_tokens(tensor: Tensor) -> bool:
    return tensor.dtype in ("int64", "int32")


def _read(
    role: str, file: Path, hints: Hints, kinds: Mapping[str, Callable[[Tensor], bool]], output: str | None
) -> Network:
    model, inputs, outputs = _opened(role, file, hints)
    own = _of_role(hints, role, inputs | outputs)
    notes: list[str] = []
    _refuse_lengths(file, inputs, own)
    is_of_kind = any(kinds[next(iter(kinds))](one) for one in inputs.values())
    has_states = len(inputs) > 1 or role == ENCODER
    pairs = pair_states(model, inputs, outputs, own, notes) if is_of_kind and has_states else {}
    left = {name: one for name, one in inputs.items() if name not in pairs}
    reads: dict[str, Tensor] = {}
    for what, fits in kinds.items():
        found = [one for one in left.values() if fits(one)]
        if len(found) == 1:
            reads[what] = found[0]
            del left[found[0].name]
    if next(iter(kinds)) not in reads or left:
        wanted = " and ".join(_KINDS[what] for what in kinds) if role == ENCODER else "tokens"
        raise ExportError(
            f"{file} must read {wanted} and its states, but it reads {listed(inputs)}: is it the {role}? Give a state"
            " that was not found with --state INPUT=OUTPUT"
        )
    free = {name: one for name, one in outputs.items() if name not in pairs.values()}

    def with_rows(own: Hints) -> Network:
        batch = batch_name(reads[next(iter(kinds))], inputs | outputs, own)
        states = tuple(
            Kept(port := _port(inputs[name], own, batch, is_state=True), pairs[name], np.zeros(port.shape, port.dtype))
            for name in pairs
        )
        ports = {what: _port(one, own, batch) for what, one in reads.items()}
        network = Network(role, file, model, ports, _one(free, output, role, file), states, tuple(notes))
        return _ran(network, outputs)

    return with_rows(own) if role != ENCODER else _as_run(with_rows, reads["frames"], own)


def _as_run(with_rows: Callable[[Hints], Network], frames: Tensor, hints: Hints) -> Network:
    """Returns the encoder with the batch axis that runs of two rows show.

    with_rows: reads the encoder with given hints. Raises ExportError when it cannot be read.
    """
    places = [place for place, axis in enumerate(frames.shape[:-1]) if isinstance(axis, str)]
    first: Network | ExportError
    try:
        first = with_rows(hints)
    except ExportError as error:
        first = error
    if frames.name in hints.batch_axes or (isinstance(first, Network) and (len(places) < 2 or first.has_rows())):
        places = []
    for place in places:
        try:
            other = with_rows(replace(hints, batch_axes={**hints.batch_axes, frames.name: place}))
        except ExportError:
            continue
        if other.has_rows():
            input_name = frames.name.removeprefix(f"{ENCODER}.")
            return replace(other, notes=(*other.notes, f"the batch axis of {input_name} is {place}, as runs show"))
    if isinstance(first, ExportError):
        raise first
    return first


def _opened(role: str, file: Path, hints: Hints) -> tuple[onnx.ModelProto, dict[str, Tensor], dict[str, Tensor]]:
    """Returns a file's model, inputs and outputs, with names that begin with the role."""
    model = inliner.inline_local_functions(load(file))
    graph = compose.add_prefix_graph(model.graph, f"{role}.")
    del graph.value_info[:]
    model.graph.CopyFrom(graph)
    return model, *declared(model, hints)


def _of_role(hints: Hints, role: str, known: Mapping[str, Tensor]) -> Hints:
    """Returns the hints about tensors of a file. Flags may use the file's names, or names that begin with the role."""

    def own(name: str) -> str:
        return name if name in known else f"{role}.{name}"

    return replace(
        hints,
        states={own(one): own(other) for one, other in hints.states.items() if {own(one), own(other)} <= known.keys()},
        batch_axes={own(name): axis for name, axis in hints.batch_axes.items() if own(name) in known},
    )


def _refuse_lengths(file: Path, inputs: Mapping[str, Tensor], hints: Hints) -> None:
    """Raises ExportError for an input with the length of each row, even if an output has its shape: it is no state."""
    whole = [one for one in inputs.values() if one.dtype in ("int64", "int32") and one.name not in hints.states]
    for one in whole:
        if len(one.shape) == 1 and any(other is not one and _may_be_read(other) for other in inputs.values()):
            raise ExportError(
                f"{file} reads {one}, the length of each row, but a step's input always has its full length. Export the"
                " module with that number computed inside, such as torch.full((rows,), steps)"
            )


def _may_be_read(tensor: Tensor) -> bool:
    """Whether a tensor may be frames or tokens, with an axis of steps."""
    return len(tensor.shape) > 1


def _port(tensor: Tensor, hints: Hints, batch: str | int, *, is_state: bool = False, size: int | None = None) -> Port:
    """Returns a tensor's port. batch: the batch axis. size: of the last axis, if the file gives it no size."""
    if not tensor.shape:
        raise ExportError(f"{tensor} is a scalar: a part of a transducer reads rows. Export the module without it")
    find = partial(state_batch_axis if is_state else axis_named, tensor, batch)
    axis = batch_axis(tensor, hints, find)
    places = range(len(tensor.shape))
    last = len(tensor.shape) - 1

    def length(place: int) -> int:
        if place == axis:
            return 1
        is_free = isinstance(tensor.shape[place], str)
        if is_free and place == last and size is not None:
            return size
        is_time_axis = is_free and not is_state and (is_time(tensor, place) or place < last)
        return 1 if is_time_axis else size_of(tensor, place)

    return Port(tensor.name, tensor.dtype, tuple(map(length, places)), axis)


def _one(outputs: Mapping[str, Tensor], flag_value: str | None, role: str, file: Path) -> Port:
    """Returns the output that is no state, without its shape, which a run finds. flag_value: its name from a flag."""
    names = list(outputs)
    if flag_value is not None:
        names = [name for name in names if name == f"{role}.{flag_value}"]
    if len(names) != 1:
        asked = (
            f"--{role}-output names {flag_value}, but"
            if flag_value is not None and not names
            else f"which output of {file}?"
        )
        raise ExportError(f"{asked} it returns {listed(outputs)}: use --{role}-output NAME")
    one = outputs[names[0]]
    return Port(one.name, one.dtype, (), 0)


def _ran(network: Network, outputs: Mapping[str, Tensor]) -> Network:
    """Returns the network with its session and its output's shape. Raises ExportError when it cannot be run."""
    feeds = {port.name: np.zeros(port.shape, port.dtype) for port in network.reads.values()}
    feeds |= {kept.input.name: kept.initial for kept in network.states}
    try:
        session = session_of(network.model)
        given = session.run([network.gives.name, *(kept.output for kept in network.states)], feeds)
    except Exception as error:  # ONNX Runtime raises its own error classes
        shown = ", ".join(f"{port.name} as {list(port.shape)}" for port in network.reads.values())
        raise ExportError(
            f"{network.file} cannot be run on {shown}: {first_line(error)}. Correct this with --axis NAME=SIZE or"
            " --batch-axis NAME=PLACE"
        ) from error
    for kept, after in zip(network.states, given[1:], strict=True):
        check_kept(kept.input.name, kept.output, kept.input.shape, after.shape)
    declared, first = outputs[network.gives.name].shape, next(iter(network.reads.values()))
    batch = 0
    if len(declared) == given[0].ndim:
        names = [place for place, axis in enumerate(declared) if isinstance(axis, str) and given[0].shape[place] == 1]
        batch = first.batch_axis if first.batch_axis in names else (names[0] if names else 0)
    return replace(network, gives=Port(network.gives.name, network.gives.dtype, given[0].shape, batch), session=session)
