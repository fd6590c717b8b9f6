"""Answers that the store did not take, kept so that their requests can be retried.

Rules:

1. When the answer of a session that `waits_for_store` cannot be stored, its request is kept with the answer. The same
   request, sent again, gets the same answer, whatever the session did afterwards. So a client with several requests in
   flight sends all of them again, in order. Any other session answers only its last feed, generation or search
   again; a retry of an earlier one, with its position, is not applied twice but gets PositionMismatchError.
2. Answers are kept as long as their session lives and is not rewound; those of step batches as long as their stream.
   All kept answers together take up to `max_bytes`; the oldest are dropped.

Event loop only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from service.engine.decoding import Decoding
from service.engine.jobs import FeedJob, Item, OutputSpec, ScoreJob
from service.engine.results import Fed, Result, Scored
from service.sessions.answer_memory import Replays, outputs_bytes
from service.sessions.generation import Generation, LastFeed
from service.sessions.persistence import UnstoredAnswer
from service.sessions.session import Session

_ENTRY_BYTES = 256
"""About the bytes of an answer without its tokens and numbers."""
Targets = Sequence[Sequence[int]]
NUMBER_BYTES = 36
"""About the bytes of a token or number in a list."""


class DoneScore:
    """A completed score. start: its position. targets: with their end tokens, if the request asked for them."""

    __slots__ = ("result", "start", "targets")

    def __init__(self, targets: Targets, result: Scored) -> None:
        self.start = result.position
        self.targets = tuple(map(tuple, targets))
        self.result = result


class UnstoredAnswers:
    """The unstored answers of all sessions, up to `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self._kept = Replays(max_bytes, least=0)

    @property
    def num_bytes(self) -> int:
        """The bytes of all kept answers."""
        return self._kept.num_bytes

    def of(self, session: Session, answered: LastFeed | Generation | DoneScore) -> Callable[[], None] | None:
        """Returns the callback for the case that the store does not take an answer. None: the answer does not wait for
        the store."""
        persistence = session.persistence
        if not persistence.waits_for_store:
            return None
        return partial(self._keep_of, session, answered, persistence.era)

    def of_feed(self, session: Session, job: FeedJob, result: Result) -> Callable[[], None] | None:
        """As `of`, for the answer to a feed."""
        if not session.persistence.waits_for_store or not isinstance(result, Fed):
            return None
        feed = session.last
        if not (isinstance(feed, LastFeed) and feed.result is result):  # another request came after it
            feed = LastFeed(None, result.position - len(job.tokens), job.tokens, job.outputs, has_mark=job.has_mark)
            feed.result = result
        return self.of(session, feed)

    def of_score(self, session: Session, job: ScoreJob, result: Result) -> Callable[[], None] | None:
        """As `of`, for a score."""
        return self.of(session, DoneScore(job.targets, result)) if isinstance(result, Scored) else None

    def keep(self, kept: UnstoredAnswer, num_bytes: int) -> None:
        """Keeps an answer, unless it is kept already. Drops the oldest answers when all take too much memory."""
        among = kept.among()
        if among is None:
            return
        some = among.setdefault(kept.key, [])
        if any(one.answered is kept.answered for one in some):
            return
        some.append(kept)
        self._kept.keep(kept, num_bytes)

    def _keep_of(self, session: Session, answered: LastFeed | Generation | DoneScore, era: int) -> None:
        if session.is_over or (isinstance(answered, Generation) and not answered.is_ended):  # kept when it ends
            return
        key: tuple[object, ...] = (era, answered.start)
        if not isinstance(answered, LastFeed):
            key += (answered.targets if isinstance(answered, DoneScore) else answered.decoding,)
        self.keep(UnstoredAnswer(session.persistence.unstored, key, answered), _size(answered))


def unstored_feed(
    session: Session, start: int, tokens: Sequence[Item], outputs: OutputSpec, *, has_mark: bool
) -> LastFeed | None:
    """Returns the kept feed that a request repeats."""
    for one in _found(session, start):
        if isinstance(one, LastFeed) and one.is_repeated_by(start, tokens, outputs, has_mark=has_mark):
            return one
    return None


def unstored_score(session: Session, start: int, targets: Targets) -> DoneScore | None:
    """Returns the kept score that a request repeats."""
    if not session.persistence.unstored:
        return None
    for one in _found(session, start, tuple(map(tuple, targets))):
        if isinstance(one, DoneScore):
            return one
    return None


def unstored_generation(session: Session, start: int, decoding: Decoding) -> Generation | None:
    """Returns the kept generation or search that a request repeats."""
    for one in _found(session, start, decoding):
        if isinstance(one, Generation):
            return one
    return None


def _found(session: Session, *key: object) -> Iterator[object]:
    persistence = session.persistence
    return (kept.answered for kept in persistence.unstored.get((persistence.era, *key), ()))


def _size(answered: LastFeed | Generation | DoneScore) -> int:
    """Returns about the bytes that a request and its answer take."""
    if isinstance(answered, DoneScore):
        return _ENTRY_BYTES + 2 * NUMBER_BYTES * sum(map(len, answered.targets))
    num_bytes = _ENTRY_BYTES + NUMBER_BYTES * len(answered.tokens)
    num_bytes += sum(len(item) for item in answered.tokens if isinstance(item, bytes))
    if isinstance(answered, LastFeed):
        return num_bytes + (outputs_bytes(answered.result.outputs) if isinstance(answered.result, Fed) else 0)
    hypotheses = answered.found.hypotheses if answered.found is not None else []
    num_numbers = len(answered.log_probabilities or ()) + 2 * sum(len(one.tokens) for one in hypotheses)
    return num_bytes + NUMBER_BYTES * num_numbers
