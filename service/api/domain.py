"""What the handlers of calls hand over to."""

from __future__ import annotations

from typing import NamedTuple

from service.hosting import Hosting
from service.sessions.access import Access
from service.sessions.departures import Departures
from service.sessions.dispatcher import Dispatcher
from service.sessions.frames import Frames
from service.sessions.generations import Generations
from service.sessions.registry import Registry
from service.sessions.residency import Residency
from service.sessions.resumption import Resumption
from service.sessions.terms import TermsLimits


class Domain(NamedTuple):
    """Models, sessions, and what these do."""

    hosting: Hosting
    registry: Registry
    departures: Departures
    dispatcher: Dispatcher
    generations: Generations
    frames: Frames
    residency: Residency
    resumption: Resumption
    access: Access
    terms_limits: TermsLimits
