"""How sessions end: why, who is to know, the errors of requests that are left undone, and the last record: that a
session ended, or that any server may claim it.

Event loop only; times come from the injected clock.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from service.errors import (
    CarouselError,
    RequestCancelledError,
    SessionMovedError,
    SessionNotOpenError,
    ShuttingDownError,
    StoreUnavailableError,
    guarded,
)
from service.observer import SessionObserver
from service.sessions.lifecycle import State
from service.sessions.persistence import WhenDone
from service.sessions.session import CloseReason, Session, name_of
from service.sessions.storage import Put, Storage, Then, WriteResult
from service.sessions.stores.base import Standing
from service.sessions.tombstones import Tombstone


class Ending:
    """Why a session ends, and who is to know. then: called when everything is answered and recorded; with an error when
    the store failed to record it. is_promised: whether a client was told that it will be recorded later; after_freed:
    called when all is answered and the slot is free."""

    __slots__ = (
        "after_freed",
        "before",
        "error",
        "is_freed",
        "is_promised",
        "is_recorded",
        "is_told",
        "notifies",
        "reason",
        "then",
        "tombstone",
    )

    def __init__(self, reason: CloseReason, *, notifies: bool, then: WhenDone | None = None) -> None:
        self.reason = reason
        self.notifies = notifies
        self.then = then
        self.before = State.OPENING
        self.tombstone: Tombstone | None = None
        self.is_freed = self.is_recorded = self.is_promised = self.is_told = False
        self.after_freed: Callable[[], None] | None = None
        self.error: CarouselError | None = None

    def tell(self, observer: SessionObserver, session: Session) -> None:
        """Reports the end of a session that was open, once: its position is its last."""
        if not self.is_told and self.before is not State.OPENING:
            self.is_told, served = True, session.served
            observer.session_closed(served.model, served.version, session.id, self.reason.value, session.position)

    def freed(self, observer: SessionObserver, session: Session) -> None:
        """All is answered, and the slot is free."""
        self.is_freed = True
        self.tell(observer, session)
        after, self.after_freed = self.after_freed, None
        if after is not None:
            guarded(after)
        self.report()

    def report(self) -> None:
        """Calls `then`, once, as soon as both are known: that the slot is free, and the fate of the record."""
        if self.is_freed and self.is_recorded and self.then is not None:
            then, self.then = self.then, None
            guarded(then, self.error)


def error_of(session: Session, reason: CloseReason) -> CarouselError:
    """The error for requests that a session's end leaves undone."""
    if reason is CloseReason.MOVED:
        return SessionMovedError(
            f"session {session.name!r} was handed over: resume it on a new stream, or send the call again",
            session_id=session.name,
        )
    if reason is CloseReason.SHUTDOWN:
        return ShuttingDownError(f"session {session.name!r} ended because the server shuts down", retry_delay_s=1.0)
    if reason is CloseReason.TAKEN:
        return SessionMovedError(f"session {session.name!r} was resumed on another stream", session_id=session.name)
    if reason is CloseReason.LOST:
        return SessionMovedError(f"session {session.name!r} was lost: {reason.value}", session_id=session.name)
    if reason is CloseReason.MAX_AGE:
        return RequestCancelledError(
            f"session {session.name!r} was closed: it reached the age that this server allows (max_age_s)",
            close_reason=reason.value,
        )
    return RequestCancelledError("the session was closed", close_reason=reason.value)


def not_open(session: Session, error: CarouselError) -> SessionNotOpenError:
    """The error for requests that waited for a session that could not be opened."""
    return SessionNotOpenError(
        f"session {name_of(session.id)!r} could not be opened: {error.message}", field="session_id"
    )


def unstored(session: Session, error: CarouselError) -> CarouselError:
    """The error for an opening that waits for the store, when it fails."""
    if not isinstance(error, StoreUnavailableError):
        return error
    return StoreUnavailableError(
        f"session {session.name!r} could not be stored, and is not open: send the request again",
        retry_delay_s=1.0,
        session_id=session.name,
    )


