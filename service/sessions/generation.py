"""What a session was asked last, kept so that it can be asked again: a feed and its answer, or a generation and its
tokens, from which a retry continues.

What is accepted has what was asked before it as its `former`, until it is done: when the engine refuses it, because it
is not in turn, the former is the last again. A refused request changes nothing.

Pure. Event loop only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from service.engine.before import Before
from service.engine.decoding import Decoding, FinishReason, IntArray
from service.engine.jobs import NO_TOKENS, GenerateJob, Item, OutputSpec
from service.engine.results import Failed, Fed, Generated, Result, Searched
from service.errors import OutputsLostError, PositionMismatchError
from service.sessions.answer_memory import outputs_bytes

_SMALL = 4096
"""Bytes of an answer that is kept in any case."""


class Unkept:
    """A request that was accepted, and of which nothing is kept: a step batch, or a generation of a plain session."""

    __slots__ = ("former", "request")

    def __init__(self, request: Any, former: Asked | None) -> None:
        self.request = request
        self.former = former


class LastFeed:
    """The feed that was accepted last, kept so that it can be answered again.

    request: None once it was answered, or when it came with a restored session. start: None until it is known.
    result: None while it runs. is_dropped: whether the answer took too much memory, and only its position is kept;
    is_hashed: whether the tokens did, of which a hash is kept. is_cancelled: whether a Cancel came after it while it
    ran, so that it may fail.
    """

    __slots__ = (
        "__weakref__",
        "_hash",
        "former",
        "is_cancelled",
        "is_dropped",
        "is_hashed",
        "outputs",
        "request",
        "result",
        "start",
        "tokens",
    )

    def __init__(
        self,
        request: Any,
        start: int | None,
        tokens: Sequence[Item],
        outputs: OutputSpec,
        former: Asked | None = None,
    ) -> None:
        self.request = request
        self.former = former
        self.start = start
        self.tokens = tokens
        self.outputs = outputs
        self.result: Result | None = None
        self.is_cancelled = self.is_dropped = self.is_hashed = False
        self._hash = 0

    def drop(self) -> None:
        """Forgets the tokens, but for a hash, and a large answer, but for its position."""
        if not self.is_hashed:
            self._hash, self.tokens, self.is_hashed = hash(tuple(self.tokens)), NO_TOKENS, True
        if isinstance(self.result, Fed) and outputs_bytes(self.result.outputs) > _SMALL:
            self.result = Fed(self.result.position, [])
            self.is_dropped = True

    def is_repeated_by(self, start: int, tokens: Sequence[Item], outputs: OutputSpec) -> bool:
        """Whether a feed is a retry of this one. One that failed cannot be retried."""
        return (
            start == self.start
            and (hash(tuple(tokens)) == self._hash if self.is_hashed else tokens == self.tokens)
            and outputs == self.outputs
            and not isinstance(self.result, Failed)
        )


class Generation:
    """One generation, or one beam search, of a session.

    start: where it began, None until it is known. tokens, log_probabilities: those that are kept; `num_dropped` others
    came before. found: the result of a search. job: the engine's job, None when it has ended, and while a restored
    generation waits for its retry; seen: the tokens that the repetition penalty counts then. request: the request that
    its tokens are delivered to, None when it has no listener. num_read: tokens that were written to the client;
    num_granted: tokens that it need not wait for. received_position: up to which the client of a generation that is
    made again has its tokens, which are not delivered once more. is_dropped: of a search, whether its results took too
    much memory, and only its position is kept. before: the tokens before those that are kept, if the model has them.
    """

    __slots__ = (
        "__weakref__",
        "before",
        "decoding",
        "finish_reason",
        "former",
        "found",
        "is_dropped",
        "job",
        "log_probabilities",
        "num_dropped",
        "num_granted",
        "num_read",
        "received_position",
        "request",
        "seen",
        "start",
        "tokens",
    )

    def __init__(self, start: int | None, decoding: Decoding, request: Any, former: Asked | None = None) -> None:
        self.start = start
        self.former = former
        self.decoding = decoding
        self.request = request
        self.before: Before | None = None
        self.tokens: list[Item] = []
        self.log_probabilities: list[float] | None = [] if decoding.log_probabilities else None
        self.num_dropped = 0
        self.finish_reason: FinishReason | None = None
        self.found: Searched | None = None
        self.job: GenerateJob | None = None
        self.seen: IntArray | None = None
        self.num_read = 0
        self.num_granted = 0
        self.received_position: int | None = None
        self.is_dropped = False

    def drop(self) -> None:
        """Forgets what a search has found, but for its position."""
        self.is_dropped = True
        self.num_dropped += len(self.tokens)
        self.tokens, self.found = [], None

    @property
    def num_tokens(self) -> int:
        """How many tokens it has made."""
        return self.num_dropped + len(self.tokens)

    @property
    def position(self) -> int:
        """After its tokens."""
        return (self.start or 0) + self.num_tokens

    @property
    def is_ended(self) -> bool:
        """Whether it has come to its end."""
        return self.finish_reason is not None or self.found is not None or self.is_dropped

    @property
    def is_suspended(self) -> bool:
        """Whether it came with a restored session, and no retry has continued it yet."""
        return self.job is None and not self.is_ended and self.num_tokens > 0

    def is_repeated_by(self, start: int | None, decoding: Decoding, position: int) -> bool:
        """Whether a request is a retry of this one, on a session that is at `position`."""
        return start is not None and start == self.start and decoding == self.decoding and position == self.position

    def add(self, result: Generated, num_kept: int) -> None:
        """Adds tokens. num_kept: at least so many are kept, and at most twice as many."""
        if self.start is None:
            self.start = result.position - len(result.token_ids)
        if not self.tokens and result.before is not None:
            self.before = result.before
        self.tokens += result.token_ids
        if self.log_probabilities is not None:
            self.log_probabilities += result.log_probabilities or []
        self.finish_reason = result.finish_reason
        if len(self.tokens) > 2 * num_kept:
            num_dropped = len(self.tokens) - num_kept
            self.before = self._before(num_dropped)
            del self.tokens[:num_dropped]
            if self.log_probabilities is not None:
                del self.log_probabilities[:num_dropped]
            self.num_dropped += num_dropped

    def after(self, position: int | None) -> Generated:
        """Its tokens after a position; None: all. Raises OutputsLostError when they are not kept."""
        assert self.start is not None  # noqa: S101  # one that is repeated has begun
        first = self.start + self.num_dropped
        position = self.start if position is None else position
        if not first <= position <= self.position:
            raise OutputsLostError(
                f"generate.received_position = {position}: the outputs of this generation are kept from {first}"
                f" to {self.position}, as positions go",
                field="generate.received_position",
                first_position=first,
                position=self.position,
            )
        begin = position - first
        log_probabilities = None if self.log_probabilities is None else self.log_probabilities[begin:]
        before = self._before(begin)
        return Generated(self.position, self.tokens[begin:], log_probabilities, self.finish_reason, before)

    def _before(self, index: int) -> Before | None:
        """The tokens before one of those that are kept."""
        return None if self.before is None else self.before.after(self.tokens[:index])


Asked = LastFeed | Generation | Unkept


class HasLast(Protocol):
    """A session, as far as it is looked at here."""

    last: Asked | None


def is_refused(result: Result) -> bool:
    """Whether the engine has refused a request, because it was not in turn."""
    return isinstance(result, Failed) and isinstance(result.error, PositionMismatchError)


def settled(session: HasLast, request: Any, *, is_refused: bool) -> Asked | None:
    """What a session was asked by a request that is done: it is the last, unless another came after it; None: nothing
    is kept of it. One that was refused is taken out, and its former returned."""
    newer, asked = None, session.last
    while asked is not None and asked.request is not request:
        newer, asked = asked, asked.former
    if asked is None:
        return None
    following, asked.former = asked.former, None
    if not is_refused:
        following = None if isinstance(asked, Unkept) else asked
    if newer is None:
        session.last = following
    else:
        newer.former = following
    return following
