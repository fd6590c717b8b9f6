"""Finds how to call a user's encoder, by trying, and which returned tensors are contexts and states: see `fitting`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from export.errors import BatchError, ExportError, first_line
from export.exportable import TakesLengths
from export.fitting import CHANGES_ROWS, LENGTHS, near
from export.returned import ROWS, SOURCE, sized, tensors_of

_MADE = -1
Shapes = Mapping[str, tuple[int | str, ...]]


@dataclass(frozen=True, slots=True)
class EncoderCall:
    """How to call the encoder.

    steps_first: whether it reads [S, B]. lengths: the name of its argument for lengths; None: it has none. places: of
    every context, then of the states that it returns, by name, among the returned tensors; `_MADE` for a mask that is
    made from the lengths. swapped: the contexts that it returns as [S, B, ...].
    """

    steps_first: bool
    lengths: str | None
    places: Mapping[str, int]
    swapped: frozenset[str]


class FittedEncoder(TakesLengths):
    """An encoder called as `(source)`; source: [B, S] or [B, S, F].

    Returns every context, then every state that the encoder gives, in the order of `call.places`.
    """

    def __init__(self, module: nn.Module, call: EncoderCall) -> None:
        super().__init__()
        self.module = module
        self.call = call

    def forward(self, source: Tensor) -> tuple[Tensor, ...]:
        """Takes and returns what the class describes."""
        call = self.call
        lengths = self.lengths_of(source)
        keywords = {} if call.lengths is None else {call.lengths: lengths}
        found = tensors_of(self.module(source.transpose(0, 1) if call.steps_first else source, **keywords))
        mask = torch.arange(source.shape[1]) < lengths.unsqueeze(1)  # [B, S]
        given: list[Tensor] = []
        for name, place in call.places.items():
            one = mask if place == _MADE else found[place]
            given.append(one.transpose(0, 1) if name in call.swapped else one)
        return tuple(given)


def fit_encoder(
    module: nn.Module, contexts: Shapes, states: Shapes, *, vocabulary_size: int | None, feature_size: int
) -> EncoderCall:
    """Returns how to call the encoder. Raises ExportError that says what to change."""
    generator = torch.Generator().manual_seed(0)
    if vocabulary_size is not None:
        source = torch.randint(1, vocabulary_size, (ROWS, SOURCE), generator=generator)
    else:
        source = torch.randn(ROWS, SOURCE, feature_size, generator=generator)
    names = inspect.signature(module.forward).parameters
    lengths = next((name for name in LENGTHS if name in names), None)
    problem = ""
    for steps_first in (False, True):
        blank = EncoderCall(steps_first, lengths, {}, frozenset())
        try:
            with torch.no_grad():
                keywords = {} if lengths is None else {lengths: FittedEncoder(module, blank).lengths_of(source)}
                found = tensors_of(module(source.transpose(0, 1) if steps_first else source, **keywords))
        except Exception as error:  # a user's module may raise anything
            problem = problem or (
                f"the encoder {type(module).__name__} cannot be called with a source {list(source.shape)}:"
                f" {type(error).__name__}: {first_line(error)}"
            )
            continue
        matched = _match(found, contexts, states, type(module).__name__)
        if isinstance(matched, str):
            problem = matched
            continue
        call = EncoderCall(steps_first, lengths, *matched)
        if _treats_rows_alone(module, call, source, {**contexts, **states}):
            return call
        problem = f"the encoder {type(module).__name__} {CHANGES_ROWS}"
    raise ExportError(problem)


def _treats_rows_alone(module: nn.Module, call: EncoderCall, source: Tensor, shapes: Shapes) -> bool:
    try:
        with torch.no_grad():
            whole, alone = (FittedEncoder(module, call)(given) for given in (source, source[:1]))
    except Exception:  # a user's module may raise anything
        return False
    axes = [shapes[name].index("batch") for name in call.places]
    return all(near(one.narrow(axis, 0, 1), other) for one, other, axis in zip(whole, alone, axes, strict=True))


def _match(
    found: Sequence[Tensor], contexts: Shapes, states: Shapes, name: str
) -> tuple[dict[str, int], frozenset[str]] | str:
    """Returns the places of contexts and states, and the contexts that are [S, B, ...]; or what is wrong.

    A state that the encoder does not return begins at zero.
    """
    left = list(range(len(found)))
    places: dict[str, int] = {}
    swapped: set[str] = set()
    for context, shape in contexts.items():
        wanted = sized(shape)
        kinds = [wanted, (wanted[1], wanted[0], *wanted[2:])]
        is_mask = len(shape) == 2
        fits = [one for one in left if found[one].shape in kinds and is_mask == (not found[one].is_floating_point())]
        if not fits and is_mask:
            places[context] = _MADE
            continue
        if not fits:
            shapes = ", ".join(str(list(one.shape)) for one in found) or "no tensor"
            return (
                f"the encoder {name} must return the context {context}, {list(wanted)} for a source of {ROWS} rows and"
                f" {SOURCE} steps, but it returned {shapes}"
            )
        places[context] = fits[0]
        left.remove(fits[0])
        if found[fits[0]].shape != wanted:
            swapped.add(context)
    for state, shape in states.items():
        place = next((one for one in left if found[one].shape == sized(shape)), None)
        if place is not None:
            places[state] = place
            left.remove(place)
    if left:
        shapes = ", ".join(str(list(found[one].shape)) for one in left)
        return (
            f"the encoder {name} returned {len(found)} tensors; {shapes} fits no context and no state: add its shape to"
            f" contexts or states, for a source of {ROWS} rows and {SOURCE} steps"
        )
    return places, frozenset(swapped)


def advised(contexts: Shapes, error: ExportError) -> ExportError:
    """Returns the error, with advice if a batch changes a row and contexts have no mask: attention reads padding."""
    if not contexts or any(len(shape) == 2 for shape in contexts.values()) or not isinstance(error, BatchError):
        return error
    return ExportError(
        f"{error}. Attention without a mask reads the padding of the shorter sources in a batch: name a mask among the"
        ' contexts, ("batch", "source"), and let the decoder use it'
    )
