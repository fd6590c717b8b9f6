"""Proves a file's graph, and finds what its bundle can have: several rows in a run, a loop over steps, a trace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import onnx

from export.errors import ExportError, first_line
from export.foreign.chunks import MIN_OPSET, in_chunks, loop
from export.foreign.notes import OneByOne
from export.foreign.original import Original
from export.graphs import Graphs
from export.interface import Interface
from export.proofs import tolerances
from export.proofs.invariance import check_invariance
from export.proofs.parity import measure_parity
from export.proofs.runners import OnnxRunner, Runner
from export.surgery import opset_of, share_weights
from service.repository.manifest import Parity


def prove_file(
    wrapped: Callable[[Interface], bytes], interface: Interface, original: Original, notes: list[str], cause: str
) -> tuple[bytes, Interface, Parity]:
    """Returns the graph and the interface that can be served, and their parity with the file.

    Tries several rows in a run first, then one row. wrapped: makes the graph of an interface. cause: why other rows may
    change a row, for the note; empty: unknown. Raises ExportError if one row cannot be proven either.
    """
    one_by_one = replace(interface, step=interface.step.model_copy(update={"max_rows": 1}))
    if interface.step.max_rows == 1:
        notes.append(OneByOne("its batch is fixed at one row: sessions run one by one"))
    else:
        try:
            graph = wrapped(interface)
            runner = OnnxRunner(Graphs(step=graph), interface)
            parity = measure_parity(runner, original, interface, tolerance=tolerances.FILE, reference="the file")
            check_invariance(runner, interface)
            return graph, interface, parity
        except ExportError as error:
            why = f"other rows in a run change a row's output: {cause}"
            if not cause:
                why = f"the proof with several rows in a run failed: {error}"
            notes.append(OneByOne(f"sessions run one by one, because {why}"))
        except Exception as error:  # ONNX Runtime raises its own error classes
            why = cause or first_line(error)
            notes.append(OneByOne(f"sessions run one by one, because several rows cannot be run: {why}"))
    with random_inputs(interface.step_vocabulary_size):
        graph = wrapped(one_by_one)
        runner = OnnxRunner(Graphs(step=graph), one_by_one)
        parity = measure_parity(runner, original, one_by_one, tolerance=tolerances.FILE, reference="the file")
        check_invariance(runner, one_by_one)
    return graph, one_by_one, parity


@contextmanager
def random_inputs(vocabulary_size: int | None) -> Iterator[None]:
    """Turns any error in its body, in which a file runs on random inputs, into an ExportError.

    vocabulary_size: of the tokens that the file reads.
    """
    try:
        yield
    except ExportError:
        raise
    except Exception as error:  # ONNX Runtime raises its own error classes
        advice = (
            ""
            if vocabulary_size is None
            else f". The file may accept fewer tokens than the vocabulary's {vocabulary_size}"
        )
        raise ExportError(f"the file cannot be run on random inputs: {first_line(error)}{advice}") from error


def prove_chunks(
    graphs: Graphs,
    interface: Interface,
    original: Runner,
    notes: list[str],
    parity: Parity,
) -> tuple[Graphs, Interface, Parity]:
    """Adds a loop over the proven step, if it gives the same. Returns the graphs, their interface and parity.

    parity: of the step, which `measure_parity` and `check_invariance` have proven.
    """
    graph, chunked = graphs.step, in_chunks(interface)
    try:
        looped = loop(graph, interface)
        runner = OnnxRunner(replace(graphs, loop=looped), chunked)
        found = measure_parity(
            runner, original, chunked, tolerance=tolerances.FILE, reference=parity.reference, is_step_proven=True
        )
        check_invariance(runner, chunked, is_step_proven=True)
    except Exception as error:  # ONNX Runtime raises its own error classes
        is_old = opset_of(onnx.load_from_string(graph)) < MIN_OPSET
        why = "the loop returns other values" if isinstance(error, ExportError) else "the loop cannot be run"
        why_not = f"it has an opset before {MIN_OPSET}" if is_old else f"{why}: {first_line(error)}"
        notes.append(f"several steps do not run at once, because {why_not}")
        return graphs, interface, parity
    notes.append("several steps of a session run at once, with the same bits as one by one")
    light = onnx.load_from_string(looped)
    share_weights(light.graph, graph, interface.step.file)
    worst = {name: max(error, found.max_abs_error[name]) for name, error in parity.max_abs_error.items()}
    both = parity.model_copy(update={"max_abs_error": worst})
    return replace(graphs, loop=light.SerializeToString(deterministic=True)), chunked, both
