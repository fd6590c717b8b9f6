"""Exports PyTorch modules as ONNX graphs: plain operators, symbolic axes, and no traces of the exporting machine."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from export.errors import ExportError, first_line
from export.faster_export import faster_export
from export.heads import add_heads
from export.interface import Interface
from models.recurrent import ONNX_DOMAIN_VERSION, RecurrentLayer
from service.repository.manifest import Dtype, TensorSpec

OPSET = ONNX_DOMAIN_VERSION

_EXAMPLE_SIZES = {"batch": 3, "time": 4, "source": 8}  # distinct, and none is 1: torch would make that axis constant
_TORCH_DTYPES: dict[Dtype, torch.dtype] = {"float32": torch.float32, "int64": torch.int64, "bool": torch.bool}


@dataclass(frozen=True, slots=True)
class Graphs:
    """The serialised ONNX graphs of one model.

    encoder: None if the model has no source. readout: None if it has none. loop: takes several steps of a row, if
    `step` takes one.
    """

    step: bytes
    encoder: bytes | None = None
    readout: bytes | None = None
    loop: bytes | None = None


def export_graphs(
    interface: Interface, step: nn.Module, encoder: nn.Module | None = None, readout: nn.Module | None = None
) -> Graphs:
    """Exports modules in evaluation mode, called as `export.interface` says. The same weights give the same bytes.

    Adds export buffers to their recurrent layers (`prepare_for_export`). Raises ExportError when a module is in
    training mode.
    """
    encoder_graph = readout_graph = None
    if encoder is not None:
        encoder_graph = serialize(export_module(encoder, interface.encoder_inputs, interface.encoder_outputs))
    is_one_step = interface.step.max_chunk == 1
    step_graph = export_module(step, interface.step_inputs, interface.step_outputs, is_one_step=is_one_step)
    add_heads(step_graph, interface.step)
    if readout is not None and interface.readout is not None:
        readout_graph = serialize(export_module(readout, interface.readout_inputs, (interface.readout.logits,)))
    return Graphs(step=serialize(step_graph), encoder=encoder_graph, readout=readout_graph)


def serialize(model: onnx.ModelProto) -> bytes:
    """Returns a graph's bytes, the same for the same graph. Raises what ONNX's checker raises."""
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def export_module(
    module: nn.Module, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, is_one_step: bool = False
) -> onnx.ModelProto:
    """Exports one module, called with `inputs` in order, as a graph. The same weights give the same graph.

    is_one_step: whether the time axis is 1. Adds export buffers to the module's recurrent layers
    (`prepare_for_export`). Raises ExportError when it is in training mode, or when PyTorch cannot export it.
    """
    if module.training:
        raise ExportError(f"{type(module).__name__} is in training mode: call eval() before exporting it")
    for layer in module.modules():
        if isinstance(layer, RecurrentLayer):
            layer.prepare_for_export()
    sizes = {**_EXAMPLE_SIZES, "time": 1} if is_one_step else _EXAMPLE_SIZES
    axes = {name: torch.export.Dim(name) for name, size in sizes.items() if size > 1}
    with _quiet(), torch.no_grad(), faster_export(), _torch_errors(module):
        program = torch.onnx.export(
            module,
            tuple(_example(tensor, sizes) for tensor in inputs),
            dynamo=True,
            dynamic_shapes=_as_called(
                module,
                [
                    {position: axes[axis] for position, axis in enumerate(tensor.shape) if axis in axes}
                    for tensor in inputs
                ],
            ),
            input_names=[tensor.name for tensor in inputs],
            output_names=[tensor.name for tensor in outputs],
            opset_version=OPSET,
            verbose=False,
        )
    if program is None:
        raise ExportError(f"torch.onnx.export returned no graph for {type(module).__name__}")
    model: onnx.ModelProto = program.model_proto
    _strip(model)
    return model


def _as_called(module: nn.Module, shapes: list[Any]) -> tuple[Any, ...]:
    """Returns the dynamic shapes as `torch.export` expects them: the arguments that `*name` takes are one tuple."""
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return tuple(shapes)
    first = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*shapes[:first], tuple(shapes[first:])) if shapes[first:] else tuple(shapes)


@contextlib.contextmanager
def _torch_errors(module: nn.Module) -> Iterator[None]:
    """Turns any error of PyTorch's exporter into an ExportError that names the module."""
    try:
        yield
    except ExportError:
        raise
    except Exception as error:  # torch raises errors of many classes
        cause: Exception = error
        while isinstance(cause.__cause__, Exception):
            cause = cause.__cause__
        raise ExportError(f"PyTorch cannot export {_innermost(module)}: {first_line(cause)}") from error


def _innermost(module: nn.Module) -> str:
    """Returns the class name of a module, or of the module inside the exporter's wrappers."""
    while isinstance(inner := getattr(module, "module", None), nn.Module):
        module = inner
    return type(module).__name__


def _example(tensor: TensorSpec, sizes: Mapping[str, int]) -> Tensor:
    """Returns a tensor of ones, of the right shape and type, to trace with. The graph does not depend on its values."""
    shape = [sizes[axis] if isinstance(axis, str) else axis for axis in tensor.shape]
    return torch.ones(shape, dtype=_TORCH_DTYPES[tensor.dtype])


def _strip(model: onnx.ModelProto) -> None:
    """Removes what torch writes about its source: stack traces, file names, module paths, shapes of inner values."""
    _clear(model)
    _strip_graph(model.graph)


def _strip_graph(graph: onnx.GraphProto) -> None:
    """Strips a graph, and the bodies of its nodes, such as those of Scan."""
    del graph.value_info[:]
    _clear(graph, *graph.node, *graph.input, *graph.output, *graph.initializer)
    for node in graph.node:
        for attribute in node.attribute:
            for body in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                _strip_graph(body)


def _clear(*parts: Any) -> None:
    for part in parts:
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter: its warnings are about missing packages, and about axes that share a name by intent."""
    disabled = logging.root.manager.disable
    said = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)
