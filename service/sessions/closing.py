"""Closing all sessions of a principal. Event loop only."""

from __future__ import annotations

import asyncio

from service.errors import CarouselError, SessionNotFoundError
from service.sessions.registry import Registry
from service.sessions.resume import Resume
from service.sessions.session import owner_of
from service.sessions.storage import Storage

_AT_ONCE = 128
"""Sessions that are closed together: their last records are one write of the store."""
_SPILLED = "~"
"""What the names of records begin with that are no session's id."""


class Closing:
    """Closes sessions that are in memory, and those that the store has."""

    def __init__(self, registry: Registry, resume: Resume, storage: Storage) -> None:
        self._registry = registry
        self._resume = resume
        self._storage = storage

    async def close_all(self, principal: str) -> int:
        """Closes the sessions of a principal, of nobody in particular for an empty name. Returns how many there were.

        Raises what `Resume.close` raises for the first that cannot be closed, but SessionNotFoundError, once all others
        are closed; StoreUnavailableError when the store cannot tell which it has: none is closed then."""
        self._registry.leases.check()
        stored = await self._storage.ids(f"{principal}/" if principal else "")
        here = (session.id for session in self._registry.directory)
        ids = [one for one in dict.fromkeys([*here, *stored]) if owner_of(one) == principal]
        ids = [one for one in ids if not one.startswith(_SPILLED)]
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
                f"{num_closed} sessions of {len(ids)} were closed, and one could not be: {failure.message}"
            )
            raise failure
        return num_closed

    async def _close(self, session_id: str) -> bool | CarouselError:
        """Whether it was there; or why it could not be closed."""
        try:
            await self._resume.close(session_id)
        except SessionNotFoundError:
            return False
        except CarouselError as error:
            return error
        return True
