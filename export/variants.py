"""Makes variants of a model: other arithmetic for the same states, made from the proven graphs and proven again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from export.graphs import Graphs, serialize
from export.interface import Interface
from export.proofs import tolerances
from export.proofs.invariance import check_invariance
from export.proofs.parity import measure_parity
from export.proofs.proof import check_signature
from export.proofs.runners import OnnxRunner
from export.quantize import NothingToQuantizeError, quantize
from export.rounded import change_in_floats
from service.repository.manifest import ReadoutSpec, VariantSpec

INT8 = "int8"
_DESCRIPTION = "LSTM layers and large products in 8-bit integers, quantised row by row; one token a row in a run"

Evaluate = Callable[[OnnxRunner, OnnxRunner], Mapping[str, object]]
"""Takes the base and the variant, returns the variant's evaluation. Raises ExportError when its results are too bad."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A variant in a bundle. files: its graphs by name, without those that it shares with the base."""

    spec: VariantSpec
    files: Mapping[str, bytes]


def make_int8(graphs: Graphs, interface: Interface, evaluate: Evaluate | None = None) -> Variant:
    """Quantises proven graphs and proves the result: signature, parity with the base, invariance, evaluation.

    Raises ExportError that says which proof failed, or that nothing can be quantised, and what `evaluate` raises.
    """
    step = serialize(change_in_floats(graphs.step, quantize))
    files = {f"step.{INT8}.onnx": step}
    readout, readout_spec = graphs.readout, interface.readout
    if readout is not None and readout_spec is not None:
        readout, readout_spec = _make_readout(readout, readout_spec, files)
    step_spec = interface.step.model_copy(update={"file": f"step.{INT8}.onnx", "max_chunk": 1})
    own = replace(interface, step=step_spec, readout=readout_spec)
    base = OnnxRunner(graphs, interface)
    runner = OnnxRunner(Graphs(step=step, encoder=graphs.encoder, readout=readout), own)
    check_signature(runner, own)
    parity = measure_parity(runner, base, own, tolerance=tolerances.INT8, reference="the 32-bit graphs")
    check_invariance(runner, own)
    spec = VariantSpec(
        step=step_spec,
        readout=readout_spec,
        description=_DESCRIPTION,
        parity=parity,
        evaluation=dict(evaluate(base, runner)) if evaluate is not None else {},
    )
    return Variant(spec, files)


def _make_readout(readout: bytes, spec: ReadoutSpec, files: dict[str, bytes]) -> tuple[bytes, ReadoutSpec]:
    """Returns the quantised readout and adds it to `files`; returns the base's if it has no large product."""
    try:
        quantized = serialize(change_in_floats(readout, quantize))
    except NothingToQuantizeError:
        return readout, spec
    own = spec.model_copy(update={"file": f"readout.{INT8}.onnx"})
    files[own.file] = quantized
    return quantized, own
