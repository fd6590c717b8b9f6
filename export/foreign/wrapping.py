"""Wraps a file's graph: nodes before it make its inputs from a step's input, nodes after it make a step's output.

A step reads one vector, the numbers of the file's inputs one after the other, and returns one vector of the outputs in
the same way. A window, and whether a session has begun, are states of the graph, so a resume, rewind or fork of a
session includes them. All added operators exist in every opset from 7 on, except `Expand`, for a constant with a
copy for each row, which exists from 8 on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from export.errors import ExportError
from export.foreign.axes import Tensor
from export.foreign.names import plain_names
from export.foreign.reading import Reading, StepInput, StepOutput
from export.foreign.session_constants import SessionConstant
from export.interface import Interface
from export.proofs.runners import Array
from export.surgery import Writer, copy_of, element_type
from service.repository.manifest import StateSpec, TensorSpec

_STARTED, _NEXT_STARTED = "carousel/started", "carousel/next_started"


def states_of(reading: Reading) -> tuple[StateSpec, ...]:
    """Returns the wrapped graph's states: the file's, windows, whether a session has begun, session constants."""
    names = iter(plain_names(state_names(reading)))
    states = [
        StateSpec(
            name=(name := next(names)),
            input=TensorSpec(
                name=state.input.name,
                dtype=state.input.dtype,
                shape=(*state.shape[: state.batch_axis], "batch", *state.shape[state.batch_axis + 1 :]),
            ),
            output=state.output,
            initial_file=None if state.initial is None else f"initial.{name}.npy",
        )
        for state in reading.states
    ]
    for part in reading.inputs:
        if part.window:
            tensor = TensorSpec(name=_window(part), dtype="float32", shape=("batch", part.window))
            states.append(StateSpec(name=next(names), input=tensor, output=f"{_window(part)}/next"))
    if reading.start is not None:
        tensor = TensorSpec(name=_STARTED, dtype="float32", shape=("batch", 1))
        is_uniform = all(isinstance(axis, int) for axis in reading.start.shape)
        states.append(StateSpec(name=next(names), input=tensor, output=_NEXT_STARTED, is_uniform=is_uniform))
    states += [_state_of_constant(constant, next(names)) for constant in reading.session_constants]
    return tuple(states)


def state_names(reading: Reading) -> list[str]:
    """Returns the states' names in the order of `states_of`; `names.plain_names` turns them into a manifest's."""
    windows = [f"window.{part.tensor.name}" for part in reading.inputs if part.window]
    constants = [constant.tensor.name for constant in reading.session_constants]
    started = ["started"] if reading.start else []
    return [*(state.input.name for state in reading.states), *windows, *started, *constants]


def first_values(reading: Reading) -> dict[str, Array]:
    """Returns first values, without the batch axis, of the file's states that do not begin with zeros, by name."""
    return {
        name: np.take(state.initial, 0, axis=state.batch_axis)
        for state, name in zip(reading.states, plain_names(state_names(reading)), strict=False)
        if state.initial is not None
    }


def _state_of_constant(constant: SessionConstant, plain: str) -> StateSpec:
    name, shape = constant.tensor.name, constant.shape
    axis = constant.batch_axis or 0
    is_uniform = constant.batch_axis is None
    tensor = TensorSpec(
        name=_constant(name) if is_uniform else name,
        dtype=constant.tensor.dtype,
        shape=(*shape[:axis], "batch", *shape[axis:]),
    )
    output = f"{_constant(name)}/next"
    return StateSpec(name=plain, input=tensor, output=output, constant=constant.spec, is_uniform=is_uniform)


