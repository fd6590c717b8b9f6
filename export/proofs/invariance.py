"""Proof of invariance: a row's bits do not depend on its batch, place, chunks, padding or neighbouring rows.

The reference is the row run alone, step by step. All comparisons here are bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from export.errors import BatchError, ExportError
from export.interface import Interface
from export.proofs.agreement import check_agreement
from export.proofs.parity import max_abs_error
from export.proofs.runners import Runner
from export.proofs.walks import (
    Plan,
    Row,
    Walk,
    chunked,
    distinct_plans,
    draw_rows,
    interleaved,
    padded_width,
    stepwise,
    walk,
)
from service.repository.manifest import SOURCE_MULTIPLE

_SUBJECTS = 6
_NEIGHBOUR_COUNTS = (0, 1, 9, 58, 250)
_FEW_NEIGHBOUR_COUNTS = (0, 1, 9)
"""For a graph of one row: its rows run one by one, so a larger batch only repeats the runs."""
_MAX_TOKENS = 24
_SPOILS = (float("nan"), float("inf"), 1e30, -1e30)


def check_invariance(runner: Runner, interface: Interface, *, is_step_proven: bool = False, seed: int = 0) -> None:
    """Compares rows in a batch, in every case below, with the same rows run alone.

    is_step_proven: whether the graph of one step was checked before, with this seed; then only chunks are run in
    batches. Raises ExportError that names the tensor, the difference and the case: when a bit differs, as BatchError if
    only other rows change it; when a context is not zero past a row's source (the server pads contexts with zeros, so
    the graph must do so too); or when heads or readout do not agree with the logits.
    """
    generator = np.random.default_rng(seed)
    plans = distinct_plans(interface, is_step_proven=is_step_proven)
    for num_neighbours in _NEIGHBOUR_COUNTS if interface.step.max_rows is None else _FEW_NEIGHBOUR_COUNTS:
        subjects = draw_rows(interface, generator, num_rows=_SUBJECTS, max_tokens=_MAX_TOKENS)
        neighbours = draw_rows(interface, generator, num_rows=num_neighbours, max_tokens=_MAX_TOKENS)
        alone = [walk(runner, interface, [row], [stepwise(row)])[0] for row in subjects]
        for found in alone:
            check_agreement(found, interface)
        _check_padding(runner, interface, [*subjects, *neighbours])
        if interface.step.max_chunk != 1:
            at_once = [walk(runner, interface, [row], [chunked(row)])[0] for row in subjects]
            _hold_equal(subjects, alone, at_once, "alone, in one chunk instead of step by step", ExportError)
        for case, walks in _batches(runner, interface, (subjects, neighbours), plans, generator):
            _hold_equal(subjects, alone, walks, case, BatchError)


def _batches(
    runner: Runner,
    interface: Interface,
    drawn: tuple[list[Row], list[Row]],
    plans: Sequence[tuple[str, Callable[[Row], Plan]]],
    generator: np.random.Generator,
) -> Iterator[tuple[str, list[Walk]]]:
    """Yields each case with other rows: its description, and the subjects' walks in it. drawn: subjects and
    neighbours."""
    subjects, neighbours = drawn
    rows, count = [*subjects, *neighbours], len(subjects)
    batch = f"in a batch of {len(rows)}"

    for name, plan in reversed(plans):
        yield f"{batch}, {name}", walk(runner, interface, rows, [plan(row) for row in rows])[:count]
    order = generator.permutation(len(rows))
    shuffled = [rows[index] for index in order]
    walks = walk(runner, interface, shuffled, [interleaved(row, generator) for row in shuffled])
    yield f"{batch}, in another order, in chunks of other sizes", [walks[place] for place in np.argsort(order)[:count]]
    if interface.encoder is not None:
        for width in {SOURCE_MULTIPLE * int(extra) for extra in generator.integers(1, 9, 3)}:
            wider = padded_width(rows) + width
            yield (
                f"{batch}, its source padded to {wider}",
                walk(runner, interface, rows, [chunked(row) for row in rows], source_width=wider)[:count],
            )
    spoilers = draw_rows(interface, generator, num_rows=len(_SPOILS), max_tokens=_MAX_TOKENS)
    spoiled = [*rows, *spoilers]
    for name, plan in reversed(plans):
        walks = walk(
            runner,
            interface,
            spoiled,
            [plan(row) for row in spoiled],
            spoiled={len(rows) + index: value for index, value in enumerate(_SPOILS)},
        )
        yield f"in a batch of {len(spoiled)} beside rows of NaN, infinity and 1e30, {name}", walks[:count]


def _check_padding(runner: Runner, interface: Interface, rows: Sequence[Row]) -> None:
    if interface.encoder is None:
        return
    first = rows[0].source
    source = np.zeros((len(rows), padded_width(rows), *first.shape[1:]), first.dtype)
    for place, row in enumerate(rows):
        source[place, : len(row.source)] = row.source
    outputs = runner.encode(source, np.array([len(row.source) for row in rows], np.int64))
    for context, array in zip(interface.contexts, outputs, strict=False):
        for place, row in enumerate(rows):
            if array[place, len(row.source) :].any():
                raise ExportError(f"{context.output} is not zero past a source of {len(row.source)} tokens")


def _hold_equal(
    rows: Sequence[Row], alone: Sequence[Walk], walks: Sequence[Walk], case: str, error: type[ExportError]
) -> None:
    for row, expected, found in zip(rows, alone, walks, strict=True):
        for name, reference in expected.items():
            if found[name].tobytes() != reference.tobytes():
                differing = np.sum(found[name] != reference)
                raise error(
                    f"{name} of a row changes when it runs {case}: {differing} of {reference.size} values differ from"
                    f" the row alone, by up to {max_abs_error(found[name], reference):.3g} ({len(row.source)} source"
                    f" and {len(row.tokens)} step inputs)"
                )
