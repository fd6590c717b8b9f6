"""PyTorch modules to ONNX graphs: plain operators, symbolic axes, and nothing of the machine that made them."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from export.errors import ExportError
from export.heads import add_heads
from export.interface import Interface
from models.recurrent import ONNX_DOMAIN_VERSION, RecurrentLayer
from service.repository.manifest import Dtype, TensorSpec

OPSET = ONNX_DOMAIN_VERSION

_EXAMPLE_SIZES = {"batch": 3, "time": 4, "source": 8}  # all different, and none 1, which torch would freeze
_TORCH_DTYPES: dict[Dtype, torch.dtype] = {"float32": torch.float32, "int64": torch.int64, "bool": torch.bool}


@dataclass(frozen=True, slots=True)
class Graphs:
    """The serialised ONNX graphs of one model; encoder is None for a model without a source, readout without one.
    loop: takes several steps of a row, when `step` takes one."""

    step: bytes
    encoder: bytes | None = None
    readout: bytes | None = None
    loop: bytes | None = None


def export_graphs(
    interface: Interface, step: nn.Module, encoder: nn.Module | None = None, readout: nn.Module | None = None
) -> Graphs:
    """Exports modules in evaluation mode, called as `export.interface` says. The same weights give the same bytes.

    Adds export buffers to their LSTM layers (`prepare_for_export`). Raises ExportError when one is in training mode.
    """
    encoder_graph = readout_graph = None
    if encoder is not None:
        encoder_graph = serialize(export_module(encoder, interface.encoder_inputs, interface.encoder_outputs))
    step_graph = export_module(step, interface.step_inputs, interface.step_outputs)
    add_heads(step_graph, interface.step)
    if readout is not None and interface.readout is not None:
        readout_graph = serialize(export_module(readout, interface.readout_inputs, (interface.readout.logits,)))
    return Graphs(step=serialize(step_graph), encoder=encoder_graph, readout=readout_graph)


def serialize(model: onnx.ModelProto) -> bytes:
    """A graph as a bundle keeps it, the same bytes for the same graph. Raises what the checker of ONNX raises."""
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def export_module(module: nn.Module, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> onnx.ModelProto:
    """One module as a graph of its own, called with `inputs` in their order. The same weights give the same graph.

    Adds export buffers to its recurrent layers (`prepare_for_export`). Raises ExportError when it is in training mode.
    """
    if module.training:
        raise ExportError(f"{type(module).__name__} is in training mode: call eval() before exporting it")
    for layer in module.modules():
        if isinstance(layer, RecurrentLayer):
            layer.prepare_for_export()
    axes = {name: torch.export.Dim(name) for name in _EXAMPLE_SIZES}
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            tuple(_example(tensor) for tensor in inputs),
            dynamo=True,
            dynamic_shapes=_as_called(
                module,
                [
                    {position: axes[axis] for position, axis in enumerate(tensor.shape) if isinstance(axis, str)}
                    for tensor in inputs
                ],
            ),
            input_names=[tensor.name for tensor in inputs],
            output_names=[tensor.name for tensor in outputs],
            opset_version=OPSET,
            verbose=False,
        )
    if program is None:
        raise ExportError(f"torch.onnx.export gave no graph for {type(module).__name__}")
    model: onnx.ModelProto = program.model_proto
    _strip(model)
    return model


def _as_called(module: nn.Module, shapes: list[Any]) -> tuple[Any, ...]:
    """The dynamic shapes of arguments as `torch.export` wants them: those that `*name` takes together are one."""
    kinds = [parameter.kind for parameter in inspect.signature(module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return tuple(shapes)
    first = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*shapes[:first], tuple(shapes[first:])) if shapes[first:] else tuple(shapes)


def _example(tensor: TensorSpec) -> Tensor:
    """A tensor of the right shape to trace with; its values, all one, leave no mark on the graph."""
    shape = [_EXAMPLE_SIZES[axis] if isinstance(axis, str) else axis for axis in tensor.shape]
    return torch.ones(shape, dtype=_TORCH_DTYPES[tensor.dtype])


def _strip(model: onnx.ModelProto) -> None:
    """Takes out what torch notes of its own source: stack traces, file names, module paths, shapes of inner values."""
    graph = model.graph
    del graph.value_info[:]
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter: its warnings are about packages not installed and axes that share a name by intent."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)
