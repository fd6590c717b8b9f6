"""The read-only attributes that blocking and asyncio sessions and generations share."""

from __future__ import annotations

from carousel._generation import GenerationState
from carousel._home import Unpicklable
from carousel._protocol import SessionProtocol
from carousel.values import FinishReason, Hypothesis, Port, StepOutput, Token


class SessionProperties(Unpicklable):
    """The attributes of a session."""

    _protocol: SessionProtocol

    @property
    def id(self) -> str:
        """The session's id: the one that the program chose, or one that the client or the server made."""
        return self._protocol.id

    @property
    def model(self) -> str:
        """The model's name."""
        return self._protocol.model

    @property
    def version(self) -> int:
        """The version that serves the session, 1 or more."""
        return self._protocol.version

    @property
    def variant(self) -> str:
        """The variant of the model that serves the session, such as `fp32`."""
        return self._protocol.variant

    @property
    def position(self) -> int:
        """How many target tokens the session has consumed or generated, as of the last answer to a call."""
        return self._protocol.position

    @property
    def source(self) -> tuple[Token, ...]:
        """The source as the model read it; empty for a model without an encoder."""
        return self._protocol.source

    @property
    def feature_size(self) -> int:
        """How many numbers a step reads, for a model that reads vectors; 0 for one that reads tokens."""
        return self._protocol.feature_size

    @property
    def inputs(self) -> tuple[Port, ...]:
        """The named parts of the vectors that the model reads, in order; empty if it has none."""
        return self._protocol.inputs

    @property
    def outputs(self) -> tuple[Port, ...]:
        """The named parts of the values that the model outputs, in order; empty if it has none."""
        return self._protocol.outputs

    @property
    def first(self) -> StepOutput | None:
        """The prediction at position 0; None unless the opening requested it."""
        return self._protocol.first

    @property
    def closed(self) -> bool:
        """Whether the client knows that the session is closed or lost. The next call reads a notice still on its
        way."""
        return self._protocol.is_closed


class GenerationProperties:
    """The attributes of a generation."""

    _state: GenerationState

    @property
    def position(self) -> int:
        """The session's position after the tokens that have arrived.

        It may be ahead of the tokens that the program has read, because arrived tokens may wait to be read.
        """
        return self._state.position

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the generation ended; None until its end has arrived, and if it was closed early."""
        return self._state.finish_reason

    @property
    def text(self) -> str:
        """The text that has arrived, for a model of subwords; empty for others.

        It has complete words, each after a space except the sequence's first. After the end of the generation, its end
        is `unfinished_text`. It may be ahead of the tokens that the program has read.
        """
        return self._state.text

    @property
    def unfinished_text(self) -> str:
        """The part of a word that was not complete when the generation ended.

        The text of the session's next generation begins with that word, once it is complete.
        """
        return self._state.unfinished_text

    @property
    def seed(self) -> int | None:
        """The sampling seed: the given one, 0 to 2**64 - 1, or one that the client drew, 0 to 2**53 - 1.

        Another generation with this seed, from the same position after the same tokens, draws the same tokens. None
        without sampling: with beam search, or when each token is the most likely one.
        """
        return self._state.seed

    @property
    def hypotheses(self) -> tuple[Hypothesis, ...]:
        """The sequences that a beam search found, best first. The tokens of the first are those of the generation.

        Empty before the end, and without `beam_size`.
        """
        return self._state.hypotheses
