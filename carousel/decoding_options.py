"""The options of a generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

__all__ = ["DecodingOptions"]


class DecodingOptions(TypedDict, total=False):
    """How a generation chooses tokens. Without sampling options, it takes the most likely token at each step.

    max_tokens: the most tokens, 1 or more (default: the model's limit). log_probabilities: return that of each token.
    repetition_penalty: makes earlier tokens less likely, above 0 and at most 100 (default 1: no effect). min_tokens:
    the fewest tokens before the generation may end (default 0). stop: tokens, by name or id, that end the generation as
    the end token does.

    Each of temperature, top_k, top_p and seed selects sampling. temperature: divides the logits, above 0 and at most
    100 (default 1). top_k: sample from the k most likely tokens, 1 or more (default: all). top_p: sample from the most
    likely tokens with this total probability, above 0 and at most 1 (default 1). seed: 0 to 2**64 - 1; the same seed,
    position and logits give the same token (default: the client draws one, see `Generation.seed`).

    beam_size: run a beam search with so many beams, 1 or more; not with sampling options or repetition_penalty. All
    tokens then arrive together, at the end. length_penalty: a sequence's score is the sum of its log-probabilities
    divided by length ** length_penalty, -10 to 10 (default 1). num_best: how many sequences to return as `hypotheses`,
    1 to beam_size (default 1).
    """

    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    seed: int | None
    log_probabilities: bool
    repetition_penalty: float | None
    min_tokens: int | None
    stop: Sequence[str] | Sequence[int]
    beam_size: int | None
    length_penalty: float | None
    num_best: int | None
