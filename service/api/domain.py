"""What the handlers of calls work on."""

from __future__ import annotations

from typing import NamedTuple

from service.hosting import Hosting
from service.sessions.persistence import PolicyLimits
from service.sessions.service import SessionService


class Domain(NamedTuple):
    """Models, sessions, and the policies that a client may ask for."""

    hosting: Hosting
    sessions: SessionService
    policy_limits: PolicyLimits
