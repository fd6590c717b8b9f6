"""Closes all sessions of a principal. Event loop only."""

from __future__ import annotations

import asyncio

from service.errors import CarouselError, SessionNotFoundError
from service.sessions.registry import Registry
from service.sessions.resume import Resume
from service.sessions.session import owner_of
from service.sessions.storage import Storage
from service.sessions.stores.base import NO_ID

_AT_ONCE = 128
"""Sessions that are closed together, so that the store writes their last records in one batch."""


class Closing:
    """Closes sessions in memory and sessions in the store."""

    def __init__(self, registry: Registry, resume: Resume, storage: Storage) -> None:
        self._registry = registry
        self._resume = resume
        self._storage = storage

    async def close_all(self, principal: str) -> int:
        """Closes the sessions of a principal; "" means the sessions without a principal. Returns the number of closed
        sessions.

        Raises what `Resume.close` raises for the first session that cannot be closed, except SessionNotFoundError,
        after all others were closed. Raises StoreUnavailableError when the store cannot list the sessions; then none is
        closed.
        """
        self._registry.leases.check()
        stored = await self._storage.ids(f"{principal}/" if principal else "")
        here = (session.id for session in self._registry.directory)
        ids = [one for one in dict.fromkeys([*here, *stored]) if owner_of(one) == principal]
        ids = [one for one in ids if not one.startswith(NO_ID)]
        num_closed = 0
        failure: CarouselError | None = None
        for at in range(0, len(ids), _AT_ONCE):
            closing = (self._close(session_id) for session_id in ids[at : at + _AT_ONCE])
            for result in await asyncio.gather(*closing):
                if isinstance(result, CarouselError):
                    failure = failure or result
                else:
                    num_closed += result
        if failure is not None:
            failure.message = (
                f"{num_closed} of {len(ids)} sessions were closed; one could not be closed: {failure.message}"
            )
            raise failure
        return num_closed

    async def _close(self, session_id: str) -> bool | CarouselError:
        """Returns whether the session existed, or the error that prevented the close."""
        try:
            await self._resume.close(session_id)
        except SessionNotFoundError:
            return False
        except CarouselError as error:
            return error
        return True
