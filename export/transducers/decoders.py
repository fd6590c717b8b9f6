"""A transducer's decoder: what it carries from one token to the next, and how a token advances it.

With three files, the prediction network's output is carried with its states, so that a frame without a token runs only
the joiner. With two files, the second contains prediction network and joiner, and the last tokens are carried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from export.proofs.runners import Array
from export.transducers.network import Kept, Network

CONTEXT = "context"
"""The name of the bundle's state with the tokens that the prediction network reads next."""


@dataclass(frozen=True, slots=True)
class Carried:
    """A tensor that a row carries: its name among the bundle's states, and its first value, without a batch axis."""

    name: str
    initial: Array


class Decoder(Protocol):
    """The prediction network and the joiner. In all arrays the first axis is the batch."""

    @property
    def carried(self) -> Sequence[Carried]:
        """The tensors that a row carries, in order."""

    @property
    def networks(self) -> list[Network]:
        """The decoder's files."""

    @property
    def vocabulary_size(self) -> int:
        """V, including the blank."""

    def join(self, encoded: Array, carried: Sequence[Array]) -> tuple[Array, list[Array]]:
        """Returns the logits [A, V] of encoded frames [A, E], and what `advance` needs besides the tokens."""

    def advance(self, tokens: Array, carried: Sequence[Array], joined: Sequence[Array]) -> list[Array]:
        """Returns the carried tensors after one emitted token of each row; tokens: [A]."""


def context_of(network: Network) -> int:
    """Returns how many tokens the prediction network reads at once."""
    return network.reads["tokens"].size


def pushed(context: Array, tokens: Array) -> Array:
    """Returns the last tokens [A, C] after one more token [A]."""
    return np.concatenate([context[:, 1:], tokens[:, np.newaxis]], axis=1)


class ThreeFiles:
    """The `Decoder` of a transducer in three files. start: the token before the first one."""

    def __init__(self, predictor: Network, joiner: Network, start: int) -> None:
        self.predictor, self.joiner = predictor, joiner
        tokens = predictor.reads["tokens"]
        context = np.full((1, tokens.size), start, np.int64)
        predicted, states = predictor.run({"tokens": context}, [kept.initial for kept in predictor.states])
        first = [kept.input.leave(state)[0] for kept, state in zip(predictor.states, states, strict=True)]
        self.carried = [Carried(kept.input.name, one) for kept, one in zip(predictor.states, first, strict=True)]
        self.carried.append(Carried("predicted", predicted[0]))
        if tokens.size > 1:
            self.carried.append(Carried(CONTEXT, context[0]))

    @property
    def networks(self) -> list[Network]:
        """See `Decoder`."""
        return [self.predictor, self.joiner]

    @property
    def vocabulary_size(self) -> int:
        """See `Decoder`."""
        return self.joiner.gives.size

    def join(self, encoded: Array, carried: Sequence[Array]) -> tuple[Array, list[Array]]:
        """See `Decoder`."""
        logits, _ = self.joiner.run({"encoded": encoded, "predicted": carried[len(self.predictor.states)]}, [])
        return logits, []

    def advance(self, tokens: Array, carried: Sequence[Array], joined: Sequence[Array]) -> list[Array]:
        """See `Decoder`."""
        states, size = self.predictor.states, context_of(self.predictor)
        context = pushed(carried[-1], tokens) if size > 1 else tokens[:, np.newaxis]
        entered = entered_states(states, carried)
        predicted, following = self.predictor.run({"tokens": context}, entered)
        left = [kept.input.leave(state) for kept, state in zip(states, following, strict=True)]
        return [*left, predicted, *([context] if size > 1 else [])]


class JoinedDecoder:
    """The `Decoder` of a transducer in two files. network: prediction network and joiner. start: see `ThreeFiles`."""

    def __init__(self, network: Network, start: int) -> None:
        self.network = network
        self.carried = [Carried(kept.input.name, kept.input.leave(kept.initial)[0]) for kept in network.states]
        self.carried.append(Carried(CONTEXT, np.full(context_of(network), start, np.int64)))

    @property
    def networks(self) -> list[Network]:
        """See `Decoder`."""
        return [self.network]

    @property
    def vocabulary_size(self) -> int:
        """See `Decoder`."""
        return self.network.gives.size

    def join(self, encoded: Array, carried: Sequence[Array]) -> tuple[Array, list[Array]]:
        """See `Decoder`."""
        entered = entered_states(self.network.states, carried)
        logits, following = self.network.run({"encoded": encoded, "tokens": carried[-1]}, entered)
        return logits, [kept.input.leave(one) for kept, one in zip(self.network.states, following, strict=True)]

    def advance(self, tokens: Array, carried: Sequence[Array], joined: Sequence[Array]) -> list[Array]:
        """See `Decoder`."""
        return [*joined, pushed(carried[-1], tokens)]


def entered_states(states: Sequence[Kept], carried: Sequence[Array]) -> list[Array]:
    """Returns the carried states in the file's layout."""
    return [kept.input.enter(one) for kept, one in zip(states, carried, strict=False)]
