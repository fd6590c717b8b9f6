"""Options of channels and calls, for both clients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import grpc

ChannelOptions: TypeAlias = Sequence[tuple[str, Any]]
Metadata: TypeAlias = tuple[tuple[str, str | bytes], ...]

MAX_MESSAGE_BYTES = 64 * 2**20
"""The largest response accepted by default."""


def all_options(options: ChannelOptions, max_message_bytes: int) -> list[tuple[str, Any]]:
    """Carousel's options, then the caller's, which win."""
    return [
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),  # the server's limit decides, and its error says so
        *options,
    ]


def all_credentials(credentials: grpc.ChannelCredentials | None, token: str | None) -> grpc.ChannelCredentials | None:
    """The credentials of a channel; None for plain text.

    A token goes over TLS, or in plain text to this machine only: such a channel does not connect to another host.
    """
    if token is None:
        return credentials
    return grpc.composite_channel_credentials(
        credentials or grpc.local_channel_credentials(), grpc.access_token_call_credentials(token)
    )


def watch_metadata(session_id: str) -> Metadata:
    """`session_metadata` of a session that may be another's, `principal/id`: its owner sends the id alone."""
    return session_metadata(session_id.rpartition("/")[2])


def session_metadata(session_id: str, route: int = 0) -> Metadata:
    """The header by which a proxy sends all calls of a session to one replica; none without an id. route: above 0 for
    another replica, maybe, than the one that the id leads to.

    An id that no header can hold is left out: the server refuses it with a clearer error than grpc's.
    """
    if session_id.isascii() and session_id.isprintable() and session_id:
        return (("x-session-id", f"{session_id}~{route}" if route else session_id),)
    return ()
