"""What a generation has brought so far. Pure: messages go in, tokens come out."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from carousel import _answers
from carousel._tensors import Vector, vectors
from carousel.errors import CarouselError, UnavailableError
from carousel.v1 import inference_pb2 as pb
from carousel.values import FinishReason, Hypothesis, Token


class GenerationState:
    """Tokens that have come and were not taken yet, and how it ended.

    request_id: of the request that started it on a session's stream; 0 before that, and off one. position: after the
    tokens that have come. is_ended: nothing more will come. version: of the model, of the one-call generation, once it
    is known.
    """

    def __init__(self) -> None:
        self.request_id = 0
        self.position = 0
        self.finish_reason: FinishReason | None = None
        self.is_ended = False
        self.version = 0
        self.hypotheses: tuple[Hypothesis, ...] = ()
        self._tokens: deque[Token | Vector] = deque()
        self._error: CarouselError | None = None

    @property
    def is_ready(self) -> bool:
        """Whether `take` has something to tell: a token, or the end."""
        return bool(self._tokens) or self.is_ended

    def take(self) -> Token | Vector | None:
        """The next token, or of a model that gives values the next of those; None when there is none now. Raises the
        error that ended the generation, once."""
        if self._tokens:
            return self._tokens.popleft()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return None

    def receive(self, generated: pb.Generated, position: int) -> None:
        """Takes note of tokens that came; of those that have come before, as their position tells, only of the rest."""
        if self.is_ended:
            return
        found: Sequence[Token | Vector] = _answers.tokens(generated.tokens)
        if generated.HasField("values"):
            found = vectors(generated.values)
        num_known = max(0, self.position - (position - len(found)))
        self._tokens.extend(found[num_known:])
        self.position = max(self.position, position)
        self.hypotheses = _answers.hypotheses(generated.hypotheses)
        self.finish_reason = _answers.finish_reason(generated.finish_reason)
        self.is_ended = self.finish_reason is not None

    def receive_response(self, response: pb.GenerateResponse) -> None:
        """The same, of the one-call generation."""
        self.version = response.version
        self.receive(response.generated, response.position)

    def stop(self) -> None:
        """Takes note that nothing more will come. An error, unless the end was told."""
        self.fail(UnavailableError("the server ended the call before the generation's end"))

    def fail(self, error: CarouselError) -> None:
        """Ends it with an error, raised once the tokens that came before are taken."""
        if not self.is_ended:
            self.is_ended = True
            self._error = error

    def leave(self) -> None:
        """Ends it because nobody wants the rest."""
        self.is_ended = True
        self._tokens.clear()
        self._error = None


class GenerationFacts:
    """What both kinds of generation tell of themselves."""

    _state: GenerationState

    @property
    def position(self) -> int:
        """The session's position after the tokens that the server is known to have chosen.

        It may be ahead of the tokens taken here: those on their way count too.
        """
        return self._state.position

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why it ended; None before its end has come, and when it was left early."""
        return self._state.finish_reason

    @property
    def hypotheses(self) -> tuple[Hypothesis, ...]:
        """What a beam search has found, the best first: its tokens are those of the generation. Empty before its end,
        and without `beam_size`."""
        return self._state.hypotheses
