"""Variants of a model's graphs: other arithmetic for the same states, made from the proven graphs and proven again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from export.graphs import Graphs, serialize
from export.interface import Interface
from export.proofs.invariance import check_invariance
from export.proofs.parity import measure_parity
from export.proofs.proof import check_signature
from export.proofs.runners import OnnxRunner
from export.quantize import quantize
from export.rounded import change_in_floats
from service.repository.manifest import ReadoutSpec, VariantSpec

INT8 = "int8"
INT8_TOLERANCE = 3.0
"""The largest absolute difference from the 32-bit graphs that is allowed in any value, gathered over a sequence.

It finds what is broken and no more. The sequences are random, which no model has learnt: on g2p-en, whose logits are of
the order of 10, an attention that turns to another letter makes 2.1; a language model of random weights is off by
0.001. What the difference costs is for the recipe's own evaluation to say.
"""

_DESCRIPTION = "LSTM layers and large products in 8-bit integers, quantised row by row; one token a row in a run"

Evaluate = Callable[[OnnxRunner, OnnxRunner], Mapping[str, object]]
"""Given the base and the variant, gives the variant's evaluation; raises ExportError when too much is lost."""


@dataclass(frozen=True, slots=True)
class Variant:
    """What a bundle keeps of a variant. files: its graphs by name, but for those that are the base's too."""

    spec: VariantSpec
    files: Mapping[str, bytes]


def make_int8(graphs: Graphs, interface: Interface, evaluate: Evaluate | None = None) -> Variant:
    """Quantises proven graphs and proves the result: signature, parity with the base, invariance, evaluation.

    Raises ExportError saying what does not hold, and what `evaluate` raises.
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
    parity = measure_parity(runner, base, own, tolerance=INT8_TOLERANCE, reference="the 32-bit graphs")
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
    """The quantised readout, noted among the files; the base's own when none of its products is worth it."""
    quantized = serialize(change_in_floats(readout, quantize))
    if quantized == readout:
        return readout, spec
    own = spec.model_copy(update={"file": f"readout.{INT8}.onnx"})
    files[own.file] = quantized
    return quantized, own
