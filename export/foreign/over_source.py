"""Inputs of a translator's decoder over its source: which they are, and what their axes count."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import permutations

from export.foreign.axes import Tensor
from export.foreign.encoder_inputs import WHOLE
from export.foreign.joints import Placed, without_ones

TOKENS = re.compile(r"tok|inp|tgt|trg|target|prev|word|char|(?:^|_)(?:y|x|ids?)(?:$|_)", re.IGNORECASE)
"""Names of what a step reads."""


def one_row(tensor: Tensor) -> tuple[int, ...]:
    """A tensor's shape with 1 for what has no size."""
    return tuple(axis if isinstance(axis, int) else 1 for axis in tensor.shape)


def is_over_source(tensor: Tensor, inputs: Mapping[str, Tensor]) -> bool:
    """Whether a tensor has an axis for the source: one without a size that does not count rows."""
    free = [axis for axis in tensor.shape if isinstance(axis, str)]
    others = [one for one in inputs.values() if one is not tensor]
    is_fixed = not any(str(axis).lower().startswith("batch") for one in inputs.values() for axis in one.shape) and any(
        one.dtype in WHOLE and one.shape and all(axis == 1 for axis in one.shape) for one in others
    )
    return len(free) >= (1 if is_fixed else 2) and (tensor.dtype not in WHOLE or not TOKENS.search(tensor.name))


def place_of(tensor: Tensor, offer: Placed, inputs: Mapping[str, Tensor]) -> Placed | None:
    """Where an input has the axes of what the encoder gives; None where it cannot have it."""
    rank = len(tensor.shape)
    named = [at for at, axis in enumerate(tensor.shape) if str(axis).lower().startswith(("batch", "n_batch"))]
    shared = [
        at
        for at, axis in enumerate(tensor.shape)
        if isinstance(axis, str)
        and any(axis in one.shape for one in inputs.values() if not is_over_source(one, inputs))
    ]
    likely = named or shared
    choices = [
        (rows, source)
        for rows, source in permutations(range(rank), 2)
        if isinstance(tensor.shape[source], str)
        and source not in named
        and (tensor.shape[rows] == 1 or isinstance(tensor.shape[rows], str))
        and _rest(tensor, offer, (rows, source)) is not None
    ]
    if likely:
        choices = [one for one in choices if one[0] == likely[0]] or choices
    else:
        own = [at for at in (offer.rows, offer.source) if at is not None]
        in_order = sorted(own) == own
        choices.sort(
            key=lambda one: (
                tensor.shape[one[0]] != 1 and not isinstance(tensor.shape[one[0]], str),
                (one[0] < one[1]) != in_order,
            )
        )
    if not choices:
        return None
    rows, source = choices[0]
    rest = _rest(tensor, offer, (rows, source))
    assert rest is not None  # noqa: S101  # as chosen
    return Placed(tensor, rows, source, rest)


def _rest(tensor: Tensor, offer: Placed, ahead: Sequence[int]) -> tuple[int, ...] | None:
    """The sizes of the axes but for `ahead`, where they have as many numbers as the encoder's do."""
    axes = [axis for at, axis in enumerate(tensor.shape) if at not in ahead]
    if all(isinstance(axis, int) for axis in axes):
        sizes = tuple(int(axis) for axis in axes)
        return sizes if without_ones(sizes) == without_ones(offer.shape) else None
    return offer.shape if len(axes) == len(offer.shape) else None


def fixed_source(tensor: Tensor, offer: Placed) -> int | None:
    """How long a source an input is made for that has a size there; None where it is none."""
    if tensor.dtype != offer.tensor.dtype or len(tensor.shape) != len(offer.places) or not offer.shape:
        return None
    source = offer.source or 0
    size = tensor.shape[source]
    rest = [axis for at, axis in enumerate(tensor.shape) if at not in (source, offer.rows)]
    is_so = isinstance(size, int) and size > 1 and tuple(rest) == offer.shape
    return int(size) if is_so else None


def is_of_row(tensor: Tensor, shape: Sequence[int]) -> bool:
    """Whether a tensor with one row may have as many numbers, in the same order, as `shape`."""
    sizes = [axis if isinstance(axis, int) else 1 for axis in tensor.shape]
    return without_ones(sizes) == without_ones(shape)
