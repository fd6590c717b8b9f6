"""Proof of agreement: the heads and the readout agree with the logits."""

from __future__ import annotations

import numpy as np

from export.errors import ExportError
from export.interface import Interface
from export.proofs.runners import PROVEN_K
from export.proofs.tolerances import LOG_PROBABILITY
from export.proofs.walks import READOUT, Walk


def check_agreement(found: Walk, interface: Interface) -> None:
    """Compares one row's heads and readout with its logits. Raises ExportError that names the tensor that disagrees.

    The readout must have the bits of the last step's logits. Tokens must be those of a stable sort of the logits, so of
    equal logits the lowest id comes first. Log-probabilities must be within `LOG_PROBABILITY` of double precision.
    """
    logits = found[interface.step.output.name]  # [T, V]
    if READOUT in found and found[READOUT].tobytes() != logits[-1].tobytes():
        off = float(np.abs(found[READOUT] - logits[-1]).max())
        raise ExportError(
            f"the readout differs from the logits of the step before it by up to {off:.3g}: they must be bit-identical"
        )
    next_token, top_k = interface.step.next_token, interface.step.top_k
    if next_token is not None and not np.array_equal(found[next_token.name], logits.argmax(axis=1)):
        raise ExportError(f"{next_token.name} is not the token of the highest logit")
    if top_k is not None:
        best = np.argsort(-logits, axis=1, kind="stable")[:, :PROVEN_K]  # [T, k]
        if not np.array_equal(found[top_k.token_ids.name], best):
            raise ExportError(f"{top_k.token_ids.name} are not the tokens of the highest logits, best first")
        shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
        expected = np.take_along_axis(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), best, axis=1)
        name = top_k.log_probabilities.name
        if not np.allclose(found[name], expected, rtol=LOG_PROBABILITY, atol=LOG_PROBABILITY):
            raise ExportError(f"{name} are not the log-probabilities of the logits")
