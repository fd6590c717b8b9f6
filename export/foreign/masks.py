"""Finds by running what the values of a mask over the source mean: with the right mask, numbers in the padding change
nothing, and the source's own numbers do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from export.errors import ExportError
from export.foreign.links import Placed
from export.proofs.runners import Array
from export.proofs.tolerances import MASKED

Form = Literal["real", "padding", "additive"]
FORMS: tuple[Form, ...] = get_args(Form)
_SAID = (
    "real (1 at its tokens), padding (1 behind them) or additive (0 at its tokens, a large negative number behind them)"
)


@dataclass(frozen=True, slots=True)
class Mask:
    """A mask that the exporter computes. at_tokens, behind: its values at tokens and in the padding."""

    placed: Placed
    form: Form

    @property
    def at_tokens(self) -> Array:
        """The value at a source's tokens, a scalar."""
        return np.array(self.form == "real", self.placed.tensor.dtype)

    @property
    def behind(self) -> Array:
        """The value in the padding, a scalar."""
        dtype = self.placed.tensor.dtype
        if self.form == "additive":
            return np.array(-1e4 if dtype == "float16" else -1e9, dtype)
        return np.array(self.form == "padding", dtype)

    def of_row(self, length: int, width: int | None = None) -> Array:
        """Returns the mask of one row in the file's layout: `length` tokens, then padding up to `width`."""
        row = np.full(width or length, self.behind)
        row[:length] = self.at_tokens
        return self.placed.as_file(row)


Try = Callable[[Mask, int, int], Mapping[str, Array]]
"""Runs a padded row with a mask, the seed of its tokens and that of its padding. Returns outputs without padding."""


def find_form(placed: Placed, wanted: str | None, run: Try) -> Mask:
    """Returns the mask with the meaning of its values. wanted: the flag's value. Raises ExportError if runs do not show
    it."""
    name, dtype = placed.tensor.name, placed.tensor.dtype
    forms: Sequence[Form] = ("real", "additive", "padding") if dtype.startswith("float") else ("real", "padding")
    if wanted is not None:
        for form in forms:
            if form == wanted:
                return Mask(placed, form)
        raise ExportError(f"--mask {name}={wanted}: {placed.tensor} may be {' or '.join(forms)}")
    scores = {form: _score(Mask(placed, form), run) for form in forms}
    best = [form for form in forms if scores[form] == max(scores.values())]
    if not scores[best[0]] or (len(best) > 1 and "real" in best):  # a tie of the others is fine: both are 0 at tokens
        raise ExportError(f"what do the values of the mask {placed.tensor} mean? Use --mask {name}= with {_SAID}")
    return Mask(placed, best[0])


def _score(mask: Mask, run: Try) -> int:
    """Returns how many outputs change with a row's own numbers and do not change with those in the padding."""
    try:
        found, other_behind, other = (run(mask, own, behind) for own, behind in ((0, 1), (0, 2), (3, 1)))
    except Exception:  # ONNX Runtime raises its own error classes; a mask that cannot be run is the wrong one
        return 0
    return sum(
        bool(np.isfinite(array).all())
        and np.allclose(array, other_behind[name], MASKED, MASKED)
        and not np.allclose(array, other[name], MASKED, MASKED)
        for name, array in found.items()
    )
