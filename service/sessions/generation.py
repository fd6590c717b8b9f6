"""The last request of a session, kept for retries: a feed with its answer, or a generation with its tokens.

Each accepted request refers to the request before it, as `former`, until it is done. When the engine refuses a request
because its position is wrong, the former becomes the last request again. A refused request changes nothing.

How a retry is answered, which is a request that repeats an earlier one with its position:

- Feed: the session's last feed is answered again; while it is in flight, the retry is answered together with it.
- Generation, unless the session is plain: without a listener it continues for the retry, which gets the tokens after
  its `received_position` again. One that is not known any more is made again, and delivered from there.
- Search, unless the session is plain: as a generation, but it has one answer.
- Step batch: the last one of its stream is answered again unless one of its sessions has moved since; while it is in
  flight, the retry is answered together with it (`api/step_batches.py`).
- Score: it is computed again, because it changes nothing.
- Each of them, when the store did not take its answer: see `unstored`. Any other retry is refused because of its
  position, or with OutputsLostError when only the position of its answer is kept.

Knows no clock, no I/O and no engine. Event loop only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from service.engine.decoding import Decoding, FinishReason, IntArray
from service.engine.jobs import NO_TOKENS, GenerateJob, Item, OutputSpec
from service.engine.last_tokens import LastTokens
from service.engine.results import Failed, Fed, Generated, Result, Searched
from service.errors import OutputsLostError, PositionMismatchError
from service.sessions.answer_memory import outputs_bytes

_SMALL = 4096
"""The largest answer, in bytes, that a `LastFeed` keeps when `Replays` drops it."""


class NotRetryable:
    """An accepted request of which nothing is kept: a step batch; or, of a plain session, a search, or a generation
    that is not a retry."""

    __slots__ = ("former", "request")

    def __init__(self, request: Any, former: Asked | None) -> None:
        self.request = request
        self.former = former


class LastFeed:
    """The last accepted feed, kept so that it can be answered again.

    request: None after its answer, or when it came with a restored session. start: None until it is known. result: None
    while the feed runs. is_dropped: whether the answer took too much memory, so that only its position is kept.
    is_hashed: whether only a hash of the tokens is kept, to save memory. is_cancelled: whether a Cancel came while the
    feed ran, so that it may fail. has_mark: whether the feed adds a mark.
    """

    __slots__ = (
        "__weakref__",
        "_hash",
        "former",
        "has_mark",
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
        *,
        has_mark: bool = False,
    ) -> None:
        self.request = request
        self.former = former
        self.start = start
        self.tokens = tokens
        self.outputs = outputs
        self.has_mark = has_mark
        self.result: Result | None = None
        self.is_cancelled = self.is_dropped = self.is_hashed = False
        self._hash = 0

    def drop(self) -> None:
        """Replaces the tokens by a hash, and a large answer by its position."""
        if not self.is_hashed:
            self._hash, self.tokens, self.is_hashed = hash(tuple(self.tokens)), NO_TOKENS, True
        if isinstance(self.result, Fed) and outputs_bytes(self.result.outputs) > _SMALL:
            self.result = Fed(self.result.position, [])
            self.is_dropped = True

    def is_repeated_by(self, start: int, tokens: Sequence[Item], outputs: OutputSpec, *, has_mark: bool) -> bool:
        """Whether a feed is a retry of this one. A feed that failed is not answered again: its
        retry is a new feed."""
        return (
            start == self.start
            and (hash(tuple(tokens)) == self._hash if self.is_hashed else tokens == self.tokens)
            and outputs == self.outputs
            and has_mark == self.has_mark
            and not isinstance(self.result, Failed)
        )


class Generation:
    """One generation, or one beam search, of a session.

    start: the position where it began; None until it is known. tokens, log_probabilities: those that are kept;
    `num_dropped` tokens came before them. found: the result of a search. job: the engine's job; None after its end, and
    while a restored generation waits for its retry. seen: for such a restored generation, the tokens that the
    repetition penalty counts. request: the request that receives its tokens; None when it has no listener. num_read:
    tokens that were written to the client. num_granted: tokens that the engine counts as read, so that it may generate
    further. received_position: for a generation that is made again, the position up to which the client has its tokens;
    these are not delivered again. is_dropped: whether the result of a search took too much memory, so that only its
    position is kept. before: the tokens before the kept ones, if the model keeps them.
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
        self.before: LastTokens | None = None
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
        """Drops the result of a search, except its position."""
        self.is_dropped = True
        self.num_dropped += len(self.tokens)
        self.tokens, self.found = [], None

    @property
    def num_tokens(self) -> int:
        """The number of tokens generated so far."""
        return self.num_dropped + len(self.tokens)

    @property
    def position(self) -> int:
        """The position after its tokens."""
        return (self.start or 0) + self.num_tokens

    @property
    def is_ended(self) -> bool:
        """Whether the generation has ended."""
        return self.finish_reason is not None or self.found is not None or self.is_dropped

    @property
    def is_suspended(self) -> bool:
        """Whether it came with a restored session, and no retry has continued it yet."""
        return self.job is None and not self.is_ended and self.num_tokens > 0

    def is_repeated_by(self, start: int | None, decoding: Decoding, position: int) -> bool:
        """Whether a request is a retry of this one, for a session at `position`."""
        return start is not None and start == self.start and decoding == self.decoding and position == self.position

    def add(self, result: Generated, num_kept: int) -> None:
        """Adds tokens. At least `num_kept` tokens are kept, and at most twice as many."""
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
        """Returns its tokens after a position; None: all. Raises OutputsLostError when they are no longer kept."""
        assert self.start is not None  # noqa: S101  # a repeated generation has begun
        first = self.start + self.num_dropped
        position = self.start if position is None else position
        if not first <= position <= self.position:
            raise OutputsLostError(
                f"generate.received_position = {position} must be {first} to {self.position}: the server keeps only"
                " the outputs between these positions",
                field="generate.received_position",
                first_position=first,
                position=self.position,
            )
        begin = position - first
        log_probabilities = None if self.log_probabilities is None else self.log_probabilities[begin:]
        before = self._before(begin)
        return Generated(self.position, self.tokens[begin:], log_probabilities, self.finish_reason, before)

    def _before(self, index: int) -> LastTokens | None:
        """Returns the tokens before the kept token at `index`."""
        return None if self.before is None else self.before.after(self.tokens[:index])


Asked = LastFeed | Generation | NotRetryable


class HasLast(Protocol):
    """The part of a session that this module uses."""

    last: Asked | None


def is_refused(result: Result) -> bool:
    """Whether the engine refused a request because its position was wrong."""
    return isinstance(result, Failed) and isinstance(result.error, PositionMismatchError)


def unlink_done(session: HasLast, request: Any, *, is_refused: bool) -> Asked | None:
    """Returns what is kept of a request that is done; None: nothing. It stays the session's last request unless another
    came after it. A refused request is removed, and its former is returned."""
    newer, asked = None, session.last
    while asked is not None and asked.request is not request:
        newer, asked = asked, asked.former
    if asked is None:
        return None
    following, asked.former = asked.former, None
    if not is_refused:
        following = None if isinstance(asked, NotRetryable) else asked
    if newer is None:
        session.last = following
    else:
        newer.former = following
    return following
