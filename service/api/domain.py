"""What the handlers of calls hand over to."""

from __future__ import annotations

from typing import NamedTuple

from service.api.catalog import Catalog
from service.sessions.dispatcher import Dispatcher
from service.sessions.frames import Frames
from service.sessions.registry import Registry


class Domain(NamedTuple):
    """Models, sessions, and what these do."""

    catalog: Catalog
    registry: Registry
    dispatcher: Dispatcher
    frames: Frames
