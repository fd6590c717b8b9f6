"""Runs a transducer's files in a plain loop, one row at a time. The bundle is compared with it, bit by bit.

Decoding is greedy: of each encoded frame it takes the likeliest token, until that is the blank or the frame has its
largest number of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from export.proofs.runners import Array
from export.transducers.decoders import Decoder
from export.transducers.network import Network


@dataclass(frozen=True, slots=True)
class Rules:
    """How tokens are chosen.

    blank_id: the token that ends a frame. start_id: the token before the first one. max_symbols: most tokens of an
    encoded frame. blank_penalty: subtracted from the blank's logit. history: how many of its last tokens a session
    keeps.
    """

    blank_id: int = 0
    start_id: int = 0
    max_symbols: int = 10
    blank_penalty: float = 0.0
    history: int = 256


class BareLoop:
    """One session's loop. Not thread-safe."""

    def __init__(self, encoder: Network, decoder: Decoder, rules: Rules) -> None:
        self._encoder, self._decoder, self._rules = encoder, decoder, rules
        self._states = [kept.initial for kept in encoder.states]
        self._carried = [one.initial[np.newaxis] for one in decoder.carried]
        self.tokens: list[int] = []
        """All tokens so far."""
        self.num_limited = 0
        """Number of encoded frames that reached the largest number of tokens."""
        self.margins: list[float] = []
        """At each choice: the blank's logit minus the largest other logit."""

    def step(self, frames: Array) -> tuple[list[int], list[float]]:
        """Runs the encoder on its input of one step; returns the emitted tokens and their log-probabilities."""
        encoded, self._states = self._encoder.run({"frames": frames[np.newaxis]}, self._states)
        tokens: list[int] = []
        scores: list[float] = []
        for frame in frames_of(encoded, self._encoder, self._decoder):
            for _ in range(self._rules.max_symbols):
                logits, joined = self._decoder.join(frame, self._carried)
                if self._rules.blank_penalty:
                    penalty = np.zeros_like(logits)
                    penalty[:, self._rules.blank_id] = self._rules.blank_penalty
                    logits = logits - penalty
                self.margins.append(_margin(logits[0], self._rules.blank_id))
                token = int(logits[0].argmax())
                if token == self._rules.blank_id:
                    break
                tokens.append(token)
                scores.append(float(_log_softmax(logits[0])[token]))
                self._carried = self._decoder.advance(np.array([token]), self._carried, joined)
            else:
                self.num_limited += 1
        self.tokens += tokens
        return tokens, scores

    @property
    def carried(self) -> list[Array]:
        """The decoder's tensors after the last step, without a batch axis."""
        return [one[0] for one in self._carried]


def num_frames(encoder: Network, decoder: Decoder) -> int:
    """Returns the number of encoded frames in one step."""
    return encoder.gives.size // encoded_size(encoder, decoder)


def encoded_size(encoder: Network, decoder: Decoder) -> int:
    """Returns E, the size of an encoded frame: that of the joiner's input."""
    return next(one.reads["encoded"].size for one in decoder.networks if "encoded" in one.reads)


def are_columns(encoder: Network, size: int) -> bool:
    """Whether the encoder returns frames as columns, [E, frames]."""
    shape = [axis for axis in encoder.gives.row_shape if axis != 1]
    return len(shape) == 2 and shape[0] == size and shape[1] != size


def frames_of(encoded: Array, encoder: Network, decoder: Decoder) -> list[Array]:
    """Returns the encoded frames of one row, [1, E] each."""
    size = encoded_size(encoder, decoder)
    if are_columns(encoder, size):
        encoded = encoded.reshape(size, -1).T
    return list(encoded.reshape(-1, 1, size))


def _margin(logits: Array, blank_id: int) -> float:
    others = np.delete(logits, blank_id)
    return float(logits[blank_id] - others.max())


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max()
    found: Array = shifted - np.log(np.exp(shifted).sum())
    return found
