"""The last record of a session: that it ended, or that any server may claim it. Written again until the store has it.

Event loop only; times come from the injected clock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

from service.errors import StoreUnavailableError
from service.sessions.persistence import WhenDone
from service.sessions.session import name_of
from service.sessions.storage import Put, Storage, Then, WriteResult
from service.sessions.stores.base import Standing

_LONGEST_DELAY_S = 30.0
"""Between two tries, at most; each is twice the one before."""
_TOMBSTONE_S = 3600.0
"""How long a store remembers a session that ended."""


class LastRecords:
    """Writes last records. delay_s: before the second try; wall_clock: Unix seconds."""

    def __init__(self, storage: Storage, *, delay_s: float = 1.0, wall_clock: Callable[[], float] = time.time) -> None:
        self._storage = storage
        self._delay_s = delay_s
        self._wall_clock = wall_clock

    def bury(
        self,
        session_id: str,
        epoch: int,
        tombstone: bytes | None,
        then: WhenDone = lambda error: None,
        *,
        record_id: str | None = None,
    ) -> None:
        """Stores that a session ended, and how; None: its record vanishes. `then` is called when that is stored, and
        each time before with StoreUnavailableError when the store fails. record_id: where it is not the session's."""
        expires_at = 0.0 if tombstone is None else self._wall_clock() + _TOMBSTONE_S
        error = StoreUnavailableError(
            f"session {name_of(session_id)!r} is closed on this server, and the store does not know it yet: this server"
            " tries again until it does",
            retry_delay_s=1.0,
        )
        put = Put(record_id or session_id, epoch, None, expires_at, Standing.GONE, tombstone or b"{}")
        self.write(put, lambda _: then(None), lambda: then(error))

    def give_back(self, session_id: str, epoch: int, ttl_s: float) -> None:
        """Lets any server claim a record that this one claimed and cannot use."""
        put = Put(session_id, epoch, None, self._wall_clock() + ttl_s, Standing.FREE)
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
            asyncio.get_running_loop().call_later(following_s, partial(self.write, put, then, on_failed, following_s))

        self._storage.put(put, written)
