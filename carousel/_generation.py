"""The tokens of a generation that have arrived. Pure: messages in, tokens out."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from carousel import _answers
from carousel._tensors import Vector, vectors
from carousel.errors import CarouselError, UnavailableError
from carousel.v1 import inference_pb2 as pb
from carousel.values import FinishReason, Hypothesis, Token, ValueToken


class GenerationState:
    """The tokens that have arrived and that the program has not read, and the generation's end.

    request_id: the request that started the generation on a session's stream; 0 before that, and for one-call
    generations. position: after the tokens that have arrived. is_ended: no more tokens will arrive. version: the
    model's; known only for one-call generations, after their first response. seed: for sampling; None without sampling.
    text: the words that have arrived. unfinished_text: the end of `text` when the generation has ended inside a word.
    """

    def __init__(self, decoding: pb.Decoding) -> None:
        self.seed = decoding.sampling.seed if decoding.HasField("sampling") else None
        self.request_id = 0
        self.position = 0
        self.finish_reason: FinishReason | None = None
        self.is_ended = False
        self.version = 0
        self.hypotheses: tuple[Hypothesis, ...] = ()
        self.text = self.unfinished_text = ""
        self._tokens: deque[Token | Vector] = deque()
        self._error: CarouselError | None = None

    @property
    def num_unread(self) -> int:
        """Number of tokens that have arrived and that `take` has not returned."""
        return len(self._tokens)

    @property
    def is_ready(self) -> bool:
        """Whether `take` can return a token or the end without waiting."""
        return bool(self._tokens) or self.is_ended

    def take(self) -> Token | Vector | None:
        """Returns the next token, or the next vector of a model that outputs values; None if there is none now.

        Raises the error that ended the generation, once.
        """
        if self._tokens:
            return self._tokens.popleft()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return None

    def receive(self, generated: pb.Generated, position: int) -> None:
        """Adds tokens that arrived. Skips those that had arrived before, by their position."""
        if self.is_ended:
            return
        found: Sequence[Token | Vector] = _answers.tokens(generated.tokens)
        if generated.HasField("values"):
            found = vectors(generated.values)
        num_known = max(0, self.position - (position - len(found)))
        self._tokens.extend(found[num_known:])
        if num_known < len(found) or not found:
            self.unfinished_text = generated.unfinished_text
            self.text += generated.text + self.unfinished_text
        self.position = max(self.position, position)
        self.hypotheses = _answers.hypotheses(generated.hypotheses)
        self.finish_reason = _answers.finish_reason(generated.finish_reason)
        self.is_ended = self.finish_reason is not None

    def receive_response(self, response: pb.GenerateResponse) -> None:
        """Adds a response of a one-call generation."""
        self.version = response.version
        self.receive(response.generated, response.position)

    def stop(self) -> None:
        """Records that the call ended. That is an error, unless the generation's end has arrived."""
        self.fail(UnavailableError("the server ended the call before the generation ended"))

    def fail(self, error: CarouselError) -> None:
        """Ends the generation with an error. `take` raises it after the earlier tokens."""
        if not self.is_ended:
            self.is_ended = True
            self._error = error

    def leave(self) -> None:
        """Ends the generation and drops the tokens that were not read."""
        self.is_ended = True
        self._tokens.clear()
        self._error = None


def token_of(item: Token | Vector) -> Token:
    """The token of an item; a vector becomes a `ValueToken`."""
    return item if isinstance(item, Token) else ValueToken(item)


def vector_of(item: Token | Vector) -> Vector:
    """The values of an item. Raises TypeError for a token."""
    if isinstance(item, Token):
        raise TypeError("the model generates tokens, not values: iterate over the generation")
    return item
