"""Prepares the session that an `Open` message asks for."""

from __future__ import annotations

from carousel.v1 import inference_pb2 as pb
from service.api import consumed, convert, session_messages
from service.api.caller import Caller, Domain
from service.api.constants import session_constants
from service.repository.repository import check_name
from service.sessions.opening import NewSession
from service.sessions.persistence import OnDisconnect
from service.sessions.request import Request
from service.sessions.session import OnEnded

_WITHIN = "open."
"""The prefix of the fields of an opening, for errors."""


def check(message: pb.Open) -> None:
    """Raises InvalidFieldError for an opening that no server could accept."""
    check_name(message.model, field=f"{_WITHIN}model")
    session_messages.check_policy(message)


def prepare(
    domain: Domain,
    caller: Caller,
    message: pb.Open,
    session_id: str,
    *,
    request: Request,
    on_ended: OnEnded,
    num_bytes: int,
    on_disconnect: OnDisconnect = OnDisconnect.FREE,
) -> NewSession:
    """Returns a session in OPENING. Raises ModelNotFoundError, ModelUnavailableError, and what `Opening.prepare`
    raises.

    session_id: as the client spells it; on_disconnect: the default if the message does not say.
    """
    served = domain.hosting.find(message.model, message.version, message.variant, within=_WITHIN)
    policy = session_messages.policy(message, domain.policy_limits, on_disconnect)
    source, outputs = None, None
    if message.HasField("source"):
        source = consumed.source_items(message.source, served.bundle, field="open.source")
    if message.HasField("outputs"):
        outputs = convert.output_spec(message.outputs, served.bundle, field="open.outputs")
    given = session_constants(message.constants, served.bundle.manifest, field="open.constants")
    return domain.sessions.opening.prepare(
        served,
        caller.new_key(session_id),
        source,
        outputs,
        request=request,
        on_ended=on_ended,
        policy=policy,
        is_chosen=bool(session_id),
        max_owned=caller.principal.max_sessions,
        num_bytes=num_bytes,
        within=_WITHIN,
        given=given,
    )
