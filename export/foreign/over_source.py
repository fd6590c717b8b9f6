"""Finds the inputs of a translator's decoder that have a source axis, and their batch and source axes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import permutations

from export.foreign.axes import Tensor
from export.foreign.encoder_inputs import WHOLE
from export.foreign.links import Placed, without_ones

TOKENS = re.compile(r"tok|inp|tgt|trg|target|prev|word|char|(?:^|_)(?:y|x|ids?)(?:$|_)", re.IGNORECASE)
"""Names of a step's token input."""


def is_over_source(tensor: Tensor, inputs: Mapping[str, Tensor]) -> bool:
    """Whether a tensor has a source axis: an axis without a size that does not count rows."""
    free = [axis for axis in tensor.shape if isinstance(axis, str)]
    others = [one for one in inputs.values() if one is not tensor]
    is_fixed = not any(str(axis).lower().startswith("batch") for one in inputs.values() for axis in one.shape) and any(
        one.dtype in WHOLE and one.shape and all(axis == 1 for axis in one.shape) for one in others
    )
    return len(free) >= (1 if is_fixed else 2) and (tensor.dtype not in WHOLE or not TOKENS.search(tensor.name))


def place_of(tensor: Tensor, offer: Placed, inputs: Mapping[str, Tensor]) -> Placed | None:
    """Returns an input's axes if it may take an encoder's output; None if it cannot."""
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
    assert rest is not None  # noqa: S101  # checked for each choice
    return Placed(tensor, rows, source, rest)


def _rest(tensor: Tensor, offer: Placed, ahead: Sequence[int]) -> tuple[int, ...] | None:
    """Returns the sizes of the axes other than `ahead`; None if the encoder's output does not fit them."""
    axes = [axis for at, axis in enumerate(tensor.shape) if at not in ahead]
    if all(isinstance(axis, int) for axis in axes):
        sizes = tuple(int(axis) for axis in axes)
        return sizes if without_ones(sizes) == without_ones(offer.shape) else None
    return offer.shape if len(axes) == len(offer.shape) else None


def fixed_source(tensor: Tensor, offer: Placed) -> int | None:
    """Returns the source length that an input is fixed to; None if the input does not have such an axis."""
    if tensor.dtype != offer.tensor.dtype or len(tensor.shape) != len(offer.places) or not offer.shape:
        return None
    source = offer.source or 0
    size = tensor.shape[source]
    rest = [axis for at, axis in enumerate(tensor.shape) if at not in (source, offer.rows)]
    is_so = isinstance(size, int) and size > 1 and tuple(rest) == offer.shape
    return int(size) if is_so else None


def is_of_row(tensor: Tensor, shape: Sequence[int]) -> bool:
    """Whether a tensor with one row may have the numbers of `shape`, in the same order."""
    return without_ones(tensor.of_one_row) == without_ones(shape)