def wrap(
    model: onnx.ModelProto, reading: Reading, interface: Interface, sizes: Sequence[int], *, takes_logarithms: bool
) -> bytes:
    """Returns the wrapped graph's bytes. Raises ExportError if the result is no valid graph.

    sizes: how many numbers each output has. takes_logarithms: whether the outputs are probabilities, so that logits are
    their logarithms.
    """
    wrapped = copy_of(model)
    graph, step = wrapped.graph, interface.step
    rows: int | str = "batch" if step.max_rows is None else 1
    writer = Writer(graph, "carousel/")
    nodes = list(graph.node)
    del graph.node[:]
    begin = 0
    for part in reading.inputs:
        _give(writer, part, step.input, begin, is_whole=len(reading.inputs) == 1)
        begin += part.size
    for name in reading.repeated:
        _repeat(writer, name, *reading.constants[name], step.input.name)
    if reading.start is not None:
        _start(writer, reading.start)
    for constant in reading.session_constants:
        _keep(writer, constant)
    graph.node.extend(nodes)
    flat = [
        _take(writer, output, size, is_alone=step.max_rows == 1)
        for output, size in zip(reading.outputs, sizes, strict=True)
    ]
    last = flat[0]
    if len(flat) > 1:
        last = "carousel/joined"
        writer.node("Concat", flat, last, axis=2)
    writer.node("Log" if takes_logarithms else "Identity", [last], step.output.name)
    _set_values(graph, interface, {part.tensor.name for part in reading.inputs}, rows)
    try:
        onnx.checker.check_model(wrapped)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the file's graph cannot be wrapped: {error}") from error
    return wrapped.SerializeToString(deterministic=True)


def _give(writer: Writer, part: StepInput, step_input: TensorSpec, begin: int, *, is_whole: bool) -> None:
    """Writes an input of the file from its part of the step's vector, which begins at `begin`."""
    name, last, dtype = part.tensor.name, step_input.name, step_input.dtype
    if not is_whole:
        last = _gathered(writer, f"{name}/part", last, range(begin, begin + part.size), axis=2)
    if part.window:
        new = writer.constant(f"{name}/new_shape", np.array([0, part.size], np.int64))
        writer.node("Reshape", [last, new], f"carousel/{name}/new")
        last = f"carousel/{name}/whole"
        writer.node("Concat", [_window(part), f"carousel/{name}/new"], last, axis=1)
        size = part.size + part.window
        kept = _gathered(writer, f"{name}/kept", last, range(size - part.window, size), axis=1)
        writer.node("Identity", [kept], f"{_window(part)}/next")
    if part.tensor.dtype != dtype:
        writer.node("Cast", [last], f"carousel/{name}/cast", to=element_type(part.tensor.dtype))
        last = f"carousel/{name}/cast"
    rest = [size for place, size in enumerate(part.shape) if place != part.batch_axis]
    shape = writer.constant(f"{name}/shape", np.array([0, *rest], np.int64))  # 0: the number of rows is unchanged
    places = list(range(1, len(part.shape)))
    places.insert(part.batch_axis, 0)  # puts the batch axis among a row's own axes
    if places == sorted(places):
        writer.node("Reshape", [last, shape], name)
    else:
        writer.node("Reshape", [last, shape], f"carousel/{name}/rows_first")
        writer.node("Transpose", [f"carousel/{name}/rows_first"], name, perm=places)


def _take(writer: Writer, output: StepOutput, size: int, *, is_alone: bool) -> str:
    """Writes an output of the file as [batch, 1, size] of 32-bit floats, and returns its name.

    is_alone: whether a run has one row; then the output may have no batch axis.
    """
    name, axis, last = output.tensor.name, output.batch_axis, output.tensor.name
    if axis and not is_alone:
        ahead = [axis, *(place for place in range(len(output.tensor.shape)) if place != axis)]
        last = f"carousel/{name}/rows_first"
        writer.node("Transpose", [name], last, perm=ahead)
    rows = 1 if is_alone else 0  # 0: the number of rows is unchanged
    shape = writer.constant(f"{name}/flat_shape", np.array([rows, 1, size], np.int64))
    writer.node("Reshape", [last, shape], f"carousel/{name}/flat")
    if output.tensor.dtype == "float32":
        return f"carousel/{name}/flat"
    writer.node("Cast", [f"carousel/{name}/flat"], f"carousel/{name}/float", to=TensorProto.FLOAT)
    return f"carousel/{name}/float"


