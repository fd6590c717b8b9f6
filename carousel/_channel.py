"""Options of channels and metadata of calls, for both clients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import grpc

from carousel import _arguments

ChannelOptions: TypeAlias = Sequence[tuple[str, Any]]
Metadata: TypeAlias = tuple[tuple[str, str | bytes], ...]

MAX_MESSAGE_BYTES = 64 * 2**20
"""Default for the largest response that the client accepts."""


def all_options(options: ChannelOptions, max_message_bytes: int) -> list[tuple[str, Any]]:
    """Returns Carousel's options, followed by the caller's, which override them. max_message_bytes: -1 for no limit.
    Raises the errors of `_arguments.at_least_one`, and TypeError for options that are not pairs."""
    if max_message_bytes != -1:
        _arguments.at_least_one(max_message_bytes, "max_message_bytes")
    try:
        given = [(name, value) for name, value in options]
    except (TypeError, ValueError):
        raise TypeError(f"channel_options must be pairs of a name and a value, not {options!r:.60}") from None
    return [
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),  # no limit here: the server's limit has a clearer error
        *given,
    ]


def open_channel(target: str, credentials: grpc.ChannelCredentials | None, options: ChannelOptions) -> grpc.Channel:
    """Makes a channel for blocking calls. credentials: None for plain text."""
    if credentials is None:
        return grpc.insecure_channel(target, options)
    return grpc.secure_channel(target, credentials, options)


def open_async_channel(
    target: str, credentials: grpc.ChannelCredentials | None, options: ChannelOptions
) -> grpc.aio.Channel:
    """Makes a channel for asyncio. credentials: None for plain text."""
    if credentials is None:
        return grpc.aio.insecure_channel(target, options)
    return grpc.aio.secure_channel(target, credentials, options)


def all_credentials(credentials: grpc.ChannelCredentials | None, token: str | None) -> grpc.ChannelCredentials | None:
    """Returns the credentials of a channel; None for plain text.

    A token is sent over TLS, or in plain text to this machine only: such a channel does not connect to another host.
    Raises TypeError, and InvalidArgumentError for a token that no header can hold. No error shows the token or a key.
    """
    if credentials is not None and not isinstance(credentials, grpc.ChannelCredentials):
        raise TypeError(f"credentials must be grpc.ChannelCredentials, not {type(credentials).__name__}")
    if token is None:
        return credentials
    if not isinstance(token, str):
        raise TypeError(f"token must be a string, not {type(token).__name__}")
    if not (token.isascii() and token.isprintable()):
        raise _arguments.invalid("token must have only printable ASCII characters, as a header requires", "token")
    return grpc.composite_channel_credentials(
        credentials or grpc.local_channel_credentials(), grpc.access_token_call_credentials(token)
    )


def watch_metadata(session_id: str) -> Metadata:
    """Returns `session_metadata` for a session id that may have the form `principal/id`: the header has the id
    alone."""
    return session_metadata(session_id.rpartition("/")[2])


def session_metadata(session_id: str, route: int = 0) -> Metadata:
    """Returns the header by which a proxy sends all calls of a session to one replica; nothing without an id. route: if
    above 0, the proxy may choose another replica than the id alone would.

    An id that no header can hold is left out, so that the server refuses it with a clearer error than gRPC's.
    """
    if session_id.isascii() and session_id.isprintable() and session_id:
        return (("x-session-id", f"{session_id}~{route}" if route else session_id),)
    return ()
