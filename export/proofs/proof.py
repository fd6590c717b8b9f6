"""Proves graphs made from PyTorch modules before their bundle is written: signature, parity, agreement, invariance.

Graphs of other exporters' files have no signature to check, and other references: see `foreign.proving`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from export.errors import ExportError, SignatureError, first_line
from export.graphs import Graphs
from export.interface import Interface
from export.proofs import tolerances
from export.proofs.invariance import check_invariance
from export.proofs.parity import measure_parity
from export.proofs.runners import OnnxRunner, TorchRunner, one_torch_thread
from service.repository.manifest import Parity, TensorSpec

_DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(bool)": "bool"}


def prove(graphs: Graphs, interface: Interface, step: nn.Module, encoder: nn.Module | None = None) -> Parity:
    """Proves the graphs of modules in evaluation mode, with ONNX Runtime. The same graphs give the same parity.

    Returns the measured parity. Raises ExportError that says which proof failed, by how much, and in which case.
    """
    try:
        runner = OnnxRunner(graphs, interface)
    except Exception as error:  # ONNX Runtime raises its own error classes
        raise ExportError(f"ONNX Runtime cannot run the module's graph: {first_line(error)}") from error
    check_signature(runner, interface)
    with one_torch_thread():
        parity = measure_parity(runner, TorchRunner(step, encoder), interface, relative=tolerances.RELATIVE)
    check_invariance(runner, interface)
    return parity


def check_signature(runner: OnnxRunner, interface: Interface) -> None:
    """Compares the graphs' inputs and outputs (order, names, dtypes, symbolic shapes) with the interface.

    Raises SignatureError that names the graph and both signatures.
    """
    sides: list[tuple[str, Sequence[Any], Sequence[TensorSpec]]] = [
        ("step inputs", runner.step_session.get_inputs(), interface.step_inputs),
        ("step outputs", runner.step_session.get_outputs(), (*interface.step_outputs, *interface.head_outputs)),
        (
            "optional step inputs",
            runner.step_session.get_overridable_initializers(),
            () if interface.step.top_k is None else (interface.step.top_k.k,),
        ),
    ]
    if runner.encoder_session is not None:
        sides += [
            ("encoder inputs", runner.encoder_session.get_inputs(), interface.encoder_inputs),
            ("encoder outputs", runner.encoder_session.get_outputs(), interface.encoder_outputs),
        ]
    if runner.readout_session is not None and interface.readout is not None:
        sides += [
            ("readout inputs", runner.readout_session.get_inputs(), interface.readout_inputs),
            ("readout outputs", runner.readout_session.get_outputs(), (interface.readout.logits,)),
        ]
    for side, found, expected in sides:
        has = [_described(node.name, _DTYPES.get(node.type, node.type), node.shape) for node in found]
        shapes = {node.name: node.shape for node in found} if interface.step.max_chunk == 1 else {}
        promised = [_with_one_token(tensor, shapes.get(tensor.name, ())) for tensor in expected]
        must = [_described(tensor.name, tensor.dtype, tensor.shape) for tensor in promised]
        if has != must:
            raise SignatureError(f"the {side} are {', '.join(has)}; the interface says {', '.join(must)}")


def _with_one_token(tensor: TensorSpec, shape: Sequence[int | str | None]) -> TensorSpec:
    """Returns the tensor with a time axis of 1 if ONNX Runtime infers that size, in a graph of one token a row."""
    axes = [1 if (axis, found) == ("time", 1) else axis for axis, found in zip(tensor.shape, shape, strict=False)]
    return tensor.model_copy(update={"shape": (*axes, *tensor.shape[len(axes) :])})


def _described(name: str, dtype: str, shape: Sequence[int | str | None]) -> str:
    return f"{name} {dtype} [{', '.join(str(axis) for axis in shape)}]"
