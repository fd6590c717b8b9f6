"""The caller of a call: its principal, what it may do, and the internal ids of its sessions.

A session belongs to the principal that opened it. Its internal id is `principal/id`, so that two principals can use the
same id, and neither can reach sessions of the other. Event loop only.

Also defines `Domain`, which the handlers of calls work on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple

from service.errors import CarouselError, ForbiddenError, InvalidFieldError, RateLimitedError, quoted
from service.hosting import Hosting
from service.observer import current_call
from service.sessions.checks import check_session_id, invalid_session_id
from service.sessions.directory import random_name
from service.sessions.limits import PolicyLimits
from service.sessions.service import SessionService
from service.sessions.session import name_of, owner_of


class Domain(NamedTuple):
    """What handlers of calls use: the models, the sessions, and the limits of the policies that a client may ask
    for."""

    hosting: Hosting
    sessions: SessionService
    policy_limits: PolicyLimits


@dataclass(frozen=True, slots=True)
class Principal:
    """An identity that calls are made with.

    name: empty if there is no file of principals. is_admin: may see and change what belongs to others. max_sessions:
    live at once; None: no limit. max_requests_per_s: None: no limit.
    """

    name: str
    is_admin: bool = False
    max_sessions: int | None = None
    max_requests_per_s: float | None = None


class Caller:
    """One principal, in all of its calls. clock: monotonic seconds."""

    def __init__(self, principal: Principal, clock: Callable[[], float] = time.monotonic) -> None:
        self.principal = principal
        self._clock = clock
        self._allowance = 1.0
        self._counted_at_s = -float("inf")

    def admit(self) -> None:
        """Counts one request. Raises RateLimitedError if there were too many: a token bucket holds the requests of one
        second."""
        rate = self.principal.max_requests_per_s
        if rate is None:
            return
        now_s = self._clock()
        depth = max(1.0, rate)
        self._allowance = min(depth, self._allowance + (now_s - self._counted_at_s) * rate)
        self._counted_at_s = now_s
        if self._allowance < 1.0:
            raise RateLimitedError(
                f"principal {quoted(self.principal.name)} may send {rate:g} requests per second: try again later",
                retry_delay_s=(1.0 - self._allowance) / rate,
                max_requests_per_s=rate,
            )
        self._allowance -= 1.0

    def check_admin(self, what: str) -> None:
        """Raises ForbiddenError unless the principal is an admin. what: the action, for the error."""
        if not self.principal.is_admin:
            raise ForbiddenError(f"{what} needs an admin: principal {quoted(self.principal.name)} is not one")

    def new_key(self, session_id: str, *, field: str = "session_id") -> str:
        """Returns the internal id of a new session. Makes one for an empty id; if the caller has no name, returns an
        empty id instead, and the session gets its id when it is made. Raises InvalidFieldError."""
        if session_id:
            return self.key(session_id, field=field)
        return f"{self.principal.name}/{random_name()}" if self.principal.name else ""

    def key(self, session_id: str, *, field: str = "session_id") -> str:
        """Returns the internal id of a session of the caller's own.

        Raises InvalidFieldError for an id that no session can have, also for an empty one, so that such an id reaches
        neither the sessions nor the store. For an admin, the error says which calls accept the sessions of others.
        """
        if "/" in session_id:
            if self._names_others:
                check_session_id(session_id, field=field)
                raise InvalidFieldError(
                    f"{field} = {quoted(session_id)} is a session of another principal: an admin may use Sessions and"
                    " Watch on it, but can open, feed and resume only its own sessions",
                    field=field,
                )
            raise invalid_session_id(session_id, field=field)
        check_session_id(session_id, field=field)
        return f"{self.principal.name}/{session_id}" if self.principal.name else session_id

    def any_key(self, session_id: str, *, field: str = "session_id") -> str:
        """Returns the internal id of a session. If the caller is an admin with a name, it may be the session of another
        principal, `principal/id`. Raises InvalidFieldError as `key` does."""
        if self._names_others and "/" in session_id:
            check_session_id(session_id, field=field)
            current_call().others_session = session_id
            return session_id
        return self.key(session_id, field=field)

    @property
    def _names_others(self) -> bool:
        """Whether the caller may use ids of the form `principal/id`."""
        return self.principal.is_admin and bool(self.principal.name)

    def shown(self, key: str) -> str:
        """Returns the id of a session as the caller spells it."""
        return name_of(key) if owner_of(key) == self.principal.name else key


NOBODY = Caller(Principal("", is_admin=True))
CALLER: ContextVar[Caller] = ContextVar("caller", default=NOBODY)
"""The caller of the call that is being handled."""


def as_called(error: CarouselError, session_id: str) -> None:
    """Makes an error name another principal's session as the admin of the call does, `principal/id`. The code that
    makes errors does not know the caller and names a session as its owner does."""
    name = name_of(session_id)
    if name != session_id and error.facts.get("session_id") == name:
        error.message = error.message.replace(repr(name), repr(session_id))
        error.facts["session_id"] = session_id
