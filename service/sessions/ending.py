"""How sessions end: the reason, who is notified, and the last record. The last record says that the session has ended,
or that any server may claim it.

Event loop only; times come from the injected clock.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from service.errors import CarouselError, SessionMovedError, StoreUnavailableError, guarded
from service.observer import SessionObserver
from service.sessions.lifecycle import State
from service.sessions.persistence import WhenDone
from service.sessions.session import CloseReason, Session, name_of
from service.sessions.storage import Put, Storage, Then, WriteResult
from service.sessions.stores.base import Ownership
from service.sessions.tombstones import Tombstone

_LONGEST_DELAY_S = 30.0
"""The longest delay between two attempts. Each delay is twice the one before."""
_TOMBSTONE_S = 3600.0
"""How long a store keeps the tombstone of an ended session."""


class Ending:
    """Why a session ends, and who is notified. then: called when every request is answered and the end is recorded;
    with an error when the store fails to record it. is_promised: whether a client was informed that the end will be
    recorded later. is_answered_by_store: whether the result of the last record is known, also when it is a failure.
    after_freed: called when every request is answered and the slot is free."""

    __slots__ = (
        "after_freed",
        "before",
        "error",
        "is_answered_by_store",
        "is_freed",
        "is_promised",
        "is_reported",
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
        self.is_freed = self.is_answered_by_store = self.is_promised = self.is_reported = False
        self.after_freed: Callable[[], None] | None = None
        self.error: CarouselError | None = None

    def report_closed(self, observer: SessionObserver, session: Session) -> None:
        """Reports the end of a session that was open, once, with its final position."""
        if not self.is_reported and self.before is not State.OPENING:
            self.is_reported, served = True, session.served
            observer.session_closed(served.model, served.version, session.id, self.reason.value, session.position)

    def freed(self, observer: SessionObserver, session: Session) -> None:
        """Records that every request is answered and the slot is free."""
        self.is_freed = True
        self.report_closed(observer, session)
        after, self.after_freed = self.after_freed, None
        if after is not None:
            guarded(after)
        self.call_then()

    def call_then(self) -> None:
        """Calls `then` once, when the slot is free and the result of the last record is known."""
        if self.is_freed and self.is_answered_by_store and self.then is not None:
            then, self.then = self.then, None
            guarded(then, self.error)


class LastRecords:
    """Writes last records, and retries until the store takes them. delay_s: the delay before the second attempt."""

    def __init__(self, storage: Storage, *, delay_s: float = 1.0) -> None:
        self._storage = storage
        self._delay_s = delay_s
        self._waiting: dict[Callable[[], None], asyncio.TimerHandle] = {}
        """The attempts to repeat, each with its timer."""

    def record_end(
        self,
        session_id: str,
        epoch: int,
        tombstone: bytes | None,
        then: WhenDone = lambda error: None,
        *,
        record_id: str | None = None,
    ) -> None:
        """Records that a session has ended, and how. tombstone: None deletes the record. `then` is called with None
        when this is stored, with SessionMovedError when another server owns the session, and with StoreUnavailableError
        at each failed attempt before. record_id: the record's name when it is not the session's id."""
        ttl_s = 0.0 if tombstone is None else _TOMBSTONE_S
        error = StoreUnavailableError(
            f"session {name_of(session_id)!r} is closed on this server, but the store could not record that yet: this"
            " server retries until it succeeds",
            retry_delay_s=1.0,
        )
        moved = SessionMovedError(
            f"session {name_of(session_id)!r} belongs to another server, and is still open there",
            session_id=name_of(session_id),
        )
        put = Put(record_id or session_id, epoch, None, ttl_s, Ownership.GONE, tombstone or b"{}")
        self.write(put, lambda result: then(moved if result is WriteResult.REFUSED else None), lambda: then(error))

    def release_record(self, session_id: str, epoch: int, ttl_s: float, gone_by_s: float = math.inf) -> None:
        """Releases a record that this server claimed and cannot use, so that any server can claim it. gone_by_s: see
        `Put`."""
        put = Put(session_id, epoch, None, ttl_s, Ownership.FREE, gone_by_s=gone_by_s)
        self.write(put, lambda _: None)

    def write(
        self,
        put: Put,
        then: Then,
        on_failed: Callable[[], None] = lambda: None,
        delay_s: float | None = None,
    ) -> None:
        """Writes a record until the store takes it, or refuses it because another server owns the session. Then calls
        `then`, never with FAILED. Calls `on_failed` at each failed attempt before."""

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
        """Repeats all waiting attempts at once, because the store may work again."""
        for again, timer in list(self._waiting.items()):
            timer.cancel()
            again()
