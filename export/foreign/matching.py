"""Matches outputs of a translator's encoder with inputs of its decoder.

The first of these rules that gives one output decides:
1. Flags.
2. The same name, or names that differ only in words for before and after, or for encoder and decoder.
3. The only output that fits.
4. The only fitting output that is the same part of a recurrent node: a hidden state or a cell state.
If none does, the user must say. Names and parts choose only among outputs that fit.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from export.errors import ExportError
from export.foreign.axes import Tensor, listed
from export.foreign.links import Placed
from export.foreign.pairing import differ_in_time

_SIDES = re.compile(r"(?:^|_)(?:enc(?:oder)?|dec(?:oder)?|src|source|state)(?=_|$)")
_SAME = {"hidden": "h", "cell": "c", "hid": "h", "hidden_state": "h", "cell_state": "c", "memory_mask": "mask"}


@dataclass(frozen=True, slots=True)
class DecoderInput:
    """An input of the decoder.

    part: the part of a node's first state that it is; empty: none. may_share: whether its output may also be another
    input's.
    """

    tensor: Tensor
    part: str = ""
    may_share: bool = False


def match(
    flag: str,
    wanted: Sequence[DecoderInput],
    offers: Mapping[str, Placed],
    chosen: Mapping[str, str],
    fits: Callable[[Tensor, Placed], bool],
) -> dict[str, str]:
    """Returns outputs by input, without inputs that no output fits. flag: the one that lets the user choose.

    Raises ExportError for an input that several outputs fit, with their names, and for an output from flags that does
    not exist or does not fit.
    """
    matching = _Matching(wanted, offers, fits)
    found = matching.found
    for one in wanted:
        name = chosen.get(one.tensor.name)
        if name is None:
            continue
        if name not in offers:
            given = listed(offer.tensor for offer in offers.values()) or "nothing of that kind"
            raise ExportError(f"{flag} {one.tensor.name}={name}: the encoder returns {given}")
        if not fits(one.tensor, offers[name]):
            raise ExportError(f"{flag} {one.tensor.name}={name}: {offers[name].tensor} does not fit {one.tensor}")
        found[one.tensor.name] = name
    for by in (operator.eq, _same_words):
        for one in matching.left():
            named = [name for name in matching.free(one) if by(one.tensor.name, name)]
            if len(named) == 1:
                found[one.tensor.name] = named[0]
    while True:
        before = len(found)
        matching.by_shape()
        matching.by_part()
        if len(found) == before:
            break
    for one in matching.left():
        if candidates := matching.free(one):
            shown = " or ".join(f"{flag} {one.tensor.name}={name}" for name in candidates)
            zeros = "" if one.may_share else f", or --initial {one.tensor.name}=0 for zeros"
            raise ExportError(f"which output of the encoder goes into {one.tensor}? Use {shown}{zeros}")
    return found


@dataclass(frozen=True, slots=True)
class _Matching:
    """What is matched, and what was found so far: outputs by input."""

    wanted: Sequence[DecoderInput]
    offers: Mapping[str, Placed]
    fits: Callable[[Tensor, Placed], bool]
    found: dict[str, str] = field(default_factory=dict)

    def by_shape(self) -> None:
        choices = {one.tensor.name: self.free(one) for one in self.left()}
        for one in self.left():
            mine = choices[one.tensor.name]
            rivals = [name for name, others in choices.items() if name != one.tensor.name and mine[:1] == others[:1]]
            if len(mine) == 1 and (one.may_share or not rivals):
                self.found[one.tensor.name] = mine[0]

    def by_part(self) -> None:
        for one in self.left():
            mine = [name for name in self.free(one) if one.part and self.offers[name].part == one.part]
            rivals = [other for other in self.left() if other is not one and other.part == one.part]
            if len(mine) == 1 and not any(mine[0] in self.free(other) for other in rivals):
                self.found[one.tensor.name] = mine[0]

    def left(self) -> list[DecoderInput]:
        return [one for one in self.wanted if one.tensor.name not in self.found]

    def free(self, one: DecoderInput) -> list[str]:
        """Returns the outputs that an input may take: unused ones, or else any that fits if the input may share."""
        fitting = [name for name, offer in self.offers.items() if self.fits(one.tensor, offer)]
        unused = [name for name in fitting if name not in self.found.values()]
        return unused or (fitting if one.may_share else [])


def _same_words(name: str, other: str) -> bool:
    return differ_in_time(_plain(name), _plain(other))


def _plain(name: str) -> str:
    """Returns a name without the words for encoder, decoder, before and after."""
    stem = re.sub(r"[.:/]", "_", name.lower())
    stem = _SIDES.sub("", stem).strip("_") or stem
    stem = re.sub(r"_?(?:[n0t]|in|out|init|initial|last|final|next|prev)$", "", stem) or stem
    return _SAME.get(stem, stem)
