"""Proof of parity: the graphs' outputs equal a reference's within a tolerance, on random ragged batches.

The reference is PyTorch in double precision. A variant is compared with the bundle's own graphs, and another exporter's
file with the file itself. Each side keeps its own states from step to step, so the measured error is the one that
accumulates in a session.
"""

from __future__ import annotations

import numpy as np

from export.errors import BatchError, ExportError
from export.interface import Interface
from export.proofs.runners import Array, Runner
from export.proofs.tolerances import PYTORCH
from export.proofs.walks import distinct_plans, draw_rows, walk
from service.repository.manifest import Parity

_BATCH_SIZES = (1, 3, 17, 48)
_MAX_TOKENS = 24


def measure_parity(
    runner: Runner,
    reference_runner: Runner,
    interface: Interface,
    *,
    tolerance: float = PYTORCH,
    relative: float = 0.0,
    reference: str = "PyTorch",
    is_step_proven: bool = False,
    seed: int = 0,
) -> Parity:
    """Compares contexts and logits at real positions, initial states and last states, stepwise and chunked.

    relative: allowed in addition to `tolerance`: see `tolerances`. reference: the name of `reference_runner` in
    messages. is_step_proven: whether single steps were compared before, with this seed; then only chunks are compared.
    The `tolerance` of the result is the largest one that was allowed at any place; its `num_rows` counts each row
    twice, stepwise and chunked. Raises ExportError that names the tensor, the difference and the case when a difference
    is too large, as BatchError if there are several rows.
    """
    generator = np.random.default_rng(seed)
    worst = {tensor.name: 0.0 for tensor in (*interface.encoder_outputs, *interface.step_outputs)}
    num_rows, used = 0, tolerance
    for size in _BATCH_SIZES:
        rows = draw_rows(interface, generator, num_rows=size, max_tokens=_MAX_TOKENS)
        num_rows += 2 * size
        for case, plan in distinct_plans(interface, is_step_proven=is_step_proven):
            plans = [plan(row) for row in rows]
            expected = walk(reference_runner, interface, rows, plans)
            found = walk(runner, interface, rows, plans)
            for row, expected_row, found_row in zip(rows, expected, found, strict=True):
                for name, so_far in worst.items():
                    error = max_abs_error(found_row[name], expected_row[name])
                    if not error <= tolerance:
                        allowed = tolerance + relative * _largest(expected_row[name])
                        used = max(used, float(np.max(allowed, initial=0.0)))
                        if not _is_within(found_row[name], expected_row[name], error, allowed):
                            raise (BatchError if size > 1 else ExportError)(
                                f"{name} is off by {error:.3g} from {reference}, more than {tolerance:g}, for a row of "
                                f"{len(row.source)} source and {len(row.tokens)} step inputs, run {case} in a batch of "
                                f"{size}"
                            )
                    worst[name] = max(so_far, error)
    return Parity(tolerance=used, max_abs_error=worst, num_rows=num_rows, reference=reference)


def _largest(expected: Array) -> Array:
    """Returns the largest magnitude at each place, over the first axis, which is steps for most tensors."""
    magnitude = np.abs(np.where(np.isfinite(expected), expected, 0.0).astype(np.float64))
    return magnitude.max(axis=0, initial=0.0) if magnitude.ndim > 1 else magnitude


def _is_within(found: Array, expected: Array, error: float, allowed: Array) -> bool:
    """Whether each difference is allowed. error: the largest difference; infinite if values cannot be compared."""
    if not np.isfinite(error):
        return False
    is_finite = np.isfinite(expected)
    off = np.where(is_finite, found, 0.0).astype(np.float64) - np.where(is_finite, expected, 0.0)
    return bool(np.all(np.abs(off) <= allowed))


def max_abs_error(found: Array, expected: Array) -> float:
    """Returns the largest absolute difference.

    Returns infinity when shapes differ or a value is not finite. Minus infinity in both, the logarithm of 0, is equal.
    """
    if found.shape != expected.shape:
        return float("inf")
    is_log_of_0 = np.isneginf(found) & np.isneginf(expected) if found.dtype.kind == "f" else np.zeros(found.shape, bool)
    found, expected = np.where(is_log_of_0, 0, found), np.where(is_log_of_0, 0, expected)
    if not (np.isfinite(found).all() and np.isfinite(expected).all()):
        return float("inf")
    return float(np.abs(found.astype(np.float64) - expected.astype(np.float64)).max(initial=0.0))