def _repeat(writer: Writer, name: str, tensor: Tensor, values: Sequence[float], step_input: str) -> None:
    """Writes a constant of one row as an input with one copy for each row of the run."""
    shape = [int(axis) for axis in tensor.shape]
    one = writer.constant(f"constant/{name}", np.array(values, tensor.dtype).reshape(shape))
    writer.node("Shape", [step_input], f"carousel/shape/{name}")
    count = _gathered(writer, f"num_rows/{name}", f"carousel/shape/{name}", range(1), axis=0)
    rest = writer.constant(f"rest/{name}", np.array(shape[1:], np.int64))
    writer.node("Concat", [count, rest], f"carousel/rows/{name}", axis=0)
    writer.node("Expand", [one, f"carousel/rows/{name}"], name)


def _start(writer: Writer, tensor: Tensor) -> None:
    """Writes the input that is true at a session's first step: while the state `started` is 0. Sets that state to 1."""
    writer.node("Cast", [_STARTED], "carousel/has_started", to=TensorProto.BOOL)
    writer.node("Not", ["carousel/has_started"], "carousel/is_start")
    writer.node("Cast", ["carousel/is_start"], "carousel/start", to=element_type(tensor.dtype))
    shape = [-1 if isinstance(axis, str) else axis for axis in tensor.shape]
    form = writer.constant("start_shape", np.array(shape, np.int64))
    start = "carousel/start"
    if -1 not in shape:  # the file has one value for all rows, and the rows of a run have the same
        start = _gathered(writer, "first_start", start, range(1), axis=0)
    writer.node("Reshape", [start, form], tensor.name)
    writer.node("Sub", [_STARTED, _STARTED], "carousel/zero")
    writer.node("Add", ["carousel/zero", writer.constant("one", np.array([1.0], np.float32))], _NEXT_STARTED)


def _keep(writer: Writer, constant: SessionConstant) -> None:
    """Writes a session constant, which no step changes. An input without a batch axis gets the first row's value."""
    name = given = constant.tensor.name
    if constant.batch_axis is None:
        given = _constant(name)
        first = writer.constant(f"{name}/first", np.array(0, np.int64))
        writer.node("Gather", [given, first], name, axis=0)
    writer.node("Identity", [given], f"{_constant(name)}/next")


def _constant(name: str) -> str:
    return f"carousel/constant/{name}"


def _gathered(writer: Writer, name: str, source: str, places: range, *, axis: int) -> str:
    """Writes some elements of a tensor, and returns their name."""
    index = writer.constant(f"{name}/places", np.array(places, np.int64))
    writer.node("Gather", [source, index], f"carousel/{name}", axis=axis)
    return f"carousel/{name}"


def _set_values(graph: onnx.GraphProto, interface: Interface, taken: set[str], rows: int | str) -> None:
    """Declares the manifest's inputs and outputs. taken: the file's inputs that the step's vector feeds."""
    step = interface.step

    def value(tensor: TensorSpec) -> onnx.ValueInfoProto:
        shape = [rows if axis == "batch" else 1 if axis == "time" else axis for axis in tensor.shape]
        return helper.make_tensor_value_info(tensor.name, element_type(tensor.dtype), shape)

    weights = {tensor.name for tensor in graph.initializer}
    kept = [one for one in graph.input if one.name in weights and one.name not in taken]
    constants = [TensorSpec(name=one.name, dtype=one.dtype, shape=one.shape) for one in step.constants]
    del graph.input[:], graph.output[:]
    graph.input.extend([value(step.input), *(value(state.input) for state in interface.states)])
    graph.input.extend([*map(value, [*(one.input for one in interface.contexts), *constants]), *kept])
    graph.output.append(value(step.output))
    graph.output.extend(value(state.input.model_copy(update={"name": state.output})) for state in interface.states)


def _window(part: StepInput) -> str:
    return f"carousel/window/{part.tensor.name}"