def position_to_tell(session: Session, position: int, error: CarouselError | None) -> int:
    """Where whoever goes on with a session is told that it is, once what waited for the store is settled: of a strict
    one the position that is stored. position: where it was; error: what the store failed with.

    Raises the error for one that was set back, and is not stored so: its client would go on from another state than it
    was told.
    """
    if error is None:
        return position
    if session.persistence.is_unconfirmed or not isinstance(error, StoreUnavailableError):
        raise error
    if session.persistence.is_set_back:
        raise StoreUnavailableError(
            f"session {session.name!r} was set back, or given another state, and the store did not take that: send"
            " the request again",
            retry_delay_s=1.0,
            session_id=session.name,
        )
    return session.reportable_position


def not_stored(session: Session) -> StoreUnavailableError:
    """The error for answers that wait for the store, when it fails."""
    return StoreUnavailableError(
        f"session {session.name!r} is at position {session.position}, and the store did not take that: send the request"
        " again as it was, with its position, and then in order all others that were answered so: they are answered and"
        " not applied twice",
        retry_delay_s=1.0,
        session_id=session.name,
        position=session.position,
        stored_position=session.reportable_position,
    )


_LONGEST_DELAY_S = 30.0
"""Between two tries, at most; each is twice the one before."""
_TOMBSTONE_S = 3600.0
"""How long a store remembers a session that ended."""


class LastRecords:
    """Writes last records. delay_s: before the second try, but for `hasten`."""

    def __init__(self, storage: Storage, *, delay_s: float = 1.0) -> None:
        self._storage = storage
        self._delay_s = delay_s
        self._waiting: dict[Callable[[], None], asyncio.TimerHandle] = {}
        """What is to be tried again, and when."""

    def bury(
        self,
        session_id: str,
        epoch: int,
        tombstone: bytes | None,
        then: WhenDone = lambda error: None,
        *,
        record_id: str | None = None,
    ) -> None:
        """Stores that a session ended, and how; None: its record vanishes. `then` is called when that is stored; with
        SessionMovedError when another server has the session; and each time before with StoreUnavailableError when the
        store fails. record_id: where it is not the session's."""
        ttl_s = 0.0 if tombstone is None else _TOMBSTONE_S
        error = StoreUnavailableError(
            f"session {name_of(session_id)!r} is closed on this server, and the store does not know it yet: this server"
            " tries again until it does",
            retry_delay_s=1.0,
        )
        moved = SessionMovedError(
            f"session {name_of(session_id)!r} is another server's: it goes on there", session_id=name_of(session_id)
        )
        put = Put(record_id or session_id, epoch, None, ttl_s, Standing.GONE, tombstone or b"{}")
        self.write(put, lambda result: then(moved if result is WriteResult.REFUSED else None), lambda: then(error))

    def give_back(self, session_id: str, epoch: int, ttl_s: float, gone_by_s: float = math.inf) -> None:
        """Lets any server claim a record that this one claimed and cannot use. gone_by_s: see `Put`."""
        put = Put(session_id, epoch, None, ttl_s, Standing.FREE, gone_by_s=gone_by_s)
        self.write(put, lambda _: None)

    def write(
        self,
        put: Put,
        then: Then,
        on_failed: Callable[[], None] = lambda: None,
        delay_s: float | None = None,
    ) -> None:
        """Writes a record until the store has it, or refuses it because another server has the session. Then calls
        `then`, never with FAILED; each time before that the store fails, `on_failed`."""

        def written(result: WriteResult) -> None:
            if result is not WriteResult.FAILED:
                then(result)
                return
            on_failed()
            following_s = self._delay_s if delay_s is None else min(_LONGEST_DELAY_S, 2.0 * delay_s)

            def again() -> None:
                del self._waiting[again]
                self.write(put, then, on_failed, following_s)

            self._waiting[again] = asyncio.get_running_loop().call_later(following_s, again)

        self._storage.put(put, written)

    def hasten(self) -> None:
        """The store may work again: tries at once what waits to be tried."""
        for again, timer in list(self._waiting.items()):
            timer.cancel()
            again()
